"""Explain one text or one image: from a model to the relevance of every token or pixel in one call."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lxt_fx.attribution.embeddings import embed
from lxt_fx.attribution.image_explanation import ImageExplanation
from lxt_fx.attribution.leaf_relevance import leaf_relevance
from lxt_fx.attribution.non_finite import is_finite, raise_non_finite
from lxt_fx.attribution.readable_tokens import Tokenizer
from lxt_fx.attribution.target import Choice, TargetLike, choose, class_labels, position_of
from lxt_fx.attribution.text_explanation import Explanation
from lxt_fx.attribution.text_input import Text, TextInput, read_text
from lxt_fx.base.errors import InputError
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.options import Options, Rules, table_named
from lxt_fx.compiler.pipeline import captured_from, compiled_by
from lxt_fx.passes.positions.asked import answers_by_token


def explain(
    model: nn.Module,
    tokenizer: Tokenizer,
    text: Text,
    target: TargetLike = None,
    *,
    labels: Sequence[str] | None = None,
    rules: Rules | None = None,
) -> Explanation:
    """How much each token of `text` speaks for or against what the model says.

    `model` is a transformers model, or what `transform` made from one; to explain many texts, transform once. `text`
    is a string, its token ids, or what the tokenizer returns for one text. `target` chooses the number that is
    explained:

    - None: the largest logit, of a language model after the last token, of a masked one at the first mask, of a
      classifier the top class, of a token classifier at the last token that is not special;
    - an index or a name (`" Paris"`, `"positive"`): that logit; a string must be one token. Without a space in front
      it is read with and without one, and the likelier reading is meant;
    - two of them, `("Paris", "London")`: the first logit less the second;
    - `Target.at(position, ...)`: the same at another position;
    - a function of the model's output that returns a scalar tensor.

    `explanation.explained` says which number it became. `labels` names the classes where the model's config does not.
    `rules` is a name in `lxt_fx.TABLES` or a RuleTable; None means `attnlrp`, or the table that an explained module
    has.

    Raises InputError for a text or target that does not fit the model, and what `transform` raises. The model is left
    as it is: no gradient reaches its parameters.
    """
    with gradients_on():
        read = read_text(tokenizer, text, _device(model))
        inputs = _text_inputs(model, read)
        explained = _explained(model, inputs, rules, read, target)
        leaf, record = inputs["inputs_embeds"], explained.record

        def choice(output: Any) -> Choice:
            names = class_labels(model, labels)
            return choose(target, output, names, read, record.model_class, positions=record.positions)

        found = _attribute(explained, inputs, leaf, choice)
    attribution = found.attribution[0]
    return Explanation(
        tokens=read.tokens,
        input_ids=tuple(read.id_list()),
        relevance=attribution.sum(dim=-1),
        attribution=attribution,
        explained=found.said,
        value=found.value,
        table_name=explained.record.table_name,
        model_class=explained.record.model_class,
        seconds=found.seconds,
    )


def explain_image(
    model: nn.Module,
    pixel_values: Tensor,
    target: TargetLike = None,
    *,
    labels: Sequence[str] | None = None,
    rules: Rules | None = None,
) -> ImageExplanation:
    """How much each pixel of an image speaks for or against a class.

    `model` is a transformers image classifier, or what `transform` made from one. `pixel_values` [channels, height,
    width] or [1, channels, height, width] are normalised as the model wants them. `target` is a class by index or
    label, two of them for the difference of their logits, a function of the output, or None for the top class.
    `labels` and `rules` are those of `explain`. Raises what `explain` raises.
    """
    with gradients_on():
        leaf = _pixels(model, pixel_values)
        explained = _explained(model, {"pixel_values": leaf}, rules)
        if "pixel_values" not in explained.record.inputs:
            raise InputError(_wrong_input(explained, "pixel_values", "explain is for text"))
        found = _attribute(
            explained,
            {"pixel_values": leaf},
            leaf,
            lambda output: choose(target, output, class_labels(model, labels), None, explained.record.model_class),
        )
    attribution = found.attribution[0]
    return ImageExplanation(
        pixel_values=leaf.detach()[0].cpu(),
        relevance=attribution.sum(dim=0),
        attribution=attribution,
        explained=found.said,
        value=found.value,
        table_name=explained.record.table_name,
        model_class=explained.record.model_class,
        seconds=found.seconds,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """Leaf times gradient, on the CPU and at least float32; what was explained, its value, and the time it took."""

    attribution: Tensor
    said: str
    value: float
    seconds: float


def _attribute(explained: Explained, inputs: Mapping[str, Tensor], leaf: Tensor, choice: Callable[[Any], Choice]) -> _Found:
    start = time.perf_counter()
    explained = explained._fitting(explained._bind((), dict(inputs)))
    output = explained(**inputs)
    chosen = choice(output)
    if not chosen.value.requires_grad:
        raise InputError(
            f"explain: {chosen.said} does not depend on the input by a differentiable path, so nothing can be "
            "explained; return a number computed from the output, without detach, item or argmax"
        )
    relevance = leaf_relevance(explained, output, chosen.value, leaf)
    if relevance is None:
        raise InputError(f"explain: {chosen.said} does not depend on the input; choose another number of the output")
    attribution = relevance.cpu()
    value, seconds = float(chosen.value.detach()), time.perf_counter() - start
    if not is_finite([chosen.value.detach(), attribution]):
        bound, said = explained._bind((), dict(inputs)), f"explain: {chosen.said}, or its relevance,"
        raise_non_finite(explained, bound, lambda output: choice(output).value, said)
    return _Found(attribution, chosen.said, value, seconds)


def _explained(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    rules: Rules | None,
    text: TextInput | None = None,
    target: TargetLike = None,
) -> Explained:
    """The model as it is if already explained, else transformed on these very inputs, to answer at the position of the
    target only."""
    if not isinstance(model, Explained):
        table = table_named("attnlrp" if rules is None else rules)
        source = captured_from(model, (), dict(inputs), dynamic=False)
        at = None if text is None else position_of(target, text, source.model_class)
        if text is None or at is None or not answers_by_token(source.captured.gm, len(text.tokens)):
            return compiled_by(source, table, Options())
        return compiled_by(source, table, Options(positions=(-1 if at == len(text.tokens) - 1 else at,)))
    if rules is not None and table_named(rules).name != model.record.table_name:
        raise InputError(
            f"explain: rules={table_named(rules).name!r}, but this module was made with {model.record.table_name!r}; "
            "leave rules out, or transform the model with the other table"
        )
    return model


def _text_inputs(model: nn.Module, text: TextInput) -> dict[str, Tensor]:
    """The embeddings of the text and the other inputs that came with it."""
    accepted = _accepted(model)
    if "decoder_inputs_embeds" in accepted and getattr(getattr(model, "config", None), "is_encoder_decoder", True):
        raise InputError(
            f"explain: {_name(model)} has an encoder and a decoder, and a text alone does not say what the decoder "
            "read; transform it and call it with inputs_embeds and decoder_inputs_embeds: relevance is leaf * leaf.grad"
        )
    if "inputs_embeds" not in accepted:
        raise InputError(_wrong_input(model, "inputs_embeds", "explain_image is for images"))
    return {"inputs_embeds": embed(model, text.ids), **text.extras_for(accepted, _name(model))}


def _accepted(model: nn.Module) -> tuple[str, ...]:
    if isinstance(model, Explained):
        return model.record.inputs
    return tuple(inspect.signature(model.forward).parameters)


def _wrong_input(model: nn.Module, wanted: str, other: str) -> str:
    return (
        f"explain: {_name(model)} takes no {wanted}, it takes {', '.join(_accepted(model))}; {other}, and for anything "
        "else call the transformed model yourself: relevance is leaf * leaf.grad"
    )


def _pixels(model: nn.Module, pixel_values: Tensor) -> Tensor:
    if not isinstance(pixel_values, Tensor) or not pixel_values.is_floating_point():
        raise InputError("explain_image: pixel_values must be a floating-point tensor, as the image processor gives it")
    image = pixel_values[None] if pixel_values.dim() == 3 else pixel_values
    if image.dim() != 4 or len(image) != 1:
        raise InputError(
            f"explain_image: pixel_values has shape {list(pixel_values.shape)}, but one image at a time is explained, "
            "as [channels, height, width]; loop over the images of a batch"
        )
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), image.dtype)
    return image.detach().to(_device(model), dtype, copy=True).requires_grad_(True)


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _name(model: nn.Module) -> str:
    return model.record.model_class if isinstance(model, Explained) else type(model).__name__
