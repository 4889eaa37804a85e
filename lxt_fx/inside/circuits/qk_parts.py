"""The queries and keys of one head as sums: one term for each writer to the residual stream that they are computed of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from lxt_fx.base.errors import ForwardMismatchError
from lxt_fx.base.nodes import computed_from
from lxt_fx.base.progress import steps
from lxt_fx.base.torch_internals import aten_ops
from lxt_fx.base.wide import at_least_float32
from lxt_fx.inside.circuits.contributions import Contributions, coarsest, far_apart
from lxt_fx.inside.circuits.graph_run import GraphRun
from lxt_fx.inside.circuits.network import EMBEDDING, Reader, Writer
from lxt_fx.passes.analysis.find_attention_parts import RESHAPES

REST, BIAS = "rest", "bias"
"""What the stream has that no writer wrote, and what queries or keys have of a stream that is 0."""

POSITIONS, LOOKED_UP = f"{EMBEDDING}:positions", f"{EMBEDDING}:tokens"

_AFFINE = RESHAPES | aten_ops("add.Tensor mul.Tensor to.dtype")


@dataclass(frozen=True, slots=True, eq=False)
class Sources:
    """The weights [queries, keys] and values [keys, size] of a head, which split what it writes by source token."""

    weights: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class HeadRead:
    """The linear map from the residual stream to the queries or keys of one head, with all norms held. `operand` is what
    the product of the scores reads, whose last two axes are `turned` or not; `nodes` lead there from the stream, and `head`
    is an index of its heads."""

    run: GraphRun
    reader: Reader
    nodes: tuple[Node, ...]
    operand: Node
    head: int
    turned: bool

    @property
    def actual(self) -> Tensor:
        """The queries or keys of the run, [tokens, size]."""
        return self._own(self.run.values[self.operand])

    @torch.no_grad()
    def of(self, stream: Tensor) -> Tensor:
        """The queries or keys if the stream had this value and norms were held, [tokens, size]."""
        read, ran = self.reader.read, self.run.values[self.reader.read.stream]
        value = stream.reshape(ran.shape).to(ran.dtype)
        return self._own(self.run.through(self.nodes, read.stream, value, read.held))

    def _own(self, value: Tensor) -> Tensor:
        heads = value.mT if self.turned else value
        return at_least_float32(heads.flatten(0, -3)[self.head])


def parts_of(written: Contributions, read: HeadRead, split: Mapping[str, Sources]) -> dict[str, Tensor]:
    """The queries or keys as a sum of what each writer makes of them, [tokens, size] at least float32. Heads of `split` are
    split by source token, an embedding by tokens and positions where it is their sum. The last two are `rest` and `bias`.

    Raises ForwardMismatchError where they are no such sum: what stands between stream and scores is not linear.
    """
    stream = written.run.values[read.reader.read.stream]
    bias = read.of(torch.zeros_like(stream))
    left = at_least_float32(stream).reshape(written.whole(read.reader.sees[0]).shape).clone()
    found: dict[str, Tensor] = {}

    def made(value: Tensor) -> Tensor:
        return read.of(written.seen(value, read.reader.scales)) - bias

    for writer in steps("writers", read.reader.sees, len(read.reader.sees)):
        for name, value in _terms(written, writer, split):
            left -= written.seen(value, read.reader.scales)
            found[name] = made(value)
        if writer.by_features:
            left -= written.seen(written.added(writer)[0], read.reader.scales)
            found |= _of_features(written, writer, made)
    found |= {REST: read.of(left) - bias, BIAS: bias}
    sums, actual = torch.stack(list(found.values())), read.actual
    if far := far_apart(sums.sum(0), actual, float(sums.abs().sum(0).max()), coarsest(written.run, read.nodes)):
        raise ForwardMismatchError(
            f"{written.function}: {read.reader.place} are no sum of what writers make of them ({far}): what stands between "
            f"the residual stream and %{read.operand.name} is not linear with its norms held, so a pair of writers has no "
            "part of a score; lxt_fx.latent reads relevance at queries and keys"
        )
    found[REST] = found[REST] + (actual - sums.sum(0))
    return found


def _terms(written: Contributions, writer: Writer, split: Mapping[str, Sources]) -> Iterator[tuple[str, Tensor]]:
    """What the units of a writer add to the stream, by name; features are not among them."""
    if writer.by_features:
        return
    if writer.place == EMBEDDING:
        yield from _of_embedding(written, writer)
        return
    for name, value in zip(writer.names, written.added(writer), strict=True):
        if name in split:
            yield from _of_sources(written, writer, name, value, split[name])
        else:
            yield name, value


def _of_embedding(written: Contributions, writer: Writer) -> Iterator[tuple[str, Tensor]]:
    """What tokens are looked up as, and the positions that are added to it."""
    run, added, whole = written.run, writer.write.added, written.whole(writer)
    leaf, nodes = added, list[Node]()
    while leaf.op == "call_function" and leaf.target in _AFFINE and len(found := _leads(run, leaf)) == 1:
        nodes.append(leaf)
        leaf = found[0]
    positions = torch.zeros_like(whole)
    if leaf.op == "placeholder" and nodes:
        none = run.through(reversed(nodes), leaf, torch.zeros_like(run.values[leaf]))
        positions = at_least_float32(none).reshape(whole.shape)
    if not positions.any():
        yield EMBEDDING, whole
    else:
        yield from ((LOOKED_UP, whole - positions), (POSITIONS, positions))


def _leads(run: GraphRun, node: Node) -> list[Node]:
    """The operands of a node that are computed of a leaf."""
    leaves = {each for each in run.graph.nodes if each.op == "placeholder" and str(each.target) in run.module.record.leaves}
    return [each for each in node.all_input_nodes if not leaves.isdisjoint(computed_from(each))]


def _of_sources(
    written: Contributions, writer: Writer, name: str, value: Tensor, sources: Sources
) -> Iterator[tuple[str, Tensor]]:
    """What a head adds, by the token whose values it mixes in."""
    parts, unit = written.parts(writer), writer.names.index(name)
    assert writer.axis is not None, "asked for a head"
    none, total = written.from_parts(writer, torch.zeros_like(parts)), torch.zeros_like(value)
    for source in range(len(sources.values)):
        mixed = sources.weights[:, source, None] * sources.values[source]
        alone = torch.zeros_like(parts)
        alone.select(writer.axis, unit).copy_(mixed.reshape(alone.select(writer.axis, unit).shape))
        found = written.from_parts(writer, alone) - none
        total += found
        yield f"{name}@{source}", found
    scale = float(torch.maximum(total.abs(), value.abs()).max())
    if far := far_apart(total, value, scale, coarsest(written.run, writer.write.between)):
        raise ForwardMismatchError(
            f"{written.function}: {name} is not its pattern times its values ({far}), so it cannot be split by source "
            "token; leave it out of sources"
        )


def _of_features(written: Contributions, writer: Writer, made: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """What each feature that is active somewhere makes of queries or keys. At each position its first active feature runs
    alone, then its second, so that there are as many runs as a position has active features at most."""
    parts = written.parts(writer)
    assert writer.axis is not None, "asked for features"
    moved = parts.movedim(writer.axis, -1)
    flat = moved.reshape(-1, moved.shape[-1])
    none, order = written.from_parts(writer, torch.zeros_like(parts)), flat.abs().argsort(1, descending=True)
    found: dict[str, Tensor] = {}
    for slot in range(int((flat != 0).sum(1).max())):
        chosen = order[:, slot]
        alone = torch.zeros_like(flat).scatter_(1, chosen[:, None], flat.gather(1, chosen[:, None]))
        back = alone.reshape(moved.shape).movedim(-1, writer.axis)
        one = made(written.from_parts(writer, back) - none)
        for position in (alone != 0).any(1).nonzero().flatten().tolist():
            name = writer.names[int(chosen[position])]
            found.setdefault(name, torch.zeros_like(one))[position] = one[position]
    return {name: found[name] for name in writer.names if name in found}
