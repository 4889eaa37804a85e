"""Which kind of thing a person gave: a text, a chat, a pair, ids, a picture, a sound, what a processor returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.inputs.pictures import is_pil

PERSON_KEYS = frozenset(
    ("text", "texts", "messages", "image", "images", "audio", "sound", "array", "raw", "sampling_rate", "path", "answer")
)
"""Keys of a dict that a person writes, in distinction to the names of a model's inputs."""


def is_message(what: Any) -> bool:
    """Whether this is one message of a chat."""
    return isinstance(what, Mapping) and "role" in what and "content" in what


def is_chat(what: Any) -> bool:
    """Whether this is a list of messages."""
    return isinstance(what, (list, tuple)) and len(what) > 0 and all(is_message(one) for one in what)


def is_pair(what: Any) -> bool:
    """Whether this is a pair of texts: a tuple of two strings. A list of two strings is a batch."""
    return isinstance(what, tuple) and len(what) == 2 and all(isinstance(one, str) for one in what)


def kind_of(what: Any) -> str:
    """One of: text, pair, chat, mapping, image, array (of any shape), path, id, number, ids, numbers, list, nothing."""
    if isinstance(what, str):
        return "text"
    if is_chat(what) or is_message(what):
        return "chat"
    if is_pair(what):
        return "pair"
    if isinstance(what, Mapping):
        return "mapping"
    if is_pil(what):
        return "image"
    if isinstance(what, (Tensor, np.ndarray)):
        return "array"
    if isinstance(what, Path):
        return "path"
    if isinstance(what, (bool, np.bool_)):
        return "nothing"
    if isinstance(what, Integral):
        return "id"
    if isinstance(what, Real):
        return "number"
    if isinstance(what, Sequence):
        return _list_kind(what)
    return "nothing"


def _list_kind(what: Sequence[Any]) -> str:
    inner = {kind_of(one) for one in what}
    if inner == {"id"}:
        return "ids"
    return "numbers" if inner and inner <= {"id", "number"} else "list"


def kind_in_list(what: Sequence[Any], function: str) -> str:
    """The kind of the things of a list. Raises InputError for an empty list, for several kinds, and for a tuple of strings
    that is no pair."""
    if len(what) == 0:
        raise InputError(f"{function}: the list of inputs is empty, so there is nothing to explain; give at least one")
    inner = list(dict.fromkeys(kind_of(one) for one in what))
    if len(inner) > 1 and not set(inner) <= {"image", "array", "path"}:
        first = next(index for index, one in enumerate(what) if kind_of(one) != inner[0])
        raise InputError(
            f"{function}: a list must hold one kind of input, got {_said(inner[0])} first and {_said(inner[1])} at "
            f"{first}; "
            "explain each kind by itself"
        )
    if isinstance(what, tuple) and inner == ["text"]:
        raise InputError(
            f"{function}: a tuple of two texts is a pair, and this has {len(what)}; for a batch of texts give a list"
        )
    return inner[0]


def _said(kind: str) -> str:
    return {"ids": "token ids", "id": "a token id", "nothing": "something of another type", "array": "an array"}.get(
        kind, f"a {kind}" if kind[0] not in "aeiou" else f"an {kind}"
    )
