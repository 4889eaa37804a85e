"""Captum's interface over an explained module: captum code differs in the line that makes the method.

    from lxt_fx.bridges.captum import Relevance
    method = Relevance(model)                        # was: captum.attr.InputXGradient(model)
    attribution = method.attribute(inputs, target=4)

Captum is at pytorch/captum (Kokhlikyan et al. 2020); its interface is that of version 0.9.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from lxt_fx.base.errors import InputError
from lxt_fx.bridges.captum_arguments import further_inputs, given_inputs, refuse_options
from lxt_fx.bridges.example_targets import Target
from lxt_fx.bridges.input_relevance import relevance_of_inputs
from lxt_fx.bridges.layer_relevance import relevance_of_layers
from lxt_fx.bridges.peer import peer
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.options import Rules
from lxt_fx.results.explanation import Explanation
from lxt_fx.results.readings import TextReading
from lxt_fx.tasks.answers import answer_relevance

if TYPE_CHECKING:
    from captum.attr import Attribution, LLMAttributionResult
    from captum.attr.visualization import VisualizationDataRecord
else:
    _captum = peer("captum.attr", "captum")
    Attribution, LLMAttributionResult = _captum.Attribution, _captum.LLMAttributionResult
    VisualizationDataRecord = _captum.visualization.VisualizationDataRecord

Inputs = Tensor | tuple[Tensor, ...]

P = ParamSpec("P")
R = TypeVar("R")


def _as_captum_calls_it(method: Callable[P, R]) -> Callable[P, R]:
    """A method that methods of captum around it, such as `NoiseTunnel`, can call: they ask for its `__wrapped__`."""

    @wraps(method)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        return method(*args, **kwargs)

    return called


class Relevance(Attribution):
    """Relevance of the inputs, as a method of captum.

    `forward_func` is a model, which is transformed on the inputs of each call (it is captured once), or what
    `lxt_fx.transform` made of it. `rules` is a name in `lxt_fx.TABLES`, a table or a composite. Captum's `InputXGradient`
    over an explained module gives the same numbers, where the inputs are floats.
    """

    def __init__(self, forward_func: nn.Module, rules: Rules | None = None) -> None:
        super().__init__(forward_func)
        self.rules = rules

    @_as_captum_calls_it
    def attribute(
        self, inputs: Inputs, target: Target = None, additional_forward_args: Any = None, **options: object
    ) -> Inputs:
        """The relevance of each input, in its shape: a tensor, or a tuple of them as `inputs` is. The inputs are floats
        [batch, ...], embeddings [batch, tokens, hidden], or token ids [batch, tokens], which have the relevance of their
        tokens. `target` and `additional_forward_args` are as in captum: `target` indexes the output of each example
        (its `logits`, where the model returns several values); the further inputs follow by position.

        Raises InputError for options of other methods (baselines, n_steps, return_convergence_delta): relevance needs no
        baseline, and what is not passed on to the inputs is listed by `lxt_fx.audit`.
        """
        refuse_options(options)
        single = isinstance(inputs, Tensor)
        found = relevance_of_inputs(
            self.forward_func,
            given_inputs(inputs),
            further_inputs(additional_forward_args),
            target,
            self.rules,
            "captum.Relevance",
        )
        return found[0] if single else found

    @property
    def multiplies_by_inputs(self) -> bool:
        """True: relevance is value * gradient."""
        return True


class LayerRelevance(Attribution):
    """Relevance inside the model, as a layer method of captum.

    `layer` is a module of the model, its path, a standard place (`residual.2`, `mlp.0.neurons`; `lxt_fx.places` lists them)
    or a `%node`, or a list of these. The module that looks token ids up (`model.embed_tokens`) is one too. An explained
    module does not hold the model's own modules, so there give the path or the place.
    """

    def __init__(
        self, forward_func: nn.Module, layer: nn.Module | str | Sequence[nn.Module | str], rules: Rules | None = None
    ) -> None:
        super().__init__(forward_func)
        self.layer, self.rules = layer, rules
        several = [layer] if isinstance(layer, nn.Module | str) else list(layer)
        self.places = [each if isinstance(each, str) else _path_of(forward_func, each) for each in several]

    @_as_captum_calls_it
    def attribute(
        self, inputs: Inputs, target: Target = None, additional_forward_args: Any = None, **options: object
    ) -> Tensor | list[Tensor]:
        """The relevance at the output of the layer, or at the place, in the shape and dtype of its value; for a list of
        layers a list. The arguments are those of `Relevance.attribute`. Raises what that raises, and InputError where a
        layer has no single output, or the target depends on none of them. The model gets no gradients."""
        refuse_options(options)
        args = (*given_inputs(inputs), *further_inputs(additional_forward_args))
        found = relevance_of_layers(self.forward_func, args, self.places, target, self.rules, "captum.LayerRelevance")
        return found[0] if isinstance(self.layer, nn.Module | str) else found


def _path_of(model: nn.Module, layer: nn.Module) -> str:
    if not isinstance(layer, nn.Module):
        raise InputError(f"captum.LayerRelevance: layer must be a module, its path or a place, got {type(layer).__name__}")
    path: str | None = next((path for path, module in model.named_modules() if module is layer), None)
    if path is None or isinstance(model, Explained):
        raise InputError(
            "captum.LayerRelevance: the layer is no module of this model"
            f"{', since an explained module has copies without code' if isinstance(model, Explained) else ''}; give the "
            'path of the layer ("model.layers.1") or a standard place ("residual.1")'
        )
    return path


class LLMRelevance:
    """Relevance of a prompt for each token of an answer, as captum's `LLMGradientAttribution` gives it. The explained
    number is the logit of each answer token (captum's is its log-probability)."""

    def __init__(self, model: nn.Module, tokenizer: Any, rules: Rules | None = None) -> None:
        self.model, self.tokenizer, self.rules = model, tokenizer, rules

    def attribute(
        self, inp: Any, target: Any = None, gen_args: Mapping[str, Any] | None = None, **options: object
    ) -> LLMAttributionResult:
        """`inp` is a text, captum's `TextTokenInput`, or token ids [prompt] or [1, prompt]; `target` the answer alone, a
        text or token ids. Without a target it is what the model generates with `gen_args`, by default 25 tokens without
        sampling, as in captum. The result has `token_attr` [answer, prompt], and `seq_attr` [prompt], its sum over the
        answer.

        Raises InputError for inputs whose features are no tokens (`TextTemplateInput`), for `gen_args` beside a target, and
        for options of other methods; and what `lxt_fx.answer_relevance` raises.
        """
        refuse_options(options, "inp, target and gen_args")
        prompt = self._prompt(inp)
        if target is not None and gen_args is not None:
            raise InputError("captum.LLMRelevance: gen_args is for an answer that is generated, and target is given")
        answer = self._generated(prompt, gen_args) if target is None else target
        answer = answer.reshape(-1).tolist() if isinstance(answer, Tensor) else answer
        found = answer_relevance(self.model, self.tokenizer, prompt, answer, with_prompt=False, rules=self.rules)
        if not isinstance(found, Explanation):
            raise InputError("captum.LLMRelevance: give one prompt; lxt_fx.answer_relevance takes a list of them")
        skipped = getattr(inp, "itp_mask", None)
        return llm_attribution_result(found, None if skipped is None else skipped.reshape(-1).bool())

    def _prompt(self, inp: Any) -> str | list[int]:
        if hasattr(inp, "to_model_input") and not hasattr(inp, "itp_tensor"):
            raise InputError(
                f"captum.LLMRelevance: relevance is that of tokens, and the features of {type(inp).__name__} are none; "
                "give inp.to_model_input() and add up the tokens of each feature"
            )
        ids = inp.to_model_input() if hasattr(inp, "to_model_input") else inp
        if isinstance(ids, str):
            return ids
        if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.numel() != ids.shape[-1]:
            raise InputError(
                "captum.LLMRelevance: inp must be a text, a TextTokenInput or the token ids of one text, got "
                f"{type(inp).__name__}{f' {list(ids.shape)}' if isinstance(ids, Tensor) else ''}"
            )
        return [int(token) for token in ids.reshape(-1)]

    def _generated(self, prompt: str | list[int], gen_args: Mapping[str, Any] | None) -> Tensor:
        """What the model writes behind the prompt, [answer]."""
        generate = getattr(self.model, "generate", None)
        if generate is None:
            raise InputError(
                f"captum.LLMRelevance: {type(self.model).__name__} does not generate, so give target=: the answer that the "
                "model itself generates, or any other"
            )
        ids = self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        given = torch.tensor([ids], device=next(self.model.parameters()).device)
        written = generate(given, attention_mask=torch.ones_like(given), **(gen_args or _GREEDY))
        if not isinstance(written, Tensor) or len(written) != 1:
            raise InputError(
                "captum.LLMRelevance: gen_args must ask for one answer, as ids; give each of several answers as target="
            )
        return written[0, len(ids) :]


_GREEDY: Mapping[str, Any] = {"max_new_tokens": 25, "do_sample": False, "temperature": None, "top_p": None}
"""How captum generates by default."""


def llm_attribution_result(answer: Explanation, shown: Tensor | None = None) -> LLMAttributionResult:
    """What `lxt_fx.answer_relevance` returned for a causal language model, as captum's result, which it can plot. `shown`
    [prompt] says which tokens of the prompt it has, all by default. Raises InputError for another explanation."""
    _check_one(answer, "llm_attribution_result")
    reading, count = answer.parts[0].reading, len(answer.numbers)
    if not isinstance(reading, TextReading) or not answer.parts[0].several or reading.answer != count:
        raise InputError("llm_attribution_result: give what lxt_fx.answer_relevance returns for a causal language model")
    places = torch.arange(len(reading.tokens) - count)
    places = places if shown is None else places[shown]
    by_token = answer.parts[0].values[:, places]
    return LLMAttributionResult(
        input_tokens=[reading.tokens[place] for place in places.tolist()],
        output_tokens=list(reading.tokens[-count:]),
        seq_attr=by_token.sum(0),
        token_attr=by_token,
    )


def visualization_record(
    explanation: Explanation, *, true_class: str = "", probability: float = math.nan
) -> VisualizationDataRecord:
    """The text of an explanation as a record for captum's `visualize_text`, scaled so that the largest |relevance| is 1.
    `attr_score` is the sum. Captum does not escape what it writes into HTML, so tokens are escaped here. Raises InputError
    for an explanation of several numbers or without text."""
    _check_one(explanation, "visualization_record")
    part = next((part for part in explanation.parts if isinstance(part.reading, TextReading)), None)
    if part is None or part.several or not isinstance(part.reading, TextReading):
        raise InputError("visualization_record: give the explanation of one number of a text; explanation[i] is number i")
    number = explanation.numbers[0]
    largest = float(part.values.abs().max()) or 1.0
    return VisualizationDataRecord(
        word_attributions=part.values / largest,
        pred_prob=probability,
        pred_class=html.escape(number.label),
        true_class=html.escape(true_class),
        attr_class=html.escape(number.label),
        attr_score=float(part.values.sum()),
        raw_input_ids=[html.escape(token) for token in part.reading.tokens],
        convergence_score=number.value - float(part.values.sum()),
    )


def _check_one(explanation: object, function: str) -> None:
    if not isinstance(explanation, Explanation):
        raise InputError(
            f"{function}: give one Explanation, got {type(explanation).__name__}; of several, call it for each: "
            f"[{function}(one) for one in explanations]"
        )


__all__ = ["LLMRelevance", "LayerRelevance", "Relevance", "llm_attribution_result", "visualization_record"]
