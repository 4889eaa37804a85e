"""What speed.py prints and writes: tables on the terminal, a page, a figure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
from rich import box
from rich.console import Console
from rich.table import Table
from speed_bounds import BOUNDS, Found, Ratio, memory_ratio, rows_of, time_ratio, verdict
from speed_grid import BY_NAME, METHODS, TARGETS

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import FixedLocator  # noqa: E402

Lines = list[list[str]]
METHOD_HEADS = [
    "method", "seconds", "/ plain", "quartiles", "in CPU time", "runs", "peak MiB", "/ plain", "saved MiB", "/ plain",
    "nodes", "transform s", "first s", "difference", "note",
]  # fmt: skip


def bound_lines(found: Found) -> Lines:
    """One line for each bound: what, where, the bound, measured, quartiles, verdict or why there is none."""
    lines = []
    for bound in BOUNDS:
        ratio = bound.measured(found)
        shown = "-" if ratio.value is None else f"{ratio.value:.2f}{f' {bound.unit}' if bound.unit else ''}"
        spread = "" if ratio.low == ratio.high else quartiles(ratio)
        limit = f"{bound.limit:.2f}" if not bound.unit else f"{bound.limit:g} {bound.unit}"
        threads = _number(bound.of_threads(found)) if bound.of_threads else ""
        said = ratio.why or verdict(bound, ratio)
        lines.append([bound.said, bound.cell, limit, shown, spread, threads, said])
    return lines


BOUND_HEADS = ["ratio", "cell", "bound", "measured", "quartiles", "in CPU time", ""]


def quartiles(ratio: Ratio) -> str:
    return f"{ratio.low:.2f} to {ratio.high:.2f}"


def method_lines(found: Found, cell: str) -> Lines:
    """One line for each method of a cell."""
    rows = rows_of(found, cell)
    return [_method_line(found, cell, name, rows[name]) for name in BY_NAME if name in rows]


def _method_line(found: Found, cell: str, name: str, row: dict[str, Any]) -> list[str]:
    label = BY_NAME[name].label
    if why := row.get("why"):
        return [label, *[""] * (len(METHOD_HEADS) - 2), why]
    seconds = sorted(second for second in row["seconds"] if second is not None)
    ratio = time_ratio(found, cell, name)
    base = BY_NAME[name].base
    peak, saved = (memory_ratio(found, cell, name, what, base) for what in ("peak_mib", "saved_bytes"))
    return [
        label,
        f"{seconds[len(seconds) // 2]:.3f}" if seconds else "-",
        _number(ratio),
        quartiles(ratio) if ratio.value is not None else "",
        _number(time_ratio(found, cell, name, what="cpu_seconds")),
        str(len(seconds)),
        f"{row['peak_mib']:.1f}" if "peak_mib" in row else "",
        _number(peak),
        f"{row['saved_bytes'] / 2**20:.1f}" if "saved_bytes" in row else "",
        _number(saved),
        str(row.get("nodes", "")),
        f"{row['transform_seconds']:.1f}" if "transform_seconds" in row else "",
        f"{row['first_seconds']:.1f}" if "first_seconds" in row else "",
        f"{row['difference']:.0e}" if BY_NAME[name].same and "difference" in row else "",
        row.get("why_no_memory", ""),
    ]


def _number(ratio: Ratio) -> str:
    return "" if ratio.value is None else f"{ratio.value:.2f}"


def print_report(console: Console, found: Found) -> None:
    """A table a cell, then the bounds."""
    for cell, measured in found["cells"].items():
        console.print(_table(measured["said"], METHOD_HEADS, method_lines(found, cell)))
    for said, name in (("70B shape on meta:", "meta"), ("linear in nodes, milliseconds of CPU a node:", "linear")):
        if measured := found.get(name):
            console.print(said, measured)
    console.print(_table("bounds", BOUND_HEADS, bound_lines(found)))


def _table(title: str, heads: list[str], lines: Lines) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    for head in heads:
        left = head in ("method", "ratio", "cell", "note", "")
        table.add_column(head, justify="left" if left else "right", no_wrap=head in ("method", "ratio"))
    for line in lines:
        table.add_row(*line)
    return table


EXPLAINED = (
    "All methods of a cell run in turns, each round in another order; a ratio is the median over rounds of the quotient of "
    "two runs of one round, and its quartiles stand beside it. Seconds are medians, and depend on what else the machine "
    "did. CPU time, of all threads together, does so less, but counts threads that wait for one another.",
    "",
    "The base is the plain input\\*gradient of the model, parameters frozen. LXT runs with transformers 4.57.6 in an "
    "environment of its own; its ratio is to the plain gradient there. The explained number is the largest logit of the "
    "last position (of the image; of the mean of an encoder's features); the input is embeddings of random tokens.",
    "",
    "Peak: resident memory at the peak of one run, above what the process held before it; each method alone in a process, "
    "whose allocator gives freed blocks back. Saved: storages that the forward saves for the backward, each once, without "
    "parameters. First: seconds of the first run, with compilation. Difference: of relevance to `ours` in eager (for all "
    "targets in one call: to one by one), relative to its largest value.",
    "",
)


def page(found: Found, figure: str) -> str:
    """docs/speed.md, whole."""
    return "\n".join(_page(found, figure)) + "\n"


def _page(found: Found, figure: str) -> Iterator[str]:
    settings, machine = found["settings"], found["machine"]
    yield "# Speed and memory"
    yield ""
    command = "`python benchmarks/speed/speed.py`"
    yield f"This page is written by {command}, which also wrote [speed.json](speed.json). Do not edit it."
    yield ""
    yield (
        f"{settings['dtype']}, {settings['device']}, {settings['threads']} threads on {machine['processor']} "
        f"({machine['cores']} cores), torch {machine['torch']}, transformers {machine['transformers']}. "
        f"Load of the machine when the run began: {machine['load']:.1f}."
    )
    yield ""
    yield from EXPLAINED
    yield ""
    yield f"![Ratios to the plain gradient]({figure})"
    yield ""
    yield "## Bounds"
    yield ""
    yield from _markdown(BOUND_HEADS, bound_lines(found))
    for cell, measured in found["cells"].items():
        yield ""
        yield f"## {measured['said']}"
        yield ""
        yield f"`{cell}`, measured {measured['measured']}."
        yield ""
        yield from _markdown(METHOD_HEADS, method_lines(found, cell))


def _markdown(heads: list[str], lines: Lines) -> Iterator[str]:
    yield "| " + " | ".join(heads) + " |"
    yield "|" + "---|" * len(heads)
    for line in lines:
        yield "| " + " | ".join(text.replace("|", "\\|").replace("*", "\\*") for text in line) + " |"


def draw(found: Found, path: Path) -> None:
    """Two panels, a line a method and a mark a cell: time over the plain gradient with quartiles, peak memory over its."""
    cells = list(found["cells"])
    methods = [
        method for method in reversed(METHODS)
        if method.name not in TARGETS and any(time_ratio(found, cell, method.name).value is not None for cell in cells)
    ]  # fmt: skip
    figure, panels = plt.subplots(1, 2, figsize=(12, 1.5 + 0.42 * len(methods)), sharey=True, layout="constrained")
    colours = plt.get_cmap("tab20")
    for number, cell in enumerate(cells):
        offset = (number + 0.5) / len(cells) - 0.5
        for place, method in enumerate(methods):
            ratios = (time_ratio(found, cell, method.name), memory_ratio(found, cell, method.name, "peak_mib", method.base))
            for panel, ratio in zip(panels, ratios, strict=True):
                if ratio.value is None:
                    continue
                below, above = ratio.value - ratio.low, ratio.high - ratio.value
                spread = {"xerr": [[below], [above]], "fmt": "o", "ms": 4, "color": colours(number)}
                panel.errorbar(ratio.value, place - 0.7 * offset, **spread)
        panels[0].plot([], [], "o", color=colours(number), label=cell)
    for panel, title in zip(panels, ("time / plain input*gradient", "peak memory above the weights / plain"), strict=True):
        panel.axvline(1, color="black", lw=0.8)
        panel.set(title=title, xscale="log", yticks=range(len(methods)), yticklabels=[method.label for method in methods])
        panel.xaxis.set_major_locator(FixedLocator([0.1, 0.25, 0.5, 1, 2, 4, 8, 16]))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter("")
        panel.grid(axis="x", which="both", alpha=0.3)
    panels[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)
