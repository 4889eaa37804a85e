"""Check every architecture of the zoo and write docs/supported_models.md.

    python tests/zoo/run.py                        all, in as many processes as there are cores
    python tests/zoo/run.py --only llama --only t5  those whose name holds one of these; nothing is written

Each model has a process that may crash or hang without harm to the others. With 2 cores: about half an hour.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
import zoo_models
from pebble import ProcessExpired, ProcessPool
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from zoo_check import Result, check
from zoo_table import page, summary

ROOT = Path(__file__).resolve().parents[2]


def main(
    only: Annotated[list[str] | None, typer.Option(help="Parts of names.")] = None,
    processes: Annotated[int, typer.Option(help="How many at once.")] = os.cpu_count() or 1,
    seconds: Annotated[float, typer.Option(help="The time that one model may take.")] = 300,
    out: Annotated[Path, typer.Option(help="Where the figures go as JSON lines.")] = Path("zoo.jsonl"),
) -> None:
    """Check the models and print what came of it."""
    entries = [e for e in zoo_models.cases() if not only or any(part in e for part in only)]
    results = []
    with out.open("w") as file, Progress(*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn()) as bar:
        for result in bar.track(checked(entries, processes, seconds), total=len(entries), description="models"):
            results.append(result)
            file.write(json.dumps(result.to_dict()) + "\n")
            file.flush()
    print(summary(results))
    for result in results:
        failed = [name for name, passed in result.passes.items() if not passed]
        if failed:
            print(f"{result.entry}: {', '.join(failed)}; {' | '.join(result.why)[:300]}")
    if not only:
        Path(ROOT, "docs", "supported_models.md").write_text(page(results), encoding="utf-8")


def checked(entries: list[str], processes: int, seconds: float) -> Iterator[Result]:
    """The result of each entry, in order; one that dies or takes too long has a line that says so."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    context = multiprocessing.get_context("spawn")
    with ProcessPool(max_workers=processes, max_tasks=40, context=context) as pool:
        futures = [pool.schedule(check, args=[entry], timeout=seconds) for entry in entries]
        for entry, future in zip(entries, futures, strict=True):
            case = zoo_models.cases()[entry]
            try:
                yield future.result()
            except TimeoutError:
                yield Result(entry, case["model_class"], case["family"], why=[f"took more than {seconds:.0f} s"])
            except ProcessExpired as error:
                yield Result(entry, case["model_class"], case["family"], why=[f"the process died: {error}"])


if __name__ == "__main__":
    typer.run(main)
