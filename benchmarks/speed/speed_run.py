"""How speed.py measures: processes of several environments, asked in turns, and each method's memory alone."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from speed_grid import BY_NAME, EXTRAS, LXT, LXT_PLAIN, METHODS, MODELS, TARGETS, Cell

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).resolve().parent / "speed_worker.py"
LXT_FOLDER, EXTRAS_FOLDER = ROOT / ".cache" / "lxt-env", ROOT / ".cache" / "speed-extras"
SECONDS_TO_ANSWER = 1200
LEAST_RUNS = 3
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**18)}
"""Where memory is measured, glibc gives back every block from 256 KiB on when it is freed. By itself it keeps some, as the
sizes happen to follow one another: the peak of one and the same method then differs by a third from process to process."""
BASES = frozenset(method.base for method in METHODS)

Row = dict[str, Any]


class MissingError(Exception):
    """An environment or a model that is not there; the message becomes the reason of its rows."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The same for all cells. `budget` are seconds of CPU time after which a method that has LEAST_RUNS runs
    sits out. `install` says
    whether missing environments and models are fetched."""

    threads: int = 2
    device: str = "cpu"
    dtype: str = "float32"
    budget: float = 60.0
    install: bool = True


def pip(python: str | Path, *arguments: str) -> None:
    """Raises MissingError with pip's last line."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise MissingError(f"not installed: {(done.stderr.splitlines() or ['pip failed'])[-1]}"[:200])


@cache
def interpreter(process: str, install: bool) -> tuple[str, str]:
    """The Python of a kind of process and its path of packages; nothing and the reason where it cannot be had."""
    try:
        return _interpreter(process, install)
    except MissingError as missing:
        return "", str(missing)


def _interpreter(process: str, install: bool) -> tuple[str, str]:
    if process == EXTRAS:
        if not (EXTRAS_FOLDER / "captum").is_dir():
            _may_install(install, EXTRAS_FOLDER)
            pip(sys.executable, "--no-deps", "--target", str(EXTRAS_FOLDER), "autolrp==0.2.0", "captum==0.9.0")
        return sys.executable, os.pathsep.join([str(EXTRAS_FOLDER), str(ROOT)])
    if process in (LXT, LXT_PLAIN):
        python = LXT_FOLDER / "bin" / "python"
        if not (LXT_FOLDER / "finished").is_file():
            _may_install(install, LXT_FOLDER)
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(LXT_FOLDER)], check=True)
            pip(python, "torch==2.13.0")
            pip(python, "transformers==4.57.6", "pillow")  # torchvision imports pillow
            pip(python, "--no-deps", "lxt==2.1", "torchvision==0.28.0")
            (LXT_FOLDER / "finished").touch()
        return str(python), ""
    return sys.executable, str(ROOT)


def _may_install(install: bool, folder: Path) -> None:
    if not install:
        raise MissingError(f"not installed: {folder.relative_to(ROOT)} (run without --no-install)")


@cache
def folder_of(model: str, install: bool) -> str:
    """Where the trained weights of a model lie; nothing for a random one. Raises MissingError."""
    source = MODELS[model].source
    if not source:
        return ""
    caches = Path(os.environ.get("LXT_FX_MODELS") or Path.home() / ".cache" / "lxt_fx")
    if not (caches / source).is_dir():
        command = [sys.executable, str(ROOT / "examples" / "models.py"), "fetch", source]
        if not install or subprocess.run(command, capture_output=True).returncode:
            raise MissingError(f"not fetched: python3 dev.py models {source}")
    return str(caches / source)


class Process:
    """A running speed_worker.py, read with a time limit. `why` is set once it has ended before its time."""

    def __init__(self, spec: Row, python: str, path: str) -> None:
        environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(spec["threads"])}
        if spec.get("mode") == "memory":
            environment |= GIVE_BACK
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open for as long as the process runs
        self.process = subprocess.Popen(
            [python, str(WORKER), json.dumps(spec)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
            env=environment, cwd=ROOT,
        )  # fmt: skip
        self.why = ""
        self._unread = b""

    def answer(self) -> Row:
        """The next line. A process that died or hangs answers with the reason, now and ever after."""
        if self.why:
            return {"why": self.why}
        line = self._line()
        if line is None:
            self.close()
            return {"why": self.why}
        found: Row = json.loads(line)
        return found

    def ask(self, name: str) -> Row:
        """Have a method run once."""
        if not self.why and self.process.stdin:
            try:
                self.process.stdin.write(f"{name}\n".encode())
                self.process.stdin.flush()
            except BrokenPipeError:
                pass  # answer() says why it died
        return self.answer()

    def _line(self) -> str | None:
        """A line of its stdout, or None with `why` set."""
        stdout = self.process.stdout
        assert stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(SECONDS_TO_ANSWER):
                    self.why = f"no answer in {SECONDS_TO_ANSWER} s"
                    return None
                piece = os.read(stdout.fileno(), 1 << 20)
                if not piece:
                    self.why = self._last_words()
                    return None
                self._unread += piece
        line, self._unread = self._unread.split(b"\n", 1)
        return line.decode()

    def _last_words(self) -> str:
        status = self.process.wait()
        self.log.seek(0)
        said = [line for line in self.log.read().splitlines() if line.strip()]
        return f"process ended with {status}: {(said or ['nothing said'])[-1]}"[:200]

    def close(self) -> None:
        if self.process.stdin:
            self.process.stdin.close()
        if self.why:
            self.process.kill()
        self.process.wait()
        self.log.close()


def started(mode: str, process: str, cell: Cell, methods: Sequence[str], settings: Settings) -> Process:
    """Raises MissingError where the environment or the model is not there."""
    python, path = interpreter(process, settings.install)
    if not python:
        raise MissingError(path)
    spec = {
        "mode": mode, "process": process, "methods": list(methods), "cell": asdict(cell), "threads": settings.threads,
        "device": settings.device, "dtype": settings.dtype, "folder": folder_of(cell.model, settings.install),
    }  # fmt: skip
    return Process(spec, python, path)


def measure_times(cell: Cell, settings: Settings, advance: Callable[[str], None]) -> dict[str, Row]:
    """By method: what preparing it gave, and round by round its seconds by the clock and of all its threads (None where it
    sat out). Every round runs every method once, in an order that turns, so that what else the machine does strikes all
    alike."""
    rows: dict[str, Row] = {name: _empty() for name in cell.fitting(cell.methods)}
    processes: dict[str, Process] = {}
    for kind in dict.fromkeys(BY_NAME[name].process for name in rows):
        names = [name for name in rows if BY_NAME[name].process == kind]
        try:
            processes[kind] = started("time", kind, cell, names, settings)
        except MissingError as missing:
            rows |= {name: _empty() | {"why": str(missing)} for name in names}
            continue
        for name in names:  # one after the other: no process is timed while another compiles
            advance(f"{cell.name}: making {name} ready")
            rows[name] |= processes[kind].answer()
    for number, name in turns(list(rows), cell.rounds):
        advance(f"{cell.name}: round {number + 1}, {name}")
        row = rows[name]
        if "why" in row:
            continue
        runs = [second for second in row["cpu_seconds"] if second is not None]
        out = len(runs) >= LEAST_RUNS and sum(runs) > settings.budget and name not in BASES
        answer = {"seconds": None, "cpu_seconds": None} if out else processes[BY_NAME[name].process].ask(name)
        if "why" in answer:
            row["why"] = answer["why"]
        else:
            row["seconds"].append(answer["seconds"])
            row["cpu_seconds"].append(answer["cpu_seconds"])
    for process in processes.values():
        process.close()
    _compare(rows)
    return rows


def _empty() -> Row:
    return {"seconds": [], "cpu_seconds": []}


def turns(names: list[str], rounds: int) -> Iterator[tuple[int, str]]:
    """(round, name), each name once a round, every round beginning with another one."""
    for number in range(rounds):
        shift = number * 2 % max(len(names), 1)
        yield from ((number, name) for name in (*names[shift:], *names[:shift]))


def measure_memory(
    cell: Cell, before: dict[str, Row], settings: Settings, advance: Callable[[str], None]
) -> dict[str, Row]:
    """By method: what a process of its own held and added, and the bytes saved for backward; or `why_no_memory`, as for a
    method that could not be timed before. Two at a time on a CPU: memory does not care."""

    def one(name: str) -> tuple[str, Row]:
        if why := before.get(name, {}).get("why"):
            return name, {"why_no_memory": why}
        try:
            process = started("memory", BY_NAME[name].process, cell, [name], settings)
        except MissingError as missing:
            return name, {"why_no_memory": str(missing)}
        found = process.answer()
        process.close()
        advance(f"{cell.name}: memory of {name}")
        return name, {"why_no_memory": found["why"]} if "why" in found else found

    with ThreadPoolExecutor(2 if settings.device == "cpu" else 1) as pool:
        return dict(pool.map(one, cell.fitting(cell.memory)))


def measure_transform(mode: str, settings: Row) -> Row:
    """What speed_worker.py says of transform itself, in a process of its own: `meta` is the 70B shape without weights,
    `linear` CPU time a node of small and large graphs."""
    process = Process({"mode": mode, "process": "here", "threads": 1, **settings}, sys.executable, str(ROOT))
    found = process.answer()
    process.close()
    return found


def measure_cell(
    cell: Cell, what: str, before: dict[str, Row], settings: Settings, advance: Callable[[str], None]
) -> dict[str, Row]:
    """The rows of a cell by method, with `what` (time or memory) measured anew and the other taken from `before`. A method
    that failed or is missing is a row with `why`."""
    if what == "time":
        rows, memories = measure_times(cell, settings, advance), {name: _remembered(row) for name, row in before.items()}
    else:
        rows, memories = before, measure_memory(cell, before, settings, advance)
    known = [name for name in BY_NAME if name in rows or name in memories]
    return {name: _empty() | rows.get(name, {}) | memories.get(name, {}) for name in known}


def _remembered(row: Row) -> Row:
    return {key: row[key] for key in ("held_mib", "peak_mib", "saved_bytes", "why_no_memory") if key in row}


def _compare(rows: dict[str, Row]) -> None:
    """Put the difference to the relevance of `ours`, and for all targets to that of one by one, in the place of
    relevance."""
    found = {name: row.pop("relevance") for name, row in rows.items() if "relevance" in row}
    for name, relevance in found.items():
        reference = found.get("targets_single" if name in TARGETS else "ours")
        if reference is not None:
            rows[name]["difference"] = difference(relevance, reference)


def difference(found: list[list[float]], expected: list[list[float]]) -> float:
    """The largest difference, relative to the largest expected value."""
    pairs = [(a, b) for one, other in zip(found, expected, strict=True) for a, b in zip(one, other, strict=True)]
    return max(abs(a - b) for a, b in pairs) / max(abs(b) for _, b in pairs)


def steps(cell: Cell, what: str) -> int:
    """How often measuring that of the cell advances."""
    if what == "time":
        return len(cell.fitting(cell.methods)) * (1 + cell.rounds)
    return len(cell.fitting(cell.memory))
