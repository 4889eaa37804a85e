"""Relevance and activation at one place inside a model, summed by token and by unit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lxt_fx.attribution.places import InsidePlace
from lxt_fx.base.errors import InputError
from lxt_fx.inside.laid_out import LaidOut, refuse_merged
from lxt_fx.inside.units import check_units


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class LatentValue:
    """One place. `activation` is its value, `relevance` has an axis of targets before the same axes; both are on the CPU.
    `layout` says how the axes came from those of the place. `tokens` and `columns` are, for each entry of the batch, the
    tokens of its text and where they stand on the axis of tokens; empty where that is no text."""

    place: InsidePlace
    layout: LaidOut
    activation: Tensor
    relevance: Tensor
    tokens: tuple[tuple[str, ...], ...] = ()
    columns: tuple[tuple[int, ...], ...] = ()

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {size}" for name, size in zip(self.axes, self.activation.shape, strict=True))
        targets = f", {len(self.relevance)} targets" if len(self.relevance) > 1 else ""
        return f"LatentValue({self.place.name}, [{sizes}]{targets})"

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes of the activation; the first is that of the batch."""
        return self.layout.axes

    @property
    def unit_axis(self) -> int:
        """The axis whose indices are the units of the place: that of its heads, else the last."""
        return self.layout.unit_axis

    def rows(self, example: int) -> list[int]:
        """The entries of the batch that an example has: one, for a pair of texts two. Raises InputError where the graph
        does not say which part of the value belongs to which example."""
        if self.layout.rows is None:
            raise refuse_merged(self.place, "latent")
        return list(self.layout.rows[example])

    def text(self, row: int) -> tuple[list[int], list[str]]:
        """The indices of the own tokens of an entry of the batch on the axis of tokens, and the tokens."""
        if self.columns:
            return list(self.columns[row]), list(self.tokens[row])
        count = self.activation.shape[self.axes.index(self.token_axis)]
        return list(range(count)), [""] * count

    def by_unit(self) -> Tensor:
        """Relevance [targets, batch, units], summed over all other axes. Raises InputError for neurons of experts."""
        check_units(self.place, "latent")
        return self._kept("batch", self.axes[self.unit_axis])

    def by_token(self) -> Tensor:
        """Relevance [targets, batch, tokens], summed over all other axes. Raises InputError for a place without tokens."""
        return self._kept("batch", self.token_axis)

    def by_token_and_unit(self) -> Tensor:
        """Relevance [targets, batch, tokens, units], summed over all other axes. Raises InputError for neurons of
        experts."""
        check_units(self.place, "latent")
        found = self._kept("batch", self.token_axis, self.axes[self.unit_axis])
        return found.transpose(2, 3) if self.axes.index(self.token_axis) > self.unit_axis else found

    def activation_by_token_and_unit(self) -> Tensor:
        """The activation [batch, tokens, units]; where a unit has several values at a token, as a head has, their norm."""
        order = [0, self.axes.index(self.token_axis), self.unit_axis]
        rest = [index for index in range(len(self.axes)) if index not in order]
        found = self.activation.permute(*order, *rest)
        wide = torch.promote_types(found.dtype, torch.float32)
        return found.to(wide).flatten(3).norm(dim=3) if rest else found

    @property
    def token_axis(self) -> str:
        """The name of the axis of tokens: that of the queries where the place is a pattern of attention."""
        for name in ("tokens", "queries", "positions"):
            if name in self.axes:
                return name
        raise InputError(f"latent: {self.place.name} has the axes {', '.join(self.axes)}, and none of them is of tokens")

    def _kept(self, *axes: str) -> Tensor:
        """Relevance summed over all axes of the place but these; the axis of targets stays."""
        gone = [index + 1 for index, name in enumerate(self.axes) if name not in axes]
        return self.relevance.sum(gone) if gone else self.relevance
