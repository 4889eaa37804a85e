"""Latent relevance as the lines of a data frame."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lxt_fx.base.errors import InputError
from lxt_fx.inside.latent_result import Latent, LatentValue

if TYPE_CHECKING:
    from pandas import DataFrame

COLUMNS = ("target", "example", "place", "layer", "position", "token", "unit", "activation", "relevance")


def latent_frame(latent: Latent, names: Sequence[str], by: str) -> DataFrame:
    """The lines for these places, by `unit`, `token` or `value`. `layer` is the first number in the name of a place, -1 if
    it has none. Padding has no lines. Raises InputError for another `by`, and if pandas is not installed."""
    try:
        import pandas
    except ImportError as error:
        raise InputError("to_dataframe: needs pandas; pip install 'lxt_fx[frames]'") from error
    if by not in _LINES:
        raise InputError(f"to_dataframe: by must be one of {', '.join(_LINES)}, got {by!r}")
    frames = [pandas.DataFrame(columns) for name in names for columns in _columns(name, latent[name], by)]
    found = pandas.concat(frames, ignore_index=True)
    return found[[column for column in COLUMNS if column in found.columns]]


def _columns(name: str, value: LatentValue, by: str) -> Iterator[dict[str, Any]]:
    number = re.search(r"\d+", name)
    for target in range(len(value.relevance)):
        for example in range(value.relevance.shape[1 + value.axes.index("batch")]):
            found = _LINES[by](value, target, example)
            place = {"target": target, "example": example, "place": name}
            yield place | {"layer": -1 if number is None else int(number.group())} | found


def _by_unit(value: LatentValue, target: int, example: int) -> dict[str, Any]:
    relevance = value.by_unit()[target, example]
    return {"unit": range(len(relevance)), "relevance": relevance.tolist()}


def _by_token(value: LatentValue, target: int, example: int) -> dict[str, Any]:
    columns, tokens = _text(value, example)
    relevance = value.by_token()[target, example, columns]
    return {"position": range(len(columns)), "token": tokens, "relevance": relevance.tolist()}


def _by_value(value: LatentValue, target: int, example: int) -> dict[str, Any]:
    columns, tokens = _text(value, example)
    relevance = value.by_token_and_unit()[target, example, columns]
    activation = value.activation_by_token_and_unit()[example, columns]
    positions, units = torch.unravel_index(torch.arange(relevance.numel()), relevance.shape)
    return {
        "position": positions.tolist(),
        "token": [tokens[position] for position in positions.tolist()],
        "unit": units.tolist(),
        "activation": activation.flatten().tolist(),
        "relevance": relevance.flatten().tolist(),
    }


def _text(value: LatentValue, example: int) -> tuple[list[int], list[str]]:
    """The indices of an example's own tokens, and the tokens."""
    if value.columns:
        return list(value.columns[example]), list(value.tokens[example])
    count = value.by_token().shape[2]
    return list(range(count)), [""] * count


_LINES = {"unit": _by_unit, "token": _by_token, "value": _by_value}
