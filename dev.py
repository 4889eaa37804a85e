#!/usr/bin/env python3
"""The commands of this repository. They need nothing but Python 3.11 or later: the rest is installed into .venv.

python3 dev.py test [ARGUMENTS]    ruff, mypy and pytest; ARGUMENTS go to pytest
python3 dev.py demo                fetch SmolLM2 once, explain one of its answers
python3 dev.py models [NAMES]      fetch trained models for the slow tests (without NAMES: list them)
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / "bin" / "python"
REQUIREMENTS = ROOT / "requirements-dev.txt"
STAMP = ENVIRONMENT / "installed.sha256"  # written last, so an interrupted install is done again


def main(arguments: list[str]) -> None:
    """Run the command that `arguments` name; exit with its status."""
    command, rest = (arguments[0], arguments[1:]) if arguments else ("help", [])
    if command not in COMMANDS:
        sys.exit(__doc__)
    if sys.version_info < (3, 11):  # noqa: UP036 - this file runs before anything has checked
        sys.exit(f"dev.py needs Python 3.11 or later; this is {sys.version.split()[0]}")
    make_environment()
    COMMANDS[command](rest)


def test(pytest_arguments: list[str]) -> None:
    """All checks that a commit must pass."""
    run("-m", "ruff", "check")
    run("-m", "mypy")
    run("-m", "pytest", "-n", "2", "--dist", "loadgroup", *pytest_arguments)


def demo(arguments: list[str]) -> None:
    """Fetch SmolLM2 and explain one of its answers."""
    run("examples/models.py", "fetch", "smollm2")
    run("examples/demo_smollm2.py", str(cache_folder() / "smollm2"), *arguments)


def models(names: list[str]) -> None:
    """Fetch the named models, or list what there is."""
    run("examples/models.py", *(["fetch", *names] if names else ["list"]))


COMMANDS = {"test": test, "demo": demo, "models": models}


def make_environment() -> None:
    """Install the pinned packages and this repository into .venv, unless it holds them already."""
    wanted = wanted_stamp()
    if STAMP.is_file() and STAMP.read_text() == wanted:
        return
    say("making .venv")
    try:
        venv.create(ENVIRONMENT, clear=True, with_pip=True)
    except subprocess.CalledProcessError as error:
        sys.exit(f"dev.py: Python could not make .venv ({error}); on Debian: apt-get install python3-venv")
    pip = ("-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    run(*pip, next(line for line in REQUIREMENTS.read_text().splitlines() if line.startswith("torch==")))
    run(*pip, "--no-deps", "--requirement", str(REQUIREMENTS))  # the list is complete; zennit would bring torchvision
    run(*pip, "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    STAMP.write_text(wanted)


def wanted_stamp() -> str:
    """Changes when .venv must be made anew: other pins, other metadata, another Python, a moved folder."""
    content = sys.version + str(ROOT) + REQUIREMENTS.read_text() + Path(ROOT, "pyproject.toml").read_text()
    return hashlib.sha256(content.encode()).hexdigest()


def run(*arguments: str) -> None:
    """Run .venv's Python in the repository, say how long it took, and exit if it fails."""
    say("python " + " ".join(arguments))
    start = time.perf_counter()
    status = subprocess.run([PYTHON, *arguments], cwd=ROOT, env=environment()).returncode
    say(f"{'done' if status == 0 else 'failed'} in {time.perf_counter() - start:.0f} s")
    if status != 0:
        sys.exit(status)


def environment() -> dict[str, str]:
    """No model hub is ever asked, and each of two test workers gets one of two cores."""
    return {"OMP_NUM_THREADS": "1", **os.environ, "HF_HUB_OFFLINE": "1", "LXT_FX_CACHE": str(cache_folder())}


def cache_folder() -> Path:
    """Where fetched models lie: the same place as in examples/models.py."""
    return Path(os.environ.get("LXT_FX_CACHE") or Path.home() / ".cache" / "lxt_fx")


def say(line: str) -> None:
    print(f"dev.py: {line}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
