"""Transform: constant gradient factors (the shares of products) move towards the inputs and are merged."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Graph, Node

from lxt_fx.base.nodes import arguments
from lxt_fx.base.torch_internals import OpOverload, aten
from lxt_fx.ops import fused, products
from lxt_fx.passes.analysis.mark_flow import differentiable_operands

_SDPA = {"query": "query_share", "key": "key_share", "value": "value_share", "attn_mask": "mask_share"}
_NATIVE: dict[Any, Any] = {products.matmul: products.matmul_held, products.mul: aten.mul.Tensor, fused.gated: fused.gated}


def merge_shares(graph: Graph, carrying: Set[Node]) -> Mapping[Node, float]:
    """Transform: constant gradient factors move towards the inputs, which is exact because every backward is linear in the
    gradient. Where all readers of a value have the same factor, it moves on to the value; where they differ, each edge
    applies its own. Returns the factors of linear maps (`lxt_fx.linear`), whose matrix product applies them at no cost."""
    merging = _Merging(graph, carrying)
    for node in reversed(list(graph.nodes)):
        if node in carrying and node.op in ("call_function", "placeholder"):
            merging.decide(node)
    for node in list(graph.nodes):
        if node.target in _NATIVE or node.target in (products.sdpa, fused.grouped_sdpa):
            merging.rewrite(node)
    return merging.linear


@dataclass(slots=True)
class _Merging:
    """`pending` is the factor that the gradient of a value still lacks, `applied` the factor that an edge applies (by
    reader and operand), `linear` the factor that a linear map applies."""

    graph: Graph
    carrying: Set[Node]
    pending: dict[Node, float] = field(default_factory=dict)
    applied: dict[tuple[Node, str], float] = field(default_factory=dict)
    linear: dict[Node, float] = field(default_factory=dict)

    def decide(self, node: Node) -> None:
        """Decides the pending factor of the node; its readers come first."""
        edges = [
            (reader, operand.name)
            for reader in node.users
            if reader.op == "output" or reader in self.carrying
            for operand in differentiable_operands(reader)
            if operand.node is node
        ]
        shares = [self._share(reader, name) for reader, name in edges]
        if len(set(shares)) == 1 and _may_pass(node):
            self.pending[node] = shares[0]
        else:
            self.pending[node] = 1.0
            for edge, share in zip(edges, shares, strict=True):
                self._apply(node, edge, share)
        if node.target is products.linear and self.pending[node] != 1.0:
            self.linear[node] = self.pending[node]

    def _share(self, reader: Node, name: str) -> float:
        """The factor of the gradient that the reader passes to this operand."""
        if reader.op == "output" or reader.target is products.linear:
            return 1.0
        return own_share(reader, name) * self.pending.get(reader, 1.0)

    def _apply(self, node: Node, edge: tuple[Node, str], share: float) -> None:
        reader, name = edge
        if reader.target in _NATIVE or reader.target in (products.sdpa, fused.grouped_sdpa):
            self.applied[edge] = share
        elif share != 1.0 and reader.target is operator.getitem:
            _put_after(self.graph, reader, share)
        elif share != 1.0:
            reader.replace_input_with(node, _put_before(self.graph, reader, node, share))

    def _carries(self, operand: Any) -> bool:
        return operand in self.carrying or (isinstance(operand, Node) and operand.target is fused.share)

    def rewrite(self, node: Node) -> None:
        """Replaces the op by one without shares of its own, or with those that its edges apply."""
        applied = {
            name: self.applied.get((node, name), 1.0) for name in _shared(node) if self._carries(_operand(node, name))
        }
        if node.target in (products.sdpa, fused.grouped_sdpa):
            kwargs = dict(node.kwargs)
            node.kwargs = kwargs | {_SDPA[name]: share for name, share in applied.items()}
        elif node.target is fused.gated and len(set(applied.values())) == 1:
            node.args = (*node.args[:3], next(iter(applied.values())))
        elif set(applied.values()) == {0.5} and node.target is not fused.gated:
            node.kwargs = {}  # half each, whatever the shares were
        else:
            node.args = (*node.args[:3], 1.0) if node.target is fused.gated else node.args
            node.target, node.kwargs = _NATIVE[node.target], {}
            for name, share in applied.items():
                operand = _operand(node, name)
                if share != 1.0:
                    node.update_arg(list(_shared(node)).index(name), _put_before(self.graph, node, operand, share))


def own_share(node: Node, name: str) -> float:
    """The factor by which the node's op multiplies the native gradient of an operand."""
    if node.target in (products.sdpa, fused.grouped_sdpa):
        default = 0.25 if name in ("query", "key") else 0.5
        return float(node.kwargs.get(_SDPA[name], default)) if name in _SDPA else 1.0  # type: ignore[arg-type]
    if node.target not in _NATIVE or name not in _shared(node):
        return 1.0
    return float(node.kwargs.get(f"{name}_share", 0.5))  # type: ignore[arg-type]


def _shared(node: Node) -> tuple[str, ...]:
    if node.target in (products.sdpa, fused.grouped_sdpa):
        return tuple(_SDPA)
    return ("gate", "up") if node.target is fused.gated else ("self", "other")


def _operand(node: Node, name: str) -> Node:
    found = arguments(node).get(name)
    return found  # type: ignore[return-value]


def _may_pass(node: Node) -> bool:
    """Whether a factor may move past the op: its backward is known to be linear, as of torch's ops and ours."""
    if node.target is operator.getitem:
        return True
    return isinstance(node.target, OpOverload) and node.target.namespace in ("aten", "lxt_fx")


def _put_before(graph: Graph, reader: Node, node: Node, share: float) -> Node:
    with graph.inserting_before(reader):
        put = graph.call_function(fused.share, (node, share))
    put.meta = dict(node.meta)
    return put


def _put_after(graph: Graph, node: Node, share: float) -> None:
    with graph.inserting_after(node):
        put = graph.call_function(fused.share, (node, share))
    put.meta = dict(node.meta)
    node.replace_all_uses_with(put, delete_user_cb=lambda user: user is not put)
