"""Parity with LXT and a sample of the zoo on several versions of torch and transformers, by the same code.

    python tests/zoo/versions.py                                    (the pairs that pyproject.toml speaks of; hours)
    python tests/zoo/versions.py --torch 2.6.0 --transformers 4.52.4 --transformers 5.23.0     (these, each with each)
    python tests/zoo/versions.py --torch 2.6.0 --only qwen3         (cases whose name holds that)

By hand, not in CI: each version is installed once into a folder of its own (.cache/torch-VERSION, 5 GB where it is a build
for CUDA; .cache/transformers-VERSION, 250 MB), which stands before this environment's own on the path of one process. The
torch of this environment needs no folder. An architecture that a version does not have, or whose config it cannot read, is
`-`. 3 to 8 minutes of one core a pair.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
TORCH = ["2.6.0", "2.13.0", "2.14.1", "2.15.0"]
TRANSFORMERS = ["4.52.4", "4.57.6", "5.9.0", "5.23.0", "5.24.0"]
PARITY = 1e-6
"""The largest difference from LXT's relevance, in float64, relative to its largest value."""

Outcome = dict[str, str]
"""By case: `passes`, `-` (not in that version), or what failed."""


def main(
    torch: Annotated[list[str], typer.Option(help="Versions of torch.")] = TORCH,
    transformers: Annotated[list[str], typer.Option(help="Versions of transformers.")] = TRANSFORMERS,
    only: Annotated[list[str] | None, typer.Option(help="Parts of names of cases.")] = None,
    out: Annotated[Path, typer.Option(help="Where the outcomes go as JSON.")] = Path("out/versions.json"),
) -> None:
    """Install, run and print; exit with 1 where a case fails."""
    outcomes: dict[tuple[str, str], Outcome] = {}
    for pair in [(one, other) for one in torch for other in transformers]:
        outcomes[pair] = found = outcome_on(*pair, only or [])
        print(f"torch {pair[0]}, transformers {pair[1]}: {said(found)}", flush=True)
        for case in failed(found):
            print(f"  {case}: {found[case]}", flush=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({" ".join(pair): found for pair, found in outcomes.items()}, indent=1))
    table = Table("torch", *(f"transformers {version}" for version in transformers))
    for version in torch:
        table.add_row(version, *(said(outcomes[version, other]) for other in transformers))
    Console(width=160).print(table)
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


def outcome_on(torch: str, transformers: str, only: list[str]) -> Outcome:
    """What a process with these versions finds; `all` where it cannot even start."""
    try:
        folders = [str(folder) for name, version in (("torch", torch), ("transformers", transformers))
                   if (folder := installed(name, version))]  # fmt: skip
    except subprocess.CalledProcessError:
        return {"all": "not installable"}
    path = os.pathsep.join([*folders, str(ROOT)])
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    code = f"import runpy; runpy.run_path({__file__!r})['work']({torch!r}, {transformers!r}, {only!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        return {"all": (done.stderr.strip().splitlines() or ["it said nothing"])[-1][:200]}
    found: Outcome = json.loads(done.stdout.splitlines()[-1])
    return found


def installed(name: str, version: str) -> Path | None:
    """The folder of that version, installed if it is not there; None where this environment has it anyway."""
    if importlib.metadata.version(name).split("+")[0] == version:
        return None
    folder = ROOT / ".cache" / f"{name}-{version}"
    if not (folder / "finished").is_file():
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-warn-conflicts"]
        subprocess.run([*pip, "--upgrade", "--target", str(folder), f"{name}=={version}"], check=True)
        (folder / "finished").touch()
    return folder


def work(torch_version: str, transformers_version: str, only: list[str]) -> None:
    """In the process of those versions: every case, printed as JSON."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "zoo")]
    import torch
    import transformers

    assert torch.__version__.split("+")[0] == torch_version, torch.__version__
    assert transformers.__version__ == transformers_version, transformers.__version__
    from golden_cases import TEXT_CASES
    from zoo_sample import SAMPLE

    cases = {f"LXT: {name}": (_parity, name) for name in TEXT_CASES} | {f"zoo: {entry}": (_zoo, entry) for entry in SAMPLE}
    chosen = [name for name in cases if not only or any(part in name for part in only)]
    found = {name: _tried(*cases[name]) for name in chosen}
    print(json.dumps(found))


def _tried(measure: Callable[[str], str], name: str) -> str:
    try:
        return measure(name)
    except Exception as error:  # a line of the table, whatever it is
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def _parity(name: str) -> str:
    import torch
    from golden_cases import load_golden, relative

    import lxt_fx

    golden = load_golden(name, torch.float64)
    rules = "lxt_cp" if name.endswith("-cp") else "lxt"
    explained = lxt_fx.transform(golden.model, rules=rules, dynamic="recapture")  # transformers 4 loops over experts
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
    return f"fails {', '.join(wrong)}; {' | '.join(result.why)[:300]}" if wrong else "passes"


if __name__ == "__main__":
    typer.run(main)
