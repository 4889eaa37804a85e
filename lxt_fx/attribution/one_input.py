"""Explain one text or one image: from a model to the relevance of every token or pixel in one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lxt_fx.attribution.as_explained import as_explained
from lxt_fx.attribution.embeddings import as_called
from lxt_fx.attribution.leaf_call import LeafCall, leaf_call
from lxt_fx.attribution.leaf_relevance import leaf_relevance
from lxt_fx.attribution.made_results import of_image, of_text, origin_of
from lxt_fx.attribution.non_finite import is_finite, raise_non_finite
from lxt_fx.attribution.readable_tokens import Tokenizer
from lxt_fx.attribution.target import TargetFunction, TargetLike, Wanted, one_target
from lxt_fx.attribution.target_entry import Choice, Reading, choose, position_of
from lxt_fx.attribution.teacher_forced import ForcedName, forced_name
from lxt_fx.attribution.text_input import Text, TextInput, read_text
from lxt_fx.base.errors import InputError
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.options import Options, Rules, table_named
from lxt_fx.compiler.pipeline import captured_from, compiled_by
from lxt_fx.passes.capture.example import is_transformers
from lxt_fx.passes.capture.opened_model import opened
from lxt_fx.passes.capture.signature import named_signature
from lxt_fx.passes.positions.asked_positions import answers_by_token
from lxt_fx.results.explanation import Explanation
from lxt_fx.results.origin import ExplainedNumber


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

    - None: the largest logit. A language model is asked after the last token, a masked one at the first mask, a token
      classifier at the last token that is not special;
    - an index (a number of Python, numpy or torch) or a name (`" Paris"`, `"positive"`): that logit. A name without a
      leading space is tried with and without one, and the likelier token is taken;
    - two of them, `("Paris", "London")`: the first logit minus the second;
    - `Target.at(position, ...)`: the same at another position;
    - a name of several tokens, `" San Francisco"`, for a causal language model: the sum of their log-probabilities, each
      given the tokens before it. All of them but the last are appended to the text. They have relevance too, and are the
      last `explanation.answer_tokens` of `explanation.tokens`;
    - a function of the model's output that returns a scalar tensor.

    `explanation.explained` says which number was explained. `labels` names the classes if the model's config does not.
    `rules` is a name in `lxt_fx.TABLES` or a RuleTable. None means `attnlrp` for a model and its own table for an explained
    module; an explained module under another table is transformed to the given rules.

    Raises InputError for a text or target that does not fit the model, and what `transform` raises. The model does not
    change: no gradient reaches its parameters.
    """
    model = opened(model, "explain")
    with gradients_on():
        read, wanted = read_text(tokenizer, text, _device(model), "explain"), one_target(target, "explain")
        forced = _forced(model, wanted, read, labels)
        read = read if forced is None else forced.text
        inputs = _text_inputs(model, read)
        explained = _explained(model, inputs, rules, read, wanted if forced is None else forced)
        leaf, reading = "input_ids" if "input_ids" in inputs else "inputs_embeds", Reading.of("explain", explained, labels)
        call = leaf_call(explained, (), inputs, leaf, "explain")

        def choice(output: Any) -> Choice:
            return choose(reading, wanted, output, read) if forced is None else forced.choose(reading, output)

        found = _attribute(call, choice, "explain")
        if forced is not None:
            forced.check_causal(reading, call)
    attribution = torch.cat([_by_token(part, read, explained) for part in call.of_tokens(found.attributions)], dim=-1)
    number, origin = ExplainedNumber(found.said, found.value, found.said), origin_of(explained.record, found.seconds)
    return of_text(read, attribution, number, origin, 0 if forced is None else forced.appended)


def _by_token(part: Tensor, text: TextInput, explained: Explained) -> Tensor:
    """The relevance of a leaf of one text, [tokens, values]. Raises InputError where a leaf has no place for each token."""
    if list(part.shape[:2]) != [1, text.count]:
        raise InputError(
            f"explain: {explained.record.model_class} looks {text.count} tokens up as {list(part.shape)}, which does not "
            "say where each token is; call explained.with_leaves(input_ids=...): relevance is leaf * leaf.grad"
        )
    return part[0].flatten(1)


def explain_image(
    model: nn.Module,
    pixel_values: Tensor,
    target: TargetLike = None,
    *,
    labels: Sequence[str] | None = None,
    rules: Rules | None = None,
) -> Explanation:
    """How much each pixel of an image speaks for or against a class.

    `model` is an image classifier, or what `transform` made from one. The image is its `pixel_values` if it has an input of
    that name, else its first input (of an explained module the first image that relevance is read at). `pixel_values`
    [channels, height, width] or [1, channels, height, width] are normalised as the model expects. `target` is a class by
    index or label, two of them for the difference of their logits, a `Target`, a function of the output, or None for the
    top class. `labels` and `rules` are as in `explain`. Raises what `explain` raises.
    """
    model = opened(model, "explain_image")
    with gradients_on():
        wanted, leaf = one_target(target, "explain_image"), _pixels(model, pixel_values)
        name = _image_input(model)
        args, kwargs = ((leaf,), {}) if name is None else ((), {name: leaf})
        explained = as_explained(model, args, kwargs, "explain_image", rules)
        inputs = {name or explained.record.inputs[0]: leaf}
        reading = Reading.of("explain_image", explained, labels)
        call = leaf_call(explained, (), inputs, next(iter(inputs)), "explain_image")
        found = _attribute(call, lambda output: choose(reading, wanted, output, None), "explain_image")
    number, origin = ExplainedNumber(found.said, found.value, found.said), origin_of(explained.record, found.seconds)
    return of_image(leaf.detach()[0].cpu(), found.attributions[0][0], number, origin)


@dataclass(frozen=True, slots=True, eq=False)
class _Attributed:
    """The relevance of each element of each leaf, on the CPU and at least float32; which number was explained, its value,
    and the seconds it took."""

    attributions: list[Tensor]
    said: str
    value: float
    seconds: float


def _attribute(call: LeafCall, choice: Callable[[Any], Choice], function: str) -> _Attributed:
    start = time.perf_counter()
    output = call.output()
    chosen = choice(output)
    if not chosen.value.requires_grad:
        raise InputError(
            f"{function}: {chosen.said} does not depend on the input by a differentiable path, so nothing can be "
            "explained; return a number computed from the output, without detach, item or argmax"
        )
    relevance = leaf_relevance(call.module, output, chosen.value, list(call.leaves.values()))
    if relevance is None:
        raise InputError(f"{function}: {chosen.said} does not depend on the input; choose another number of the output")
    attributions = [part.cpu() for part in relevance]
    value, seconds = float(chosen.value.detach()), time.perf_counter() - start
    if not is_finite([chosen.value.detach(), *attributions]):
        said = f"{function}: {chosen.said}, or its relevance,"
        raise_non_finite(call.module, call.bound, lambda output: choice(output).value, said)
    return _Attributed(attributions, chosen.said, value, seconds)


def _forced(
    model: nn.Module, wanted: Wanted | TargetFunction, read: TextInput, labels: Sequence[str] | None
) -> ForcedName | None:
    """The target as a name of several tokens; None if it is none."""
    if not isinstance(wanted, Wanted):
        return None

    def run(text: TextInput) -> Any:
        with torch.no_grad():
            return model(**_text_inputs(model, text))

    return forced_name(Reading.of("explain", model, labels), wanted, read, run)


def _explained(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    rules: Rules | None,
    text: TextInput,
    target: Wanted | TargetFunction | ForcedName,
) -> Explained:
    """An explained module as it is; a model transformed on these inputs, with logits at the target's position only."""
    if isinstance(model, Explained):
        return as_explained(model, (), inputs, "explain", rules)
    table = table_named("attnlrp" if rules is None else rules)
    source = captured_from(model, (), dict(inputs), dynamic=False)
    narrowed = _narrowed(Reading("explain", source.model_class), text, target)
    if narrowed is not None and not answers_by_token(source.captured.gm, text.count):
        narrowed = None
    return compiled_by(source, table, Options(positions=narrowed))


def _narrowed(
    reading: Reading, text: TextInput, target: Wanted | TargetFunction | ForcedName
) -> tuple[int, ...] | None:
    """The positions of the logits that the target reads; None for a function, which may read all of them."""
    if isinstance(target, ForcedName):
        return target.positions
    if not isinstance(target, Wanted):
        return None
    position = position_of(reading, target, text)
    return (-1 if position == text.count - 1 else position,)


def _text_inputs(model: nn.Module, text: TextInput) -> dict[str, Tensor]:
    """The ids of the text and the other inputs that came with them."""
    accepted = _accepted(model)
    decodes = "decoder_input_ids" in accepted or "decoder_inputs_embeds" in accepted
    if decodes and getattr(getattr(model, "config", None), "is_encoder_decoder", True):
        raise InputError(
            f"explain: {_name(model)} has an encoder and a decoder, and one text does not give the decoder's input; "
            "transform it and call explained.with_leaves(input_ids=..., decoder_input_ids=...): relevance is leaf * "
            "leaf.grad"
        )
    if "input_ids" not in accepted and "inputs_embeds" not in accepted:
        raise InputError(_wrong_input(model, "explain", "input_ids", "explain_image is for images"))
    return as_called(model, {"input_ids": text.ids, **text.extras_for(accepted, _name(model))})


def _accepted(model: nn.Module) -> tuple[str, ...]:
    if isinstance(model, Explained):
        return tuple(dict.fromkeys((*model.record.called_with, *model.record.inputs)))
    return tuple(named_signature(model).parameters)


def _wrong_input(model: nn.Module, function: str, wanted: str, other: str) -> str:
    return (
        f"{function}: {_name(model)} takes no {wanted}, it takes {', '.join(_accepted(model))}; {other}, and for anything "
        "else call the transformed model yourself: relevance is leaf * leaf.grad"
    )


def _image_input(model: nn.Module) -> str | None:
    """The name of the input that takes the image; None for the first one, whatever its name. Raises InputError for a
    transformers model, and for an explained module, without an input for images."""
    accepted = _accepted(model)
    if "pixel_values" in accepted:
        return "pixel_values"
    if isinstance(model, Explained):
        sizes = model.record.sizes
        name = next((leaf for leaf in model.record.leaves if len(sizes.get(leaf, ())) == 4), None)
    else:
        name = None
    if name is None and (isinstance(model, Explained) or is_transformers(model)):
        raise InputError(_wrong_input(model, "explain_image", "pixel_values", "explain is for text"))
    return name


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
