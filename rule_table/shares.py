"""Rules with numbers for attentions and gates: the temperature of a softmax's backward, and who gets which share.

Each function returns rules for `RuleTable.with_rules`. They stand before those of a table, which serve all other nodes.
"""

from __future__ import annotations

import math
from dataclasses import replace

from lxt_fx.base.errors import InputError
from lxt_fx.base.torch_internals import OpOverload, aten
from lxt_fx.ops import products
from lxt_fx.rule_table import conditions as on
from lxt_fx.rule_table.rule import Conserves, GroupKind, Role, Rule

GIM = "GIM (Edin et al. 2025)"
DPA = "Dual Path Attribution (Jantsch et al. 2026)"


def temperature(temperature: float = 2.0) -> Rule:
    """Every softmax, in a fused attention or alone, passes relevance as softmax(x / temperature) does; its value stays.

    Above 1 more tokens get a part of what the scores receive, also where one weight is near 1 and the softmax is flat.
    Raises InputError for a temperature that is not above 0.
    """
    _check_temperature("temperature", temperature)
    return Rule(
        name="softmax at a temperature",
        ops={
            aten.softmax.int: products.softmax,
            aten.scaled_dot_product_attention.default: products.sdpa,
        },
        when=on.attends,
        settings=lambda site: _FUSED(site) if site.kind is aten.scaled_dot_product_attention.default else {},
        numbers={"temperature": float(temperature)},
        formula=f"{_through(temperature)}; in one op 1/2 to v, 1/4 to q and to k",
        source=f"{GIM} sec. 4.1",
        conserves=Conserves.ALL_BUT_OFFSET,
    )


_FUSED = on.attention_shares()

NATIVE_ACTIVATION = Rule(
    name="native activation",
    ops={},
    when=on.an_activation,
    formula="g_in = g_out f'(x)",
    source=GIM,
    conserves=Conserves.NATIVE,
)
NATIVE_REGION = Rule(
    name="native activation",
    ops={GroupKind.ELEMENTWISE: None},
    formula="g_in = g_out f'(x)",
    source=GIM,
    conserves=Conserves.NATIVE,
)


def attention(
    query: float = 0.25, key: float = 0.25, value: float = 0.5, *, temperature: float = 1.0
) -> tuple[Rule, ...]:
    """Of what an attention receives, this share goes to its queries, keys and values: in one op, or in the two products
    that it is written in. Its softmax passes relevance at the temperature.

    Raises InputError for a share below 0, where they do not add up to 1, or for a temperature that is not above 0.
    """
    _check("attention", {"query": query, "key": key, "value": value})
    _check_temperature("attention", temperature)
    weights = query + key
    fused = Rule(
        name="attention by shares",
        ops={aten.scaled_dot_product_attention.default: products.sdpa},
        when=on.attends,
        settings=on.attention_shares(query, key, value),
        numbers={"temperature": float(temperature)},
        formula=f"{value:g} to v, {query:g} to q and {key:g} to k; softmax between as {_through(temperature)}",
        source=DPA,
        conserves=Conserves.ALL_BUT_OFFSET,
    )
    scores = Rule(
        name="scores by shares",
        ops=_PRODUCTS,
        when=on.all_of(on.role_is(Role.SCORES), on.two_operands_carry),
        settings=on.scores_shares(query, key),
        formula=f"queries and keys as {query:g} to {key:g}, then R_i = sum_j x_i W_ji R_j / z_j",
        source=DPA,
        conserves=Conserves.ALL,
    )
    output = Rule(
        name="values by shares",
        ops=_PRODUCTS,
        when=on.all_of(on.role_is(Role.OUTPUT), on.two_operands_carry),
        settings=on.output_shares(weights, value),
        formula=f"{weights:g} to the weights and {value:g} to the values, then R_i = sum_j x_i W_ji R_j / z_j",
        source=DPA,
        conserves=Conserves.ALL,
    )
    softmax = () if temperature == 1.0 else (_of_weights(temperature),)
    return fused, scores, output, *softmax


_PRODUCTS: dict[OpOverload, OpOverload] = {
    aten.matmul.default: products.matmul,
    aten.einsum.default: products.einsum,
}


def _of_weights(number: float) -> Rule:
    """The softmax of an attention that is written in single ops."""
    rule = temperature(number)
    return replace(rule, ops={aten.softmax.int: products.softmax}, when=on.role_is(Role.WEIGHTS), formula=_through(number))


def gate(gate: float = 0.5, up: float = 0.5) -> Rule:
    """Of what the product with a gate receives, this share goes to the gate, and the other to what it gates.

    Raises InputError for a share below 0, or where they do not add up to 1.
    """
    _check("gate", {"gate": gate, "up": up})
    return Rule(
        name="gate by shares",
        ops={aten.mul.Tensor: products.mul},
        when=on.all_of(on.no_written_out_activation, on.one_gate),
        settings=on.gate_shares(gate, up),
        formula=f"y = a x with the gate a: R_a = {gate:g} R_out, R_x = {up:g} R_out",
        source=DPA,
        conserves=Conserves.ALL,
    )


def _through(temperature: float) -> str:
    """What a softmax passes on."""
    if temperature == 1.0:
        return "R_i = x_i (R_i - s_i sum R)"
    return f"R_i = x_i s_T,i (R_i / s_i - sum_j s_T,j R_j / s_j), s_T = softmax(x / {temperature:g})"


def _check_temperature(caller: str, temperature: float) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise InputError(f"{caller}: the temperature of a softmax must be a number above 0, got {temperature}")


def _check(caller: str, shares: dict[str, float]) -> None:
    said = ", ".join(f"{name} {share:g}" for name, share in shares.items())
    if not all(share >= 0 for share in shares.values()):
        raise InputError(f"{caller}: no share may be below 0, got {said}")
    total = sum(shares.values())
    if not math.isclose(total, 1.0, rel_tol=0, abs_tol=1e-12):
        raise InputError(f"{caller}: the shares must add up to 1, so that relevance does; got {said}, which give {total:g}")
