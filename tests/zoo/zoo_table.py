"""docs/supported_models.md, made of the results of the zoo."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence

import torch
import transformers
import zoo_ids
from zoo_check import FORWARD, LIMITS, Result

WIDE = LIMITS["float64"]
CHECKS = {
    "captured": "captured as a graph",
    "strict": "a rule for every op on the path (`strict=True`)",
    "forward": f"forward equal to the model's (float32, {FORWARD:g} relative)",
    "gradient": f"table `gradient` equal to the model's input * gradient (float64, {WIDE['gradient']:g})",
    "residual": f"ledger closed (float64, {WIDE['residual']:g})",
    "forms": f"gradient form equal to explicit form (float64, {WIDE['forms']:g})",
    "by ids": f"called by ids, padded on either side: the model's output (float32, {zoo_ids.FORWARD:g}), no relevance at "
    "padding that the model ignores, the same relevance alone and in a batch",
    "places": "standard places found and right by value: text decoders, text encoders, vision transformers (below)",
}


def summary(results: Sequence[Result]) -> str:
    """How many pass each check, as a markdown table."""
    lines = ["| check | models | of |", "|---|---|---|"]
    for name, text in CHECKS.items():
        tried = [r for r in results if name in ("captured", "strict", "by ids", "places") or r.seconds is not None]
        tried = [r for r in tried if name in r.passes]
        if not tried:
            continue
        passed = sum(r.passes[name] for r in tried)
        lines.append(f"| {text} | {passed} ({passed / max(1, len(tried)):.1%}) | {len(tried)} |")
    times = [r.seconds for r in results if r.seconds is not None]
    if times:
        median, most = statistics.median(times), max(times)
        lines.append(f"\n`transform` took {median:.1f} s of CPU time in the median and {most:.0f} s at most.")
    return "\n".join(lines)


MARKS = ("<!-- summary of docs/supported_models.md -->", "<!-- end of summary -->")


def with_summary(text: str, table: str) -> str:
    """A page with the table between its marks."""
    before, rest = text.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    return f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{after}"


OUTSIDE = "<!-- made by tests/foreign/run.py, to the end of the page -->"


def with_section(text: str, section: str) -> str:
    """The page with the section on packages outside transformers, its last one."""
    return f"{text.split(OUTSIDE)[0].rstrip()}\n\n{OUTSIDE}\n\n{section.strip()}\n" if section else text


def section_of(text: str) -> str:
    """The section on packages outside transformers, which a page that is made anew carries on; or nothing."""
    return text.partition(OUTSIDE)[2]


def is_scaled(result: Result) -> bool:
    """Whether this is a case with scaled embeddings, which has calls by ids only."""
    return result.entry.endswith(", scaled")


def unscaled(results: Sequence[Result]) -> list[Result]:
    """The results of the zoo itself."""
    return [result for result in results if not is_scaled(result)]


def page(every: Sequence[Result]) -> str:
    """The whole page: summary, what failed and why, one line for each model by family."""
    results = unscaled(every)
    families = defaultdict(list)
    for result in results:
        families[result.family].append(result)
    parts = [
        "# Supported models",
        "Made by `python tests/zoo/run.py`, not written: tiny random models of most architectures of transformers "
        f"{transformers.__version__}, torch {torch.__version__.split('+')[0]}, table `attnlrp`. lxt_fx has no code for any "
        "of them.",
        summary(results),
        failures(results),
        "A star: float64 fails in the model itself, so gradient, ledger and forms are in float32 (limits "
        f"{', '.join(f'{limit:g}' for limit in LIMITS['float32'].values())}). `batch`, `length`: free after one capture "
        "(`-`: there is none). Differences are relative to the largest value; `0` means bit-equal. `s` is the time of "
        "`transform` on one thread. `by ids`: the largest difference of the outputs of model and module, called by ids "
        "alone and with masks and positions, on full and padded texts / the largest relevance of a padding token / the "
        "largest difference of the relevance of a text alone and in a padded batch (`-`: does not apply, see below). "
        "`places`: how many layers `lxt_fx.places` finds by structure, with `!` where a value is not what the model "
        "itself computes. It counts for the families of text (but for what speaks it), and for vision models whose "
        "config says how many layers and heads there are and how large a patch is (`counts` in `tests/zoo/zoo_places.py`). "
        "`residual.i` is compared with `hidden_states[i]`, but for the last, which most models norm first.",
    ]
    for family, members in sorted(families.items()):
        parts.append(f"## {family}\n\n{table(members)}")
    return "\n\n".join([*parts, _scaled([r for r in every if is_scaled(r)]), _not_applied(every)]) + "\n"


def _scaled(results: Sequence[Result]) -> str:
    head = "| model | class | batch | length | by ids |"
    lines = ["## By ids, with scaled embeddings", "", head, "|---|---|---|---|---|"]
    for result in results:
        if (found := result.by_ids) is not None:
            free = " | ".join(map(_free, (found.batch, found.length)))
            lines.append(f"| {result.entry} | {result.model_class} | {free} | {_by_ids(result)} |")
    return "\n".join(lines)


def _not_applied(results: Sequence[Result]) -> str:
    """Why calls by ids have no number for padding or for a text alone."""
    reasons = defaultdict[str, list[str]](list)
    for result in results:
        found = result.by_ids
        if found is not None and None in (found.padding, found.alone):
            for reason in dict.fromkeys(_reason(note) for note in found.notes if note.startswith(("right", "left"))):
                reasons[reason].append(result.entry.split("/")[0])
    lines = ["## By ids: what does not apply, and why", "", "| reason | models |", "|---|---|"]
    lines += [f"| {reason} | {', '.join(dict.fromkeys(entries))} |" for reason, entries in sorted(reasons.items())]
    return "\n".join(lines)


def _reason(note: str) -> str:
    """A note without the batch that it is about, and without the message of an error."""
    parts = [part for part in note.split(": ") if part.split(",")[0] not in ("right", "left")]
    alone = parts[0] == "alone"
    said = parts[1] if alone else parts[0]
    said = "the model refuses the batch" if said.startswith("the model raises") else said
    return f"a text alone: {said}" if alone else said


def failures(results: Sequence[Result], title: str = "## What does not pass, and why") -> str:
    """The models that fail a check, each with the reason."""
    lines = [title, "", "| model | fails | reason |", "|---|---|---|"]
    for result in results:
        failed = [name for name, passed in result.passes.items() if not passed]
        if failed:
            notes = result.by_ids.notes if "by ids" in failed and result.by_ids else []
            if "places" in failed and result.found_places is not None:
                notes = [*notes, *(f"places: {why}" for why in result.found_places.why)]
            reason = " ".join(" ".join([*result.why, *notes]).split()).replace("|", "/")[:300] or ", ".join(result.unknown)
            lines.append(f"| {result.entry} | {', '.join(failed)} | {reason or _worst(result)} |")
    return "\n".join(lines)


def _worst(result: Result) -> str:
    names = ("forward", "gradient", "residual", "forms")
    return ", ".join(f"{name} {_number(getattr(result, name))}" for name in names if not result.passes[name])


def table(results: Sequence[Result]) -> str:
    """One line for each model."""
    measured = "forward | gradient | ledger | forms | by ids | places | nodes | s"
    columns = f"model | class | captured by | batch | length | {measured}"
    lines = [f"| {columns} |", "|" + "---|" * (columns.count("|") + 1)]
    for r in results:
        cells = [
            r.entry + " *" * (r.precision == "float32"),
            r.model_class,
            r.captured or "-",
            *map(_free, (r.batch, r.length)),
            *map(_number, (r.forward, r.gradient, r.residual, r.forms)),
            _by_ids(r),
            _places(r),
            str(r.nodes or "-"),
            _number(r.seconds),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _places(result: Result) -> str:
    found = result.found_places
    return "-" if found is None or not found.layers else f"{found.layers}{'' if found.passes else ' !'}"


def _by_ids(result: Result) -> str:
    if (found := result.by_ids) is None:
        return "-"
    return " / ".join(_number(value) for value in (max(found.forward.values(), default=None), found.padding, found.alone))


def _free(value: bool | None) -> str:
    return {None: "-", True: "free", False: "fixed"}[value]


def _number(value: float | None) -> str:
    return "-" if value is None else "0" if value == 0 else f"{value:.1g}" if value < 0.1 else f"{value:.1f}"
