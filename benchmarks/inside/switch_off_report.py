"""What switch_off.py found, as tables and a picture."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor

KINDS_OF_PROMPTS = ("facts", "number", "opposites")
NAMES = {
    "attnlrp": "attnlrp", "cp_lrp": "cp_lrp", "gradient": "gradient x activation", "activation": "activation",
    "random": "random", "attnlrp, difference": "attnlrp, of the difference",
    "cp_lrp, difference": "cp_lrp, of the difference",
    "gradient, difference": "gradient x activation, of the difference",
}  # fmt: skip
"""Rankings in the order in which they are shown."""
COLORS = {"attnlrp": "#b71824", "cp_lrp": "#e08214", "gradient": "#1762b6", "activation": "#4d9a4d", "random": "#888888"}
SAMPLES = 10_000
"""So many times the prompts are drawn anew for an interval."""
START, END = "<!-- measured by benchmarks/inside/switch_off.py -->", "<!-- end of measured -->"


def report(found: Mapping[str, Any], out: Path, console: Console) -> None:
    """Prints all tables and writes switch_off.md and switch_off.png. A page that is there stays, but for what stands
    between its two marks."""
    tables = all_tables(found)
    out.mkdir(parents=True, exist_ok=True)
    for table in tables:
        console.print(table)
    draw(found["off"], out / "switch_off.png")
    page = out / "switch_off.md"
    before = page.read_text() if page.exists() else f"{START}\n{END}\n"
    measured = "\n\n".join(map(markdown, tables))
    page.write_text(re.sub(f"{START}.*?{END}", lambda _: f"{START}\n\n{measured}\n\n{END}", before, flags=re.DOTALL))
    console.print(f"wrote {page} and {out / 'switch_off.png'}")


def all_tables(found: Mapping[str, Any]) -> list[Table]:
    """The prompts; for each kind of units and way of switching off what falls and by how much attnlrp leads; the same by
    kind of prompts; steering."""
    tables = [prompts_table(found)]
    for units, by_way in found["off"].items():
        for way, by_ranking in by_way.items():
            tables += [drops_table(units, way, by_ranking), leads_table(units, way, by_ranking)]
    of_prompt = [prompt["kind"] for prompt in found["prompts"]]
    for units, by_way in found["off"].items():
        tables.append(by_prompts_table(units, next(iter(by_way.values())), of_prompt))
    return tables + [steering_table(units, by_ranking) for units, by_ranking in found["steering"].items()]


def numbers(rows: Any) -> Tensor:
    """[prompts, numbers]; NaN where a prompt has fewer than others."""
    most = max(map(len, rows))
    return torch.tensor([[*row, *[torch.nan] * (most - len(row))] for row in rows], dtype=torch.float64)


def difference(rows: Any) -> Tensor:
    """How far the answer's logit falls more than that of the control, [prompts]."""
    found = numbers(rows)
    return found[:, 0] - found[:, 1]


def mean_error(values: Tensor) -> tuple[float, float]:
    """The mean and its standard error."""
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


def interval(values: Tensor) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean over prompts."""
    drawn = torch.randint(len(values), (SAMPLES, len(values)), generator=torch.Generator().manual_seed(0))
    low, high = values[drawn].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high


def titled(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left")
    return table


def prompts_table(found: Mapping[str, Any]) -> Table:
    table = titled("prompts", "kind", "asked", "answered right")
    for kind in KINDS_OF_PROMPTS:
        right = sum(prompt["kind"] == kind for prompt in found["prompts"])
        table.add_row(kind, str(found["asked"][kind]), str(right))
    return table


def shown(by_ranking: Mapping[str, Any]) -> list[str]:
    return [ranking for ranking in NAMES if ranking in by_ranking]


def counts(by_ranking: Mapping[str, Any]) -> list[str]:
    return list(by_ranking[shown(by_ranking)[0]])


def drops_table(units: str, way: str, by_ranking: Mapping[str, Any]) -> Table:
    """The drop of the difference; in brackets those of answer and control, how many prompts are no longer answered, and how
    many of those of another kind are not."""
    most = numbers(next(iter(by_ranking["random"].values()))).shape[1]
    lost = "% no longer answered" + (", % of prompts of another kind that are not" if most > 3 else "")
    title = f"{units} {way}: drop of answer - control ± standard error (drop of answer, of control; {lost})"
    table = titled(title, "chosen by", *(f"k = {count}" for count in counts(by_ranking)))
    for ranking in shown(by_ranking):
        cells = []
        for rows in by_ranking[ranking].values():
            answer, control, *right = numbers(rows).nanmean(0).tolist()
            lost = ", ".join(f"{100 * (1 - share):.0f}" for share in right)
            mean, error = mean_error(difference(rows))
            cells.append(f"{mean:.2f} ± {error:.2f} ({answer:.1f}, {control:.1f}; {lost})")
        table.add_row(NAMES[ranking], *cells)
    return table


def leads_table(units: str, way: str, by_ranking: Mapping[str, Any]) -> Table:
    """By how much more the difference falls for attnlrp, prompt by prompt. Rankings by the relevance of the difference are
    compared with that of attnlrp."""
    title = f"{units} {way}: how much more answer - control falls for attnlrp (95 % bootstrap interval)"
    table = titled(title, "attnlrp beside", *(f"k = {count}" for count in counts(by_ranking)))
    for ranking in shown(by_ranking):
        first = "attnlrp, difference" if ranking.endswith("difference") else "attnlrp"
        if ranking == first == "attnlrp":
            continue
        best = "attnlrp" if ranking == first else first
        cells = []
        for count, rows in by_ranking[ranking].items():
            lead = difference(by_ranking[best][count]) - difference(rows)
            cells.append("{:+.2f} ({:+.2f} to {:+.2f})".format(float(lead.mean()), *interval(lead)))
        beside = "its own " if best == "attnlrp" and ranking == first else ""
        table.add_row(f"{beside}{NAMES[ranking]}", *cells)
    return table


def by_prompts_table(units: str, by_ranking: Mapping[str, Any], of_prompt: Sequence[str]) -> Table:
    count = "20" if "20" in counts(by_ranking) else counts(by_ranking)[-1]
    title = f"{count} {units} set to 0: drop of answer - control ± standard error (drop of answer, of control)"
    kinds = [kind for kind in KINDS_OF_PROMPTS if of_prompt.count(kind) > 1]
    table = titled(title, "chosen by", *kinds)
    for ranking in shown(by_ranking):
        cells = []
        for kind in kinds:
            rows = [row for row, own in zip(by_ranking[ranking][count], of_prompt, strict=True) if own == kind]
            answer, control = numbers(rows)[:, :2].mean(0).tolist()
            cells.append("{:.2f} ± {:.2f} ({:.1f}, {:.1f})".format(*mean_error(difference(rows)), answer, control))
        table.add_row(NAMES[ranking], *cells)
    return table


def steering_table(units: str, by_ranking: Mapping[str, Any]) -> Table:
    pairs = len(by_ranking["all"]["all"]) if by_ranking else 0
    title = f"{units} set to their values in another fact's prompt ({pairs} pairs): answers that become its own "
    title = f"{title}(shift of its logit less the own one)"
    table = titled(title, "chosen by", *(f"k = {count}" for count in counts_of(by_ranking)))
    for ranking in [*shown(by_ranking), *(["all"] if by_ranking else [])]:
        cells = []
        for rows in by_ranking[ranking].values():
            became, shift = numbers(rows).mean(0).tolist()
            cells.append(f"{100 * became:.0f} % ({shift:+.1f})")
        name = NAMES.get(ranking, f"all {units}")
        table.add_row(name, *([""] * (len(table.columns) - 1 - len(cells))), *cells)
    return table


def counts_of(by_ranking: Mapping[str, Any]) -> list[str]:
    return counts(by_ranking) if by_ranking else []


def draw(off: Mapping[str, Any], path: Path) -> None:
    """For each kind of units and way of switching off, how far answer - control falls with the number of units."""
    shown_ways = [(units, way, by_ranking) for units, by_way in off.items() for way, by_ranking in by_way.items()]
    columns = min(3, len(shown_ways))
    lines = -(-len(shown_ways) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.6 * lines + 0.6), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False)
    for panel in panels.flat[len(shown_ways) :]:
        panel.set_axis_off()
    for panel, (units, way, by_ranking) in zip(panels.flat, shown_ways, strict=False):
        for ranking, color in COLORS.items():
            for name, dash in ((ranking, "-"), (f"{ranking}, difference", ":")):
                if name in by_ranking:
                    curve(panel, by_ranking[name], color, dash, NAMES[name])
        panel.set_xscale("log")
        panel.set_xticks([int(count) for count in counts(by_ranking)], counts(by_ranking))
        panel.minorticks_off()
        panel.set_title(f"{units}\n{way}", fontsize=10)
        panel.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[:, 0]:
        panel.set_ylabel("drop of answer - control")
    for panel in panels[-1]:
        panel.set_xlabel("units switched off")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=140)


def curve(panel: Any, by_count: Mapping[str, Any], color: str, dash: str, label: str) -> None:
    found = [mean_error(difference(rows)) for rows in by_count.values()]
    means, errors = zip(*found, strict=True)
    at = [int(count) for count in by_count]
    panel.plot(at, means, color=color, linestyle=dash, marker="o", markersize=3, label=label)
    low = [mean - error for mean, error in found]
    high = [mean + error for mean, error in found]
    panel.fill_between(at, low, high, color=color, alpha=0.15, linewidth=0)


def markdown(table: Table) -> str:
    """A table with its title as a page has it."""
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    lines = [[str(column.header) for column in table.columns], ["---"] * len(cells), *zip(*cells, strict=True)]
    return f"**{table.title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)
