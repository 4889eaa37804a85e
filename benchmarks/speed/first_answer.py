"""How long a person waits for the first answer: whole processes and first calls, beside what they are held to.

    python benchmarks/speed/first_answer.py                      (20 minutes, 2 cores; writes docs/first_answer.md)
    python benchmarks/speed/first_answer.py --only script        (rows with this in their name)
    python benchmarks/speed/first_answer.py --before FOLDER      (beside another checkout of this project too)

The two sides of a row run in turns, each time in a new process. LXT runs in the environment that speed.py makes for it
(.cache/lxt-env), with zennit beside it. Models: `python3 dev.py models smollm2 texts`.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parent))
from speed_grid import LXT  # noqa: E402
from speed_run import LXT_FOLDER, ROOT, MissingError, folder_of, interpreter, pip  # noqa: E402

WORKER = Path(__file__).with_name("first_answer_worker.py")
OFF = {"LXT_FX_CACHE": "off"}


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a row: its seconds, in a new process each time."""

    label: str
    seconds: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Row:
    """Two sides, and the largest ratio of the first to the second that is aimed at."""

    name: str
    ours: Side
    other: Side
    bound: float
    rounds: int = 3


class Sides:
    """Makes sides. `scratch` has the caches of captures and of the inductor."""

    def __init__(self, scratch: Path, before: Path | None) -> None:
        self.scratch, self.before = scratch, before

    def ours(self, label: str, name: str, *, whole: bool = False, cache: str = "off", root: Path = ROOT) -> Side:
        """A measurement of the worker with this code. `cache` is off, cold (emptied each time) or warm."""
        folder = self.scratch / f"captures-{name}"
        environment = {"PYTHONPATH": str(root), "LXT_FX_CACHE": "off" if cache == "off" else str(folder)}
        if root != ROOT:
            del environment["LXT_FX_CACHE"]  # older code took it for the folder of models

        def seconds() -> float:
            if cache == "cold":
                shutil.rmtree(folder, ignore_errors=True)
            return measured([sys.executable, str(WORKER), name], environment, whole)

        return Side(label, seconds)

    def compiled(self, label: str, root: Path) -> Side:
        """The first compiled call, with an empty cache of the inductor."""
        folder = self.scratch / "inductor"

        def seconds() -> float:
            shutil.rmtree(folder, ignore_errors=True)
            environment = {"PYTHONPATH": str(root), "TORCHINDUCTOR_CACHE_DIR": str(folder)}
            return measured([sys.executable, str(WORKER), "compiled"], environment | ({} if root != ROOT else OFF), False)

        return Side(label, seconds)

    def lxt(self, label: str, name: str, *, whole: bool = False) -> Side:
        """A measurement of the worker in LXT's environment."""

        def seconds() -> float:
            python, why = interpreter(LXT, True)
            if not python:
                raise MissingError(why)
            if not list(LXT_FOLDER.glob("lib/*/site-packages/zennit")):
                pip(python, "zennit==0.5.1")
            return measured([python, str(WORKER), name], {}, whole)

        return Side(label, seconds)

    def command(self, label: str, *arguments: str, cache: str = "off") -> Side:
        """A whole process of Python."""
        folder = str(self.scratch / "captures-command")
        environment = {"PYTHONPATH": str(ROOT), "LXT_FX_CACHE": cache if cache == "off" else folder}
        return Side(label, lambda: measured([sys.executable, *arguments], environment, True))


def measured(command: list[str], environment: dict[str, str], whole: bool) -> float:
    """The seconds that a process prints, or those that it takes. Raises RuntimeError with the end of what it said."""
    models = str(Path(folder_of("smollm2", True)).parent)
    settings = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2", "LXT_FX_MODELS": models}
    start = time.perf_counter()
    done = subprocess.run(command, env={**os.environ, **settings, **environment}, capture_output=True, text=True)
    taken = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(" ".join(done.stderr.split())[-300:])
    return taken if whole else float(json.loads(done.stdout))


def rows(make: Sides) -> list[Row]:
    """The rows, those that need another checkout only with one."""
    command = make.scratch / "lxt-fx"  # as pip writes it; the package goes by the name
    command.write_text("from lxt_fx.shell.main import main\n\nmain()\n")
    model = folder_of("smollm2", True)
    found = [
        Row("transform: 80 small layers / 8", make.ours("80 layers", "transform_80"),
            make.ours("8 layers", "transform_8"), 2),
        Row("explain, loaded model, captures in files / none yet", make.ours("warm", "explain", cache="warm"),
            make.ours("cold", "explain", cache="cold"), 1),
        Row("explain, second call / first", make.ours("second", "explain_again"), make.ours("first", "explain"), 0.5),
        Row("`lxt-fx --help` / import rich, typer", make.command("help", str(command), "--help"),
            make.command("imports", "-c", "import rich, typer"), 1.5, 9),
        Row("lxt-fx explain, warm / model, tokenizer and one plain gradient",
            make.command("command", str(command), "explain", model, "The capital of France is", cache="warm"),
            make.ours("plain", "plain_text", whole=True), 1.5),
        Row("Llama script, 453 tokens, cold / LXT", make.ours("ours", "script", whole=True, cache="cold"),
            make.lxt("LXT", "script_lxt", whole=True), 1.1),
        Row("Llama script, 453 tokens, warm / LXT", make.ours("ours", "script", whole=True, cache="warm"),
            make.lxt("LXT", "script_lxt", whole=True), 0.8),
        Row("Llama script in bfloat16, cold / LXT", make.ours("ours", "script_bfloat16", whole=True, cache="cold"),
            make.lxt("LXT", "script_lxt_bfloat16", whole=True), 1.1),
        Row("ViT-B/16 under 15 gammas / LXT with zennit", make.ours("ours", "gammas"),
            make.lxt("LXT", "gammas_lxt"), 1.5, 2),
    ]  # fmt: skip
    if make.before is not None:
        old = make.before
        found += [
            Row("transform SmolLM2 / before", make.ours("now", "transform_smollm2"),
                make.ours("before", "transform_smollm2", root=old), 0.3),
            Row("first compiled call, SmolLM2 / before", make.compiled("now", ROOT), make.compiled("before", old), 0.35, 1),
        ]  # fmt: skip
    return found


def main(
    only: Annotated[str, typer.Option(help="Rows with this in their name.")] = "",
    before: Annotated[Path | None, typer.Option(help="Another checkout of this project.")] = None,
    out: Annotated[Path, typer.Option(help="The page to write.")] = ROOT / "docs" / "first_answer.md",
) -> None:
    """Measure, print and write the page."""
    console = Console()
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        for row in rows(Sides(Path(scratch), before)):
            if only in row.name:
                lines.append(line(row, console))
    if not only:
        out.write_text(page(lines))
        console.print(f"wrote {out}")


def line(row: Row, console: Console) -> str:
    """A row of the table: the median of each side, and of the ratios of one round."""
    ours, other = list[float](), list[float]()
    try:
        for turn in range(row.rounds):
            for side, seconds in ((row.ours, ours), (row.other, other))[:: 1 if turn % 2 else -1]:
                seconds.append(side.seconds())
    except (MissingError, RuntimeError) as error:
        text = f"| {row.name} | | | | {row.bound:g} | {error} |"
    else:
        ratios = [a / b for a, b in zip(ours, other, strict=True)]
        ratio = statistics.median(ratios)
        verdict = "met" if ratio <= row.bound else "not met"
        text = (
            f"| {row.name} | {statistics.median(ours):.2f} s | {statistics.median(other):.2f} s | "
            f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | {row.bound:g} | {verdict} |"
        )
    console.print(text)
    return text


def page(lines: list[str]) -> str:
    """The page of the measured rows."""
    head = (
        "# The first answer\n\nThis page is written by `python benchmarks/speed/first_answer.py --before FOLDER`. Do not "
        "edit it.\n\nHow long one waits for the first relevance, beside something else: each row is named *first / second*"
        ", and these two run in turns, each time in a new process, on 2 cores. *Ratio* is the median of those of a round, "
        "with the least and the largest. *Warm* and *cold* say whether captured graphs lie in files (`LXT_FX_CACHE`). "
        "*Before* is the code before each kind of layer was captured once.\n\n"
        "| what | first | second | ratio | aim | |\n|---|---|---|---|---|---|\n"
    )
    return head + "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
