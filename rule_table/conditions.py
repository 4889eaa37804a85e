"""The conditions of rules. Each returns why a rule does not apply, or None. Its docstring says what holds where the rule
applies; certificates print it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.fx import Node

from lxt_fx.base.nodes import shape
from lxt_fx.base.pattern import Mismatch, Op, Part, any_of, match, number
from lxt_fx.base.torch_internals import aten
from lxt_fx.ops.activations import ACTIVATIONS
from lxt_fx.ops.aten_kinds import LINEAR_MAPS
from lxt_fx.rule_table.rule import Condition, Refusal, Role, Site, statement

_tanh = Op(aten.tanh.default)

ACTIVATION_OPS = frozenset({*(f.aten for f in ACTIVATIONS), aten.prelu.default, aten.hardtanh.default})
"""The ops of elementwise functions."""

def all_of(*conditions: Condition) -> Condition:
    """All of these conditions hold; the first that refuses gives the reason."""

    def refuses(site: Site) -> Refusal:
        return next((reason for reason in (c(site) for c in conditions) if reason is not None), None)

    refuses.__doc__ = " ".join(statement(condition) for condition in conditions)
    return refuses


def two_carry(site: Site) -> Refusal:
    """Both operands of a product carry."""
    return None if len(site.carrying) == 2 else "only one operand carries"


def all_operands_carry(site: Site) -> Refusal:
    """Every tensor of a contraction carries."""
    return None if len(site.carrying) == len(site.arguments["tensors"]) else "not every operand carries"


def one_carries(site: Site) -> Refusal:
    """Only one operand carries."""
    return None if len(site.carrying) == 1 else "second operand carries too"


def numerator_carries(site: Site) -> Refusal:
    """Only the numerator of a quotient carries."""
    return None if site.carries("self") else "the divisor carries"


def only(name: str) -> Condition:
    """Only this argument carries: weights and other operands are constant."""

    def refuses(site: Site) -> Refusal:
        others = sorted(set(site.carrying) - {name})
        return None if not others else f"{', '.join(others)} carries too"

    refuses.__doc__ = f"Only {name} carries."
    return refuses


def only_values_carry(site: Site) -> Refusal:
    """Only the values and the states of a recurrence carry: its weights are constant."""
    weights = [name for name in site.carrying if name.startswith(("params", "w_", "b_"))]
    return f"its weights carry too: {', '.join(weights)}" if weights else None


def right_side_carries(site: Site) -> Refusal:
    """The right side of a system of equations carries."""
    return None if "B" in site.carrying else "only the matrix carries, and a solution is not linear in it"


def role_is(role: Role) -> Condition:
    """The node plays this part."""

    def refuses(site: Site) -> Refusal:
        return None if role in site.roles else f"not {role.value}"

    refuses.__doc__ = f"It is {_LINEAR_PARTS[role]}." if role in _LINEAR_PARTS else f"It gives {role.value}."
    return refuses


_LINEAR_PARTS = {
    Role.PROJECTION: "an attention projection",
    Role.FIRST: "a first linear map",
    Role.LAST: "a last linear map",
    Role.RECURRENCE: "a step of a recurrence",
    Role.ROTATION: "a product with a table in a rotation of queries or keys by their positions",
}


def attention_shares(query: float = 0.25, key: float = 0.25, value: float = 0.5) -> Callable[[Site], dict[str, Any]]:
    """The share of each operand of a fused attention. Where the values do not carry, the weights have all; where the
    queries or the keys do not, the other has the share of both."""
    scores = query + key
    of_query = query / scores if scores else 0.5

    def shares(site: Site) -> dict[str, Any]:
        carrying = set(site.carrying)
        weights = scores if "value" in carrying else 1.0
        both = {"query", "key"} <= carrying
        return {
            "query_share": weights * of_query if both else weights,
            "key_share": weights * (1 - of_query) if both else weights,
            "value_share": value if carrying - {"value"} else 1.0,
            "mask_share": weights,
        }

    return shares


def scores_shares(query: float, key: float) -> Callable[[Site], dict[str, Any]]:
    """The shares of queries and keys in the product of scores, in the order in which it has them."""
    scores = query + key
    first = query / scores if scores else 0.5
    return lambda site: _of_two(site, first, 1 - first)


def output_shares(weights: float, value: float) -> Callable[[Site], dict[str, Any]]:
    """The shares of weights and values in the product that is the output of an attention."""

    def shares(site: Site) -> dict[str, Any]:
        first = any(_gives_weights(operand) for operand in _two_operands(site)[:1])
        return _of_two(site, weights, value) if first else _of_two(site, value, weights)

    return shares


def gate_shares(gate: float, up: float) -> Callable[[Site], dict[str, Any]]:
    """The shares of a gate and of what it gates."""
    return lambda site: _of_two(site, gate, up) if site.gates == ("self",) else _of_two(site, up, gate)


def _of_two(site: Site, first: float, second: float) -> dict[str, Any]:
    if site.kind is aten.einsum.default:
        return {"shares": [first, second]}
    return {"self_share": first, "other_share": second}


def _two_operands(site: Site) -> list[Any]:
    if site.kind is aten.einsum.default:
        return list(site.arguments["tensors"])
    return [site.arguments["self"], site.arguments["other"]]


def _gives_weights(operand: Any) -> bool:
    """Whether a softmax stands before the operand, with no linear map between."""
    seen, todo = set[Node](), [operand]
    while todo:
        node = todo.pop()
        if not isinstance(node, Node) or node in seen or node.target in LINEAR_MAPS:
            continue
        if node.target is aten.softmax.int:
            return True
        seen.add(node)
        todo += node.all_input_nodes
    return False


def two_operands_carry(site: Site) -> Refusal:
    """Both operands of a product or contraction carry, and there are no others."""
    both = len(site.carrying) == len(_two_operands(site)) == 2
    return None if both else "not exactly two operands that carry"


def attends(site: Site) -> Refusal:
    """Queries, keys or a bias carry, so that the weights do."""
    return None if set(site.carrying) - {"value"} or not _is_fused(site) else "only value carries"


def _is_fused(site: Site) -> bool:
    return site.kind is aten.scaled_dot_product_attention.default


def an_activation(site: Site) -> Refusal:
    """It is an elementwise function of one value."""
    return None if site.kind in ACTIVATION_OPS else "op is no activation"


def exponent_is_a_number(site: Site) -> Refusal:
    """The exponent is a number other than 0: x^n is 0 at 0, or infinite there."""
    exponent = site.arguments["exponent"]
    return None if isinstance(exponent, (int, float)) and exponent != 0 else f"exponent {exponent} is not such a number"


def positive_base(site: Site) -> Refusal:
    """The base is a number above 0, so b^x is exp(x log b)."""
    base = site.arguments["self"]
    return None if isinstance(base, (int, float)) and base > 0 else f"base {base} is not above 0"


def range_holds_zero(site: Site) -> Refusal:
    """The range of the clamp holds 0, so it is 0 at 0."""
    low, high = site.arguments.get("min_val", -1), site.arguments.get("max_val", 1)
    return None if low <= 0 <= high else f"0 is not in its range [{low}, {high}]"


def reduces_by(*names: str) -> Condition:
    """Elements that land at one place are reduced in one of these ways."""

    def refuses(site: Site) -> Refusal:
        reduce = site.arguments["reduce"]
        return None if reduce in names else f"it reduces by {reduce}"

    refuses.__doc__ = f"Elements that land at one place are reduced by {' or '.join(names)}."
    return refuses


def default_softplus(site: Site) -> Refusal:
    """Softplus has beta 1 and threshold 20."""
    plain = site.arguments.get("beta", 1) == 1 and site.arguments.get("threshold", 20) == 20
    return None if plain else "beta or threshold is not the default"


def in_evaluation(site: Site) -> Refusal:
    """Batch norm uses fixed statistics."""
    return "it uses batch statistics" if site.arguments["training"] else None


def soft_cap(site: Site) -> Refusal:
    """It is tanh(x / c) * c: the input is divided by a number, the output multiplied by one."""
    readers = [match(_capped, reader, below=number, above=number) for reader in site.node.users]
    return next((f"not a soft cap: {found}" for found in readers if isinstance(found, Mismatch)), None)


def _capped(x: Part, below: Part, above: Part) -> Part:
    """tanh(x / c) * c; a product with 1 / c is a division too."""
    squeezed = _tanh(any_of(x / below, x * below))
    return any_of(squeezed * above, squeezed / above)


def gate(site: Site) -> tuple[str, ...]:
    """The operand of a product that gates the other: it comes out of an activation, a softmax or a selection of one."""
    return site.gates if len(site.gates) == 1 else ()


def parameters(site: Site) -> tuple[str, ...]:
    """The operand of a product that is a parameter of a recurrence."""
    return site.parameters


def one_parameter(site: Site) -> Refusal:
    """One operand is a parameter of a recurrence: a step size, a decay, a gate, what writes to a state or reads it."""
    return None if site.parameters else "no operand is a parameter of a recurrence"


def one_gate(site: Site) -> Refusal:
    """Both operands carry, and exactly one of them is a gate."""
    if len(site.carrying) != 2:
        return "only one operand carries"
    return None if gate(site) else "which operand gates the other is not clear"


def no_written_out_activation(site: Site) -> Refusal:
    """The product is not the last step of an activation or norm that is written out."""
    return "it is the last step of a group" if site.of_group else None


def same_shape(site: Site) -> Refusal:
    """The elementwise region has the shape of its input."""
    value: Any = site.arguments["value"]
    origin: Any = site.arguments["self"]
    return None if shape(value) == shape(origin) else "the region broadcasts its input"
