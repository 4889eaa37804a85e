"""A call cut into micro-batches: some examples of its batch, each for one target."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.fx import Graph, Node

from lxt_fx.attribution.embeddings import as_called
from lxt_fx.base.errors import InputError
from lxt_fx.base.nodes import fixed_size, is_float, shape, written_shape
from lxt_fx.base.torch_internals import pytree
from lxt_fx.compiler.explained import Explained
from lxt_fx.passes.capture.example import with_fills

PER_STAGE = 4
"""By default there are about so many micro-batches for each stage: with M of them and P stages, (P - 1) / (M + P - 1) of
the time is spent waiting."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Which examples of the batch, for which target. The last example is repeated where there are too few: `count` of them
    count."""

    target: int
    examples: tuple[int, ...]
    count: int


def micro_batches(examples: int, targets: int, stages: int, size: int | None) -> list[MicroBatch]:
    """All micro-batches, with `size` examples each, target by target."""
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise InputError(f"pipeline: size must be a whole number of examples of at least 1, or None, got {size!r}")
    per = min(examples, size or max(1, math.ceil(examples * targets / (PER_STAGE * stages))))
    found = []
    for target in range(targets):
        for start in range(0, examples, per):
            own = tuple(range(start, min(start + per, examples)))
            found.append(MicroBatch(target, own + (examples - 1,) * (per - len(own)), len(own)))
    return found


@dataclass(frozen=True, slots=True, eq=False)
class BatchedCall:
    """A call of an explained module, valid for the graph of `module`. `given` are the inputs by name, with what is filled
    in, and `leaves` the values that relevance is read at, on the meta device. `batched` names those with an example in each
    entry of their first dimension."""

    explained: Explained
    module: Explained
    named: Mapping[str, Any]
    given: Mapping[str, Tensor]
    leaves: Mapping[str, Tensor]
    examples: int
    batched: frozenset[str]

    def rows(self, examples: Sequence[int]) -> dict[str, Tensor]:
        """The inputs of some examples."""
        return {name: x[list(examples)] if name in self.batched else x for name, x in self.given.items()}

    def leaf_rows(self, count: int) -> dict[str, Tensor]:
        """The leaves of so many examples, on the meta device."""
        return {name: x.new_empty(count, *x.shape[1:]) if name in self.batched else x for name, x in self.leaves.items()}


def batched_call(explained: Explained, inputs: Tensor | Mapping[str, Any], device: torch.device) -> BatchedCall:
    """The call with these inputs, on this device.

    Raises CallError for inputs that do not fit the module, InputError for those that are no tensors and those whose
    examples cannot be told apart.
    """
    positional, given = ((inputs,), {}) if isinstance(inputs, Tensor) else ((), dict(inputs))
    named = explained._named(positional, as_called(explained, given))
    on_meta = any(tensor.is_meta for tensor in explained.parameters())
    seen = pytree.tree_map_only(Tensor, lambda x: x.to("meta"), named) if on_meta else named
    module, bound = explained._prepared((), seen)
    filled = with_fills(explained._for_names_of(named)[1], module.record.optional)
    if other := next((name for name, x in (*filled.items(), *bound.items()) if not isinstance(x, Tensor)), None):
        raise InputError(f"pipeline: the input {other} is no tensor; a pipeline takes tensors by name only")
    known = [(name, bound[name]) for name in module.record.leaves if name in bound]
    leaves = {name: x.to("meta") for name, x in known if x.is_floating_point() or x.is_complex()}
    if not leaves:
        raise InputError(
            f"pipeline: none of the inputs carries relevance; {module.record.model_class} carries it from "
            f"{', '.join(module.record.leaves)}, which must be given as floating-point tensors"
        )
    examples = max(len(x) for x in leaves.values())
    given = {name: x.detach().to(device) for name, x in filled.items()}
    batched = _batched(module, {**given, **leaves}, examples)
    return BatchedCall(explained, module, named, given, leaves, examples, batched)


def check_apart(call: BatchedCall, batches: Sequence[MicroBatch]) -> None:
    """Raises InputError where micro-batches divide examples that a node computes with one another: its shape has the size
    of the batch twice (the similarities of pairs), or lost it (a mean over the batch). An op that mixes examples and keeps
    their shape is not seen."""
    if len(set(batches[0].examples)) == call.examples:
        return
    graph, said = _MIXED.get(call.module, (None, None))
    if graph is not call.module.fused:
        said = _mixed(call.module)
        _MIXED[call.module] = call.module.fused, said
    if said:
        raise InputError(
            f"pipeline: {said} depend on one another, and micro-batches of fewer would give other numbers; "
            f"size={call.examples} keeps them together"
        )


_MIXED: WeakKeyDictionary[Explained, tuple[Graph, str | None]] = WeakKeyDictionary()
"""What was found in each module that is alive, with the graph that it ran."""


def _mixed(module: Explained) -> str | None:
    """The first node that computes examples with one another, in words."""
    names = _batch_sizes(module)
    for node in module.graph.nodes:
        own = written_shape(node) or ()
        operands = [written_shape(each) or () for each in node.all_input_nodes if is_float(each)]
        lost = any(names & set(operand) for operand in operands) and not _mentions(own, names)
        if is_float(node) and shape(node) is not None and (lost or len([size for size in own if size in names]) > 1):
            given = ", ".join(f"[{', '.join(operand)}]" for operand in operands)
            of_batch = f"so the examples of a batch (its size is {', '.join(sorted(names))})"
            return f"%{node.name} makes [{', '.join(own)}] of {given}, {of_batch}"
    return None


def _mentions(sizes: Sequence[str], names: set[str]) -> bool:
    """Whether a size is made of that of the batch, or only known in a run (u0)."""
    return any(word in names or re.fullmatch(r"u\d+", word) for size in sizes for word in re.findall(r"\w+", size))


def _placeholders(module: Explained) -> dict[str, Node]:
    return {str(node.target): node for node in module.graph.nodes if node.op == "placeholder"}


def _batch_sizes(module: Explained) -> set[str]:
    """How the graph writes the number of examples; empty where it is a number."""
    nodes = _placeholders(module)
    found = {str((written_shape(nodes[leaf]) or "?")[0]) for leaf in module.record.leaves if leaf in nodes}
    return {name for name in found if not name.isdigit()}


def _batched(module: Explained, inputs: Mapping[str, Tensor], examples: int) -> frozenset[str]:
    placeholders, names = _placeholders(module), _batch_sizes(module)
    tokens = {read: front.leaf for front in module._fronts for read in front.reads}
    found = {name for name, x in inputs.items() if _is_batched(placeholders.get(tokens.get(name, name)), x, examples)}
    for name, x in inputs.items():
        node = placeholders.get(name)
        inner = set((written_shape(node) or ())[1:]) if node is not None else set()
        if examples > 1 and name not in found and inner & names and x.dim() > 1:
            raise InputError(
                f"pipeline: {name} {list(x.shape)} holds the examples in another dimension than the first; give them one "
                "at a time"
            )
    return frozenset(found)


def _is_batched(node: Node | None, value: Tensor, examples: int) -> bool:
    """Whether the first dimension, which is free in the graph, has an entry for each example."""
    sizes = shape(node) if node is not None else None
    is_free = not sizes or fixed_size(sizes[0]) is None
    return value.dim() > 0 and len(value) == examples and is_free
