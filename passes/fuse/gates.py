"""Transform: an activation times what it gates becomes one op."""

from __future__ import annotations

from collections.abc import Set

from torch.fx import Graph, Node

from lxt_fx.base.nodes import dtype, written_shape
from lxt_fx.ops import activations, fused, products


def fuse_gates(graph: Graph, carrying: Set[Node]) -> int:
    """Transform: `silu(a) * b` and `gelu(a) * b`, both carrying, become `lxt_fx.gated`, where nothing else reads the
    activation."""
    edits = 0
    for node in list(graph.nodes):
        if node.target is products.mul and node in carrying:
            edits += _fuse(node)
    return edits


def _fuse(product: Node) -> int:
    for gate, up in (product.args, product.args[::-1]):
        kind = _kind(gate) if isinstance(gate, Node) else None
        if kind is None or not isinstance(gate, Node) or not isinstance(up, Node) or len(gate.users) != 1:
            continue
        if written_shape(gate) == written_shape(up) == written_shape(product) and dtype(gate) == dtype(up):
            product.target, product.args, product.kwargs = fused.gated, (gate.args[0], up, kind), {}
            return 1
    return 0


def _kind(gate: Node) -> str | None:
    if gate.target is activations.silu:
        return "silu"
    if gate.target is not activations.gelu:
        return None
    return "gelu_tanh" if gate.kwargs.get("approximate") == "tanh" else "gelu"
