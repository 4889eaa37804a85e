"""Transform: activations save their ratio y / x, alone or with the linear map before them."""

from __future__ import annotations

from collections.abc import Mapping, Set

from torch.fx import Graph, Node

from lxt_fx.base.nodes import arguments, is_float
from lxt_fx.base.pattern import Found, Op, Part, any_of, match_alone
from lxt_fx.base.torch_internals import OpOverload, aten
from lxt_fx.ops import activations, active, products

_KINDS = {(activations.OPS[kind.op], kind.approximate): name for name, kind in active.KINDS.items() if kind.op}
_identity, _hold = Op(activations.identity), Op(products.hold)


def _tanh(x: Part) -> Part:
    return any_of(Op(aten.tanh.default)(x), Op(activations.OPS["tanh"])(x))


def _sigmoid(x: Part) -> Part:
    return any_of(Op(aten.sigmoid.default)(x), Op(activations.OPS["sigmoid"])(x))


def _gelu_written_out(x: Part) -> Part:
    """As GPT-2 writes the GELU by tanh."""
    held = _hold(x)
    inner = (held + held**3.0 * 0.044715) * active.SQRT_2_OVER_PI
    return _identity(x, held * 0.5 * (_tanh(inner) + 1.0), 0.0, 0.5)


def _quick_gelu(x: Part) -> Part:
    """x sigmoid(1.702 x), as CLIP writes it."""
    held = _hold(x)
    return _identity(x, held * _sigmoid(held * 1.702), 0.0, 0.5)


_WRITTEN_OUT = {"gelu_written_out": _gelu_written_out, "quick_gelu": _quick_gelu}


def fuse_activations(graph: Graph, carrying: Set[Node]) -> int:
    """Transform: activations that `active.KINDS` has, as one op or written out, become `lxt_fx.active`."""
    edits = 0
    for node in list(graph.nodes):
        if node in carrying and node.op == "call_function" and (found := _kind(node)) is not None:
            node.target, node.args, node.kwargs = active.active, found, {}
            edits += 1
    return edits


def _kind(node: Node) -> tuple[Node, str] | None:
    """The operand of an activation and its kind."""
    if node.target is activations.identity:
        for name, pattern in _WRITTEN_OUT.items():
            if isinstance(found := match_alone(pattern, node), Found):
                return found["x"], name
        return None
    given, target = arguments(node), node.target
    if not isinstance(target, OpOverload):
        return None
    kind = _KINDS.get((target, given.get("approximate", "none") if target is activations.OPS["gelu"] else None))
    operand = given.get("self")
    return (operand, kind) if kind is not None and isinstance(operand, Node) and is_float(operand) else None


def fuse_active_linears(graph: Graph, carrying: Set[Node], shares: Mapping[Node, float]) -> int:
    """Transform: `lxt_fx.active` of a linear map, or of a view of one, becomes `lxt_fx.linear_active`, where nothing else
    reads the map."""
    edits = 0
    for node in list(graph.nodes):
        if node.target is not active.active:
            continue
        operand, kind = node.args
        view = operand if isinstance(operand, Node) and operand.target in _VIEWS and len(operand.users) == 1 else None
        linear = view.args[0] if view is not None else operand
        if isinstance(linear, Node) and _may_fuse(linear, carrying, shares):
            given = arguments(linear)
            linear.target, linear.kwargs = active.linear_active, {}
            linear.args = (given["input"], given["weight"], given.get("bias"), kind)
            node.replace_all_uses_with(view or linear)
            graph.erase_node(node)
            edits += 1
    return edits


_VIEWS = frozenset({aten.view.default, aten.reshape.default})


def _may_fuse(linear: Node, carrying: Set[Node], shares: Mapping[Node, float]) -> bool:
    alone = linear.target is products.linear and len(linear.users) == 1 and shares.get(linear, 1.0) == 1.0
    return alone and linear.args[0] in carrying
