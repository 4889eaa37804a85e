"""Choose the sample of the zoo that runs in CI: small models of every family, with most ops. And that of the longer run:
small models that hold every op.

    python tests/zoo/choose_sample.py zoo.jsonl       # from what run.py wrote; prints tests/zoo/zoo_sample.py

Greedy: the model with the most ops that no chosen one has, for the time that it takes, until there are enough; the last
places are for families that are missing still. What the longer run adds is more ops in whole models: each of them is tried
alone, with its rule, its forms and its ledger, in test_conservation.py and test_op_probe.py.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from zoo_check import Result

CI, LONGER = (14, 1.6), (34, 6.0)
"""How many models there are in a sample, and the seconds of `transform` above which one is not for it."""


def main(results: Annotated[Path, typer.Argument(help="The JSON lines that run.py wrote.")]) -> None:
    """Print the module that holds the samples."""
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    passing = [line for line in lines if line["ops"] and all(Result(**line).passes.values())]
    sample, longer = (
        chosen({line["entry"]: line for line in passing if line["seconds"] < slow}, size) for size, slow in (CI, LONGER)
    )
    more = [entry for entry in longer if entry not in sample]
    ops = {line["entry"]: set(line["ops"]) for line in passing}
    every = set().union(*(line["ops"] for line in lines))
    held = set().union(*(ops[entry] for entry in sample))
    added = set().union(*(ops[entry] for entry in more)) - held
    about = f"The samples of the zoo, by choose_sample.py: SAMPLE, which runs in CI, holds {len(held)} of {len(every)} ops."
    print(f'"""{about}\n\n{_list("In LONGER only", added)}\n\n{_list("In neither", every - held - added)}\n"""')
    for name, found in (("SAMPLE", sample), ("LONGER", more)):
        print(f"\n{name} = (", *(f'    "{entry}",' for entry in found), ")", sep="\n")


def _list(title: str, ops: set[str]) -> str:
    return "\n".join(textwrap.wrap(f"{title}: {', '.join(sorted(ops)) or 'none'}.", 120, break_long_words=False))


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
