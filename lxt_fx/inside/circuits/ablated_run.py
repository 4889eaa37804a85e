"""A forward in which each reader has its own value of the residual stream: edges outside of a circuit carry what was
written in the corrupted run."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.fx import Node

from lxt_fx.inside.circuits.contributions import Contributions, Differences
from lxt_fx.inside.circuits.graph_run import GraphRun
from lxt_fx.inside.circuits.network import Network, Reader
from lxt_fx.inside.circuits.pairs import CLEAN, Pairs


class AblatedRun(GraphRun):
    """The clean run of pairs, with `kept` [writers, readers] edges; `corrupted` is what writers add in the corrupted run.

    A reader v reads the sum of what its writers u wrote: of kept edges in this run, of others in the corrupted one. That is
    the stream of this run less sum over edges outside of (a_u - a_u corrupted). With all edges it is the clean run, with
    the same ops on the same values; with none every reader reads what it read in the corrupted run.
    """

    def __init__(self, pairs: Pairs, kept: Tensor, corrupted: Contributions) -> None:
        super().__init__(pairs.module, pairs.network.graph, pairs.clean.leaves.bound)
        self.network, self.kept = pairs.network, kept
        self.differences = Differences(Contributions(self, pairs.network, corrupted.function), corrupted)

    @torch.no_grad()
    def run(self) -> AblatedRun:
        """Runs the nodes that the output needs, in graph order."""
        readers = {reader.read.end: reader for reader in self.network.readers}
        writers = {writer.write.added: writer for writer in self.network.writers}
        needed = set(_needed(self.network))
        for node in self.graph.nodes:
            if node not in needed:
                continue
            self.values[node] = self._read(readers[node]) if node in readers else self.compute(node)
            if node in writers:
                self.differences.find(writers[node])
        return self

    def _read(self, reader: Reader) -> Tensor:
        """What the units of a reader make, each of its own sum; units with the same edges are computed at once."""
        sees = torch.tensor([unit for writer in reader.sees for unit in writer.units])
        edges = self.kept[sees][:, reader.units.start : reader.units.stop]
        alike, of_unit = torch.unique(edges, dim=1, return_inverse=True)
        made = [self.through(reader.read.between, reader.read.stream, each) for each in self._sums(reader, alike.T)]
        if reader.axis is None or len(made) == 1:
            return made[0]
        found = torch.empty_like(made[0])
        for unit, which in enumerate(of_unit.tolist()):
            reader.part(found, unit).copy_(reader.part(made[which], unit))
        return found

    def _sums(self, reader: Reader, kept: Tensor) -> list[Tensor]:
        """For each set of edges [sets, units], one for each unit that the reader sees, the value of the stream in which
        they are as in this run."""
        stream: Tensor = self.values[reader.read.stream]
        whole = kept.all(1).tolist()
        if all(whole):
            return [stream] * len(kept)
        gone = self.differences.outside(reader, ~kept)
        return [
            stream if each else (stream.to(gone.dtype) - out.reshape(stream.shape)).to(stream.dtype)
            for each, out in zip(whole, gone, strict=True)
        ]


def _needed(network: Network) -> Iterator[Node]:
    """The nodes that the output is computed of, where readers are computed of the stream and of what else they read."""
    reads = {reader.read.end: reader.read for reader in network.readers}
    seen, todo = set[Node](), list(network.graph.output_node().all_input_nodes)
    todo += [writer.write.added for writer in network.writers]
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        if node in reads:
            inside = {reads[node].stream, *reads[node].between}
            beside = {one for each in reads[node].between for one in each.all_input_nodes} - inside
            todo += [reads[node].stream, *beside]
        else:
            todo += node.all_input_nodes


def ablated_numbers(pairs: Pairs, kept: Tensor, corrupted: Contributions) -> Tensor:
    """The explained number of each pair when only these edges [writers, readers] carry what this run writes, [pairs]."""
    return pairs.numbers(CLEAN, AblatedRun(pairs, kept, corrupted).run().output())
