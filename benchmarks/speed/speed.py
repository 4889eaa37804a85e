"""Time and memory of an explanation beside the plain gradient, LXT, autoLRP and captum, and the bounds we hold them to.

    python benchmarks/speed/speed.py                  (the default grid; writes docs/speed.md, speed.json and speed.png)
    python benchmarks/speed/speed.py --grid quick     (a few cells, ours and plain only; writes into out/)
    python benchmarks/speed/speed.py --cell smollm2-128x1 --add            (measures one cell again, keeps the others)
    python benchmarks/speed/speed.py --cell smollm2-128x1 --add --what memory
    python benchmarks/speed/speed.py --redraw                              (page and figure from speed.json)

Methods run in turns, each environment in a process of its own: LXT with its own transformers (.cache/lxt-env), autoLRP and
captum from .cache/speed-extras; both are installed by the first run. What is missing or fails is a row with the reason.
Memory is measured a method a process (Linux; or CUDA's counter).
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from dataclasses import asdict, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

sys.path.insert(0, str(Path(__file__).resolve().parent))
from speed_bounds import Found  # noqa: E402
from speed_grid import GRIDS, Cell, Grid  # noqa: E402
from speed_report import draw, page, print_report  # noqa: E402
from speed_run import ROOT, Settings, measure_cell, measure_transform, steps  # noqa: E402

GridName = StrEnum("GridName", {name: name for name in GRIDS})  # type: ignore[misc]
What = StrEnum("What", {name: name for name in ("both", "time", "memory")})  # type: ignore[misc]
DEFAULT, BOTH = GridName("default"), What("both")


def main(
    grid: Annotated[GridName, typer.Option(help="Which cells.")] = DEFAULT,
    quick: Annotated[bool, typer.Option("--quick", help="The same as --grid quick.")] = False,
    full: Annotated[bool, typer.Option("--full", help="The same as --grid full.")] = False,
    cell: Annotated[list[str] | None, typer.Option(help="Only these cells, such as smollm2-128x1; meta; linear.")] = None,
    without: Annotated[list[str] | None, typer.Option(help="Methods to leave out, such as captum_ig.")] = None,
    what: Annotated[What, typer.Option(help="Time, memory, or both.")] = BOTH,
    out: Annotated[Path | None, typer.Option(help="The folder to write to: docs for the default grid, else out.")] = None,
    add: Annotated[bool, typer.Option("--add", help="Keep the cells of the folder's speed.json that are not run.")] = False,
    redraw: Annotated[bool, typer.Option("--redraw", help="Measure nothing; write page and figure again.")] = False,
    rounds: Annotated[int, typer.Option(help="Rounds a cell; 0: as the grid says.")] = 0,
    threads: Annotated[int, typer.Option(help="Threads of each process.")] = 2,
    budget: Annotated[float, typer.Option(help="CPU seconds after which a method that ran 3 times sits out.")] = 60.0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    install: Annotated[bool, typer.Option(help="Install the other environments and fetch models.")] = True,
) -> None:
    """Measure the cells of a grid, print tables and bounds, write JSON, a page and a figure."""
    name = "quick" if quick else "full" if full else str(grid)
    folder = out or (ROOT / "docs" if name == "default" else Path("out"))
    console = Console(width=None if sys.stdout.isatty() else 240)
    settings = Settings(threads, device, dtype, budget, install)
    found = _before(folder, settings, keep=add or redraw)
    if not redraw:
        cells = [_chosen(one, without or [], rounds) for one in GRIDS[name].cells if not cell or one.name in cell]
        alone = {mode: settings for mode, settings in _of_transform(GRIDS[name]).items() if not cell or mode in cell}
        if not cells and not alone:
            known = ", ".join([*(one.name for one in GRIDS[name].cells), "meta", "linear"])
            raise typer.BadParameter(f"no such cell in grid {name}; there are {known}")
        _measure(console, cells, str(what), alone, settings, found, folder)
    print_report(console, found)
    _write(found, folder)
    console.print(f"wrote {folder}/speed.json, speed.md and speed.png")


def _chosen(cell: Cell, without: list[str], rounds: int) -> Cell:
    """The cell less the methods that were left out."""
    methods, remembered = (tuple(n for n in names if n not in without) for names in (cell.methods, cell.memory))
    return replace(cell, methods=methods, memory=remembered, rounds=rounds or cell.rounds)


def _of_transform(grid: Grid) -> dict[str, dict[str, Any]]:
    """What a grid measures of transform itself, with what it is measured with."""
    found: dict[str, dict[str, Any]] = {"meta": {"layers": grid.meta_layers}} if grid.meta_layers else {}
    return found | (
        {"linear": {"layers": grid.linear_layers, "rounds": grid.linear_rounds}} if grid.linear_layers else {}
    )


def _measure(
    console: Console,
    cells: list[Cell],
    what: str,
    alone: dict[str, dict[str, Any]],
    settings: Settings,
    found: Found,
    folder: Path,
) -> None:
    """Cell by cell, times before memory, each written when it is done: an interrupted run keeps what it has."""
    columns = (TextColumn("{task.description:<52}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    parts = [(cell, part) for cell in cells for part in (("time", "memory") if what == "both" else (what,))]
    done = 0
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("speed", total=sum(steps(*part) for part in parts) + len(alone))

        def advance(said: str) -> None:
            progress.update(task, description=said, advance=1)

        for cell, part in parts:
            before = found["cells"].get(cell.name, {}).get("methods", {})
            rows = measure_cell(cell, part, before, settings, advance)
            measured = {"said": cell.said, "measured": f"{datetime.now():%Y-%m-%d %H:%M}", "cell": asdict(cell)}
            found["cells"][cell.name] = {**measured, "methods": rows}
            _write_json(found, folder)
            done += steps(cell, part)
            progress.update(task, completed=done)
            if not console.is_terminal:  # where no bar is drawn
                console.print(f"{cell.name}: {part} measured")
        for mode, of_transform in alone.items():
            progress.update(task, description=f"transform: {mode}")
            found[mode] = measure_transform(mode, of_transform)
            progress.advance(task)


def _before(folder: Path, settings: Settings, keep: bool) -> Found:
    """What the folder holds from other runs, if that is kept; else only what this run is made with."""
    if keep and (folder / "speed.json").is_file():
        found: Found = json.loads((folder / "speed.json").read_text())
        return found
    return {"settings": asdict(settings), "machine": _machine(), "cells": {}, "meta": None, "linear": None}


def _machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    return {"processor": model, "cores": os.cpu_count(), "load": os.getloadavg()[0], **versions}


def _write_json(found: Found, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "speed.json").write_text(json.dumps(found, indent=1))


def _write(found: Found, folder: Path) -> None:
    _write_json(found, folder)
    (folder / "speed.md").write_text(page(found, "speed.png"))
    draw(found, folder / "speed.png")


if __name__ == "__main__":
    typer.run(main)
