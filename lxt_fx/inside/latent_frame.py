"""Latent relevance as the lines of a data frame."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from lxt_fx.base.errors import InputError
from lxt_fx.base.frames import pandas_for
from lxt_fx.inside.latent_value import LatentValue

if TYPE_CHECKING:
    from pandas import DataFrame

COLUMNS = ("target", "example", "place", "layer", "position", "token", "unit", "activation", "relevance")


def latent_frame(values: Mapping[str, LatentValue], examples: int, by: str) -> DataFrame:
    """The lines for these places of a call with so many `examples`, by `unit`, `token` or `value`. `layer` is the first
    number in the name of a place, -1 if it has none. Padding has no lines. Raises InputError for another `by`, or without
    pandas."""
    pandas = pandas_for()
    if not isinstance(by, str) or by not in _LINES:
        raise InputError(f"to_dataframe: by must be one of {', '.join(_LINES)}, got {by!r}")
    lines = (each for name, value in values.items() for each in _columns(name, value, examples, by))
    found = pandas.concat([pandas.DataFrame(columns) for columns in lines], ignore_index=True)
    return found[[column for column in COLUMNS if column in found.columns]]


def _columns(name: str, value: LatentValue, examples: int, by: str) -> Iterator[dict[str, Any]]:
    number = re.search(r"\d+", name)
    for target in range(len(value.relevance)):
        for example in range(examples):
            place = {"target": target, "example": example, "place": name}
            place["layer"] = -1 if number is None else int(number.group())
            for found in _LINES[by](value, target, value.rows(example)):
                yield place | found


def _by_unit(value: LatentValue, target: int, rows: list[int]) -> Iterator[dict[str, Any]]:
    relevance = value.by_unit()[target, rows].sum(0)
    yield {"unit": range(len(relevance)), "relevance": relevance.tolist()}


def _by_token(value: LatentValue, target: int, rows: list[int]) -> Iterator[dict[str, Any]]:
    for row in rows:
        columns, tokens = value.text(row)
        relevance = value.by_token()[target, row, columns]
        yield {"position": range(len(columns)), "token": tokens, "relevance": relevance.tolist()}


def _by_value(value: LatentValue, target: int, rows: list[int]) -> Iterator[dict[str, Any]]:
    for row in rows:
        columns, tokens = value.text(row)
        relevance = value.by_token_and_unit()[target, row, columns]
        activation = value.activation_by_token_and_unit()[row, columns]
        positions, units = torch.unravel_index(torch.arange(relevance.numel()), relevance.shape)
        yield {
            "position": positions.tolist(),
            "token": [tokens[position] for position in positions.tolist()],
            "unit": units.tolist(),
            "activation": activation.flatten().tolist(),
            "relevance": relevance.flatten().tolist(),
        }


_LINES = {"unit": _by_unit, "token": _by_token, "value": _by_value}
