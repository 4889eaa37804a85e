"""True activation patching: what an answer becomes when one part has its value of the other run."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import Node

from lxt_fx.attribution.attributed import call_at_all_leaves
from lxt_fx.attribution.non_finite import is_finite
from lxt_fx.attribution.place_axes import unit_axis
from lxt_fx.attribution.places import InsidePlace, places_at
from lxt_fx.attribution.standard_places import kind_of, standard_places
from lxt_fx.attribution.target import TargetLike
from lxt_fx.base.autocast import autocast_off
from lxt_fx.base.errors import ForwardMismatchError, InputError, NonFiniteError
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.base.nodes import written_shape
from lxt_fx.base.progress import lasting, steps
from lxt_fx.base.torch_internals import pytree
from lxt_fx.inside.circuits.graph_run import GraphRun
from lxt_fx.inside.circuits.pair_batches import pair_batches
from lxt_fx.inside.circuits.pairs import CLEAN, CORRUPTED, Pairs, check_finite, pairs_of
from lxt_fx.inside.units import check_units, units_of
from lxt_fx.views.listed import Listed

if TYPE_CHECKING:
    from rich.console import RenderableType

FUNCTION = "activation_patching"

EXAMPLES = 64
"""So many examples run in one forward, if nothing else is asked for."""

Asked = str | Sequence[str] | Mapping[str, int | Sequence[int] | None] | None
"""Places, or places with some of their units; None for `PLACES`."""

PLACES = ("attention.*.heads", "mlp.*.output", "mixer.*.output")
"""What is patched if nothing is asked for, as far as the model has it."""

SHOWN = 10
"""So many parts are printed."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Patching(Listed):
    """How much the explained number rises when the corrupted value of one part gives way to the clean one: `effects`
    [pairs, parts], on the CPU and at least float32. `parts` are named as the writers of `CircuitScores`, and neurons
    `mlp.3.neurons:17`. `clean` and `corrupted` [pairs] are the numbers of both runs."""

    effects: Tensor
    parts: tuple[str, ...]
    clean: Tensor
    corrupted: Tensor

    def __repr__(self) -> str:
        return f"Patching({len(self.effects)} pairs, {len(self.parts)} parts)"

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table, mean = Table("part", "effect"), self.effects.mean(0)
        table.columns[1].justify = "right"
        for index in mean.abs().argsort(descending=True)[:SHOWN].tolist():
            table.add_row(Text(self.parts[index]), f"{float(mean[index]):+.4f}")
        return Group(Text(repr(self)), table)


_BY_PAIR = ("effects", "clean", "corrupted")
"""What has an axis of pairs."""


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """One part that is patched: a unit of a place, or all of it."""

    place: InsidePlace
    node: Node
    unit: int | None

    @property
    def name(self) -> str:
        return self.place.name if self.unit is None else f"{self.place.name}:{self.unit}"

    def patch(self, value: Tensor, other: Tensor) -> None:
        """Puts the part of the other value into the value, in place."""
        if self.unit is None:
            value.copy_(other)
        else:
            axis = unit_axis(self.place.axes)
            value.select(axis, self.unit).copy_(other.select(axis, self.unit))


@lasting
def activation_patching(
    explained: nn.Module | Any,
    clean: Any,
    corrupted: Any,
    target: TargetLike | Sequence[TargetLike],
    units: Asked = None,
    *,
    processor: Any = None,
    at: Literal["clean", "corrupted"] = "clean",
    copies: int | None = None,
    batch: int | None = None,
    progress: bool | None = None,
) -> Patching:
    """The effect of single parts, measured: one forward for each, in which it has its value of the other run.

    It is what the scores of `circuit_scores` for nodes and neurons estimate (Vig et al. 2020; Zhang and Nanda 2024). With
    at="clean" the number of the clean run, less that with the corrupted value of the part (noising); with at="corrupted"
    the number of the corrupted run with the clean value, less that of the corrupted run (denoising). Values are patched at
    all positions.

        lxt_fx.activation_patching(model, clean, corrupted, target, processor=tokenizer)      # heads and MLPs
        lxt_fx.activation_patching(model, clean, corrupted, target, {"mlp.11.neurons": [17, 512]}, processor=tokenizer)

    `units` are places, of which each head, each neuron or a whole output is one part; or a dict of places and units; by
    default every head, and the outputs of MLPs and of mixers such as Mamba's, as far as the model has them. The
    pairs run several times side by side, `copies` parts in one forward (None: about 64 examples); a model whose batch size
    is fixed runs one by one. The other arguments are those of `circuit_scores`.

    Raises InputError for places without units, and what `circuit_scores` raises; NonFiniteError for numbers that are not
    finite; ForwardMismatchError for a model whose examples depend on one another.
    """
    with gradients_on(), autocast_off():
        if at not in (CLEAN, CORRUPTED):
            raise InputError(f'{FUNCTION}: at must be "clean" or "corrupted", got {at!r}')
        found = [
            _patched(pairs_of(explained, processor, *some, FUNCTION), units, at, copies)
            for some in pair_batches(clean, corrupted, target, batch, FUNCTION)
        ]
        effects, clean, corrupted = (torch.cat([getattr(one, name) for one in found]) for name in _BY_PAIR)
        return Patching(effects, found[0].parts, clean, corrupted)


def _patched(pairs: Pairs, units: Asked, at: Literal["clean", "corrupted"], copies: int | None) -> Patching:
    parts, other = _parts(pairs, units), CLEAN if at == CORRUPTED else CORRUPTED
    runs = {side: pairs.run(side) for side in (CLEAN, CORRUPTED)}
    numbers = {side: pairs.numbers(side, run.output()) for side, run in runs.items()}
    check_finite(pairs, numbers, (), FUNCTION)
    values = {part.node: runs[other].values[part.node] for part in parts}
    del runs
    size = _copies(pairs, copies)
    patched = _Patched(pairs, at, values)
    found = list(steps("patched parts", patched.numbers(parts, size, numbers[at]), len(parts), size))
    moved = torch.cat(found, 1) - numbers[at][:, None]
    if not is_finite([moved]):
        broken = next(part for part, each in zip(parts, moved.T, strict=True) if not is_finite([each]))
        raise NonFiniteError(
            f"{FUNCTION}: the number is not finite with the {other} value of {broken.name}; try a wider dtype "
            "(model.float())"
        )
    return Patching(
        moved if at == CORRUPTED else -moved, tuple(part.name for part in parts), numbers[CLEAN], numbers[CORRUPTED]
    )


def _parts(pairs: Pairs, units: Asked) -> list[_Part]:
    if units is None:
        names = standard_places(pairs.module)
        units = [pattern for pattern in PLACES if fnmatch.filter(names, pattern)] or PLACES
    wanted = units if isinstance(units, Mapping) else dict.fromkeys([units] if isinstance(units, str) else units)
    by_name = {pairs.network.name_in_module(node): node for node in pairs.network.graph.nodes}
    parts = []
    for asked, chosen in wanted.items():
        for place in places_at(pairs.module, asked, FUNCTION).values():
            if place.axes[:1] != ("batch",) or place.node not in by_name:
                raise InputError(
                    f"{FUNCTION}: {place.name} has the axes {', '.join(place.axes)}, and its examples must stand in the "
                    "first to be patched one by one"
                )
            each = _units(place, chosen)
            parts += [_Part(place, by_name[place.node], unit) for unit in each]
    if not parts:
        raise InputError(f"{FUNCTION}: no part is asked for; lxt_fx.places(explained) lists places")
    return parts


def _units(place: InsidePlace, chosen: Any) -> Sequence[int | None]:
    """The units of a place that are patched; None stands for the whole value, that of an output or of the stream."""
    if chosen is None and kind_of(place.name) not in ("heads", "neurons", "queries", "keys", "values"):
        return [None]
    check_units(place, FUNCTION)
    return units_of(chosen, int(place.shape[unit_axis(place.axes)]), place.name, FUNCTION)


def _copies(pairs: Pairs, asked: int | None) -> int:
    if asked is not None and (isinstance(asked, bool) or not isinstance(asked, int) or asked < 1):
        raise InputError(f"{FUNCTION}: copies must be a whole number of at least 1, or None, got {asked!r}")
    if _batch(pairs).isdigit():
        return 1
    return asked or max(1, EXAMPLES // len(pairs))


def _batch(pairs: Pairs) -> str:
    """The size of the axis of examples, as the graph writes it."""
    leaf = next(iter(pairs.clean.leaves.leaves))
    (node,) = (each for each in pairs.network.graph.find_nodes(op="placeholder") if each.target == leaf)
    return (written_shape(node) or ("1",))[0]


@dataclass(frozen=True, slots=True, eq=False)
class _Patched:
    """Runs of one side of the pairs with `values` of the other side."""

    pairs: Pairs
    side: str
    values: Mapping[Node, Tensor]

    def numbers(self, parts: Sequence[_Part], size: int, base: Tensor) -> Iterator[Tensor]:
        """The number of each pair with each part patched, [pairs, parts], for `size` parts after another. The first forward
        has a copy more in which nothing is patched, which must give the numbers of the run itself."""
        for start in range(0, len(parts), size):
            some: list[_Part | None] = list(parts[start : start + size])
            if start == 0 and size > 1:
                *found, alone = self._numbers([*some, None]).unbind(1)
                self._check(alone, base)
                yield torch.stack(found, 1)
            else:
                yield self._numbers(some)

    def _numbers(self, parts: Sequence[_Part | None]) -> Tensor:
        pairs, count = self.pairs, len(self.pairs)
        changes: dict[Node, Callable[[Tensor], Tensor]] = {}
        for node in {part.node for part in parts if part is not None}:
            changes[node] = self._change(node, [part if part is not None and part.node is node else None for part in parts])
        run = GraphRun(pairs.module, pairs.network.graph, self._inputs(len(parts))).all(changes)
        whole = run.output()
        found = []
        for index in range(len(parts)):
            at = slice(index * count, (index + 1) * count)

            def of_copy(value: Any, at: slice = at) -> Any:
                several = isinstance(value, Tensor) and value.dim() > 0 and len(value) == count * len(parts)
                return value[at] if several else value

            found.append(pairs.numbers(self.side, pytree.tree_map(of_copy, whole)))
        return torch.stack(found, 1)

    def _change(self, node: Node, parts: Sequence[_Part | None]) -> Callable[[Tensor], Tensor]:
        def changed(value: Tensor) -> Tensor:
            found = value.clone()
            for part, copy in zip(parts, found.chunk(len(parts)), strict=True):
                if part is not None:
                    part.patch(copy, self.values[node])
            return found

        return changed

    def _inputs(self, copies: int) -> Mapping[str, Any]:
        """The inputs of the run, so many times one behind the other. Raises InputError where that takes another graph."""
        side = self.pairs.side(self.side)
        if copies == 1:
            return side.leaves.bound
        batch = len(next(iter(side.leaves.leaves.values())))

        def repeated(value: Any) -> Any:
            several = isinstance(value, Tensor) and value.dim() > 0 and len(value) == batch
            return torch.cat([value] * copies) if several else value

        call = call_at_all_leaves(side.leaves.called, pytree.tree_map(repeated, dict(side.call.inputs)), FUNCTION)
        if call.module is not self.pairs.module:
            raise InputError(f"{FUNCTION}: several copies of the pairs need another graph of this model; give copies=1")
        return call.bound

    def _check(self, found: Tensor, base: Tensor) -> None:
        dtype = next(iter(self.values.values())).dtype
        far = float((found - base).abs().max())
        if far > torch.finfo(dtype).eps ** 0.5 * max(1.0, float(base.abs().max())):
            raise ForwardMismatchError(
                f"{FUNCTION}: an example gives another number beside copies of itself than alone (off by {far:.2g}), so "
                "parts cannot be patched side by side in this model; give copies=1"
            )
