"""From what a person has to the inputs of a call: the one way in for all helpers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lxt_fx.base.as_it_was import as_it_was
from lxt_fx.base.errors import InputError
from lxt_fx.base.user_objects import tensors_of
from lxt_fx.inputs import pictures
from lxt_fx.inputs.decoders import decoder_rows
from lxt_fx.inputs.facts import Facts, check_finite, facts_of
from lxt_fx.inputs.given import Example, Given
from lxt_fx.inputs.kinds import PERSON_KEYS, kind_in_list, kind_of
from lxt_fx.inputs.processor_output import from_mapping
from lxt_fx.inputs.sounds import extracted, read_sound, sound_places
from lxt_fx.inputs.text_batches import decoder_of, of_ids, of_texts, with_decoder
from lxt_fx.inputs.tools import Tools, tools_of, unpacked
from lxt_fx.inputs.with_pictures import from_text_and_pictures


def read_inputs(
    model: nn.Module | Any,
    processor: Any,
    what: Any,
    function: str,
    *,
    answer: Any = None,
    sampling_rate: int | None = None,
) -> Given:
    """The inputs by name that the model is called with, and for each example the places of its relevance.

    `model` is a model, what `transform` made from one, or a pipeline of transformers. `processor` is its tokenizer, image
    processor, feature extractor, the processor that holds them, or a transform of timm; None where nothing needs one.
    `what` is

    - a text, a chat (a list of messages), a pair of texts (a tuple of two), token ids [tokens] or [batch, tokens];
    - a picture: a PIL image, an array or tensor, the path of a file; a float tensor of the model's own size is normalised
      already;
    - a sound: its samples, the path of a file, or a dict with `array` (or `audio`) and `sampling_rate`;
    - a text with pictures: {"text": ..., "images": ...}, or a chat with pictures in it;
    - what a tokenizer or processor returned, or any inputs of the model by name; for a model that is not of transformers a
      tensor;
    - a list of one of these: a batch.

    `answer` is what an encoder-decoder has said, a text or what `generate` returned; a list of them for a batch. Without it
    its decoder is at its start. `sampling_rate` is that of sounds that do not say theirs: if None, the extractor's.

    A padded text is explained as if it were alone: `position_ids` are given where the model needs them for that. Nothing of
    the model, the processor or the inputs changes. Raises InputError, in the name of `function`, for what cannot be used.
    """
    module, processor = unpacked(model, processor, function)
    tools, facts = tools_of(processor, what, function), facts_of(module, function)
    given = _read(facts, tools, what, answer, sampling_rate)
    check_finite(given.inputs, function)
    return given


def picture_inputs(model: nn.Module | Any, processor: Any, picture: Any, function: str) -> Given:
    """The same for a picture, or several, that are the model's input `pixel_values`; a model that is not of transformers
    may have any name for it, and takes it as its first input.

    Raises InputError for a model of transformers, and an explained module, without an input for pictures.
    """
    module, processor = unpacked(model, processor, function)
    tools, facts = tools_of(processor, picture, function), facts_of(module, function)
    if facts.picture is None and facts.names and not facts.of_transformers:
        facts = replace(facts, first_is_picture=True)
    if facts.picture is None:
        raise InputError(
            f"{function}: {facts.model_class} takes no pixel_values, it takes {', '.join(facts.names)}; lxt_fx.explain "
            "takes these"
        )
    kind = kind_of(picture)
    if kind in ("nothing", "id", "number"):
        raise InputError(_no_use(facts, picture))
    if kind == "mapping":
        given = from_mapping(facts, tools, picture, None, decoder_of(facts, tools))
    else:
        several = kind == "list" or getattr(picture, "ndim", 0) == 4
        if several:
            kind_in_list(list(picture), function)  # refuses an empty list
        given = _of_pictures(facts, tools, list(picture) if several else [picture], None, several and len(picture) > 1)
    check_finite(given.inputs, function)
    return given


def _read(facts: Facts, tools: Tools, what: Any, answer: Any, rate: int | None) -> Given:
    if answer is not None and not facts.decodes:
        raise InputError(
            f"{facts.function}: {facts.model_class} has no decoder of its own to give the answer to; append it to the "
            "text, or ask lxt_fx.answer_relevance"
        )
    kind = kind_of(what)
    if kind in ("nothing", "number"):
        raise InputError(_no_use(facts, what))
    if kind == "mapping":
        return _of_mapping(facts, tools, what, answer, rate)
    if kind == "list":
        return _of_list(facts, tools, what, answer, rate)
    if kind in ("text", "path") and not (kind == "text" and facts.reads_text):
        return _of_file(facts, tools, [what], answer, rate, batched=False)
    if kind in ("text", "pair", "chat"):
        return of_texts(facts, tools, [what], answer, batched=False)
    if kind == "image":
        return _of_pictures(facts, tools, [what], answer, batched=False)
    return _of_numbers(facts, tools, what, answer, rate)


def _of_list(facts: Facts, tools: Tools, what: Sequence[Any], answer: Any, rate: int | None) -> Given:
    kind = kind_in_list(what, facts.function)
    if kind == "nothing":
        raise InputError(_no_use(facts, what[0]))
    if kind == "mapping":
        return _of_person_mappings(facts, tools, what, answer, rate, batched=True)
    if kind in ("text", "path") and not (kind == "text" and facts.reads_text):
        return _of_file(facts, tools, what, answer, rate, batched=True)
    if kind in ("text", "pair", "chat"):
        return of_texts(facts, tools, what, answer, batched=True)
    if kind == "ids" and facts.reads_text:
        return of_ids(facts, tools, what, answer, batched=True)
    if facts.reads_text and kind == "array" and all(len(one.shape) == 1 for one in what) and facts.sound is None:
        return of_ids(facts, tools, [[int(token) for token in one] for one in what], answer, batched=True)
    if facts.sound is not None and facts.picture is None:
        return _of_sounds(facts, tools, [(one, rate) for one in what], answer, batched=True)
    if facts.picture is not None:
        return _of_pictures(facts, tools, what, answer, batched=True)
    if kind in ("list", "numbers", "array"):
        return _of_numbers(facts, tools, torch.stack([torch.as_tensor(one) for one in what]), answer, rate)
    raise InputError(_no_use(facts, what[0]))


def _of_numbers(facts: Facts, tools: Tools, what: Any, answer: Any, rate: int | None) -> Given:
    """An array or tensor, or numbers in a list: ids, a picture, a sound, embeddings, or anything else."""
    tensor = torch.as_tensor(
        what if isinstance(what, (Tensor, np.ndarray)) else [what] if kind_of(what) == "id" else list(what)
    )
    floats, dims = tensor.is_floating_point(), tensor.dim()
    if facts.sound is not None and dims < 2:
        return _of_sounds(facts, tools, [(what, rate)], answer, batched=False)
    if facts.sound is not None and not (facts.picture and dims > 2):
        return from_mapping(facts, tools, {facts.sound: tensor}, answer, decoder_of(facts, tools))
    if facts.reads_text and not floats and dims < 3 and (dims < 2 or facts.picture is None or tensor.dtype == torch.int64):
        return of_ids(facts, tools, tensor, answer, batched=dims == 2 and len(tensor) > 1)
    if facts.reads_text and floats and dims == 3 and tensor.shape[-1] == getattr(facts.text_config, "hidden_size", None):
        return from_mapping(facts, tools, {"inputs_embeds": tensor}, answer, decoder_of(facts, tools))
    if facts.picture is not None and dims == 5 and floats:  # films, or pairs of pictures
        return from_mapping(facts, tools, {facts.picture: tensor}, answer, decoder_of(facts, tools))
    if facts.picture is not None and dims == 4:
        return _of_pictures(facts, tools, list(what), answer, batched=len(tensor) > 1)
    if facts.picture is not None:
        return _of_pictures(facts, tools, [what], answer, batched=False)
    if facts.reads_text:
        raise InputError(
            f"{facts.function}: {facts.model_class} reads text, and {list(tensor.shape)} numbers of {tensor.dtype} are "
            "no text; give a text, or token ids (whole numbers) as [tokens] or [batch, tokens]"
        )
    if floats and dims == 3 and _is_picture(facts, tensor):
        return _of_pictures(replace(facts, first_is_picture=True), tools, [what], answer, batched=False)
    if not facts.names:
        raise InputError(f"{facts.function}: {facts.model_class} has no inputs by name; give the inputs as a dict")
    first = next((name for name in facts.names if name not in ("self", "args", "kwargs")), facts.names[0])
    return from_mapping(facts, tools, {first: tensor if dims > 1 else tensor[None]}, answer, decoder_of(facts, tools))


def _is_picture(facts: Facts, tensor: Tensor) -> bool:
    """Whether a model of no library, which says of none of its inputs what it is, takes these [channels, height, width]
    as one example and not as a batch: by what it does with them."""
    if facts.of_transformers or facts.in_training or not facts.names:
        return False

    def answers(given: Tensor) -> bool:
        """Whether the output of the model, or the first of them, has an entry for each example."""
        with torch.no_grad(), as_it_was(facts.model):
            try:
                found = next(iter(tensors_of(facts.model(facts.on_device(given)))), None)
            except Exception:  # whatever the model raises for what it does not take
                return False
        return found is not None and found.dim() > 0 and len(found) == len(given)

    return not answers(tensor) and answers(tensor[None])


def _of_pictures(facts: Facts, tools: Tools, what: Sequence[Any], answer: Any, batched: bool) -> Given:
    name = facts.picture
    if name is None:
        raise InputError(
            f"{facts.function}: {facts.model_class} takes no pictures, it takes {', '.join(facts.names)}; give one of these"
        )
    if facts.reads_text and not facts.decodes:
        raise InputError(
            f"{facts.function}: {facts.model_class} reads a text with its pictures; give "
            '{"text": ..., "images": ...}, or what its processor returns for both'
        )
    if facts.films:
        raise InputError(
            f"{facts.function}: {facts.model_class} takes films [batch, frames, channels, height, width], not pictures; "
            "give what its processor makes of the frames: lxt_fx.explain(model, None, processor(frames, "
            'return_tensors="pt"))'
        )
    ready = all(pictures.is_ready(facts, one) for one in what)
    made = pictures.prepared(facts, Tools() if ready else tools, what)
    return from_mapping(facts, tools, made, answer, decoder_of(facts, tools), batched)


def _of_sounds(facts: Facts, tools: Tools, what: Sequence[tuple[Any, int | None]], answer: Any, batched: bool) -> Given:
    name = facts.sound
    if name is None:
        raise InputError(
            f"{facts.function}: {facts.model_class} takes no sounds, it takes {', '.join(facts.names)}; give one of these"
        )
    waves = [read_sound(facts, tools, sound, rate) for sound, rate in what]
    made = {key: value for key, value in extracted(facts, tools, waves).items() if facts.takes(key)}
    called = {key: facts.on_device(value) for key, value in made.items()}
    places: list[list[Any]] = [[place] for place in sound_places(facts, tools, called, name, waves)]
    decoder = decoder_rows(facts, tools.tokenizer, answer, len(places)) if facts.decodes else None
    called, answers = with_decoder(facts, tools, called, places, decoder)
    return Given(called, tuple(Example(tuple(p), a) for p, a in zip(places, answers, strict=True)), batched)


def _of_file(facts: Facts, tools: Tools, what: Sequence[Any], answer: Any, rate: int | None, *, batched: bool) -> Given:
    """Paths of pictures or sounds, for a model that takes them."""
    if facts.picture is not None and facts.sound is not None:
        picture = pictures.is_picture(what[0])
    else:
        picture = facts.picture is not None
    read = tools.image_processor or tools.feature_extractor or tools.picture_function
    if tools.tokenizer is not None and read is None and not any(Path(str(one)).suffix for one in what):
        raise InputError(
            f"{facts.function}: {facts.model_class} takes no text, it takes {', '.join(facts.names)}; give one of these, "
            "or a picture or sound with its processor"
        )
    if picture:
        return _of_pictures(facts, tools, what, answer, batched)
    if facts.sound is not None:
        return _of_sounds(facts, tools, [(one, rate) for one in what], answer, batched)
    raise InputError(
        f"{facts.function}: {facts.model_class} takes no text and no file, it takes {', '.join(facts.names)}; give one "
        "of these"
    )


def _of_mapping(facts: Facts, tools: Tools, what: Mapping[str, Any], answer: Any, rate: int | None) -> Given:
    if what and set(what) <= PERSON_KEYS and not set(what) <= set(facts.names):
        return _of_person_mappings(facts, tools, [what], answer, rate, batched=False)
    return from_mapping(facts, tools, what, answer, decoder_of(facts, tools))


def _of_person_mappings(
    facts: Facts, tools: Tools, what: Sequence[Mapping[str, Any]], answer: Any, rate: int | None, *, batched: bool
) -> Given:
    """Dicts that a person wrote, each one example: of a text with pictures, or of a sound."""
    for one in what:
        if unknown := [str(key) for key in one if key not in PERSON_KEYS]:
            raise InputError(
                f"{facts.function}: a list holds dicts with {', '.join(unknown)}; one dict of batched inputs is called "
                "at once, and of what a person has it takes text, images, audio and sampling_rate"
            )
    answers = [one.get("answer") for one in what]
    if answer is None and any(one is not None for one in answers):
        answer = answers
    if any(key in what[0] for key in ("images", "image")):
        return from_text_and_pictures(facts, tools, what, batched, answer, decoder_of(facts, tools))
    if any(key in what[0] for key in ("audio", "sound", "array", "raw", "path")):
        return _of_sounds(facts, tools, [_sound(one, rate) for one in what], answer, batched)
    texts = [one.get("text", one.get("messages")) for one in what]
    if len(texts) == 1:
        return _read(facts, tools, texts[0], answer, rate)
    return _of_list(facts, tools, texts, answer, rate)


def _sound(what: Mapping[str, Any], rate: int | None) -> tuple[Any, int | None]:
    inner = what.get("audio", what.get("sound"))
    if isinstance(inner, Mapping):
        return _sound(inner, rate)
    keys = ("array", "raw", "path")
    found = inner if inner is not None else next(what[key] for key in keys if what.get(key) is not None)
    own = what.get("sampling_rate", rate)
    return found, None if own is None else int(own)


def _no_use(facts: Facts, what: Any) -> str:
    return (
        f"{facts.function}: {type(what).__name__} is no kind of input; {facts.model_class} takes {', '.join(facts.names)}. "
        "Give a text, a chat, token ids, a picture, a sound, what a processor returned, or a list of one of these"
    )
