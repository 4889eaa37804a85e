"""The gradient that each reader sends to its own branch of the residual stream, all from one backward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.fx import Node

from lxt_fx.attribution.leaf_call import LeafCall
from lxt_fx.attribution.many_entries import Numbers
from lxt_fx.attribution.many_targets import LARGEST_CHUNK, forward_run
from lxt_fx.attribution.places import InsidePlace, places_at
from lxt_fx.attribution.tapped import tapped
from lxt_fx.base.errors import InputError
from lxt_fx.base.wide import at_least_float32
from lxt_fx.inside.circuits.network import LOGITS, Network, Reader


@dataclass(frozen=True, slots=True, eq=False)
class BranchGradients:
    """What flows back under the rules of the module, at least float32: to the branch of each reader, [readers, *stream], to
    what each write adds to the stream, [writes, *stream], and to each place that was asked for."""

    readers: Tensor
    writes: Tensor
    inside: Mapping[str, Tensor]


class SplitFurther(Protocol):
    """What takes the gradients of a call apart while its autograd graph is there."""

    @property
    def inside(self) -> Sequence[Node]:
        """The nodes that it needs beside readers and writers."""

    def add(self, at: Mapping[Node, Tensor], gradients: Mapping[Node, Tensor], readers: Tensor) -> None:
        """Takes the values `at` nodes, the gradients there, and those of all readers [readers, *stream]."""


def branch_gradients(
    network: Network,
    leaves: LeafCall,
    numbers: Numbers,
    inside: Sequence[str],
    function: str,
    further: SplitFurther | None = None,
) -> BranchGradients:
    """The gradients of one call. The network runs forward once and backward once, to what its readers make (queries, keys,
    values, the output of an MLP). From there to the stream it is one norm and one linear map, whose backward runs once for
    a batch of heads: q, k, v and MLP read one norm, and each has its own gradient at it.

    Raises InputError where the number does not depend on the readers.
    """
    nodes = list(_nodes(network, () if further is None else further.inside))
    names = [network.name_in_module(node) for node in nodes]
    wanted = {f"%{name}": InsidePlace(f"%{name}", name, (), (), "") for name in names}
    wanted |= {name: place for each in inside for name, place in places_at(network.module, each, function).items()}
    run = forward_run(leaves, numbers, function, tapped(network.module, wanted))
    at = dict(zip(nodes, run.inside, strict=False))
    found = [each[0] for each in run.gradients(run.inside, 0, 1, last=False)]
    gradients = dict(zip(nodes, found, strict=False))
    shape = run.inside[0].shape
    found_readers = [of_reader(reader, at, gradients, function).reshape(-1, *shape) for reader in network.readers]
    readers = torch.cat(found_readers)
    if further is not None:
        further.add(at, gradients, readers)
    writes = [at_least_float32(gradients[writer.write.added].detach()).reshape(shape) for writer in network.writers]
    rest = {name: at_least_float32(each.detach()) for name, each in zip(inside, found[len(nodes) :], strict=True)}
    return BranchGradients(readers, torch.stack(writes), rest)


def _nodes(network: Network, further: Sequence[Node]) -> dict[Node, None]:
    """The values that gradients are read at or run through: what is read, what is made of it, what is written. The logits
    are made of the last value of the stream alone, so its gradient is theirs. Where a table holds the patterns of
    attentions, nothing flows back to queries and keys."""
    values = network.module._values()
    found = {network.writers[0].write.added: None}  # the first is the embedding, whose shape is that of the stream
    found |= {reader.read.stream: None for reader in network.readers}
    found |= {reader.read.end: None for reader in network.readers if reader.place != LOGITS}
    found |= {writer.write.added: None for writer in network.writers}
    found |= dict.fromkeys(further)
    return {node: None for node in found if values.carries(values.by_name[network.name_in_module(node)])}


def of_reader(reader: Reader, at: Mapping[Node, Tensor], gradients: Mapping[Node, Tensor], function: str) -> Tensor:
    """The gradient of each unit of a reader at the stream, [units, *stream]."""
    read, stream = reader.read, at[reader.read.stream]
    if reader.place == LOGITS:
        return at_least_float32(gradients[read.stream].detach())[None]
    if read.end not in gradients:
        return at_least_float32(stream.new_zeros(len(reader.names), *stream.shape))
    reaching, found = gradients[read.end], list[Tensor]()
    for start in range(0, len(reader.names), LARGEST_CHUNK):
        units = range(start, min(start + LARGEST_CHUNK, len(reader.names)))
        seeds = torch.stack([reader.only(reaching, unit) for unit in units])
        (part,) = torch.autograd.grad(
            at[read.end], stream, seeds, retain_graph=True, allow_unused=True, is_grads_batched=True
        )
        if part is None:
            raise InputError(f"{function}: no gradient flows from {reader.place} to the stream that it reads")
        found.append(at_least_float32(part.detach()))
    return torch.cat(found)
