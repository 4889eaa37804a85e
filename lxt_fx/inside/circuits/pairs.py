"""Pairs of clean and corrupted inputs, which differ in some tokens and are as long as one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lxt_fx.attribution.leaf_call import LeafCall
from lxt_fx.attribution.non_finite import is_finite, raise_non_finite
from lxt_fx.attribution.target import Target, TargetLike, is_list
from lxt_fx.base.errors import InputError
from lxt_fx.base.wide import at_least_float32
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.options import Rules
from lxt_fx.inside.circuits.graph_run import GraphRun
from lxt_fx.inside.circuits.network import Network, network_of
from lxt_fx.inside.inside_call import TargetedCall, targeted_call

CLEAN, CORRUPTED = "clean", "corrupted"


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """The calls of a batch of pairs, on one graph, with one number for each."""

    clean: TargetedCall
    corrupted: TargetedCall
    network: Network

    @property
    def module(self) -> Explained:
        """The module whose graph both calls run."""
        return self.network.module

    def __len__(self) -> int:
        return len(self.clean.call.given.examples)

    def side(self, name: str) -> TargetedCall:
        """The clean or the corrupted call."""
        return self.clean if name == CLEAN else self.corrupted

    def run(self, name: str) -> GraphRun:
        """All values of the clean or of the corrupted run."""
        return GraphRun(self.module, self.network.graph, self.side(name).leaves.bound).all()

    def numbers(self, name: str, output: Any) -> Tensor:
        """The explained number of each pair in an output, [pairs], read as in the clean or the corrupted call."""
        asked = self.side(name).call.numbers
        asked.totals(output)  # of a name of several tokens, that of its first token too, which is no number of its own
        return at_least_float32(torch.stack([own.value.detach() for (own,) in asked.numbers])).cpu()

    def between(self, share: float) -> LeafCall:
        """The call whose leaves lie between those of both runs: corrupted + share (clean - corrupted)."""
        first, last = self.corrupted.leaves, self.clean.leaves
        leaves = {
            name: torch.lerp(value.detach(), last.leaves[name].detach(), share).requires_grad_(True)
            for name, value in first.leaves.items()
        }
        return replace(first, bound={**first.bound, **leaves}, leaves=leaves)


def pairs_of(
    explained: nn.Module | Any,
    processor: Any,
    clean: Any,
    corrupted: Any,
    target: TargetLike | Sequence[TargetLike],
    function: str,
    *,
    rules: Rules | None = None,
    per_head: bool = False,
) -> Pairs:
    """The calls of these pairs. A model is transformed on the clean inputs.

    Raises InputError where a target leaves the entry to the model or there are several for one pair, where the inputs of a
    pair are not as long as one another or differ in more than what is looked up for their tokens, and what `network_of`
    raises.
    """
    if _leaves_the_entry(target):
        raise InputError(
            f"{function}: a pair needs one number that is read in both runs, and the model's own answers may differ; give "
            'the target, such as the contrast (" Mary", " John")'
        )
    first = targeted_call(explained, processor, clean, target, function, rules=rules)
    second = targeted_call(first.call.explained, processor, corrupted, target, function)
    module = first.leaves.module
    if first.targets > 1:
        raise InputError(f"{function}: a pair has one target, and {first.targets} are several; call {function} for each")
    _check_alike(first.leaves, second.leaves, function)
    first.call.explained._refuse_steering(function)
    return Pairs(first, second, network_of(module, function, per_head))


def _leaves_the_entry(target: Any) -> bool:
    """Whether a target, or one of a list, means the largest logit, which may be another entry in each run."""
    if is_list(target):
        return any(map(_leaves_the_entry, target))
    if isinstance(target, tuple):
        return bool(target) and target[0] is None
    return target is None or (isinstance(target, Target) and target.token is None)


def check_finite(
    pairs: Pairs, numbers: Mapping[str, Tensor], found: Sequence[Tensor], function: str, at: str = CORRUPTED
) -> None:
    """Raises NonFiniteError where a number of one of both runs is not finite, or what was found by gradients of `at`: it
    says where the first such value comes from."""
    broken = next((name for name, each in numbers.items() if not is_finite([each])), None)
    if broken is None and is_finite(found):
        return
    side = pairs.side(broken or at)
    said = f"{function}: an explained number of the {broken or at} run, or a score,"
    raise_non_finite(pairs.module, side.leaves.bound, lambda out: side.call.numbers.totals(out)[0].sum(), said)


def _check_alike(clean: LeafCall, corrupted: LeafCall, function: str) -> None:
    """Raises InputError unless both calls differ in the values of their leaves only."""
    shapes = [{name: list(value.shape) for name, value in call.leaves.items()} for call in (clean, corrupted)]
    pairs = [next(iter(call.leaves.values())).shape[:1] for call in (clean, corrupted)]
    if pairs[0] != pairs[1]:
        raise InputError(f"{function}: {pairs[0][0]} clean and {pairs[1][0]} corrupted inputs are no pairs; give as many")
    if clean.module is not corrupted.module or shapes[0] != shapes[1]:
        raise InputError(
            f"{function}: clean and corrupted inputs must have the same number of tokens, as parts are compared position "
            f"by position; got {_said(shapes[0])} and {_said(shapes[1])}"
        )
    for name, value in clean.bound.items():
        if name not in clean.leaves and not _same(value, corrupted.bound[name]):
            raise InputError(
                f"{function}: clean and corrupted inputs differ in {name}, which is not what tokens are looked up as; a "
                "pair may differ in the tokens alone, with the same padding"
            )


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    return type(one) is type(other) and one == other


def _said(shapes: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{name} {list(sizes)}" for name, sizes in shapes.items())
