"""Relevance that goes through an answer: an answer token is made of tokens of the prompt and of earlier answer tokens, and
these of what they read.

M [answer, places] is the relevance of each answer token from all places before it. With its positive part, each row divided
by its sum, it has the blocks A (columns of the answer, strictly lower triangular) and P (all others). What weights w on the
answer take from the prompt by every number of hops is r = w (P + A P + A^2 P + ...) = w (I - A)^-1 P.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MEMORY, MOST_ROWS = 2**25, 512
"""Rows of M are read so many at a time that they have `MEMORY` bytes in float64, and at most `MOST_ROWS`."""


@dataclass(frozen=True, slots=True, eq=False)
class AnswerFlow:
    """M, as its blocks of columns `parts` [answer, ...], which may lie in a file. The columns of the answer start at
    `first` of them all; `left_out` [places] says which columns count as 0. All that is computed is in float64."""

    parts: Sequence[Tensor]
    first: int
    left_out: Tensor

    @property
    def answer(self) -> int:
        """How many tokens the answer has."""
        return len(self.parts[0])

    @property
    def own(self) -> slice:
        """The columns of the answer."""
        return slice(self.first, self.first + self.answer)

    def through(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """What each answer token carries, v = w (I - A)^-1 [answer]; and what each place has in the end [places]: of the
        prompt v P, of the answer what ends there, in rows of M that have no positive entry. The latter sums to the weights.

        The triangular system is solved by blocks from the last row to the first, so each row of M is read once."""
        carried = weights.double().clone()
        reached = carried.new_zeros(len(self.left_out))
        ends = torch.zeros_like(carried)
        for start, rows in self._blocks(reverse=True):
            stop = start + len(rows)
            among = rows[:, self.own]
            minus = torch.eye(len(rows), dtype=torch.float64) - among[:, start:stop]
            here = torch.linalg.solve_triangular(
                minus, carried[None, start:stop], upper=False, left=False, unitriangular=True
            )[0]
            carried[start:stop] = here
            carried[:start] += here @ among[:, :start]
            reached += here @ rows
            ends[start:stop] = here.where(~rows.any(1), 0)
        reached[self.own] = ends
        return carried, reached

    def step(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """One hop: w A [answer], and what is in the end where it is [places], as in `through`."""
        reached = torch.zeros(len(self.left_out), dtype=torch.float64)
        ends = torch.zeros(self.answer, dtype=torch.float64)
        for start, rows in self._blocks():
            here = weights[start : start + len(rows)].double()
            reached += here @ rows
            ends[start : start + len(rows)] = here.where(~rows.any(1), 0)
        onward = reached[self.own].clone()
        reached[self.own] = ends
        return onward, reached

    def hops(self, weights: Tensor, most: int) -> Tensor:
        """[most + 1, places]: what reaches each place by 0, 1, ... hops, w A^h P, and behind them by `most` hops or more.
        The sum is `reached` of `through`."""
        found, at = [], weights.double()
        for _ in range(most):
            at, reached = self.step(at)
            found.append(reached)
        return torch.stack([*found, self.through(at)[1]])

    def leaving(self, weights: Tensor, groups: Sequence[range]) -> Tensor:
        """[groups, places]: what reaches each place of the prompt directly from each of these groups of answer tokens, the
        sum of v_t P_t over its tokens t; 0 on the answer."""
        carried, _ = self.through(weights)
        index = torch.tensor([number for number, group in enumerate(groups) for _ in group])
        found = torch.zeros(len(groups), len(self.left_out), dtype=torch.float64)
        for start, rows in self._blocks():
            own = slice(start, start + len(rows))
            found.index_add_(0, index[own], carried[own, None] * rows)
        found[:, self.own] = 0
        return found

    def once(self, weights: Tensor) -> Tensor:
        """[places]: w M as it is, with its signs and without hops."""
        found = torch.zeros(len(self.left_out), dtype=torch.float64)
        for start, rows in self._rows(range(0, self.answer, self._size)):
            found += weights[start : start + len(rows)].double() @ rows
        return found

    @property
    def _size(self) -> int:
        return max(1, min(MOST_ROWS, MEMORY // (8 * len(self.left_out))))

    def _rows(self, starts: Iterable[int]) -> Iterator[tuple[int, Tensor]]:
        """The rows from each start on, as they are."""
        for start in starts:
            yield start, torch.cat([part[start : start + self._size].flatten(1).double() for part in self.parts], 1)

    def _blocks(self, *, reverse: bool = False) -> Iterator[tuple[int, Tensor]]:
        """The rows from each start on: the positive part without what is left out, divided by its sum. A row that has no
        positive entry stays 0."""
        starts = range(0, self.answer, self._size)
        for start, rows in self._rows(reversed(starts) if reverse else starts):
            positive = rows.clamp(min=0).masked_fill(self.left_out, 0)
            totals = positive.sum(1, keepdim=True)
            yield start, torch.where(totals > 0, positive / totals, 0)
