"""What a tokenizer or processor returned, and inputs of a model by name of any kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lxt_fx.attribution.text_input import NOT_FOR_THE_MODEL
from lxt_fx.base.errors import InputError
from lxt_fx.inputs.facts import PICTURES, SOUNDS, Facts
from lxt_fx.inputs.given import Example, Given
from lxt_fx.inputs.pictures import check_pictures, picture_places
from lxt_fx.inputs.places import NumbersPlace
from lxt_fx.inputs.sounds import sound_places
from lxt_fx.inputs.texts import accepted, by_token, own_columns, rows_of_mapping, text_call, text_places
from lxt_fx.inputs.tools import Tools
from lxt_fx.results.readings import NumbersReading

AddDecoder = Callable[[dict[str, Any], list[list[Any]], Any], tuple[dict[str, Any], list[tuple[int, ...]]]]

VIDEOS = ("pixel_values_videos",)


def from_mapping(
    facts: Facts,
    tools: Tools,
    what: Mapping[str, Any],
    answer: Any,
    decoder: AddDecoder,
    batched: bool | None = None,
) -> Given:
    """The inputs of a call by name. Tensors without a batch get one.

    Raises InputError for what the model does not take, and where there is no input at which relevance can be read."""
    if not what:
        raise InputError(
            f"{facts.function}: the dict of inputs is empty; {facts.model_class} takes {', '.join(facts.names)}"
        )
    inputs = {str(name): _tensor(facts, str(name), value) for name, value in what.items()}
    _with_batch(facts, inputs)
    leaf = "input_ids" if "input_ids" in inputs else "inputs_embeds" if "inputs_embeds" in inputs else None
    by_kind: list[list[Any]] = []
    if leaf is not None:
        called, places = _texts(facts, tools, what, inputs, leaf)
        by_kind += places
    else:
        called = {key: facts.on_device(value) for key, value in accepted(facts, inputs, "the dict").items()}
        if not called:
            raise InputError(
                f"{facts.function}: {facts.model_class} takes none of {', '.join(inputs)}; it takes "
                f"{', '.join(facts.names)}"
            )
    _add_pictures(facts, tools, called, by_kind)
    if facts.sound in called:
        _add(by_kind, [[place] for place in sound_places(facts, tools, called, str(facts.sound), None)])
    if not by_kind and facts.reads_text:
        raise InputError(
            f"{facts.function}: the inputs have neither input_ids nor inputs_embeds, and {facts.model_class} reads text; "
            f"they are {', '.join(called)}"
        )
    _add_numbers(facts, called, by_kind)
    answers: list[tuple[int, ...]] = [()] * len(by_kind)
    begun = any(name.startswith("decoder_in") for name in called)
    if begun and answer is not None:
        raise InputError(f"{facts.function}: the answer is given, and the decoder's own inputs too; give one of them")
    if facts.decodes and not begun:
        called, answers = decoder(called, by_kind, answer)
    elif begun:
        own = own_columns(facts, called, "decoder_")
        _add(
            by_kind,
            [[p] for p in text_places(facts, tools.tokenizer, called, own, [None] * len(own), "answer", "decoder_")],
        )
    examples = tuple(Example(tuple(places), said) for places, said in zip(by_kind, answers, strict=True))
    return Given(called, examples, len(examples) > 1 if batched is None else batched)


def _texts(
    facts: Facts, tools: Tools, what: Mapping[str, Any], inputs: dict[str, Any], leaf: str
) -> tuple[dict[str, Any], list[list[Any]]]:
    """The call with its texts, and their places. Tokens that stand for pictures are hidden if pictures are given."""
    own = own_columns(facts, inputs)
    start = inputs.get("decoder_input_ids")
    more = {}
    if facts.decodes:
        first = [[0]] if not isinstance(start, Tensor) else start[:1, :1].tolist()
        more = {"decoder_input_ids": torch.tensor(first, device=facts.device)}
    if isinstance(pixels := inputs.get("pixel_values"), Tensor) and pixels.dim() == 4 and not _in_text(facts, inputs):
        more["pixel_values"] = facts.on_device(pixels[:1])
    rows = rows_of_mapping(what, inputs, own)
    called = text_call(facts, inputs, own, more)
    beside = any(name in called for name in (*PICTURES, *VIDEOS, *SOUNDS))
    hidden = facts.placeholders() if beside else frozenset[int]()
    texts = text_places(facts, tools.tokenizer, called, own, rows, "text", hidden=hidden)
    return called, [[place] for place in texts]


def _add_pictures(facts: Facts, tools: Tools, called: dict[str, Any], by_kind: list[list[Any]]) -> None:
    """Adds the places of pictures to those of each example."""
    for name in dict.fromkeys((*PICTURES, *VIDEOS, facts.picture or "")):
        value = called.get(name)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        check_pictures(facts, called, name)
        places = picture_places(facts, tools, called, name)
        if not by_kind or len(places) == len(by_kind) and not _in_text(facts, called):
            _add(by_kind, places)
        elif _in_text(facts, called):
            _by_placeholders(facts, called, by_kind, places, "video" in name)
        elif len(places) == 1 and facts.compares:
            by_kind[:] = [beside_texts(places[0], [text for example in by_kind for text in example])]
        elif len(places) == 1:
            _add(by_kind, [list(places[0]) for _ in by_kind])
        elif len(by_kind) == 1:
            by_kind[:] = [[*by_kind[0], *each] for each in places]
        else:
            raise InputError(
                f"{facts.function}: there are {len(by_kind)} texts and {len(places)} pictures; give as many of both, or "
                "one text"
                " or one picture"
            )


def beside_texts(picture: Sequence[Any], texts: Sequence[Any]) -> list[Any]:
    """The places of one example: a picture, and the texts that it is compared with."""
    return [*picture, *(replace(text, name=f"text {number}") for number, text in enumerate(texts, 1))]


def _in_text(facts: Facts, called: Mapping[str, Any]) -> bool:
    """Whether tokens of the text stand for pictures."""
    ids, marks = called.get("input_ids"), facts.placeholders()
    return isinstance(ids, Tensor) and any(bool((ids == mark).any()) for mark in marks)


def _by_placeholders(
    facts: Facts, called: Mapping[str, Any], by_kind: list[list[Any]], places: list[list[Any]], video: bool
) -> None:
    """Gives each example the pictures that the tokens in its text stand for, in their order."""
    if len(by_kind) == 1:
        _numbered(by_kind[0], [place for each in places for place in each])
        return
    ids, kind = called["input_ids"], "video" if video else "image"
    found = [getattr(facts.config, f"{kind}_token_{end}", None) for end in ("id", "index")]
    counts = [int(sum((row == mark).sum() for mark in found if isinstance(mark, int))) for row in ids]
    grid = called.get(f"{kind}_grid_thw")
    if isinstance(grid, Tensor):
        merge = int(getattr(facts.config.vision_config, "spatial_merge_size", 1))
        sizes = [int(size) // merge**2 for size in grid.prod(-1)]
    else:
        sizes = [sum(counts) // len(places)] * len(places)
    at = 0
    for example, count in zip(by_kind, counts, strict=True):
        own: list[Any] = []
        while count > 0 and at < len(places):
            own += places[at]
            count -= sizes[at]
            at += 1
        if count != 0:
            raise InputError(
                f"{facts.function}: the tokens that stand for pictures do not fit the {len(places)} pictures; give both "
                "as one call of the processor returns them"
            )
        _numbered(example, own)


def _numbered(example: list[Any], places: list[Any]) -> None:
    """Adds pictures to an example: `image`, or `image 1`, `image 2`, ... if it has several."""

    several = len({str(place.within) for place in places}) > 1
    numbers = {key: str(index) for index, key in enumerate(dict.fromkeys(str(place.within) for place in places), 1)}
    for place in places:
        name = place.name.replace("image", f"image {numbers[str(place.within)]}", 1) if several else place.name
        example.append(replace(place, name=name))


def _add(by_kind: list[list[Any]], more: list[list[Any]]) -> None:
    if not by_kind:
        by_kind += more
        return
    if len(more) != len(by_kind):
        raise InputError(f"the inputs are of {len(by_kind)} and of {len(more)} examples; give as many of each")
    for each, places in zip(by_kind, more, strict=True):
        each += places


def _add_numbers(facts: Facts, called: Mapping[str, Any], by_kind: list[list[Any]]) -> None:
    """Adds the places of floats of any other kind, [batch, ...] each; of whole numbers if there is nothing else."""
    covered = {place.leaf for places in by_kind for place in places}
    tensors = {name: value for name, value in called.items() if isinstance(value, Tensor) and value.dim() > 0}
    tensors = {name: value for name, value in tensors.items() if name not in covered and "mask" not in name}
    found = {name: value for name, value in tensors.items() if value.is_floating_point()}
    if not found and not by_kind:
        found = {name: value for name, value in tensors.items() if value.dim() > 1}
        if not found:
            raise InputError(
                f"{facts.function}: none of {', '.join(called)} is text, a picture, a sound or floating-point numbers, so "
                "there is nothing to read relevance at; give one"
            )
    for name, value in found.items():
        if by_kind and len(value) != len(by_kind):
            raise InputError(
                f"{facts.function}: {name} is {list(value.shape)}, but there are {len(by_kind)} examples; give one entry "
                "of its first dim for each of them"
            )
        _add(by_kind, [[NumbersPlace(name, name, index, NumbersReading())] for index in range(len(value))])


def _tensor(facts: Facts, name: str, value: Any) -> Any:
    if name in NOT_FOR_THE_MODEL or value is None or isinstance(value, (bool, int, float, str)):
        return value
    if name.endswith("input_ids"):
        return by_token(facts, name, value)
    if isinstance(value, np.ndarray):
        return torch.as_tensor(value)
    if isinstance(value, (list, tuple)) and name in (
        "attention_mask",
        "token_type_ids",
        "position_ids",
        *PICTURES,
        *SOUNDS,
    ):
        if value and all(isinstance(one, Tensor) for one in value):
            return torch.stack(list(value)) if len({one.shape for one in value}) == 1 else value
        return by_token(facts, name, value)
    return value


def _with_batch(facts: Facts, inputs: dict[str, Any]) -> None:
    """Gives a batch of one to what came without."""
    for name in ("attention_mask", "token_type_ids", "position_ids", "decoder_attention_mask"):
        if isinstance(value := inputs.get(name), Tensor) and value.dim() == 1:
            inputs[name] = value[None]
    for name in dict.fromkeys((*PICTURES, facts.picture or "")):
        if isinstance(value := inputs.get(name), Tensor) and value.dim() == 3:
            inputs[name] = value[None]
    for name in ("inputs_embeds", "decoder_inputs_embeds"):
        if isinstance(value := inputs.get(name), Tensor) and value.dim() == 2:
            inputs[name] = value[None]
    if isinstance(value := inputs.get("input_values"), Tensor) and value.dim() == 1:
        inputs["input_values"] = value[None]
    if isinstance(value := inputs.get("input_features"), Tensor) and value.dim() == 2:
        inputs["input_features"] = value[None]
