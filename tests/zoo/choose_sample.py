"""Choose the sample of the zoo that runs in CI: small models that hold every op, and every family.

    python tests/zoo/choose_sample.py zoo.jsonl       # from what run.py wrote; prints tests/zoo/zoo_sample.py

Greedy: the model with the most ops that no chosen one has, for the time that it takes, until 34 are chosen; the last places
are for families that are missing still.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from zoo_check import Result

SIZE = 34
SLOW = 6.0
"""Seconds of `transform` above which a model is not for CI."""


def main(
    results: Annotated[Path, typer.Argument(help="The JSON lines that run.py wrote.")],
    size: Annotated[int, typer.Option(help="How many.")] = SIZE,
) -> None:
    """Print the module that holds the sample."""
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    passing = [line for line in lines if line["ops"] and all(Result(**line).passes.values())]
    candidates = {line["entry"]: line for line in passing if line["seconds"] < SLOW}
    sample = chosen(candidates, size)
    covered = set().union(*(candidates[entry]["ops"] for entry in sample))
    every = set().union(*(line["ops"] for line in lines))
    left = ", ".join(sorted(every - covered)) or "none"
    about = f"The sample of the zoo that runs in CI, made by choose_sample.py: {len(covered)} of {len(every)} ops."
    text = "\n".join(textwrap.wrap(f"Left out: {left}.", 120, break_long_words=False))
    print(f'"""{about}\n\n{text}\n"""\n\nSAMPLE = (')
    for entry in sample:
        print(f'    "{entry}",')
    print(")")


def chosen(candidates: Mapping[str, Mapping[str, Any]], size: int) -> list[str]:
    """The entries, those that add most first, with at least one of every family."""
    found: list[str] = []
    covered: set[str] = set()
    families: set[str] = set()
    while len(found) < min(size, len(candidates)):
        wanted = {line["family"] for line in candidates.values()} - families
        pool = [entry for entry in candidates if entry not in found]
        if len(wanted) >= size - len(found):
            pool = [entry for entry in pool if candidates[entry]["family"] in wanted]
        best = max(pool, key=lambda entry: _gain(candidates[entry], covered))
        found.append(best)
        covered |= set(candidates[best]["ops"])
        families.add(candidates[best]["family"])
    return found


def _gain(line: Mapping[str, Any], covered: set[str]) -> tuple[float, float]:
    """New ops for each second, a second being the least that a model takes; then speed."""
    seconds = 1.0 + float(line["seconds"])
    return len(set(line["ops"]) - covered) / seconds, -seconds


if __name__ == "__main__":
    typer.run(main)
