"""docs/supported_models.md, made of the results of the zoo."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence

import torch
import transformers
from zoo_check import FORWARD, LIMITS, Result

WIDE = LIMITS["float64"]
CHECKS = {
    "captured": "captured as a graph",
    "strict": "a rule for every op on the path (`strict=True`)",
    "forward": f"forward equal to the model's (float32, {FORWARD:g} relative)",
    "gradient": f"table `gradient` equal to the model's input * gradient (float64, {WIDE['gradient']:g})",
    "residual": f"ledger closed (float64, {WIDE['residual']:g})",
    "forms": f"gradient form equal to explicit form (float64, {WIDE['forms']:g})",
}


def summary(results: Sequence[Result]) -> str:
    """How many pass each check, as a markdown table."""
    lines = ["| check | models | of |", "|---|---|---|"]
    for name, text in CHECKS.items():
        tried = [r for r in results if name in ("captured", "strict") or r.seconds is not None]
        passed = sum(r.passes[name] for r in tried)
        lines.append(f"| {text} | {passed} ({passed / max(1, len(tried)):.1%}) | {len(tried)} |")
    times = [r.seconds for r in results if r.seconds is not None]
    if times:
        lines.append(f"\n`transform` took {statistics.median(times):.1f} s in the median and {max(times):.0f} s at most.")
    return "\n".join(lines)


MARKS = ("<!-- summary of docs/supported_models.md -->", "<!-- end of summary -->")


def with_summary(text: str, table: str) -> str:
    """A page with the table between its marks."""
    before, rest = text.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    return f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{after}"


def page(results: Sequence[Result]) -> str:
    """The whole page: summary, what failed and why, one line for each model by family."""
    families = defaultdict(list)
    for result in results:
        families[result.family].append(result)
    parts = [
        "# Supported models",
        "Made by `python tests/zoo/run.py`, not written: tiny random models of most architectures of transformers "
        f"{transformers.__version__}, torch {torch.__version__.split('+')[0]}, table `attnlrp`. lxt_fx has no code for any "
        "of them.",
        summary(results),
        _failures(results),
        "A star: float64 fails in the model itself, so gradient, ledger and forms are in float32 (limits "
        f"{', '.join(f'{limit:g}' for limit in LIMITS['float32'].values())}). `batch`, `length`: free after one capture "
        "(`-`: there is none). Differences are relative to the largest value; `0` means bit-equal. `s` is the time of "
        "`transform` on one thread.",
    ]
    for family, members in sorted(families.items()):
        parts.append(f"## {family}\n\n{_table(members)}")
    return "\n\n".join(parts) + "\n"


def _failures(results: Sequence[Result]) -> str:
    lines = ["## What does not pass, and why", "", "| model | fails | reason |", "|---|---|---|"]
    for result in results:
        failed = [name for name, passed in result.passes.items() if not passed]
        if failed:
            reason = " ".join(" ".join(result.why).split()).replace("|", "/")[:300] or ", ".join(result.unknown)
            lines.append(f"| {result.entry} | {', '.join(failed)} | {reason or _worst(result)} |")
    return "\n".join(lines)


def _worst(result: Result) -> str:
    names = ("forward", "gradient", "residual", "forms")
    return ", ".join(f"{name} {_number(getattr(result, name))}" for name in names if not result.passes[name])


def _table(results: Sequence[Result]) -> str:
    columns = "model | class | captured by | batch | length | forward | gradient | ledger | forms | nodes | s"
    lines = [f"| {columns} |", "|" + "---|" * (columns.count("|") + 1)]
    for r in results:
        cells = [
            r.entry + " *" * (r.precision == "float32"),
            r.model_class,
            r.captured or "-",
            *map(_free, (r.batch, r.length)),
            *map(_number, (r.forward, r.gradient, r.residual, r.forms)),
            str(r.nodes or "-"),
            _number(r.seconds),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _free(value: bool | None) -> str:
    return {None: "-", True: "free", False: "fixed"}[value]


def _number(value: float | None) -> str:
    return "-" if value is None else "0" if value == 0 else f"{value:.1g}" if value < 0.1 else f"{value:.1f}"
