"""The conditions of rules. Each returns why a rule does not apply, or None. Its docstring says what holds where the rule
applies; certificates print it."""

from __future__ import annotations

from typing import Any

from lxt_fx.base.nodes import shape
from lxt_fx.base.pattern import Mismatch, Op, Part, any_of, match, number
from lxt_fx.base.torch_internals import aten
from lxt_fx.rule_table.rule import Condition, Refusal, Role, Site, statement

_tanh = Op(aten.tanh.default)

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
}


def attention_shares(site: Site) -> dict[str, Any]:
    """The share of each operand of a fused attention: half to the values and half to the weights where both carry, of the
    weights half to the queries and half to the keys where both carry."""
    carrying = set(site.carrying)
    weights = 0.5 if "value" in carrying else 1.0
    scores = weights / 2 if {"query", "key"} <= carrying else weights
    value = 0.5 if carrying - {"value"} else 1.0
    return {"query_share": scores, "key_share": scores, "value_share": value, "mask_share": weights}


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


def same_shape(site: Site) -> Refusal:
    """The elementwise region has the shape of its input."""
    value: Any = site.arguments["value"]
    origin: Any = site.arguments["self"]
    return None if shape(value) == shape(origin) else "the region broadcasts its input"
