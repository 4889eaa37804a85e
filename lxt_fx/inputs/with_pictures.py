"""A text with pictures, through the processor of both: one example at a time, then a batch of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.inputs.facts import PICTURES, Facts
from lxt_fx.inputs.given import Example, Given
from lxt_fx.inputs.kinds import is_chat
from lxt_fx.inputs.pictures import raw_picture
from lxt_fx.inputs.places import TextPlace
from lxt_fx.inputs.processor_output import AddDecoder, beside_texts, from_mapping
from lxt_fx.inputs.text_rows import chat_text, encoded_ids, marks_of
from lxt_fx.inputs.texts import padding_of
from lxt_fx.inputs.tools import Tools


def from_text_and_pictures(
    facts: Facts, tools: Tools, what: Sequence[Any], batched: bool, answer: Any, decoder: AddDecoder
) -> Given:
    """The inputs for texts with pictures: dicts with `text` and `images`, or chats with pictures in them. If the model
    compares texts with pictures (CLIP), one dict may hold several of either: several texts for one picture are one example,
    in which a target names one of the texts; otherwise each text with its picture is an example.

    Raises InputError without a processor, and where a text or the pictures are missing.
    """
    if tools.processor is None and (tools.tokenizer is None or tools.image_processor is None):
        raise InputError(
            f"{facts.function}: a text with pictures needs the processor of both, and "
            f"{_given(tools)}; give AutoProcessor.from_pretrained(...) as processor"
        )
    grouped = [_pairs(facts, tools, one) for one in what]
    asked = [pair for pairs in grouped for pair in pairs]
    for text, images in asked:
        if not images:
            raise InputError(f"{facts.function}: the text {text[:40]!r} comes without a picture; give one in images")
    made = [_made(facts, tools, text, images) for text, images in asked]
    whole = made[0] if len(made) == 1 else _together(facts, tools, made)
    choices = [_is_choice(facts, one) for one in what]
    if choices == [True] and not batched:  # the picture goes through the model once
        alone = {name: value for name, value in made[0].items() if not _by_token(name, value, made[0])}
        return from_mapping(facts, tools, {**whole, **alone}, answer, decoder, False)
    given = from_mapping(facts, tools, whole, answer, decoder, batched or len(asked) > 1)
    chats = [one if is_chat(one) else one.get("text", one.get("messages")) for one in what]
    if all(map(is_chat, chats)):
        return _with_marks(facts, tools, given, [text for text, _ in asked], chats)
    return _regrouped(given, [len(pairs) for pairs in grouped], choices) if any(choices) else given


def _with_marks(facts: Facts, tools: Tools, given: Given, texts: Sequence[str], chats: Sequence[Any]) -> Given:
    """The examples with the tokens that the chat template wrote marked as special, where the tokenizer can say which these
    are."""
    examples = []
    for example, text, chat in zip(given.examples, texts, chats, strict=True):
        place = example.places[0]
        ids, spans = encoded_ids(tools.tokenizer, text)
        shown = [at for at, token in enumerate(ids) if token not in facts.placeholders()]
        own = None if spans is None else tuple(spans[at] for at in shown)
        marks = marks_of(text, chat, own)
        if isinstance(place, TextPlace) and marks is not None and place.reading.ids == tuple(ids[at] for at in shown):
            special = tuple(one or mark for one, mark in zip(place.reading.special, marks, strict=True))
            place = replace(place, reading=replace(place.reading, special=special, text=text, spans=own))
        examples.append(replace(example, places=(place, *example.places[1:])))
    return replace(given, examples=tuple(examples))


def _is_choice(facts: Facts, one: Any) -> bool:
    """Whether these are several texts for one picture."""
    if not facts.compares or not isinstance(one, Mapping):
        return False
    text, images = one.get("text", one.get("texts")), one.get("images", one.get("image"))
    several = isinstance(text, (list, tuple)) and len(text) > 1 and not is_chat(text)
    return several and not (isinstance(images, (list, tuple)) and len(images) > 1)


def _regrouped(given: Given, counts: Sequence[int], choices: Sequence[bool]) -> Given:
    """The pairs of a text and a picture, with those of one picture and several texts as one example."""
    examples, at = list[Example](), 0
    for count, choice in zip(counts, choices, strict=True):
        own = given.examples[at : at + count]
        at += count
        if choice:
            (_, *picture), texts = own[0].places, [example.places[0] for example in own]
            own = (Example(tuple(beside_texts(picture, texts))),)
        examples += own
    return Given(given.inputs, tuple(examples), given.batched)


def _given(tools: Tools) -> str:
    kinds = {"a tokenizer": tools.tokenizer, "an image processor": tools.image_processor}
    named = [name for name, found in kinds.items() if found is not None]
    return f"only {named[0]} was given" if named else "none was given"


def _pairs(facts: Facts, tools: Tools, one: Any) -> list[tuple[str, list[Any]]]:
    """The texts, each with its pictures."""
    if is_chat(one):
        return [(chat_text(facts, tools.processor or tools.tokenizer, _plain(one)), _pictures_in(one))]
    text = one.get("text", one.get("texts", one.get("messages")))
    images = one.get("images", one.get("image"))
    images = [] if images is None else list(images) if isinstance(images, (list, tuple)) else [images]
    if is_chat(text):
        return [(chat_text(facts, tools.processor or tools.tokenizer, text), images or _pictures_in(text))]
    if isinstance(text, str):
        if not text.strip():
            raise InputError(f"{facts.function}: the text {text!r} is empty; give one that has words beside the picture")
        single = facts.placeholders() or len(images) < 2
        return [(text, images)] if single else [(text, [image]) for image in images]
    if isinstance(text, (list, tuple)) and text and all(isinstance(part, str) for part in text):
        if len(images) not in (1, len(text)):
            raise InputError(
                f"{facts.function}: there are {len(text)} texts and {len(images)} pictures; give as many of both"
            )
        return [(part, [images[0] if len(images) == 1 else images[at]]) for at, part in enumerate(text)]
    raise InputError(
        f"{facts.function}: text beside pictures must be a string, a list of strings or a chat, got {type(text).__name__}"
    )


def _plain(chat: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The chat with no more of a picture than that there is one."""
    return [
        {**message, "content": [_mark(part) for part in message["content"]]}
        if isinstance(message["content"], (list, tuple))
        else dict(message)
        for message in chat
    ]


def _mark(part: Any) -> Any:
    return {"type": "image"} if isinstance(part, Mapping) and part.get("type") == "image" else part


def _pictures_in(chat: Sequence[Mapping[str, Any]]) -> list[Any]:
    found = []
    for message in chat:
        for part in message["content"] if isinstance(message["content"], (list, tuple)) else ():
            if isinstance(part, Mapping) and part.get("type") == "image":
                picture = next((part[key] for key in ("image", "path", "url") if part.get(key) is not None), None)
                if picture is not None:
                    found.append(picture)
    return found


def _made(facts: Facts, tools: Tools, text: str, images: Sequence[Any]) -> dict[str, Any]:
    """What the processor makes of one text with its pictures, a batch of one."""
    pictures = [raw_picture(facts, image) for image in images]
    if tools.processor is not None:
        made = tools.processor(text=[text], images=pictures, return_tensors="pt")
    else:
        made = {
            **tools.tokenizer([text], return_tensors="pt"),
            **tools.image_processor(images=pictures, return_tensors="pt"),
        }
    return {name: value for name, value in made.items() if isinstance(value, Tensor) and name != "labels"}


def _together(facts: Facts, tools: Tools, made: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
    """Batches of one as one batch: numbers by token padded as the tokenizer pads, pictures one after the other."""
    side, pad = padding_of(facts, tools.tokenizer)
    longest = max(one["input_ids"].shape[1] for one in made)
    if "attention_mask" not in made[0] and facts.takes("attention_mask"):
        made = [{**one, "attention_mask": torch.ones_like(one["input_ids"])} for one in made]
    whole = {}
    for name, first in made[0].items():
        values = [one[name] for one in made]
        if _by_token(name, first, made[0]):
            values = [_padded(value, longest, pad if name == "input_ids" else 0, side) for value in values]
        if len({value.shape[1:] for value in values}) > 1:
            raise InputError(
                f"{facts.function}: the pictures become {name} of different shapes, which are no batch; explain them one "
                "at a time"
            )
        whole[name] = torch.cat(values)
    return whole


def _by_token(name: str, value: Tensor, made: Mapping[str, Tensor]) -> bool:
    """Whether this input has a number for each token."""
    return name not in PICTURES and value.shape[:2] == made["input_ids"].shape


def _padded(value: Tensor, longest: int, fill: int, side: str) -> Tensor:
    missing = value.new_full((value.shape[0], longest - value.shape[1], *value.shape[2:]), fill)
    return torch.cat([missing, value] if side == "left" else [value, missing], dim=1)
