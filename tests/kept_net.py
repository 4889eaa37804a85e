"""A net that reads its numbers from everywhere (attributes, a config, adapters, globals), and counts of captures and of
compilations."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lxt_fx
from lxt_fx.compiler import call_capture, captures
from lxt_fx.compiler import transform as transforming
from lxt_fx.faithfulness import search
from lxt_fx.passes.capture.example import Example
from lxt_fx.rule_table.table import RuleTable


@contextmanager
def captures_counted() -> Iterator[list[nn.Module]]:
    """The models that are captured inside the block."""
    captured, capture = list[nn.Module](), captures._capture

    def counted(model: nn.Module, example: Example, *settings: Any) -> Any:
        captured.append(model)
        return capture(model, example, *settings)

    with mock.patch.object(captures, "_capture", counted):
        yield captured


@contextmanager
def compilations_counted() -> Iterator[list[RuleTable]]:
    """The tables that a graph is compiled under inside the block."""
    tables, compiled_by = list[RuleTable](), call_capture.compiled_by

    def counted(source: Any, table: RuleTable, options: Any) -> lxt_fx.Explained:
        tables.append(table)
        return compiled_by(source, table, options)

    places = (call_capture, transforming, search)
    patches = [mock.patch.object(place, "compiled_by", counted) for place in places]
    with patches[0], patches[1], patches[2]:
        yield tables


def activated(x: Tensor) -> Tensor:
    return F.silu(x)


class Adapter(nn.Module):
    """A low-rank adapter that is switched as PEFT switches its own."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.up(self.down(x))
        return out


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.adapters = nn.ModuleDict({"a": Adapter(), "b": Adapter()})
        self.active: list[str] = ["a"]
        self.register_buffer("shift", torch.full((4,), 0.3))
        self.constant = torch.full((4,), 0.2)
        self.act: Callable[[Tensor], Tensor] = F.gelu
        self.scale, self.half = 0.7, False

    def forward(self, x: Tensor) -> Tensor:
        z = self.linear(x)
        for name in self.active:
            z = z + self.adapters[name](x)
        z = self.act(z + self.shift) * self.scale + x * self.constant
        return z * 0.5 if self.half else z


class Net(nn.Module):
    power = 1.0

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(4, 3)
        self.config = types.SimpleNamespace(residual=True, norms={"eps": 0.1})
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        for block in self.blocks:
            x = x + block(x) if self.config.residual else block(x)
        x = x / (x.pow(2).mean(-1, keepdim=True) + self.config.norms["eps"]).sqrt()
        out: Tensor = activated(self.head(self.drop(x))) * self.power
        return out


def block(net: Net) -> Any:
    return net.blocks[0]
