"""Check every architecture of the zoo, write docs/supported_models.md and its summary into README.md.

    python tests/zoo/run.py                        all, in as many processes as there are cores
    python tests/zoo/run.py --only llama --only t5  those whose name holds one of these; no page is written
    python tests/zoo/run.py --only mamba --into zoo.jsonl    those, anew; the others as that file has them, and the page

Each model has a process that may crash or hang without harm to the others. With 2 cores: about half an hour.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer
import zoo_models
from pebble import ProcessExpired, ProcessPool
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from zoo_check import Result, check
from zoo_scaled import scaled_cases
from zoo_table import is_scaled, page, section_of, summary, unscaled, with_section, with_summary

ROOT = Path(__file__).resolve().parents[2]
CASES = zoo_models.cases() | scaled_cases()


def main(
    only: Annotated[list[str] | None, typer.Option(help="Parts of names.")] = None,
    processes: Annotated[int, typer.Option(help="How many at once.")] = os.cpu_count() or 1,
    seconds: Annotated[float, typer.Option(help="The time that one model may take.")] = 300,
    out: Annotated[Path, typer.Option(help="Where the figures go as JSON lines.")] = Path("zoo.jsonl"),
    into: Annotated[Path | None, typer.Option(help="Figures of an earlier run, to be renewed for these models.")] = None,
) -> None:
    """Check the models and print what came of it."""
    entries = [e for e in CASES if not only or any(part in e for part in only)]
    file = into or out
    found = {} if into is None else {line["entry"]: Result(**line) for line in map(json.loads, into.open())}
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn()) as bar:
        for result in bar.track(checked(entries, processes, seconds), total=len(entries), description="models"):
            found[result.entry] = result
            write(file, found)
    results = write(file, found)
    print(summary(unscaled(results)))
    for result in results:
        checked_for = {"by ids"} if is_scaled(result) else set(result.passes)
        failed = [name for name, passed in result.passes.items() if not passed and name in checked_for]
        if failed:
            print(f"{result.entry}: {', '.join(failed)}; {' | '.join(result.why)[:300]}")
    if len(results) == len(CASES):
        models = ROOT / "docs" / "supported_models.md"
        models.write_text(with_section(page(results), section_of(models.read_text(encoding="utf-8"))), encoding="utf-8")
        readme = Path(ROOT, "README.md")
        readme.write_text(with_summary(readme.read_text(encoding="utf-8"), summary(unscaled(results))), encoding="utf-8")


def write(file: Path, found: Mapping[str, Result]) -> list[Result]:
    """The results in the order of the zoo, as JSON lines in the file too: an interrupted run goes on with `--into`."""
    results = [found[entry] for entry in CASES if entry in found]
    file.write_text("".join(json.dumps(result.to_dict()) + "\n" for result in results))
    return results


def checked(entries: list[str], processes: int, seconds: float) -> Iterator[Result]:
    """The result of each entry, in order; one that dies or takes too long has a line that says so."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    context = multiprocessing.get_context("spawn")
    with ProcessPool(max_workers=processes, max_tasks=40, context=context) as pool:
        futures = [pool.schedule(check, args=[entry], timeout=seconds) for entry in entries]
        for entry, future in zip(entries, futures, strict=True):
            case = CASES[entry]
            try:
                yield future.result()
            except TimeoutError:
                yield Result(entry, case["model_class"], case["family"], why=[f"took more than {seconds:.0f} s"])
            except ProcessExpired as error:
                yield Result(entry, case["model_class"], case["family"], why=[f"the process died: {error}"])


if __name__ == "__main__":
    typer.run(main)
