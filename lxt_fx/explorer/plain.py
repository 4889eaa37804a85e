"""Values as the page's JSON has them: arrays as bytes, numbers that are finite, tables of texts and numbers."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.views.panels import Panel

Payload = dict[str, Any]
"""Plain values for JSON. docs/explorer.md has the format."""

FORMAT = 1


def array(values: Tensor) -> Payload:
    """A tensor of any dtype as little-endian float32 in base64, with its shape. Raises InputError for a number that
    float32 does not hold."""
    given = values.detach().cpu()
    flat = given.to(torch.float32).contiguous()
    if bool((flat.isinf() & given.isfinite()).any()):
        raise InputError(
            f"explore: the page holds numbers up to {torch.finfo(torch.float32).max:.2g}, and a result has "
            f"{float(given[given.isfinite()].abs().max()):.2g}; divide it by a number first"
        )
    data = flat.numpy().astype("<f4", copy=False).tobytes()
    return {"shape": list(values.shape), "data": base64.b64encode(data).decode("ascii")}


def picture(pixels: Tensor) -> str:
    """A picture [height, width, 3] of 8 bits as the address of a PNG that holds it."""
    return "data:image/png;base64," + base64.b64encode(Panel("", pixels).png()).decode("ascii")


def cell(value: object) -> str | float | int:
    """A cell of a table: a finite number as it is, which the page writes and sorts; anything else as text."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return value
    return "" if value is None else str(value)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Payload:
    """A table of the page."""
    return {"title": title, "columns": list(columns), "rows": [[cell(value) for value in row] for row in rows]}


def result(kind: str, title: str, **facts: Any) -> Payload:
    """A result with every key of the format; what is not given is empty. Its `id` is given where it is put into a page."""
    empty: Payload = {
        "id": "", "title": title, "kind": kind, "model_class": "", "checkpoint": "", "rules": "", "versions": {},
        "seconds": 0.0, "numbers": [], "parts": [], "account": None, "notes": [], "latent": None,
        "text": "", "tables": [], "steered": [], "circuit": None,
    }  # fmt: skip
    assert set(facts) <= set(empty), f"not in the format: {set(facts) - set(empty)}"
    return empty | facts
