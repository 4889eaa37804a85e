"""Concept-conditional relevance (Achtibat et al. 2023, "From attribution maps to human-understandable explanations"): the
relevance that flows through chosen units only."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lxt_fx.attribution.attributed import gathered
from lxt_fx.attribution.many_targets import backward, check_chunk
from lxt_fx.attribution.places import node_at
from lxt_fx.attribution.target import TargetLike
from lxt_fx.base.errors import InputError
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.base.nodes import computed_from
from lxt_fx.base.progress import lasting, steps
from lxt_fx.base.wide import at_least_float32
from lxt_fx.compiler.options import Rules
from lxt_fx.inside.inside_call import InsideCall, inside_call
from lxt_fx.inside.laid_out import LaidOut, refuse_merged
from lxt_fx.inside.latent_result import TopUnits
from lxt_fx.inside.units import UnitsLike, mask_of, said_of_units, short_units
from lxt_fx.results.explanation import Explanation
from lxt_fx.results.explanations import Explanations
from lxt_fx.tasks.explain import explanations_from
from lxt_fx.tasks.explained_call import ExplainedCall
from lxt_fx.tasks.forced import ForcedNumbers
from lxt_fx.tasks.task import Number
from lxt_fx.tasks.task_numbers import TaskNumbers

FUNCTION = "conditional"

Condition = Mapping[str, UnitsLike]
"""Places with the units through which relevance may flow there."""


@lasting
def conditional(
    explained: nn.Module | Any,
    inputs: Any,
    conditions: Condition | Sequence[Condition],
    target: TargetLike | Sequence[TargetLike] = None,
    *,
    processor: Any = None,
    answer: Any = None,
    labels: Sequence[str] | None = None,
    rules: Rules | None = None,
    chunk: int | None = None,
    progress: bool | None = None,
) -> Explanation | Explanations:
    """The relevance of the inputs that flows through chosen units only: what one neuron, head or feature has to do with the
    answer.

    A condition is a dict of places and units. Relevance passes through any of the units of a place, and through one place
    after the other. A unit is an index of the last axis of the place, or of its heads; `None` means all of them, a list
    several, `Only(units, positions)` those at some positions. What passes by a place, through the residual stream, is not
    part of it.

        lxt_fx.conditional(explained, text, {"mlp.11.neurons": 512}, " Paris", processor=tokenizer)
        lxt_fx.conditional(explained, text, [{"mlp.11.neurons": n} for n in neurons], " Paris", processor=tokenizer)

    The result is an explanation as `explain` returns it. A list of conditions has one explained number for each, from one
    forward and one batch of backwards; an explained number is the relevance that the units have, which is what flows on
    from them. Over all units of a cut of the network the result is the relevance of the whole answer, over all units of an
    MLP or an attention the part that runs through it. `inputs`, `target` (one for each example), `processor` and the other
    arguments are as in `latent`.

    Raises InputError for units that a place does not have, for places that no path connects, for top units of several
    places and for several targets of one example; and what `latent` raises.
    """
    wanted, several = _conditions(conditions)
    check_chunk(chunk, FUNCTION)
    with gradients_on():
        start, names = time.perf_counter(), tuple(dict.fromkeys(name for each in wanted for name in each))
        inside = inside_call(
            explained, processor, inputs, target, names, FUNCTION, answer=answer, labels=labels, rules=rules
        )
        if inside.targets > 1:
            raise InputError(f"{FUNCTION}: several targets for one example; give one, and as many conditions as you like")
        _check_causal(inside, start)
        ways = [_way(inside, names, each) for each in wanted]
        amounts: list[Tensor] = []
        values = torch.zeros(len(ways), len(inside.call.given.examples))
        chunks = _relevance(inside, ways, amounts, chunk)
        attributed = gathered(inside.leaves, inside.call.numbers, chunks, values, FUNCTION, start)
        found = explanations_from(
            _through_units(inside, wanted, torch.cat(amounts)), inside.leaves, attributed, several=several
        )
        return Explanations(found) if inside.call.given.batched else found[0]


def _conditions(given: Condition | Sequence[Condition]) -> tuple[list[Condition], bool]:
    """The conditions, and whether a list was given."""
    wanted = [given] if isinstance(given, Mapping) else list(given) if isinstance(given, (list, tuple)) else []
    for one in wanted:
        if isinstance(one, TopUnits) and len(one) > 1:
            raise InputError(
                f"{FUNCTION}: the top units lie at {len(one)} places, and a condition of several places means one after "
                "the other; for each unit by itself give [{unit.place: unit.unit} for unit in top.found]"
            )
    if not wanted or not all(isinstance(each, Mapping) and each for each in wanted):
        raise InputError(
            f"{FUNCTION}: a condition is a dict of places and units, such as {{'mlp.3.neurons': [17]}}, or a list of "
            f"these; got {given!r:.200}"
        )
    return wanted, not isinstance(given, Mapping)


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """One place of a condition: its index among those of the run, and what its gradient is multiplied by, which has the
    shape of the value or is broadcast to it. `layout` says which part of the value belongs to which example."""

    index: int
    mask: Tensor
    layout: LaidOut


def _way(inside: InsideCall, names: Sequence[str], condition: Condition) -> tuple[_Step, ...]:
    """The places of a condition from the output to the inputs."""
    order = {node.name: at for at, node in enumerate(inside.leaves.module.graph.nodes)}
    index_of = {name: at for at, name in enumerate(inside.places)}
    steps_by_name = {}
    for name, units in condition.items():
        if name not in inside.places:
            raise InputError(
                f"{FUNCTION}: {name!r} stands for several places, and units belong to one; name each place"
            )
        place, at = inside.places[name], index_of[name]
        value = inside.run.inside[at]
        layout = inside.layouts[name]
        if layout.rows is None:
            raise refuse_merged(place, FUNCTION)
        axis = layout.token_axis
        texts = None if axis is None else inside.tokens.of(place, layout.of(value).shape[axis])
        steps_by_name[name] = _Step(at, mask_of(units, place, value, layout, texts, FUNCTION), layout)
    last_first = sorted(condition, key=lambda name: -order[inside.places[name].node])
    _check_paths(inside, last_first)
    return tuple(steps_by_name[name] for name in last_first)


def _check_causal(inside: InsideCall, start: float) -> None:
    """Raises InputError where a name of several tokens is explained and the model looks ahead, as `explain` does."""
    numbers, run, leaves = inside.call.numbers, inside.run, list(inside.leaves.leaves.values())
    if isinstance(numbers, ForcedNumbers):
        found = run.gradients(leaves, 0, len(run.values), last=False)
        of_leaves = zip(leaves, found, strict=True)
        relevance = [leaf.detach() * each if run.form == "gradient" else each for leaf, each in of_leaves]
        numbers.check_causal(gathered(inside.leaves, numbers, [relevance], run.values, FUNCTION, start).relevance)


def _relevance(
    inside: InsideCall, ways: Sequence[tuple[_Step, ...]], amounts: list[Tensor], chunk: int | None
) -> Iterator[list[Tensor]]:
    """The relevance of each leaf, [conditions, *leaf.shape], for one chunk of conditions after another. What flows through
    the units of the last place of each condition is put into `amounts`, [conditions, examples]."""
    run, first = inside.run, sorted({way[0].index for way in ways})
    at_first = dict(zip(first, _reaching(inside, first), strict=True))
    size = chunk or run.chunk
    for start in steps("conditions", range(0, len(ways), size), len(ways), size):
        some = ways[start : start + size]
        last = start + size >= len(ways)
        seeds = [way[0].mask * at_first[way[0].index] for way in some]
        found, flowing = _through(inside, some, seeds, last)
        amounts.append(torch.stack([_amount(inside, way[-1], seed) for way, seed in zip(some, flowing, strict=True)]))
        leaves = list(inside.leaves.leaves.values())
        wide = [at_least_float32(each) for each in found]
        yield [leaf.detach() * each if run.form == "gradient" else each for leaf, each in zip(leaves, wide, strict=True)]


def _reaching(inside: InsideCall, places: Sequence[int]) -> list[Tensor]:
    """What flows back to these places for the target."""
    found = inside.run.gradients([inside.run.inside[index] for index in places], 0, 1, last=False)
    return [each[0] for each in found]


def _through(
    inside: InsideCall, ways: Sequence[tuple[_Step, ...]], seeds: list[Tensor], last: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """What flows back to the leaves through all places of each condition, [conditions, *leaf.shape], and what leaves the
    last place of each. Conditions go on to their next place together."""
    flowing, at = list(seeds), [0] * len(ways)
    while waiting := [number for number, way in enumerate(ways) if at[number] + 1 < len(way)]:
        targets = sorted({ways[number][at[number] + 1].index for number in waiting})
        values = [inside.run.inside[index] for index in targets]
        found = _backward(inside, [ways[n][at[n]].index for n in waiting], [flowing[n] for n in waiting], values, False)
        for row, number in enumerate(waiting):
            at[number] += 1
            step = ways[number][at[number]]
            flowing[number] = step.mask * found[targets.index(step.index)][row]
    leaves = list(inside.leaves.leaves.values())
    return _backward(inside, [way[-1].index for way in ways], flowing, leaves, last), flowing


def _backward(
    inside: InsideCall, starts: Sequence[int], flowing: Sequence[Tensor], values: list[Tensor], last: bool
) -> list[Tensor]:
    """What flows back to these values from the place that each condition starts at, [conditions, *value.shape]."""
    used = sorted(set(starts))
    ends = [inside.run.inside[index] for index in used]
    seeds = [end.new_zeros(len(starts), *end.shape) for end in ends]
    for row, (start, seed) in enumerate(zip(starts, flowing, strict=True)):
        seeds[used.index(start)][row] = seed
    return backward(ends, values, seeds, last, FUNCTION)


def _check_paths(inside: InsideCall, names: Sequence[str]) -> None:
    """Raises InputError unless each of these places is computed from the next."""
    nodes = {name: node_at(inside.leaves.module, inside.places[name]) for name in names}
    for later, earlier in pairwise(names):
        if nodes[earlier] not in computed_from(nodes[later]):
            raise InputError(
                f"{FUNCTION}: {later} is not computed from {earlier}, so no relevance flows through one after the other; "
                "give them as two conditions"
            )


def _amount(inside: InsideCall, step: _Step, flowing: Tensor) -> Tensor:
    """The relevance that leaves the units of a place, for each example, [examples]."""
    value = inside.run.inside[step.index].detach()
    wide = torch.promote_types(value.dtype, torch.float32)
    found = flowing.to(wide) * value.to(wide) if inside.run.form == "gradient" else flowing.to(wide)
    by_row = step.layout.of(found).flatten(1).sum(1)
    assert step.layout.rows is not None, "a place whose examples cannot be told apart is refused"
    return torch.stack([by_row[list(rows)].sum() for rows in step.layout.rows]).cpu()


def _through_units(inside: InsideCall, conditions: Sequence[Condition], amounts: Tensor) -> ExplainedCall:
    """The call with other explained numbers: what flows through the units of each condition."""
    call = inside.call
    numbers = [
        [
            Number(amount, f"{of_whole[0].said}, through {said_of_units(each)}", short_units(each))
            for each, amount in zip(conditions, amounts[:, example], strict=True)
        ]
        for example, of_whole in enumerate(call.numbers.numbers)
    ]
    return replace(call, numbers=TaskNumbers(None, (), call.given.examples, call.context, call.apart, numbers))
