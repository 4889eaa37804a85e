"""Check small models of packages outside transformers, and write their section of docs/supported_models.md.

    PYTHONPATH=outside python tests/foreign/run.py               all, and the page if no package is missing
    python tests/foreign/run.py --only timm/ --only "/decoder"   those whose name holds one of these
    python tests/foreign/run.py --only vit --into foreign.jsonl  those, anew; the others as that file has them

Nothing else here needs these packages: what is not installed is skipped, and said. For a name in packages.py,
`pip install --no-deps --target outside NAME` installs it beside this environment. The checks are those of the zoo.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import typer
from pebble import ProcessExpired, ProcessPool
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "zoo"), str(ROOT / "tests" / "foreign")]

import packages  # noqa: E402
from foreign_table import section  # noqa: E402
from zoo_check import Result, check_built  # noqa: E402
from zoo_table import summary, with_section  # noqa: E402


def main(
    only: Annotated[list[str] | None, typer.Option(help="Parts of names.")] = None,
    processes: Annotated[int, typer.Option(help="How many at once.")] = os.cpu_count() or 1,
    seconds: Annotated[float, typer.Option(help="The time that one model may take.")] = 300,
    out: Annotated[Path, typer.Option(help="Where the figures go as JSON lines.")] = Path("foreign.jsonl"),
    fixed: Annotated[bool, typer.Option(help="Capture with the sizes of the example, which is faster.")] = False,
    into: Annotated[Path | None, typer.Option(help="Figures of an earlier run, to be renewed for these models.")] = None,
) -> None:
    """Check the models and print what came of it."""
    for package, version in packages.versions().items():
        print(f"{package}: {version or 'not installed, skipped'}", flush=True)
    cases = packages.cases()
    entries = [e for e in cases if not only or any(part in e for part in only)]
    file = into or out
    found = {} if into is None else {line["entry"]: Result(**line) for line in map(json.loads, into.open())}
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn()) as bar:
        results = checked(entries, processes, seconds, dynamic=not fixed)
        for result in bar.track(results, total=len(entries), description="models"):
            found[result.entry] = result
            write(file, found, list(cases))
    lines = write(file, found, list(cases))
    print(summary(lines))
    for result in lines:
        if failed := [name for name, passed in result.passes.items() if not passed]:
            print(f"{result.entry}: {', '.join(failed)}; {', '.join(result.unknown)} {' | '.join(result.why)[:300]}")
    print(dict(Counter(result.family for result in lines)))
    if len(lines) == len(cases) and all(packages.versions().values()):
        page = ROOT / "docs" / "supported_models.md"
        text = with_section(page.read_text(encoding="utf-8"), section(lines, packages.versions()))
        page.write_text(text, encoding="utf-8")


def write(file: Path, found: Mapping[str, Result], order: list[str]) -> list[Result]:
    """The results in the order of the variants, as JSON lines in the file too."""
    results = [found[entry] for entry in order if entry in found]
    file.write_text("".join(json.dumps(result.to_dict()) + "\n" for result in results))
    return results


def check(entry: str, dynamic: bool = True) -> Result:
    """Everything about one variant; what fails is said in `why`."""
    import logging
    import warnings

    import torch

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    variant = packages.cases()[entry]
    result = Result(entry, "", entry.split("/")[0])
    try:
        result.model_class = type(variant.build()[0]).__name__
    except Exception as error:
        result.why.append(f"the package itself raises {type(error).__name__}: {error}"[:300])
        return result
    check_built(variant.build, result, dynamic=dynamic)
    if not dynamic:
        result.batch = result.length = None
    return result


def checked(entries: list[str], processes: int, seconds: float, *, dynamic: bool) -> Iterator[Result]:
    """The result of each entry, in order; one that dies or takes too long has a line that says so."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    context = multiprocessing.get_context("spawn")
    with ProcessPool(max_workers=processes, max_tasks=40, context=context) as pool:
        futures = [pool.schedule(check, args=[entry, dynamic], timeout=seconds) for entry in entries]
        for entry, future in zip(entries, futures, strict=True):
            try:
                yield future.result()
            except TimeoutError:
                yield Result(entry, "", entry.split("/")[0], why=[f"took more than {seconds:.0f} s"])
            except ProcessExpired as error:
                yield Result(entry, "", entry.split("/")[0], why=[f"the process died: {error}"])


if __name__ == "__main__":
    typer.run(main)
