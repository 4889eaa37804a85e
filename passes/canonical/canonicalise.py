"""Transform: one spelling for each op, and nothing in the graph that is not arithmetic."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from lxt_fx.base.errors import InputError
from lxt_fx.base.nodes import arguments, fixed_size, is_float, module_path, shape, value
from lxt_fx.base.torch_internals import aten, base_name
from lxt_fx.ops import experts, recurrences
from lxt_fx.ops.activations import ACTIVATIONS
from lxt_fx.passes.drop_dead import drop_dead

END = 2**63 - 1

CHECKS = frozenset(
    {
        aten._assert_tensor_metadata.default,
        aten._assert_async.msg,
        aten._assert_async.default,
        aten._assert_scalar.default,
        aten.sym_constrain_range_for_size.default,
        aten.sym_constrain_range.default,
        torch._check,
    }
)
RENAMES = {
    aten.mm.default: aten.matmul.default,
    aten.bmm.default: aten.matmul.default,
    aten.multiply.Tensor: aten.mul.Tensor,
    aten.multiply.Scalar: aten.mul.Tensor,
    aten.mul.Scalar: aten.mul.Tensor,
    aten.divide.Tensor: aten.div.Tensor,
    aten.divide.Scalar: aten.div.Tensor,
    aten.div.Scalar: aten.div.Tensor,
    aten.true_divide.Tensor: aten.div.Tensor,
    aten.true_divide.Scalar: aten.div.Tensor,
    aten.add.Scalar: aten.add.Tensor,
    aten.sub.Scalar: aten.sub.Tensor,
    aten.subtract.Tensor: aten.sub.Tensor,
    aten.subtract.Scalar: aten.sub.Tensor,
    aten.negative.default: aten.neg.default,
    aten.absolute.default: aten.abs.default,
    aten.concat.default: aten.cat.default,
    aten.concatenate.default: aten.cat.default,
    aten.swapaxes.default: aten.transpose.int,
    aten._unsafe_view.default: aten.view.default,
    **{other: activation.aten for activation in ACTIVATIONS for other in activation.other_names},
}
CASTS = frozenset(
    {aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other, aten.type_as.default, aten._to_copy.default}
)
NOTHING_IN_EVAL = frozenset(
    {aten.alias.default, aten.lift_fresh_copy.default, aten.lift_fresh.default, aten.positive.default}
)


def canonicalise(gm: GraphModule) -> int:
    """Transform: drops checks, casts that change nothing, dropout of eval mode and full slices; gives each op one spelling
    (mm, bmm -> matmul; addmm -> linear; t -> transpose; square, x * x -> pow; casts -> to.dtype).

    Raises InputError where the graph draws random numbers, which a model in training mode does.
    """
    edits = 0
    answering = _from_inputs(gm)
    for node in list(gm.graph.nodes):
        if node.op == "call_function":
            if node in answering:
                _refuse_training(node)
            edits += _drop_or_respell(gm, node)
    drop_dead(gm)
    return edits


def _from_inputs(gm: GraphModule) -> set[Node]:
    """Nodes that depend on an input; the others compute weights (BiT standardises its kernels by a batch norm in training
    mode)."""
    found = {node for node in gm.graph.nodes if node.op == "placeholder"}
    for node in gm.graph.nodes:
        if not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _refuse_training(node: Node) -> None:
    named = arguments(node) if node.op == "call_function" else {}
    dropout = node.target in (aten.dropout.default, aten.feature_dropout.default) and named["train"] and named["p"] > 0
    batch = node.target is aten.batch_norm.default and named["training"] and named["running_mean"] is not None
    instance = node.target is aten.instance_norm.default and named["use_input_stats"] and named["running_mean"] is not None
    dropout |= node.target is aten.rrelu.default and named.get("training", False)
    recurrent = node.target in recurrences.OF and bool(named.get("train")) and named.get("dropout", 0) > 0
    attention = node.target is aten.scaled_dot_product_attention.default and named.get("dropout_p", 0) > 0
    if dropout or batch or instance or attention or recurrent:
        what = "uses batch statistics" if batch or instance else "drops values at random"
        raise InputError(
            f"transform: the model is in training mode: %{node.name} in {module_path(node) or 'the model'} {what}, so the "
            "graph would not be the model that answers; call model.eval() first"
        )


def _drop_or_respell(gm: GraphModule, node: Node) -> int:
    target: Any = node.target
    if target in CHECKS:
        gm.graph.erase_node(node)
        return 1
    if target in RENAMES:
        node.target = RENAMES[target]
        return 1
    if str(target) == experts.OTHER_NAME:
        node.target = experts.grouped_matmul
        return 1
    if _changes_nothing(node):
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        gm.graph.erase_node(node)
        return 1
    respell = SPELLINGS.get(target)
    if respell is None:
        return 0
    with gm.graph.inserting_before(node):
        new = respell(gm.graph, node)
    if new is None:
        return 0
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    gm.graph.erase_node(node)
    if not re.fullmatch(rf"{base_name(target)}(_default)?(_\d+)?", node.name):  # a name that was given to what it computes
        new.name = node.name
    return 1


def _changes_nothing(node: Node) -> bool:
    target: Any = node.target
    if target in NOTHING_IN_EVAL or target in (aten.dropout.default, aten.feature_dropout.default):
        return True
    if target is aten.slice.Tensor:
        named = arguments(node)
        return named.get("start") in (None, 0) and named.get("end") in (None, END) and named.get("step", 1) == 1
    if target in CASTS:
        before, after = value(node.args[0]), value(node)  # type: ignore[arg-type]
        return bool(before.dtype == after.dtype and before.device == after.device)
    if target is aten.expand.default:
        before_shape, after_shape = shape(node.args[0]), shape(node)  # type: ignore[arg-type]
        known = all(isinstance(size, int) for size in (*(before_shape or ()), *(after_shape or ())))
        return known and before_shape == after_shape
    return False


def _cast(graph: Graph, node: Node) -> Node | None:
    """Every cast is to.dtype, unless it also moves to another device."""
    before, after = value(node.args[0]), value(node)  # type: ignore[arg-type]
    if node.target is aten.to.dtype or before.device != after.device:
        return None
    return graph.call_function(aten.to.dtype, (node.args[0], after.dtype))


def _made(graph: Graph, target: Any, args: tuple[Any, ...], like: Node, fake: Any = None) -> Node:
    node = graph.call_function(target, args)
    node.meta = dict(like.meta)
    if fake is not None:
        node.meta["val"] = fake
    return node


def _transposed(graph: Graph, node: Node, like: Node, swap: Callable[[Tensor], Tensor]) -> Node:
    return _made(graph, aten.transpose.int, (node, -2, -1), like, swap(value(node)))


def _addmm(graph: Graph, node: Node) -> Node | None:
    """b + x @ W is a linear map when W is a weight: the same kernel, bit-equal."""
    named = arguments(node)
    bias, x, weight = named["self"], named["mat1"], named["mat2"]
    if named.get("beta", 1) != 1 or named.get("alpha", 1) != 1 or len(shape(bias) or ()) != 1:
        return None
    if weight.op != "get_attr":
        return None
    return graph.call_function(aten.linear.default, (x, _transposed(graph, weight, node, lambda t: t.mT), bias))


def _transpose(graph: Graph, node: Node) -> Node | None:
    dims = len(shape(node) or ())
    if dims < 2:
        return None
    return graph.call_function(aten.transpose.int, (node.args[0], 0 if node.target is aten.t.default else -2, -1))


def _square(graph: Graph, node: Node) -> Node:
    return graph.call_function(aten.pow.Tensor_Scalar, (node.args[0], 2))


def _mul(graph: Graph, node: Node) -> Node | None:
    """x * x is x^2."""
    a, b = node.args
    return _square(graph, node) if a is b and isinstance(a, Node) and is_float(a) else None


def _rsub(graph: Graph, node: Node) -> Node | None:
    if arguments(node).get("alpha", 1) != 1:
        return None
    a, b = node.args[:2]
    if isinstance(b, Node):
        return graph.call_function(aten.sub.Tensor, (b, a))
    return graph.call_function(aten.add.Tensor, (_made(graph, aten.neg.default, (a,), node), b))


def _pow(graph: Graph, node: Node) -> Node | None:
    return graph.call_function(aten.sqrt.default, (node.args[0],)) if node.args[1] == 0.5 else None


def _selu(graph: Graph, node: Node) -> Node:
    return graph.call_function(aten.elu.default, (node.args[0], 1.6732632423543772848, 1.0507009873554804934))


def _celu(graph: Graph, node: Node) -> Node:
    alpha = arguments(node).get("alpha", 1.0)
    return graph.call_function(aten.elu.default, (node.args[0], alpha, 1.0, 1.0 / alpha))


def _relu6(graph: Graph, node: Node) -> Node:
    return graph.call_function(aten.hardtanh.default, (node.args[0], 0.0, 6.0))


def _glu(graph: Graph, node: Node) -> Node:
    """a * sigmoid(b) for the two halves of x."""
    x = node.args[0]
    assert isinstance(x, Node)
    halves = value(x).chunk(2, arguments(node).get("dim", -1))
    parts = _made(graph, aten.chunk.default, (x, 2, arguments(node).get("dim", -1)), node, halves)
    a, b = (_made(graph, operator.getitem, (parts, index), node, halves[index]) for index in (0, 1))
    return graph.call_function(aten.mul.Tensor, (a, _made(graph, aten.sigmoid.default, (b,), node)))


def _instance_norm(graph: Graph, node: Node) -> Node | None:
    """A group norm with one channel in each group; by fixed statistics, a batch norm."""
    named = arguments(node)
    x, weight, bias = named["input"], named["weight"], named["bias"]
    channels = fixed_size((shape(x) or (0, None))[1])
    if not named["use_input_stats"]:
        fixed = named["running_mean"], named["running_var"], False, named["momentum"], named["eps"], named["cudnn_enabled"]
        return graph.call_function(aten.batch_norm.default, (x, weight, bias, *fixed))
    if channels is None:
        return None
    return graph.call_function(aten.group_norm.default, (x, channels, weight, bias, named["eps"]))


def _rrelu(graph: Graph, node: Node) -> Node:
    named = arguments(node)
    slope = (named.get("lower", 0.125) + named.get("upper", 1 / 3)) / 2
    return graph.call_function(aten.leaky_relu.default, (named["self"], slope))


def _softplus(graph: Graph, node: Node) -> Node | None:
    """softplus(beta x) / beta, which torch takes as x where beta x is above 20, as for beta 1."""
    named = arguments(node)
    beta = named.get("beta", 1)
    if beta == 1 or named.get("threshold", 20) != 20:
        return None
    scaled = _made(graph, aten.mul.Tensor, (named["self"], beta), node)
    return graph.call_function(aten.div.Tensor, (_made(graph, aten.softplus.default, (scaled,), node), beta))


def _baddbmm(graph: Graph, node: Node) -> Node:
    named = arguments(node)
    product = _made(graph, aten.matmul.default, (named["batch1"], named["batch2"]), node)
    if named.get("alpha", 1) != 1:
        product = _made(graph, aten.mul.Tensor, (product, named["alpha"]), node)
    if named.get("beta", 1) == 0:
        return product
    added = named["self"]
    if named.get("beta", 1) != 1:
        added = _made(graph, aten.mul.Tensor, (added, named["beta"]), node)
    return graph.call_function(aten.add.Tensor, (added, product))


def _histc(graph: Graph, node: Node) -> Node | None:
    """Integers that are counted on the meta device, where experts count their tokens, are counted as floats, which is exact
    below 2**24: the graph is run on another device, and a CPU counts floats only. What was captured on a GPU keeps its
    integers, which a GPU counts under deterministic algorithms too."""
    named = arguments(node)
    x = named["self"]
    if is_float(x) or value(x).device.type != "meta":
        return None
    floats = _made(graph, aten.to.dtype, (x, torch.float32), node, value(x).float())
    counted = (floats, named.get("bins", 100), named.get("min", 0), named.get("max", 0))
    counts = _made(graph, aten.histc.default, counted, node, value(node).float())
    return graph.call_function(aten.to.dtype, (counts, value(node).dtype))


def _mse_loss(graph: Graph, node: Node) -> Node:
    """(a - b)^2 and its mean or sum."""
    a, b = node.args[:2]
    difference = value(a) - value(b)  # type: ignore[arg-type]
    square = _made(graph, aten.sub.Tensor, (a, b), node, difference)
    square = _made(graph, aten.pow.Tensor_Scalar, (square, 2), node, difference)
    match arguments(node).get("reduction", 1):
        case 0:
            return square
        case 1:
            return graph.call_function(aten.mean.default, (square,))
    return graph.call_function(aten.sum.default, (square,))


def _cosine_similarity(graph: Graph, node: Node) -> Node | None:
    """The sum of x1 / max(|x1|, eps) * x2 / max(|x2|, eps), as torch computes it. The vectors must be equally long."""
    named = arguments(node)
    x1, x2, dim, eps = named["x1"], named["x2"], named.get("dim", 1), named.get("eps", 1e-8)
    most = max(value(x1).dim(), value(x2).dim())
    dim = dim - most if dim >= 0 else dim
    if -dim > min(value(x1).dim(), value(x2).dim()) or str(value(x1).shape[dim]) != str(value(x2).shape[dim]):
        return None
    parts = []
    for x in (x1, x2):
        length = torch.linalg.vector_norm(value(x), 2, dim, keepdim=True)
        norm = _made(graph, aten.linalg_vector_norm.default, (x, 2, [dim], True), node, length)
        bounded = _made(graph, aten.clamp_min.default, (norm, eps), node, length)
        parts.append(_made(graph, aten.div.Tensor, (x, bounded), node, value(x)))
    product = _made(graph, aten.mul.Tensor, tuple(parts), node, value(x1) * value(x2))
    return graph.call_function(aten.sum.dim_IntList, (product, [dim]))


SPELLINGS: dict[Any, Callable[[Graph, Node], Node | None]] = {
    **dict.fromkeys(CASTS, _cast),
    aten.addmm.default: _addmm,
    aten.baddbmm.default: _baddbmm,
    aten.t.default: _transpose,
    aten.numpy_T.default: _transpose,
    aten.mT.default: _transpose,
    aten.square.default: _square,
    aten.mul.Tensor: _mul,
    aten.glu.default: _glu,
    aten.histc.default: _histc,
    aten.mse_loss.default: _mse_loss,
    aten.cosine_similarity.default: _cosine_similarity,
    aten.pow.Tensor_Scalar: _pow,
    aten.relu6.default: _relu6,
    aten.rrelu.default: _rrelu,
    aten.softplus.default: _softplus,
    aten.instance_norm.default: _instance_norm,
    aten.selu.default: _selu,
    aten.celu.default: _celu,
    aten.rsub.Tensor: _rsub,
    aten.rsub.Scalar: _rsub,
}
