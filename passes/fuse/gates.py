"""Transform: the product of an activation and the value that it gates becomes one op."""

from __future__ import annotations

from collections.abc import Set

from torch.fx import Graph, Node

from lxt_fx.base.nodes import dtype, written_shape
from lxt_fx.base.pattern import Found, Op, Part, any_of, match_alone
from lxt_fx.ops import activations, fused, products

_mul, _silu, _gelu = Op(products.mul, commutes=True), Op(activations.silu), Op(activations.gelu)
_KINDS = {gate.approximate: kind for kind, gate in fused.GATES.items()}


def _gated(gate: Part, up: Part, approximate: Part) -> Part:
    """`silu(gate) * up` or `gelu(gate) * up`."""
    return _mul(any_of(_silu(gate), _gelu(gate, approximate=approximate)), up)


def fuse_gates(graph: Graph, carrying: Set[Node]) -> int:
    """Transform: `silu(a) * b` and `gelu(a) * b` of carrying a and b become `lxt_fx.gated` where nothing else reads the
    activation."""
    edits = 0
    for node in list(graph.nodes):
        if node in carrying:
            edits += _fuse(node)
    return edits


def _fuse(product: Node) -> int:
    found = match_alone(_gated, product)
    if not isinstance(found, Found):
        return 0
    gate, up = found["gate"], found["up"]
    if not written_shape(gate) == written_shape(up) == written_shape(product) or dtype(gate) != dtype(up):
        return 0
    product.target, product.args, product.kwargs = fused.gated, (gate, up, _KINDS[found.values.get("approximate")]), {}
    return 1
