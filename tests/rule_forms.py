"""Every rule by a slow loop, in the fast form, in the explicit form, by zennit and by LXT, and how far these are apart.

    python tests/rule_forms.py      # writes docs/rule_forms.md, in half a minute

Each net of tests/rule_cases.py and rule_cases_linear.py (at least one for every op that a rule of any table lists) gets
random inputs, weights and relevance. A loop over Python floats, copied from the paper, says what every input must get.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lxt_functions as lxt
import paper_loops
import rule_loops
import torch
import zennit_rules
from lxt_functions import difference
from rule_cases import CASES
from rule_cases_linear import CONVOLUTIONS
from rule_nets import BELOW_ONE, NOT_NEGATIVE, POSITIVE, Case, Inputs, Net, in_domain
from slow_references import REFERENCES, Reference, by_weights, floats
from torch import Tensor, nn
from wrapper_cases import WRAPPERS, Wrapper

import lxt_fx
from lxt_fx.rule_table import basic_rules as basic
from lxt_fx.rule_table import linear_rules
from lxt_fx.rule_table.rule import Rule, kind_text

PAGE = Path(__file__).parents[1] / "docs" / "rule_forms.md"
FORMS = ("gradient", "explicit")
BOUND, SINGLE_BOUND = 1e-9, 1e-6
"""What float64 and float32 may differ by, relative to the largest value."""

LOW, HIGH = -4.0, 4.0
TINY = 1e-12
"""Zennit's stabilizer where contributions of a sign may be missing: with 0 their sum gives NaN there."""

LinearRule = tuple[Rule, Callable[..., list[float]], Callable[[Any], Any]]
LINEAR_RULES: Mapping[str, LinearRule] = {
    "epsilon": (
        linear_rules.epsilon(1e-6), partial(paper_loops.by_contribution, epsilon=1e-6), lambda z: z.Epsilon(epsilon=1e-6),
    ),
    "gamma": (linear_rules.gamma(0.25), partial(rule_loops.gamma, gamma=0.25), lambda z: z.Gamma(0.25, stabilizer=0.0)),
    "z_plus": (linear_rules.z_plus(), rule_loops.z_plus, lambda z: z.ZPlus(stabilizer=TINY)),
    "excitation": (
        linear_rules.excitation(), rule_loops.excitation, lambda z: z.ZPlus(stabilizer=TINY, zero_params="bias"),
    ),
    "alpha_beta": (
        linear_rules.alpha_beta(2, 1), partial(rule_loops.alpha_beta, alpha=2.0, beta=1.0),
        lambda z: z.AlphaBeta(2.0, 1.0, stabilizer=TINY),
    ),
    "z_box": (
        linear_rules.z_box(LOW, HIGH), partial(rule_loops.z_box, low=LOW, high=HIGH),
        lambda z: z.ZBox(LOW, HIGH, stabilizer=0.0),
    ),
    "w_square": (linear_rules.w_square(), rule_loops.w_square, lambda z: z.WSquare(stabilizer=0.0)),
    "flat": (linear_rules.flat(), rule_loops.flat, lambda z: z.Flat(stabilizer=0.0)),
}  # fmt: skip
"""By the name of the function in `lxt_fx.rule_table.linear_rules`: its rule, the loop, zennit's rule."""

ZENNIT: Mapping[str, tuple[Callable[[], nn.Module], Callable[[Any], Any]]] = {
    "linear-linear": (lambda: nn.Linear(4, 5), lambda z: z.Epsilon(epsilon=0.0)),
    "linear-conv2d": (lambda: nn.Conv2d(2, 2, 3), lambda z: z.Epsilon(epsilon=0.0)),
    "identity-silu": (nn.SiLU, lambda z: z.Pass()),
    "sum-avg_pool2d": (lambda: nn.AvgPool2d(2), lambda z: z.Norm(stabilizer=0.0)),
}
"""Nets that are one layer: that layer, and zennit's rule for it where ours is not in `linear_rules`."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the page: all rules of one name, formula and source."""

    name: str
    formula: str
    source: str


@dataclass(frozen=True, slots=True)
class Measured:
    """How far each side is from the slow loop in one case; None where it has no such rule. `kind` is the op. `single` says
    that something in the case is float32."""

    line: Line
    kind: str
    loop: str
    single: bool
    gradient: float | None
    explicit: float | None
    zennit: float | None = None


def line_of(rule: Rule) -> Line:
    """The line of a rule. A rule for one part of a network is on the line of the rule that it was made of."""
    return Line(rule.name.split(" (")[0], rule.formula, rule.source)


def cases() -> Iterator[tuple[Case, Rule, Reference]]:
    """Every net with its rule and loop, then one for each linear map with each function of `linear_rules`."""
    for case, reference in REFERENCES.values():
        yield case, case.rule, reference
    linear = [case for case in CASES if case.rule in (basic.LINEAR, basic.MATMUL_LINEAR)]
    one_each: dict[Any, Case] = {}
    for case in (*linear, *CONVOLUTIONS):
        one_each.setdefault(case.op, case)
    for rule, loop, _ in LINEAR_RULES.values():
        for case in one_each.values():
            yield case, rule, by_weights(loop=loop)


def measure(case: Case, rule: Rule, reference: Reference) -> Measured:
    """The case measured with this rule first in the table.

    Raises RuntimeError where the rule does not take the op, or where no input has relevance."""
    generator = torch.Generator().manual_seed(0)
    net = Net(case).eval()
    for parameter in net.parameters():
        parameter.data.copy_(drawn(tuple(parameter.shape), generator))
    inputs = tuple(drawn(shape, generator, case.values).to(case.dtype) for shape in case.shapes)
    with torch.no_grad():
        outputs = floats(net(*inputs))
    gradients = [drawn(tuple(z.shape), generator).to(z.dtype) for z in outputs]
    r = [z * g for z, g in zip(outputs, gradients, strict=True)]
    expected = reference(net, inputs, r)
    if not any(bool(x.any()) for x in expected):
        raise RuntimeError(f"rule_forms: nothing reaches an input in {case.title}, so there is nothing to compare")
    found = []
    for form in FORMS:
        explained = transformed(net, inputs, rule, form)
        if (rule.name, kind_text(case.op)) not in _taken(explained):
            raise RuntimeError(f"rule_forms: rule {rule.name} did not take {case.op} in {case.title}")
        found.append(difference(relevance(explained, inputs, gradients, form), expected, r))
    theirs = _by_zennit(case, rule, net, inputs, r)
    zennit = None if theirs is None else difference(theirs, expected, r)
    single = torch.float32 in {x.dtype for x in (*inputs, *outputs)}
    return Measured(line_of(rule), kind_text(case.op), reference.loop, single, *found, zennit)


def measure_wrapper(name: str, wrapper: Wrapper) -> Measured:
    """A rule around a function, in both forms."""
    generator = torch.Generator().manual_seed(0)
    inputs = tuple(drawn(shape, generator) for shape in wrapper.shapes)
    value = wrapper.function(*inputs)
    gradient = drawn(tuple(value.shape), generator)
    expected = wrapper.reference(wrapper.function, inputs, [value * gradient])
    found: list[float | None] = []
    for form in FORMS:
        module = lxt_fx.nn.use(wrapper.make(), form=form, epsilon=0.0)  # type: ignore[arg-type]
        found.append(difference(relevance(module, inputs, [gradient], form), expected, [value * gradient]))
    return Measured(Line(name, wrapper.formula, wrapper.source), "", wrapper.reference.loop, False, *found)


def drawn(shape: tuple[int, ...], generator: torch.Generator, values: str = "") -> Tensor:
    """Numbers below 4 in size, multiples of 2^-14: exact in float32, and farther apart than the steps of the loops."""
    found = torch.randn(shape, generator=generator, dtype=torch.float64).clamp(LOW + 0.1, HIGH - 0.1)
    found = found.abs() + 0.25 if values in (POSITIVE, NOT_NEGATIVE) else found
    found = found / 8 if values == BELOW_ONE else found
    return (in_domain(found, values) * 2**14).round() / 2**14


def transformed(net: nn.Module, inputs: Inputs, rule: Rule, form: str) -> lxt_fx.Explained:
    """The net with `attnlrp` and this rule before it, at epsilon 0."""
    table = lxt_fx.TABLES["attnlrp"].with_rules("one rule first", rule, summary="")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch: padding "same" may need a copy
        return lxt_fx.transform(net, inputs, rules=table, form=form, epsilon=0.0, dynamic=False)  # type: ignore[arg-type]


def relevance(module: Callable[..., Any], inputs: Inputs, gradients: list[Tensor], form: str) -> list[Tensor]:
    """Relevance of each input, that of an output z being z times its gradient."""
    leaves = [x.clone().requires_grad_() for x in inputs]
    outputs = floats(module(*leaves))
    if not any(z.requires_grad for z in outputs):
        return [torch.zeros_like(x) for x in inputs]
    if form == "explicit":
        gradients = [z.detach() * g for z, g in zip(outputs, gradients, strict=True)]
    found = torch.autograd.grad(outputs, leaves, gradients, allow_unused=True, materialize_grads=True)
    return list(found) if form == "explicit" else [x * g for x, g in zip(inputs, found, strict=True)]


def _taken(explained: lxt_fx.Explained) -> set[tuple[str, str]]:
    rules, matches = explained.record.stages["rules"].rules, explained.record.matches
    return {(rules[node].name, match.kind) for node, match in matches.items() if node in rules}


def _by_zennit(case: Case, rule: Rule, net: Net, inputs: Inputs, r: list[Tensor]) -> list[Tensor] | None:
    """What zennit's rule gives the input of a net that is one layer; None where it has none, or is not installed."""
    if case.title not in ZENNIT or zennit_rules.SPEC is None:
        return None
    make, own = ZENNIT[case.title]
    theirs = next((found for ours, _, found in LINEAR_RULES.values() if ours is rule), own)
    layer = make().double()
    layer.load_state_dict(dict(net.named_parameters()))
    return [zennit_rules.relevance(theirs(zennit_rules.rules()), layer, inputs[0], r[0])]


def measured() -> list[Measured]:
    """Every case, then the rules of lxt_fx.nn around a function."""
    found = [measure(*case) for case in cases()]
    return found + [measure_wrapper(name, wrapper) for name, these in WRAPPERS.items() for wrapper in these]


def lxt_calls() -> Mapping[Line, tuple[lxt.Call, ...]]:
    """LXT's recorded calls by line."""
    names = {name: line_of(rule) for name, (rule, _, _) in LINEAR_RULES.items()}
    names |= {name: Line(name, these[0].formula, these[0].source) for name, these in WRAPPERS.items()}
    return {names[key] if isinstance(key, str) else line_of(key): calls for key, calls in lxt.CALLS.items()}


def worst(numbers: Iterable[float | None]) -> float | None:
    """The largest, NaN where there is one, None where there is no number."""
    known = [number for number in numbers if number is not None]
    return float(torch.tensor(known, dtype=torch.float64).max()) if known else None


def page(found: list[Measured]) -> str:
    """The page docs/rule_forms.md."""
    by_line: dict[Line, list[Measured]] = {}
    for one in found:
        by_line.setdefault(one.line, []).append(one)
    calls = lxt_calls()
    lines = [_line_text(line, these, calls.get(line, ())) for line, these in by_line.items()]
    every = [call for these in calls.values() for call in these]
    unsigned = worst(call.differences()[1] for call in every if call.epsilon and call.has_exact_loop)
    single = worst(x for one in found if one.single for x in (one.gradient, one.explicit))
    return TEXT.format(
        table="\n".join(lines),
        count=len(found),
        unsigned=_figure(unsigned),
        other_dim=f"{lxt.WRONG.differences()[0]:.2g} times the largest value",
        raising=", ".join(f"`{name}`" for name in lxt.RAISING),
        single=_figure(single),
        single_call=_figure(worst(call.differences()[0] for call in every if call.single)),
    )


def _line_text(line: Line, these: list[Measured], calls: tuple[lxt.Call, ...]) -> str:
    kinds = list(dict.fromkeys(one.kind.replace("aten.", "").removesuffix(".default") for one in these if one.kind))
    ops = ", ".join(kinds[:3]) + (f" and {len(kinds) - 3} more" if len(kinds) > 3 else "")
    exact = [one for one in these if not one.single]
    sides = [worst(getattr(one, side) for one in exact) for side in ("gradient", "explicit", "zennit")]
    theirs = _figure(worst(call.differences()[0] for call in calls if not call.single))
    theirs += " (1)" if any(call.epsilon for call in calls) else ""
    theirs = {"softmax": f"{theirs} (2)", "nn.Taylor": "raises (3)"}.get(line.name, theirs)
    loops = ", ".join(dict.fromkeys(one.loop for one in these))
    cells = [line.name, line.formula, line.source, ops or "any", loops, *map(_figure, sides), theirs]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _figure(number: float | None) -> str:
    return "-" if number is None else f"{number:.0e}" if number else "0"


TEXT = """# Every rule, five ways

Written by `python tests/rule_forms.py`. Each line is a rule; each figure is the largest difference from a slow loop
over Python floats that is copied from the paper, at any element of any input, relative to the largest value. The loops
(`tests/paper_loops.py`, `tests/rule_loops.py`) share no code with lxt_fx; where a rule is AttnLRP eq. 8 they read the
weights off the plain net, one input element after the other. The {count} cases are random float64 numbers of a fixed seed,
at epsilon 0 where a rule has none of its own. They hold every op that a rule of any table in `lxt_fx.TABLES` lists, and
every function of `lxt_fx.rule_table.linear_rules`; `tests/test_rule_forms.py` checks that, and repeats the measurement.

- *fast form*: `transform(net)`, value * gradient. *explicit form*: `transform(net, form="explicit")`, by the equations.
- *zennit*: the rule of that name of zennit 0.5.1, on the same layer.
- *LXT, explicit*: what its explicit functions gave on recorded inputs (`tests/golden/functional.safetensors`).
- `-`: that side has no such rule.

| rule | relevance | paper | ops | slow loop | fast form | explicit form | zennit | LXT, explicit |
|---|---|---|---|---|---|---|---|---|
{table}

The loops of native gradients, `nn.Epsilon` and `nn.Taylor` take difference quotients, whose own error is the figure. Zennit
has a stabilizer of 1e-12 in z-plus, excitation and alpha-beta: with 0, an output without contributions of a sign is NaN
there.

**Where LXT differs**

1. Its epsilon has no sign: it divides by z + epsilon also where z < 0, which is nearer to 0 than z. The figure is that of
   the recorded epsilons, 1e-8 to 0.01; with such an epsilon in the loop the largest difference is {unsigned} (but for layer
   norm, which has it in several steps).
2. A softmax along another dim than the last is off by {other_dim}: relevance is summed over the last one
   in any case. One recorded call asks for float32, and is {single_call} off.
3. {raising} raise there.

**In float32** are grouped matmuls, which torch has in no wider dtype, and casts to it: {single} off in either form.
"""


def main() -> None:
    """Measure, and write the page."""
    if zennit_rules.SPEC is None:
        sys.exit("rule_forms: zennit is not installed, and the page has a column for it: pip install --no-deps zennit")
    PAGE.write_text(page(measured()), encoding="utf-8")
    print("wrote docs/rule_forms.md")


if __name__ == "__main__":
    main()
