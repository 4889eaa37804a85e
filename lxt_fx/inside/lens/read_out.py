"""The logits that the residual stream of each layer gives by a lens: the graph of a call, run again from behind the last
layer on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from lxt_fx.attribution.places import node_at, places
from lxt_fx.base.errors import InputError
from lxt_fx.base.progress import steps
from lxt_fx.inside.lens.residuals import TextCall
from lxt_fx.passes.fuse.dtypes import DtypesMatched


@dataclass(frozen=True, slots=True, eq=False)
class Top:
    """The k entries with the largest logits at each position of a batch, largest first: `ids`, `logits` and `probability`
    [batch, positions, k], on the CPU."""

    ids: Tensor
    logits: Tensor
    probability: Tensor


def top_of(logits: Tensor, k: int, function: str) -> Top:
    """The largest logits [batch, positions, entries]. Raises InputError for a k that is not from 1 to the number of
    entries."""
    entries = logits.shape[-1]
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= entries:
        raise InputError(f"{function}: k must be a whole number from 1 to {entries}, got {k!r}")
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    best = wide.topk(k)
    probability = (best.values - wide.logsumexp(-1, keepdim=True)).exp()
    return Top(best.indices.cpu(), best.values.cpu(), probability.cpu())


def logits_by_layer(call: TextCall, matrices: Tensor) -> Iterator[Tensor]:
    """W_U norm(J_l h_l) for each place of the residual stream in turn, and for the last the model's own logits."""
    module, bound = call.leaves.module, call.leaves.bound
    nodes = [node_at(module, place) for place in call.places.values()]
    logits = node_at(module, places(module)["logits"])
    runner = _Kept(module, nodes, logits)
    module._run_by(runner, bound)
    for at, node in enumerate(steps("layers", nodes, len(nodes))):
        value = runner.kept[node]
        if at < len(matrices):
            value = (value.to(matrices.dtype) @ matrices[at].to(value.device).T).to(value.dtype)
        yield runner.again(value)


class _Kept(DtypesMatched):
    """Runs a graph, keeps the values at some nodes, and runs it again from the last of them on with another value there."""

    def __init__(self, module: Any, nodes: list[Node], logits: Node) -> None:
        super().__init__(module)
        self.last, self.logits = nodes[-1], logits
        behind = {self.last}
        self.behind = [node for node in module.graph.nodes if _adds(node, behind) and node.op != "output"]
        read = {operand for node in self.behind for operand in node.all_input_nodes} - set(self.behind)
        self.wanted = read | set(nodes)
        self.kept: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        """The value of a node, kept where it is wanted."""
        result = super().run_node(n)
        if n in self.wanted:
            self.kept[n] = result
        return result

    def again(self, value: Tensor) -> Tensor:
        """The logits with this value behind the last layer."""
        self.env = {**self.kept, self.last: value}
        try:
            for node in self.behind:
                self.env[node] = super().run_node(node)
            found: Tensor = self.env[self.logits]
        finally:
            self.env = {}
        return found


def _adds(node: Node, behind: set[Node]) -> bool:
    """Whether a node reads one of these, which it is added to then."""
    if behind.isdisjoint(node.all_input_nodes):
        return False
    behind.add(node)
    return True
