"""How many bytes one micro-batch has alive while parts run one after another, forward and backward."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from lxt_fx.planning.at_targets import EndCost
from lxt_fx.planning.measured import Measured, PartCost


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """One micro-batch in consecutive parts, with the `end` behind the last of all parts, None if that is elsewhere. `took`
    are the values that it begins with, leaves or those of another stage, `gave` those that go to one. Those of
    `in_buffers` are counted elsewhere, for all micro-batches; their gradients are not. Where other targets run the
    backward `again`, nothing saved is freed, and the gradients and the relevance of the target before are alive."""

    measured: Measured
    parts: Sequence[PartCost]
    end: EndCost | None
    took: frozenset[str]
    gave: frozenset[str] = frozenset()
    in_buffers: frozenset[str] = frozenset()
    again: bool = False

    @cached_property
    def saved(self) -> int:
        """What the forward leaves behind for the backward."""
        return self._saved(len(self.parts)) + (0 if self.end is None else self.end.saved)

    @cached_property
    def peak(self) -> int:
        """The most bytes that are alive at a time."""
        found = [0]
        for at, part in enumerate(self.parts):
            found.append(self._entering(at) + part.forward_peak)
            found.append(self._saved(at) + self._flowing(at) + part.backward_peak)
        if self.end is not None:
            found.append(self._saved(len(self.parts)) + max(self.end.forward_peak, self.end.backward_peak))
        return max(found)

    @cached_property
    def _held(self) -> set[str]:
        """Values that are alive from the time that they are made to the end of the backward."""
        through = {self.measured.end} if self.end is not None and self.end.through else set()
        return {*self.took, *self.gave} | through

    def _entering(self, at: int) -> int:
        """What is alive when the forward of part `at` begins: what earlier ones saved, and what it or a later one reads."""
        made = {name for part in self.parts[:at] for name in part.gives} | self.took
        made |= {name for part in self.parts[: at + 1] for name in part.reads} & self.measured.shared.keys()
        read = {name for part in self.parts[at:] for name in part.reads} | self._held
        named = {name for part in self.parts[:at] for name in part.saves}
        return self._bytes(named | (read & made), at)

    def _saved(self, at: int) -> int:
        """What is alive when the backward of part `at` begins, beside gradients and what its forward made: all that it and
        earlier parts saved, and what is held."""
        named = {name for part in self.parts[: None if self.again else at + 1] for name in part.saves}
        held = set(self._held)
        if at < len(self.parts):
            own = self.parts[at]
            named -= own.gives.keys() & ({*own.saves} if self.again else own.gives.keys())
            held -= own.gives.keys() & {*own.saves}
        late = sum(part.saved for part in self.parts[at + 1 :]) if self.again else 0
        return self._bytes(named | held, at) + late

    def _flowing(self, at: int) -> int:
        """The gradients that are alive beside those of part `at` when its backward runs: of values that pass it by, and
        what the backward of the whole body started with."""
        made = {name for part in self.parts[at:] for name in part.gives}
        read = {name for part in self.parts[at + 1 :] for name in part.reads} | (self.took & self.gave)
        through = self.end.saved if self.end is not None and self.end.through else 0
        through += 2 * self.measured.bytes_of(self.took) if self.again else 0
        return through + self.measured.bytes_of((read & self.measured.carry) - made)

    def _bytes(self, names: Iterable[str], at: int) -> int:
        """The bytes of these values, with what the parts before `at` saved beside."""
        own = sum(part.saved for part in self.parts[:at])
        return own + self.measured.bytes_of({*names} - self.in_buffers)
