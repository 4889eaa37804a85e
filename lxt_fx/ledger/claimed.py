"""What the rule of a node claims to absorb: the shares of biases, constants and the softmax offset. They are computed from
the values and the formula, not from the backward of the op, so that the two can be compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from lxt_fx.base.node_text import op_name
from lxt_fx.base.nodes import module_path, operands
from lxt_fx.base.torch_internals import aten
from lxt_fx.ledger.call import CHUNK, Call, inner, no_number
from lxt_fx.ledger.causes import Cause, Share
from lxt_fx.ledger.claimed_by_contribution import absorbed, map_call
from lxt_fx.ops import activations, products, recurrences
from lxt_fx.ops.activations import CLOSING, FROM_ZERO, X_OF
from lxt_fx.ops.aten_kinds import LIMITS, MEETING, MOVES, SELECTIONS, SUMS, WEIGHTED
from lxt_fx.ops.contributions import BY_CONTRIBUTION, OF_UNPACKED
from lxt_fx.ops.dtype_limits import mask_limit
from lxt_fx.ops.packed import packed_linear, unpacked_bias, unpacked_weight
from lxt_fx.ops.sources import SOURCES, reconstruction_error
from lxt_fx.rule_table.rule import Conserves, Rule

NATURALLY: Mapping[Any, Conserves] = {
    **dict.fromkeys(MOVES | SUMS | WEIGHTED, Conserves.ALL_BUT_CONSTANTS),
    **dict.fromkeys(SELECTIONS, Conserves.SELECTED),
    products.linear: Conserves.ALL_BUT_CONSTANTS,
    aten.softmax.int: Conserves.ALL_BUT_OFFSET,
}
"""What the native gradient of these ops conserves; it holds also where their rule claims nothing."""

def claim_of(rule: Rule | None, node: Node) -> Conserves:
    """What is claimed of a node: by its rule, or, where that claims nothing, by what its op is known to conserve."""
    if rule is not None and rule.conserves is not Conserves.NATIVE:
        return rule.conserves
    return NATURALLY.get(node.target, Conserves.NATIVE)


def shares(call: Call, gradient: Any, index: int = 0) -> list[Share]:
    """What the constants of a call absorb of the relevance <output, gradient> that reaches it, by the formula of its
    rule. Of an op that returns several values the gradient is that of value `index`."""
    if call.node.target in recurrences.EQUATIONS:
        return _recurrence(call, gradient, index)
    if isinstance(call.output, (tuple, list)):
        return []
    if call.node.target is products.epsilon:
        return _epsilon(call, gradient)
    if call.node.target in SOURCES:
        cause = Cause.ERROR if call.node.target is reconstruction_error else Cause.FEATURE
        return _nonzero(cause, module_path(call.node) or op_name(call.node), inner(call.output, gradient))
    if call.node.target is packed_linear:
        return _packed(call, gradient)[1]
    if call.node.target in BY_CONTRIBUTION:
        return _by_contribution(call, gradient)
    if call.node.target is products.sdpa_held:
        return _masked_queries(call, gradient)
    if call.node.target is activations.identity and claim_of(call.rule, call.node) is Conserves.ALL_BUT_ZEROS:
        x = call.argument("self")
        return _nonzero(Cause.ZERO, "elements that are 0", inner(call.output.masked_fill(x != 0, 0), gradient))
    match claim_of(call.rule, call.node):
        case Conserves.ALL_BUT_CONSTANTS:
            return _constants(call, gradient)
        case Conserves.ALL_BUT_OFFSET if call.node.target in (aten.log_softmax.int, aten.logsumexp.default):
            return _log_softmax(call, gradient)
        case Conserves.ALL_BUT_OFFSET:
            return _attention(call, gradient) if call.argument("query") is not None else _softmax(call, gradient)
        case Conserves.ALL_BUT_POSITIONS:
            return _positions(call, gradient)
        case Conserves.SELECTED:
            return _selected(call, gradient)
        case _:
            return []


def _recurrence(call: Call, gradient: Tensor, index: int) -> list[Share]:
    """What biases, values and states that carry nothing, and epsilon contribute to the value, with the gates constant."""
    nodes = {operand.name: operand.node for operand in operands(call.node)}
    found = recurrences.parts_of_constants(
        call.node.target, call.arguments(), lambda name: nodes[name] in call.carrying  # type: ignore[arg-type]
    )
    biases, others, epsilon = (inner(part, gradient) for part in found[index])
    constant = [n for name, n in nodes.items() if name.split("[")[0] in recurrences.VALUES and n not in call.carrying]
    named = next((call.origin(node) for node in constant if call.values[node].is_floating_point()), None)
    return [
        *_nonzero(Cause.BIAS, f"biases of {module_path(call.node) or op_name(call.node)}", biases),
        *(_nonzero(*named, others) if named is not None else []),
        *_nonzero(Cause.EPSILON, "epsilon", epsilon),
    ]


def _epsilon(call: Call, gradient: Tensor) -> list[Share]:
    """sum R epsilon / (|z| + epsilon); 0 where both are 0."""
    z, epsilon = call.output.double(), call.argument("epsilon")
    taken = z * gradient.double() * epsilon / (z.abs() + epsilon)
    return _nonzero(Cause.EPSILON, "epsilon", torch.where(z == 0, 0, taken).sum())


def _by_contribution(call: Call, gradient: Tensor) -> list[Share]:
    """For a rule that weighs the contributions of a linear map: the shares in its sums."""
    names, op = call._by_name(), call.node.target
    if op in OF_UNPACKED:
        unpacked, (*biases, kernel) = _packed(call, gradient)
        found = absorbed(op, map_call(OF_UNPACKED[op], unpacked, unpacked.pop("value_of"), gradient))
        bias = [*(replace(share, amount=found.bias) for share in biases), kernel]
    else:
        found = absorbed(op, map_call(op, call.arguments(), call.output, gradient))
        bias = _nonzero(*_named(call, names["bias"]), found.bias) if isinstance(names.get("bias"), Node) else []
    return [
        *bias,
        *_nonzero(Cause.EPSILON, "epsilon", found.epsilon),
        *_nonzero(Cause.ONE_SIDED, "no contribution of that sign", found.one_sided),
        *_nonzero(Cause.ZERO, "elements that are 0", found.zero),
    ]


def _packed(call: Call, gradient: Tensor) -> tuple[dict[str, Any], list[Share]]:
    """A packed layer as the linear map of its unpacked weights: the arguments of that, with its value in float64 as
    `value_of`; the shares of its bias, if it has one, and of what the kernel rounds, which is last."""
    narrow = call.node.target in OF_UNPACKED and gradient.dtype in (torch.float16, torch.bfloat16)
    like = gradient.float() if narrow else gradient  # the dtype of the backward
    given = {name: found for name, found in call.arguments().items() if name not in ("scheme", "dtype")}
    weight, bias = (op(given["weight"], like).double() for op in (unpacked_weight, unpacked_bias))
    value, g = F.linear(given["input"].double(), weight, bias), gradient.double()
    layer = call.origin(call._by_name()["weight"])[1].rpartition(".")[0]
    shares = _nonzero(Cause.BIAS, f"{layer}.bias", inner(bias, g.sum(tuple(range(g.dim() - 1)))))
    shares.append(Share(Cause.KERNEL, call.argument("scheme"), inner(call.output.double() - value, g)))
    return {**given, "weight": weight, "bias": bias, "value_of": value}, shares


def _constants(call: Call, gradient: Any) -> list[Share]:
    """For an op that is affine in its carrying operands: <op(0, constants), gradient>, split by constant."""
    if call.node.target in (products.linear, aten.linear.default):
        return _linear_bias(call, gradient)
    if call.node.target is activations.identity:
        intercept = _finite(call.argument("self"), gradient).sum() * call.argument("intercept")
        return _nonzero(Cause.INTERCEPT, "written-out activation at 0", intercept)
    constants = _float_constants(call)
    masked = _rounded_away(call, gradient)
    if masked != 0:
        return _nonzero(*_named(call, constants[-1]), masked)
    if call.node.target in FROM_ZERO:
        gradient = _finite(call.argument(X_OF[call.node.target]), gradient)
        if call.node.target in CLOSING:
            gradient = gradient.masked_fill(call.output == 0, 0)
    total = _against(call.run(lambda node: node in constants), gradient)
    if not total.isfinite():
        return []  # the op is not defined at 0, as a user's may be: no share is known
    if not constants:
        return _nonzero(*_number(call), total)
    if len(constants) == 1:
        return _nonzero(*_named(call, constants[0]), total)
    each = [_against(call.run(lambda node, own=constant: node is own), gradient) for constant in constants]  # type: ignore[misc]
    if torch.isclose(sum(each, torch.zeros_like(total)), total, rtol=1e-6, atol=1e-12):
        return [share for c, amount in zip(constants, each, strict=True) for share in _nonzero(*_named(call, c), amount)]
    added = next((c for c in constants if c is call._by_name().get("bias")), constants[-1])
    return _nonzero(*_named(call, added), total)


def _finite(x: Tensor, gradient: Any) -> Any:
    """The gradient, 0 where x is infinite (a decay of exp(-inf)) or stands for it (the sigmoid of a masked score): there
    f(0) absorbs no share, and nothing leaves."""
    if not isinstance(gradient, Tensor) or gradient.shape != x.shape:
        return gradient.double() if isinstance(gradient, Tensor) else gradient
    return gradient.double().masked_fill(x.isinf() | (x <= no_number(x.dtype)), 0)


def _rounded_away(call: Call, gradient: Any) -> Tensor:
    """For scores plus a large negative mask, which round to the mask alone: the sum counts as 0, so the mask absorbs minus
    what the scores get there."""
    output = call.output
    nothing = torch.zeros((), dtype=torch.float64)
    if call.node.target is not aten.add.Tensor or not _float_constants(call):
        return nothing
    masked = output <= no_number(output.dtype)
    if not masked.any():
        return nothing
    own = [call.values[node].expand(output.shape) for node in call.carrying if node in call.node.all_input_nodes]
    constant = call.values[_float_constants(call)[-1]].expand(output.shape)
    return inner(constant, gradient) - sum((inner(x[masked], gradient[masked]) for x in own), nothing)


def _linear_bias(call: Call, gradient: Tensor) -> list[Share]:
    bias = call.argument("bias")
    if bias is None:
        return []
    node = call._by_name()["bias"]
    return _nonzero(*_named(call, node), inner(bias, gradient.double().sum(tuple(range(gradient.dim() - 1)))))


def _float_constants(call: Call) -> list[Node]:
    found = [node for node in call.node.all_input_nodes if node not in call.carrying]
    return [node for node in found if isinstance(v := call.values.get(node), Tensor) and v.is_floating_point()]


def _number(call: Call) -> tuple[Cause, str]:
    """The cause where no tensor is added: f(0) of an activation, or a number that is written in the model."""
    name = op_name(call.node)
    if call.node.target in SUMS | MOVES:
        numbers = [a for a in (*call.node.args, *call.node.kwargs.values()) if isinstance(a, float)]
        return Cause.CONSTANT, f"the number {numbers[0]:g}" if numbers else f"a number in {name}"
    return Cause.INTERCEPT, f"{name} at 0"


def _named(call: Call, constant: Node) -> tuple[Cause, str]:
    cause, name = call.origin(constant)
    is_bias = constant is call._by_name().get("bias") or name.rsplit(".", 1)[-1] in ("bias", "b")
    return (Cause.BIAS, name) if cause is Cause.CONSTANT and is_bias else (cause, name)


def _against(output: Any, gradient: Any) -> Tensor:
    """<output, gradient>, summed over the outputs where the op gives several."""
    if isinstance(output, Tensor):
        return inner(output, gradient)
    pairs = [(o, g) for o, g in zip(output, gradient, strict=True) if isinstance(g, Tensor)]
    return sum((inner(o, g) for o, g in pairs), torch.zeros((), dtype=torch.float64))


def _nonzero(cause: Cause, name: str, amount: Tensor) -> list[Share]:
    return [] if amount == 0 else [Share(cause, name, amount)]


def _positions(call: Call, gradient: Tensor) -> list[Share]:
    """Half of the relevance of a product with a table of positions."""
    (table,) = (node for node in call.node.all_input_nodes if node not in call.carrying)
    return _nonzero(Cause.POSITION, call.origin(table)[1], inner(call.output, gradient) / 2)


def _selected(call: Call, gradient: Any) -> list[Share]:
    """For a selection: the elements where a constant was chosen."""
    if call.node.target in LIMITS:
        output: Tensor = call.output
        own = torch.zeros_like(output, dtype=torch.bool)
        for node in call.carrying:
            own |= output == call.values[node]
        taken = torch.where(own, 0, output)
        for node in _float_constants(call) if call.node.target in MEETING else []:
            taken = torch.where(own & (output == call.values[node]), output / 2, taken)
        return _nonzero(Cause.SELECTION, "a bound", inner(taken, gradient))
    constants = [share.amount for share in _constants(call, gradient)]
    return [Share(Cause.SELECTION, "a constant", amount) for amount in constants]


def _log_softmax(call: Call, gradient: Tensor) -> list[Share]:
    """sum_j y_j g_j less what its Taylor expansion passes on: x_i (g_i - s_i sum_j g_j), of logsumexp x_i s_i g."""
    x, g, dim = call.argument("self").double(), gradient.double(), call.argument("dim")
    weights = torch.softmax(x, dim) if isinstance(dim, int) else torch.exp(x - torch.logsumexp(x, dim, keepdim=True))
    if call.node.target is aten.log_softmax.int:
        passed = g - weights * g.sum(dim, keepdim=True)
    elif call.argument("keepdim", False):
        passed = weights * g
    else:
        for place in sorted(d % x.dim() for d in dim):
            g = g.unsqueeze(place)
        passed = weights * g
    return _nonzero(Cause.OFFSET, op_name(call.node), inner(call.output, gradient) - inner(x, passed))


def _softmax(call: Call, gradient: Tensor) -> list[Share]:
    """sum_j R_j - sum_i x_i (R_i - s_i sum_j R_j) with R = s * gradient: what AttnLRP prop. 3.1 does not pass on; at a
    temperature what that of its rule does not."""
    x, output, dim = call.argument("self").double(), call.output.double(), call.argument("dim")
    hidden = x <= mask_limit(call.argument("self").dtype)
    temperature = float(call.argument("temperature", 1.0))
    passed = _through_softmax(output, x.masked_fill(hidden, -math.inf), gradient.double(), dim, temperature)
    return _nonzero(Cause.OFFSET, "softmax", inner(output, gradient) - inner(x.masked_fill(hidden, 0), passed))


def _through_softmax(weights: Tensor, x: Tensor, gradient: Tensor, dim: int, temperature: float) -> Tensor:
    """s_i (g_i - sum_j s_j g_j), with s = softmax(x / T) at a temperature other than 1, and else the weights; 0 where all
    scores are masked."""
    if temperature != 1.0:
        weights = torch.softmax(x / temperature, dim).nan_to_num(0.0)
    return weights * (gradient - (weights * gradient).sum(dim, keepdim=True))


def _attention(call: Call, gradient: Tensor) -> list[Share]:
    """The softmax offset of a fused attention, and what a constant additive mask absorbs."""
    query, key, value = (call.argument(name).detach() for name in ("query", "key", "value"))
    mask, scale = call.argument("attn_mask"), call.argument("scale")
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    output, temperature = call.output.detach().double(), float(call.argument("temperature", 1.0))
    offset, masked, unseen = (torch.zeros((), dtype=torch.float64, device=query.device) for _ in range(3))
    count = max(1, CHUNK // max(1, query[..., 0, 0].numel() * key.shape[-2]))
    for start in range(0, query.shape[-2], count):
        part = slice(start, start + count)
        bias = _additive(mask, part, query.shape[-2], key.shape[-2], bool(call.argument("is_causal", False)), query.device)
        scores = query[..., part, :].double() @ key.double().mT * scale
        weights = torch.softmax(scores + bias, -1).nan_to_num(0.0)
        hidden = (bias <= mask_limit(query.dtype)).all(-1, keepdim=True)
        unseen += torch.where(hidden, output[..., part, :] * gradient[..., part, :], 0).sum()
        arriving = torch.where(hidden, 0, gradient[..., part, :].double() @ value.double().mT)
        passed = _through_softmax(weights, scores + bias, arriving, -1, temperature)
        added = torch.where(bias <= mask_limit(query.dtype), 0, bias * passed).sum()
        offset += (weights * arriving).sum() - added - torch.where(passed == 0, 0, scores * passed).sum()
        masked += added
    share = float(call.argument("mask_share", 0.5))
    found = _nonzero(Cause.OFFSET, "softmax", offset * share) + _nonzero(Cause.HELD, "fully masked queries", unseen)
    if isinstance(mask, Tensor) and not call.carries("attn_mask"):
        found += _nonzero(*call.origin(call._by_name()["attn_mask"]), masked * share)
    return found


def _masked_queries(call: Call, gradient: Tensor) -> list[Share]:
    """What reaches the queries whose additive mask hides every key: nothing passes there."""
    mask = call.argument("attn_mask")
    if not isinstance(mask, Tensor) or not mask.is_floating_point():
        return []
    seen = mask.detach().amax(-1, keepdim=True) > mask_limit(mask.dtype)
    return _nonzero(Cause.HELD, "fully masked queries", inner(call.output.masked_fill(seen, 0), gradient))


def _additive(mask: Tensor | None, part: slice, queries: int, keys: int, causal: bool, device: torch.device) -> Tensor:
    """The mask of these queries as float64 numbers that are added to the scores."""
    if causal:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril()
    if mask is None:
        return torch.zeros((), dtype=torch.float64, device=device)
    mask = mask[..., part, :] if mask.shape[-2] > 1 else mask
    if mask.dtype is torch.bool:
        return torch.zeros(mask.shape, dtype=torch.float64, device=device).masked_fill(~mask, -math.inf)
    return mask.detach().double()
