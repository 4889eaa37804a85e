"""Pipelines of transformers that explain what they answer, and the interface of transformers-interpret.

`lxt_fx.explain(pipeline, None, inputs)` takes a pipeline in the place of a model. `with_relevance(pipeline)` is called as
the pipeline is, and returns what it returns with the explanation of its answer beside it. `Explainer` is called as an
explainer of transformers-interpret (cdpierse/transformers-interpret, version 0.10) is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lxt_fx.base.errors import InputError
from lxt_fx.compiler.options import Rules
from lxt_fx.results.explanation import Explanation
from lxt_fx.tasks.answers import answer_relevance
from lxt_fx.tasks.explain import explain

Answer = dict[str, Any]


def with_relevance(pipeline: Any, rules: Rules | None = None) -> Callable[..., Any]:
    """The pipeline as a function that adds `explanation` to each of its answers.

        classify = with_relevance(transformers.pipeline("text-classification", ...))
        answer = classify("a long and boring film")[0]
        answer["label"], answer["score"], answer["explanation"].to_html("why.html")

    Explained is what the pipeline says: of classes the logit of the likeliest label, of a written text every token of it
    (an explanation of several numbers), of anything else what `explain` explains by default. An answer that the pipeline
    gives as a list of dicts has it in the first one; for a list of inputs each has its own. Options of the call go to the
    pipeline alone. What is written has its `generated_token_ids` too.

    Raises InputError for what is no pipeline, for answers without dicts, and what `explain` raises.
    """
    if not hasattr(pipeline, "task") or not isinstance(getattr(pipeline, "model", None), nn.Module):
        raise InputError(f"with_relevance: give a pipeline of transformers, got {type(pipeline).__name__}")

    def call(inputs: Any, **options: Any) -> Any:
        answers = (_written if pipeline.task == "text-generation" else pipeline)(inputs, **options)
        several = isinstance(inputs, list) and not _is_chat(inputs)
        for one, answer in zip(inputs, answers, strict=True) if several else ((inputs, answers),):
            first = _first(answer)
            first["explanation"] = _explained(pipeline, one, first, rules)
        return answers

    def _written(inputs: Any, return_full_text: bool = True, **options: Any) -> Any:
        """The answers of a pipeline that writes, with their ids: a text may be tokenised in another way than it was
        written, and then each token of it would be another one."""
        if isinstance(inputs, list) and _is_chat(inputs):
            raise InputError(
                "with_relevance: a pipeline that writes is given texts here; lxt_fx.answer_relevance explains a chat"
            )
        answers = pipeline(inputs, return_tensors=True, **options)
        for one, several in zip(inputs, answers, strict=True) if isinstance(inputs, list) else ((inputs, answers),):
            for answer in several:
                answer["generated_token_ids"] = _without_padding(pipeline, one, list(answer["generated_token_ids"]))
                answer["generated_text"] = _text(pipeline, one, answer["generated_token_ids"], return_full_text)
        return answers

    return call


def _without_padding(pipeline: Any, prompt: Any, ids: list[int]) -> list[int]:
    """The ids of prompt and answer. A pipeline that answers several texts at once pads them to one length: on the left to
    the longest prompt, on the right, behind the token that ends a text, to the longest answer."""
    tokenizer = pipeline.tokenizer
    pad, end = tokenizer.pad_token_id, pipeline.model.generation_config.eos_token_id
    given = tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else []
    start = next((at for at in range(len(ids)) if ids[at : at + len(given)] == given), 0)
    ids = ids[start:] if all(token == pad for token in ids[:start]) else ids
    ends = {end} if isinstance(end, int) else set(end or ())
    last = next((at for at, token in enumerate(ids) if at >= len(given) and token in ends), len(ids))
    return ids[: last + 1] if all(token == pad for token in ids[last + 1 :]) else ids


def _text(pipeline: Any, prompt: Any, ids: Sequence[int], full: bool) -> str:
    if not isinstance(prompt, str):
        raise InputError("with_relevance: give a pipeline that writes a text; for a chat call lxt_fx.answer_relevance")
    behind = len(pipeline.tokenizer(prompt)["input_ids"])
    written: str = pipeline.tokenizer.decode(ids[behind:], skip_special_tokens=True)
    return prompt + written if full else written


def _is_chat(inputs: Sequence[Any]) -> bool:
    return bool(inputs) and isinstance(inputs[0], dict) and "role" in inputs[0]


def _first(answer: Any) -> Answer:
    """The first answer to one input."""
    found = answer[0] if isinstance(answer, list) and answer else answer
    if not isinstance(found, dict):
        raise InputError(f"with_relevance: the pipeline answers with {type(found).__name__}, and a dict is needed")
    return found


def _explained(pipeline: Any, one: Any, answer: Answer, rules: Rules | None) -> Any:
    if pipeline.task == "text-generation":
        return answer_relevance(pipeline, None, one, list(answer["generated_token_ids"]), with_prompt=True, rules=rules)
    label = answer.get("label") if pipeline.task in ("text-classification", "image-classification") else None
    return explain(pipeline, None, one, label, rules=rules)


class Explainer:
    """A classifier of texts that returns relevance as transformers-interpret does.

        explainer = Explainer(model, tokenizer)      # was: SequenceClassificationExplainer(model, tokenizer)
        word_attributions = explainer("I love you, I like you")
        explainer.predicted_class_name

    `model` may be a pipeline or an explained module.
    """

    def __init__(self, model: Any, tokenizer: Any = None, rules: Rules | None = None) -> None:
        self.model, self.tokenizer, self.rules = model, tokenizer, rules
        self._last: Explanation | None = None

    def __call__(
        self, text: str, index: int | None = None, class_name: str | None = None
    ) -> list[tuple[str, float]]:
        """Each token with its relevance for the likeliest class, or for the one with this index or name."""
        target = class_name if class_name is not None else index
        found = explain(self.model, self.tokenizer, text, target, rules=self.rules)
        if not isinstance(found, Explanation):
            raise InputError("Explainer: give one text")
        self._last = found
        return self.word_attributions

    @property
    def explanation(self) -> Explanation:
        """The explanation of the last call. Raises InputError before it."""
        if self._last is None:
            raise InputError("Explainer: nothing was explained yet; call it with a text first")
        return self._last

    @property
    def word_attributions(self) -> list[tuple[str, float]]:
        """Each token of the last text with its relevance. They add up to what reached the tokens; nothing is scaled."""
        part = self.explanation.parts[0]
        return [(part.place(at)[1], value) for at, value in enumerate(part.values.tolist())]

    @property
    def predicted_class_name(self) -> str:
        """The name of the class that was explained."""
        return self.explanation.numbers[0].label

    def visualize(self, path: str | Path) -> None:
        """Writes the last explanation as a page."""
        self.explanation.to_html(path)


__all__ = ["Explainer", "with_relevance"]
