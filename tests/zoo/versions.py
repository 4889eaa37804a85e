"""Parity with LXT and a sample of the zoo on several versions of transformers, by the same code.

    python tests/zoo/versions.py [--version 4.57.6 --version 5.9.0 --version 5.23.0]

Each version is installed into a folder of its own (.cache/transformers-VERSION, 250 MB, once), which stands before this
environment's own on the path of one process. An architecture that a version does not have, or whose config it cannot read,
is `-`. About 3 minutes a version on 2 cores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ["4.57.6", "5.9.0", "5.23.0"]
PARITY = 1e-6
"""The largest difference from LXT's relevance, in float64, relative to its largest value."""

Outcome = dict[str, str]
"""By case: `passes`, `-` (not in that version), or what failed."""


def main(version: Annotated[list[str], typer.Option(help="Versions of transformers.")] = VERSIONS) -> None:
    """Install, run and print; exit with 1 where a case fails."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        outcomes = dict(zip(version, pool.map(outcome_on, version), strict=True))
    table = Table(title="the same code on several versions of transformers")
    table.add_column("case")
    for name in version:
        table.add_column(name)
    for case in outcomes[version[-1]]:
        table.add_row(case, *(outcomes[name].get(case, "-") for name in version))
    Console(width=160).print(table)
    for name in version:
        print(f"transformers {name}: {said(outcomes[name])}")
    if any(failed(found) for found in outcomes.values()):
        sys.exit(1)


def failed(outcome: Mapping[str, str]) -> list[str]:
    """The cases that neither pass nor are missing."""
    return [case for case, found in outcome.items() if found != "-" and not found.startswith("passes")]


def said(outcome: Mapping[str, str]) -> str:
    """How many pass, are missing, and fail."""
    passed = sum(found.startswith("passes") for found in outcome.values())
    missing = sum(found == "-" for found in outcome.values())
    return f"{passed} pass, {len(failed(outcome))} fail, {missing} are not in it"


def outcome_on(version: str) -> Outcome:
    """What a process with this version of transformers finds."""
    folder = ROOT / ".cache" / f"transformers-{version}"
    if not (folder / "transformers").is_dir():
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-warn-conflicts"]
        subprocess.run([*pip, "--target", str(folder), f"transformers=={version}"], check=True)
    path = os.pathsep.join([str(folder), str(ROOT)])
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", f"import runpy; runpy.run_path({__file__!r})['work']({version!r})"]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: Outcome = json.loads(done.stdout.splitlines()[-1])
    return found


def work(version: str) -> None:
    """In the process of that version: every case, printed as JSON."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "zoo")]
    import transformers

    assert transformers.__version__ == version, transformers.__version__
    from golden_cases import TEXT_CASES
    from zoo_sample import SAMPLE

    found = {f"LXT: {name}": _tried(lambda name=name: _parity(name)) for name in TEXT_CASES}  # type: ignore[misc]
    found |= {f"zoo: {entry}": _zoo(entry) for entry in SAMPLE}
    print(json.dumps(found))


def _tried(measure: Any) -> str:
    try:
        return str(measure())
    except Exception as error:  # a line of the table, whatever it is
        return f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"


def _parity(name: str) -> str:
    import torch
    from golden_cases import load_golden, relative

    import lxt_fx

    golden = load_golden(name, torch.float64)
    explained = lxt_fx.transform(golden.model, rules="lxt_cp" if name.endswith("-cp") else "lxt")
    embeds = golden.case["inputs_embeds"].double().requires_grad_()
    golden.explained_value(explained(inputs_embeds=embeds).logits, golden.case["target"]).backward()
    difference = relative(embeds * embeds.grad, golden.case["rel_f64strict"])
    return f"{'passes' if difference <= PARITY else 'differs'} {difference:.0e}"


def _zoo(entry: str) -> str:
    import zoo_models
    from zoo_check import check

    try:
        model, inputs = zoo_models.build(zoo_models.cases()[entry])
        model(**inputs)
    except Exception:  # the class or its config is not in this version
        return "-"
    result = check(entry)
    wrong = [name for name, passed in result.passes.items() if not passed]
    return f"fails {', '.join(wrong)}; {' | '.join(result.why)[:80]}" if wrong else "passes"


if __name__ == "__main__":
    typer.run(main)
