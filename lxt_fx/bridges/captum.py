"""Captum's interface over an explained module: captum code differs in the line that makes the method.

    from lxt_fx.bridges.captum import Relevance
    method = Relevance(model)                        # was: captum.attr.InputXGradient(model)
    attribution = method.attribute(inputs, target=4)

Captum is at pytorch/captum (Kokhlikyan et al. 2020); its interface is that of version 0.9.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from lxt_fx.attribution.non_finite import is_finite, raise_non_finite
from lxt_fx.attribution.places import places_at
from lxt_fx.attribution.watch import watch
from lxt_fx.base.errors import InputError
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.bridges.example_targets import Target, chosen, output_tensor
from lxt_fx.bridges.input_relevance import positional_call, relevance_of_inputs
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
        _refuse_options(options)
        single = isinstance(inputs, Tensor)
        given = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
        found = relevance_of_inputs(
            self.forward_func, given, _further(additional_forward_args), target, self.rules, "captum.Relevance"
        )
        return found[0] if single else found

    @property
    def multiplies_by_inputs(self) -> bool:
        """True: relevance is value * gradient."""
        return True


class LayerRelevance(Attribution):
    """Relevance inside the model, as a layer method of captum.

    `layer` is a module of the model, its path, a standard place (`residual.2`, `mlp.0.neurons`; `lxt_fx.places` lists them)
    or a `%node`. An explained module does not hold the model's own modules, so there give the path or the place.
    """

    def __init__(self, forward_func: nn.Module, layer: nn.Module | str, rules: Rules | None = None) -> None:
        super().__init__(forward_func)
        self.layer, self.rules = layer, rules
        self.place = layer if isinstance(layer, str) else _path_of(forward_func, layer)

    @_as_captum_calls_it
    def attribute(
        self, inputs: Inputs, target: Target = None, additional_forward_args: Any = None, **options: object
    ) -> Tensor:
        """The relevance at the output of the layer, or at the place, in the shape of its value. The arguments are those of
        `Relevance.attribute`. Raises what that raises, and InputError where the layer has no single output."""
        _refuse_options(options)
        given = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
        function = "captum.LayerRelevance"
        with gradients_on():
            args = (*given, *_further(additional_forward_args))
            _, call = positional_call(self.forward_func, args, self.rules, function)
            places = places_at(call.module, self.place, function)
            if len(places) != 1:
                raise InputError(f"{function}: {self.place!r} means several places ({', '.join(places)}); give one of them")

            def numbers_in(output: Any) -> Tensor:
                return chosen(output_tensor(output, function), target, function)

            with watch(call.called, self.place) as inside:
                numbers = numbers_in(call.output())
            explicit = call.module.record.form == "explicit"  # there the backward of each example starts with its number
            numbers.backward(numbers.detach() if explicit else torch.ones_like(numbers))  # type: ignore[no-untyped-call]
            relevance = inside[next(iter(places))].relevance.detach()
            if not is_finite([numbers, relevance]):
                what = f"{function}: an explained number, or its relevance,"
                raise_non_finite(call.module, call.bound, lambda output: numbers_in(output).sum(), what)
        return relevance


def _path_of(model: nn.Module, layer: nn.Module) -> str:
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

    def attribute(self, inp: Any, target: Any) -> LLMAttributionResult:
        """`inp` is a text, captum's `TextTokenInput`, or token ids; `target` the answer, a text or token ids. The result
        has `token_attr` [answer, prompt], and `seq_attr` [prompt], its sum over the answer."""
        ids = inp.to_model_input() if hasattr(inp, "to_model_input") else inp
        if not isinstance(ids, str | Tensor):
            raise InputError(
                f"captum.LLMRelevance: inp must be a text, a TextTokenInput or token ids, got {type(inp).__name__} with "
                f"{type(ids).__name__}"
            )
        prompt = ids if isinstance(ids, str) else ids.reshape(-1).tolist()
        answer = target.reshape(-1).tolist() if isinstance(target, Tensor) else target
        found = answer_relevance(self.model, self.tokenizer, prompt, answer, rules=self.rules)
        assert isinstance(found, Explanation), "one prompt"
        skipped = getattr(inp, "itp_mask", None)
        return llm_attribution_result(found, None if skipped is None else skipped.reshape(-1).bool())


def llm_attribution_result(answer: Explanation, shown: Tensor | None = None) -> LLMAttributionResult:
    """What `lxt_fx.answer_relevance` returned for a causal language model, as captum's result, which it can plot. `shown`
    [prompt] says which tokens of the prompt it has, all by default. Raises InputError for another explanation."""
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


def _further(additional: Any) -> tuple[Any, ...]:
    if additional is None:
        return ()
    return additional if isinstance(additional, tuple) else (additional,)


def _refuse_options(options: dict[str, object]) -> None:
    if options:
        raise InputError(
            f"captum: relevance has no {', '.join(options)}; it needs no baseline, and one backward. Leave it out; "
            "lxt_fx.audit(model, inputs, target) says how much of the number reached the inputs and what took the rest"
        )


__all__ = ["LLMRelevance", "LayerRelevance", "Relevance", "llm_attribution_result", "visualization_record"]
