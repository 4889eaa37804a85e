"""Looks for a better table: one change of `attnlrp` after the other, on the part of the prompts that is for development.

    python benchmarks/referee/search.py --model smollm2 --out search_smollm2.jsonl [--cases 40] [--only NAME,NAME]

Nothing here is a finding: with so many tries the best of them is good by chance too. What is chosen is measured on the
other prompts. Each case is asked once for all methods: by default agreement with Shapley values is measured.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import lxt_fx
from lxt_fx.referee.case import Case, Subject
from lxt_fx.referee.contest import Explain, Method
from lxt_fx.referee.methods.by_gradient import Averaged, TableMethod
from lxt_fx.referee.tasks import TASKS
from lxt_fx.rule_table import basic_rules, linear_rules, shares
from lxt_fx.rule_table.rule import Rule
from lxt_fx.rule_table.table import RuleTable
from lxt_fx.rule_table.tables import ATTNLRP, CP_LRP, TABLES, dpa

TASK_NAMES = ("facts", "indirect_object", "next_token")
FIRST, SECOND = ("first", "second")


@dataclass(frozen=True, slots=True)
class Contrasted:
    """A table's relevance of the number less what all answers share: the mean logit, or the largest other one."""

    name: str
    rules: RuleTable
    less: Literal["mean", "runner_up"]

    def prepare(self, subject: Subject) -> Explain:
        explain = TableMethod(self.name, self.rules).prepare(subject)

        def contrasted(case: Case) -> Tensor:
            def value(output: Any) -> Tensor:
                logits, number = output.logits[:, -1], case.value(output)
                if self.less == "mean":
                    return number - logits.mean(-1)
                best = logits.topk(2, -1).values
                return number - torch.where(best[:, 0] > number.detach(), best[:, 0], best[:, 1])

            contrast = case.value if getattr(case.value, "wrong", ()) else value
            return explain(replace(case, value=contrast))

        return contrasted


@dataclass(frozen=True, slots=True)
class WithoutSink:
    """A table's relevance with the values of the first token held in all attentions: what heads take from there when they
    look for nothing."""

    name: str
    rules: RuleTable

    def prepare(self, subject: Subject) -> Explain:
        model = copy.deepcopy(subject.model)
        for name, module in model.named_modules():
            if name.endswith(".v_proj"):
                module.register_forward_hook(_first_held)
        return TableMethod(self.name, self.rules).prepare(replace(subject, model=model))


def _first_held(module: nn.Module, given: tuple[Any, ...], values: Tensor) -> Tensor:
    return torch.cat([values[:, :1].detach(), values[:, 1:]], 1)


@dataclass(frozen=True, slots=True)
class Absolute:
    """The absolute value of a table's relevance by unit."""

    name: str
    rules: RuleTable

    def prepare(self, subject: Subject) -> Explain:
        explain = TableMethod(self.name, self.rules).prepare(subject)
        return lambda case: subject.by_unit(case, explain(case)).abs()


@dataclass(frozen=True, slots=True)
class AtLayers:
    """A table with other rules at these modules of the layers of one half of a model's depth, or of all."""

    name: str
    rules: tuple[Rule, ...]
    modules: tuple[str, ...]
    half: str = ""
    table: RuleTable = ATTNLRP

    def prepare(self, subject: Subject) -> Explain:
        layers = range(int(subject.model.config.num_hidden_layers))  # type: ignore[union-attr, arg-type]
        middle = len(layers) // 2
        chosen = {"": layers, FIRST: layers[:middle], SECOND: layers[middle:]}[self.half]
        extra, table = RuleTable("change", self.rules), self.table
        known = {name for name, _ in subject.model.named_modules()}
        for layer in chosen:
            for module in self.modules:
                place = f"model.layers.{layer}.{module}".removesuffix(".")
                if place in known:
                    table = table.override(place, extra)
        return TableMethod(self.name, table).prepare(subject)


def _with(name: str, *rules: Rule) -> TableMethod:
    return TableMethod(name, ATTNLRP.with_rules(name, *rules, summary=f"attnlrp with {name}."))


MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
VALUES = ("self_attn.v_proj", "self_attn.o_proj")
NORMS = (
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
    "self_attn.q_norm", "self_attn.k_norm",
)  # fmt: skip
HELD = (basic_rules.ATTENTION_HELD, basic_rules.ATTENTION_WEIGHTS_HELD)
NATIVE = (basic_rules.NATIVE,)


def tried() -> dict[str, Method]:
    """Every change that is tried, and `attnlrp` beside it."""
    found: list[Any] = [TableMethod("attnlrp", ATTNLRP)]
    found += [_with(f"temperature {number:g}", shares.temperature(number)) for number in (0.5, 2.0, 4.0)]
    found += [TableMethod(f"values {v:g}", dpa((1 - v) / 2, (1 - v) / 2, v)) for v in (0.34, 0.7, 0.9)]
    found += [TableMethod(f"queries {q:g} of 0.5", dpa(q, 0.5 - q, 0.5)) for q in (0.05, 0.45)]
    found += [_with("attention held", *HELD), TableMethod("cp_lrp", CP_LRP), TableMethod("gradient", "gradient")]
    found += [AtLayers(f"attention held; {half} half", HELD, ("self_attn",), half) for half in (FIRST, SECOND)]
    found += [_with(f"gate {g:g}", shares.gate(g, 1 - g)) for g in (0.0, 0.25, 0.75)]
    found += [_with("native activation", shares.NATIVE_REGION, shares.NATIVE_ACTIVATION)]
    found += [AtLayers(f"native mlp{_in(half)}", NATIVE, ("mlp",), half) for half in ("", FIRST, SECOND)]
    found += [AtLayers(f"native norms{_in(half)}", NATIVE, NORMS, half) for half in ("", FIRST, SECOND)]
    for gamma in (0.05, 0.25):
        rule = (linear_rules.gamma(gamma),)
        found += [AtLayers(f"gamma {gamma:g} in mlp{_in(half)}", rule, MLP, half) for half in ("", FIRST, SECOND)]
        found += [AtLayers(f"gamma {gamma:g} in values{_in(half)}", rule, VALUES, half) for half in ("", FIRST, SECOND)]
    found += _with_gamma()
    found += [AtLayers(f"epsilon {e:g} in mlp", (linear_rules.epsilon(e),), MLP) for e in (1e-2, 1e-1)]
    found += [AtLayers(f"epsilon {e:g} in values", (linear_rules.epsilon(e),), VALUES) for e in (1e-2, 1e-1)]
    found += [Averaged(f"noise {sigma:g}", "attnlrp", sigma, 8) for sigma in (0.05, 0.2, 0.5)]
    found += [Contrasted(f"less {less}", ATTNLRP, less) for less in ("mean", "runner_up")]
    found += [WithoutSink("sink held", ATTNLRP), Absolute("absolute", ATTNLRP)]
    found += [TableMethod(name, name) for name in ("gim", "pa_lrp", "relp", "frozen_attention")]
    found += [TableMethod("values 0.6", dpa(0.2, 0.2, 0.6))]
    for v in (0.34, 0.6, 0.7):
        less = dpa((1 - v) / 2, (1 - v) / 2, v).with_rules("less", basic_rules.POSITION, summary="Positions set aside.")
        found += [TableMethod(f"pa_lrp; values {v:g}", less)]
    return {method.name: method for method in found}


def _with_gamma() -> list[Any]:
    """What came out well, gamma in the layers of an MLP, in more sizes and places and beside other changes."""
    quarter = (linear_rules.gamma(0.25),)
    found = [AtLayers(f"gamma {gamma:g} in mlp", (linear_rules.gamma(gamma),), MLP) for gamma in (1.0, 4.0)]
    found += [AtLayers("z-plus in mlp", (linear_rules.z_plus(),), MLP)]
    found += [AtLayers("gamma 0.25 in mlp; down", quarter, MLP[2:])]
    found += [AtLayers("gamma 0.25 in mlp; gate and up", quarter, MLP[:2])]
    found += [AtLayers("gamma 0.25 in mlp and values", quarter, (*MLP, *VALUES))]
    beside = {
        "temperature 4": ATTNLRP.with_rules("temperature 4", shares.temperature(4.0), summary="Its softmax is flat."),
        "values 0.7": dpa(0.15, 0.15, 0.7),
        "attention held": ATTNLRP.with_rules("attention held", *HELD, summary="Its weights are held."),
        "cp_lrp": CP_LRP,
        "gim": TABLES["gim"],
        "pa_lrp": TABLES["pa_lrp"],
    }
    return found + [AtLayers(f"gamma 0.25 in mlp; {name}", quarter, MLP, table=table) for name, table in beside.items()]


def _in(half: str) -> str:
    return f"; {half} half" if half else ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what is tried for one model, or goes on."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--metrics", default="shapley_spearman", help="names with commas; shared by all methods of a case")
    parser.add_argument("--only", help="names with commas")
    parser.add_argument("--tasks", default=",".join(TASK_NAMES), help="names with commas")
    parser.add_argument("--models", type=Path, default=Path.home() / ".cache" / "lxt_fx", help="where the models lie")
    given = parser.parse_args(arguments)
    every = tried()
    chosen = {name: every[name] for name in (given.only.split(",") if given.only else every)}
    tasks: list[Any] = [TASKS[name] for name in given.tasks.split(",")]
    found = lxt_fx.bench(
        {given.model: given.models / given.model},
        methods={"attnlrp": every["attnlrp"], **chosen},
        tasks=[replace(task, part="development") for task in tasks],
        metrics=given.metrics.split(","),
        cases=given.cases,
        file=given.out,
    )
    print(found)


if __name__ == "__main__":
    main()
