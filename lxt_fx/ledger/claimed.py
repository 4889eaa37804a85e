"""What a node's rule says it keeps from its operands: the shares of biases, constants and the softmax offset, computed from
the values and the formula and not from the backward of the op, so that the two can be compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from lxt_fx.base.torch_internals import aten, pytree, schema_of
from lxt_fx.ledger.claimed_by_contribution import map_call, taken
from lxt_fx.ops import activations, products
from lxt_fx.ops.aten_kinds import CONVOLUTIONS, GROUPED_MATMULS, MOVES, SELECTIONS, SUMS
from lxt_fx.ops.contributions import BY_CONTRIBUTION
from lxt_fx.report.printed_graph import op_name
from lxt_fx.rule_table.rule import Keep, Rule

NATURALLY: Mapping[Any, Keep] = {
    **dict.fromkeys((*MOVES, *SUMS, *CONVOLUTIONS, *GROUPED_MATMULS), Keep.ALL_BUT_CONSTANTS),
    **dict.fromkeys(SELECTIONS, Keep.SELECTED),
    aten.linear.default: Keep.ALL_BUT_CONSTANTS,
    aten.addmm.default: Keep.ALL_BUT_CONSTANTS,
    products.linear: Keep.ALL_BUT_CONSTANTS,
    aten.softmax.int: Keep.ALL_BUT_OFFSET,
}
"""Ops whose native gradient keeps so much: what is known of them also where a row claims nothing."""

LIMITS = frozenset(
    {
        aten.clamp.default, aten.clamp.Tensor, aten.clamp_min.default, aten.clamp_min.Tensor, aten.clamp_max.default,
        aten.clamp_max.Tensor, aten.maximum.default, aten.minimum.default, aten.max.other, aten.min.other,
    }
)  # fmt: skip
"""Selections that put a bound in the place of a value."""

MEETING = frozenset({aten.maximum.default, aten.minimum.default, aten.max.other, aten.min.other})
"""Limits that halve the gradient where a value meets its bound; a clamp passes all of it to the value."""

FROM_ZERO = frozenset(
    {
        activations.sigmoid, activations.exp, activations.hardsigmoid, activations.softplus, activations.log_sigmoid,
        activations.acos,
    }
)  # fmt: skip
"""Activations whose value at 0 takes its share."""

CHUNK = 1 << 20
"""Numbers that are held in float64 at once."""


class Cause(Enum):
    """Why relevance that reached a node did not leave it through a carrying operand."""

    BIAS = "bias"
    CONSTANT = "added constant"
    INTERCEPT = "activation at 0"
    OFFSET = "softmax offset"
    EPSILON = "epsilon"
    ONE_SIDED = "contributions of one sign"
    ZERO = "inputs of 0"
    SELECTION = "selection"
    HELD = "held operand"
    NATIVE = "native gradient"
    NO_RULE = "no rule"
    TARGET = "target"
    UNACCOUNTED = "not accounted for"

    @property
    def meaning(self) -> str:
        """One line for the reader of a ledger."""
        return _MEANINGS[self]


_MEANINGS = {
    Cause.BIAS: "the share of a bias in a sum",
    Cause.CONSTANT: "the share of another constant in a sum: position, token type, CLS, mask",
    Cause.INTERCEPT: "f(0) of an activation, which acts like a bias",
    Cause.OFFSET: "the constant term of the softmax's Taylor expansion",
    Cause.EPSILON: "the share of the epsilon that keeps a division stable",
    Cause.ONE_SIDED: "a rule splits by the sign of contributions, and there were none of that sign",
    Cause.ZERO: "elements that are 0: value * gradient cannot carry what their rule gives them",
    Cause.SELECTION: "a constant was selected in the place of a value",
    Cause.HELD: "the share of a summand that a row or the model holds constant",
    Cause.NATIVE: "a row that claims nothing: native gradient",
    Cause.NO_RULE: "a node without a row (strict=False): native gradient",
    Cause.TARGET: "the explained number less output * gradient: the target is not linear in the output",
    Cause.UNACCOUNTED: "no rule claims it: rounding, or a rule that does not keep what it says",
}


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """What one constant takes of the relevance that reaches a node. `name` says which constant; amount is a scalar."""

    cause: Cause
    name: str
    amount: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call of a node: its arguments as values, where they come from, and its output.

    `values` has a tensor for each node that is read; `carrying` the nodes through which relevance leaves; `origin` says
    where the value of another node comes from.
    """

    node: Node
    rule: Rule | None
    values: Mapping[Node, Any]
    carrying: frozenset[Node]
    output: Any
    origin: Callable[[Node], tuple[Cause, str]]

    def argument(self, name: str, default: Any = None) -> Any:
        """The value of an argument by its schema name."""
        found = self._by_name().get(name, default)
        return self.values.get(found, found) if isinstance(found, Node) else found

    def arguments(self) -> dict[str, Any]:
        """The values of all arguments by their schema names."""
        return {name: torch.fx.map_arg(found, lambda node: self.values[node]) for name, found in self._by_name().items()}

    def carries(self, name: str) -> bool:
        """Whether the node in that argument carries relevance."""
        return self._by_name().get(name) in self.carrying

    def _by_name(self) -> dict[str, Any]:
        names = [argument.name for argument in schema_of(self.node.target).arguments]
        return dict(zip(names, self.node.args, strict=False)) | dict(self.node.kwargs)

    def run(self, kept: Callable[[Node], bool]) -> Any:
        """The op's value where only the tensors of nodes in `kept` are there, the other floats being zero."""

        def zero(tensor: Tensor) -> Tensor:
            return torch.zeros_like(tensor) if tensor.is_floating_point() or tensor.is_complex() else tensor

        def value(node: Node) -> Any:
            found = self.values.get(node)
            return found if kept(node) else pytree.tree_map_only(Tensor, zero, found)

        op: Any = self.node.target
        with torch.no_grad():
            return op(*torch.fx.map_arg(self.node.args, value), **torch.fx.map_arg(self.node.kwargs, value))


def inner(value: Tensor, gradient: Tensor) -> Tensor:
    """<value, gradient> in float64; a mask's number counts as 0. Complex: as pairs of reals."""
    if value.is_complex():
        value, gradient = torch.view_as_real(value), torch.view_as_real(gradient.resolve_conj())
    limit = _no_number(value.dtype)
    parts = zip(torch.split(value.reshape(-1), CHUNK), torch.split(gradient.reshape(-1), CHUNK), strict=True)
    return torch.stack([_dot(a.double(), g.double(), limit) for a, g in parts]).sum()


def _dot(value: Tensor, gradient: Tensor, limit: float) -> Tensor:
    if value.numel() and value.min() <= limit:
        value = value.masked_fill(value <= limit, 0)
    total = torch.dot(value, gradient)
    return total if total.isfinite() else torch.where(gradient == 0, 0, value * gradient).sum()


def _no_number(dtype: torch.dtype) -> float:
    """What is not above this is -inf or stands for it, wherever it is found; of scores more is known (`mask_limit`)."""
    return -6e4 if dtype is torch.float16 else -1e30


def kept_by(rule: Rule | None, node: Node) -> Keep:
    """What is claimed of a node: by its row, or, where that claims nothing, by the nature of the op."""
    if rule is not None and rule.keeps is not Keep.NATIVE:
        return rule.keeps
    return NATURALLY.get(node.target, Keep.NATIVE)


def shares(call: Call, gradient: Any) -> list[Share]:
    """What the constants of a call take of the relevance <output, gradient> that reaches it, by the formula of its row."""
    if call.node.target is products.epsilon:
        return _epsilon(call, gradient)
    if call.node.target in BY_CONTRIBUTION:
        return _by_contribution(call, gradient)
    if call.node.target is products.sdpa_held:
        return _hidden_rows(call, gradient)
    if call.node.target is activations.identity and kept_by(call.rule, call.node) is Keep.ALL_BUT_ZEROS:
        x = call.argument("self")
        return _nonzero(Cause.ZERO, "elements that are 0", inner(call.output.masked_fill(x != 0, 0), gradient))
    match kept_by(call.rule, call.node):
        case Keep.ALL_BUT_CONSTANTS:
            return _constants(call, gradient)
        case Keep.ALL_BUT_OFFSET if call.node.target in (aten.log_softmax.int, aten.logsumexp.default):
            return _log_softmax(call, gradient)
        case Keep.ALL_BUT_OFFSET:
            return _attention(call, gradient) if call.argument("query") is not None else _softmax(call, gradient)
        case Keep.SELECTED:
            return _selected(call, gradient)
        case _:
            return []


def _epsilon(call: Call, gradient: Tensor) -> list[Share]:
    """R epsilon / (|z| + epsilon), summed."""
    z, epsilon = call.output.double(), call.argument("epsilon")
    return _nonzero(Cause.EPSILON, "epsilon", (z * gradient.double() * epsilon / (z.abs() + epsilon)).sum())


def _by_contribution(call: Call, gradient: Tensor) -> list[Share]:
    """Of a rule that weighs the contributions of a linear map: the shares of its sums."""
    names = call._by_name()
    found = taken(call.node.target, map_call(call.node.target, call.arguments(), call.output, gradient))
    bias = _nonzero(*_named(call, names["bias"]), found.bias) if isinstance(names.get("bias"), Node) else []
    return [
        *bias,
        *_nonzero(Cause.EPSILON, "epsilon", found.epsilon),
        *_nonzero(Cause.ONE_SIDED, "no contribution of that sign", found.one_sided),
        *_nonzero(Cause.ZERO, "elements that are 0", found.zero),
    ]


def _constants(call: Call, gradient: Any) -> list[Share]:
    """Of an op that is affine in its carrying operands: <op(0, constants), gradient>, split by constant."""
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
        gradient = _finite(call.argument("self"), gradient)
        if call.node.target is activations.hardsigmoid:
            gradient = gradient.masked_fill(call.output == 0, 0)
    total = _against(call.run(lambda node: node in constants), gradient)
    if not total.isfinite():
        return []  # an op that is not defined at 0, as a row of a user's may have: no share is known
    if not constants:
        return _nonzero(*_number(call), total)
    if len(constants) == 1:
        return _nonzero(*_named(call, constants[0]), total)
    each = [_against(call.run(lambda node, kept=constant: node is kept), gradient) for constant in constants]  # type: ignore[misc]
    if torch.isclose(sum(each, torch.zeros_like(total)), total, rtol=1e-6, atol=1e-12):
        return [share for c, amount in zip(constants, each, strict=True) for share in _nonzero(*_named(call, c), amount)]
    added = next((c for c in constants if c is call._by_name().get("bias")), constants[-1])
    return _nonzero(*_named(call, added), total)


def _finite(x: Tensor, gradient: Any) -> Any:
    """The gradient, 0 where x is infinite (a decay of exp(-inf)): there f(0) takes no share, and nothing leaves."""
    if not isinstance(gradient, Tensor) or gradient.shape != x.shape or not x.isinf().any():
        return gradient.double() if isinstance(gradient, Tensor) else gradient
    return gradient.double().masked_fill(x.isinf(), 0)


def _rounded_away(call: Call, gradient: Any) -> Tensor:
    """Of scores plus a mask's number: minus what the scores get there, since the sum counts as 0."""
    output = call.output
    nothing = torch.zeros((), dtype=torch.float64)
    if call.node.target is not aten.add.Tensor or not _float_constants(call):
        return nothing
    masked = output <= _no_number(output.dtype)
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
    """<output, gradient>, over the items where the op gives several."""
    if isinstance(output, Tensor):
        return inner(output, gradient)
    pairs = [(o, g) for o, g in zip(output, gradient, strict=True) if isinstance(g, Tensor)]
    return sum((inner(o, g) for o, g in pairs), torch.zeros((), dtype=torch.float64))


def _nonzero(cause: Cause, name: str, amount: Tensor) -> list[Share]:
    return [] if amount == 0 else [Share(cause, name, amount)]


def _selected(call: Call, gradient: Any) -> list[Share]:
    """Of a selection: the elements where a constant was chosen."""
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
    """sum_j R_j - sum_i x_i (R_i - s_i sum_j R_j) with R = s * gradient: what AttnLRP prop. 3.1 does not pass on."""
    x, output = call.argument("self").double(), call.output.double()
    relevance = output * gradient.double()
    passed = relevance - output * relevance.sum(call.argument("dim"), keepdim=True)
    x = x.masked_fill(x <= products.mask_limit(call.argument("self").dtype), 0)
    return _nonzero(Cause.OFFSET, "softmax", relevance.sum() - inner(x, passed))


def _attention(call: Call, gradient: Tensor) -> list[Share]:
    """The softmax offset of a fused attention, and what a constant additive mask takes."""
    query, key, value = (call.argument(name).detach() for name in ("query", "key", "value"))
    mask, scale = call.argument("attn_mask"), call.argument("scale")
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    output = call.output.detach().double()
    offset, masked, unseen = (torch.zeros((), dtype=torch.float64, device=query.device) for _ in range(3))
    rows = max(1, CHUNK // max(1, query[..., 0, 0].numel() * key.shape[-2]))
    for start in range(0, query.shape[-2], rows):
        part = slice(start, start + rows)
        bias = _additive(mask, part, query.shape[-2], key.shape[-2], bool(call.argument("is_causal", False)), query.device)
        scores = query[..., part, :].double() @ key.double().mT * scale
        weights = torch.softmax(scores + bias, -1).nan_to_num(0.0)
        hidden = (bias <= products.mask_limit(query.dtype)).all(-1, keepdim=True)
        unseen += torch.where(hidden, output[..., part, :] * gradient[..., part, :], 0).sum()
        relevance = torch.where(hidden, 0, weights * (gradient[..., part, :].double() @ value.double().mT))
        passed = relevance - weights * relevance.sum(-1, keepdim=True)
        added = torch.where(bias <= products.mask_limit(query.dtype), 0, bias * passed).sum()
        offset += relevance.sum() - added - torch.where(passed == 0, 0, scores * passed).sum()
        masked += added
    share = float(call.argument("mask_share", 0.5))
    found = _nonzero(Cause.OFFSET, "softmax", offset * share) + _nonzero(Cause.HELD, "rows masked altogether", unseen)
    if isinstance(mask, Tensor) and not call.carries("attn_mask"):
        found += _nonzero(*call.origin(call._by_name()["attn_mask"]), masked * share)
    return found


def _hidden_rows(call: Call, gradient: Tensor) -> list[Share]:
    """What reaches the rows of queries that an additive mask hides from every key: nothing passes there."""
    mask = call.argument("attn_mask")
    if not isinstance(mask, Tensor) or not mask.is_floating_point():
        return []
    seen = mask.detach().amax(-1, keepdim=True) > products.mask_limit(mask.dtype)
    return _nonzero(Cause.HELD, "rows masked altogether", inner(call.output.masked_fill(seen, 0), gradient))


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
