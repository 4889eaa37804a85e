#!/usr/bin/env python3
"""The commands of this repository. They need nothing but Python 3.11 or later: the rest is installed into .venv.

python3 dev.py test [ARGUMENTS]    ruff, mypy and pytest; ARGUMENTS go to pytest
python3 dev.py check               the first two of these
python3 dev.py pytest [ARGUMENTS]  the third
python3 dev.py wheel               build the wheel, install it as a user would, run the README's notebook code there
python3 dev.py demo                fetch SmolLM2 once, explain one of its answers
python3 dev.py models [NAMES]      fetch trained models for the slow tests (without NAMES: list them)
python3 dev.py web                 check web/, and that the committed page of the explorer is what it builds (needs node)
python3 dev.py site                build the documentation site into site/ (no network; a broken link is an error)
python3 dev.py tutorials [NAMES]   run the notebooks of docs/tutorials with trained models, and write their outputs
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / "bin" / "python"
PACKED = ("lxt_fx", "passes", "rule_table", "pyproject.toml", "setup.py", "LICENSE", "README.md")
"""What a wheel is built of: a copy of these, so that nothing of an earlier build gets into it."""
REQUIREMENTS = ROOT / "requirements-dev.txt"
STAMP = ENVIRONMENT / "installed.sha256"  # written last, so an interrupted install is done again


def main(arguments: list[str]) -> None:
    """Run the command that `arguments` name; exit with its status."""
    command, rest = (arguments[0], arguments[1:]) if arguments else ("help", [])
    if command not in COMMANDS:
        sys.exit(__doc__)
    if sys.version_info < (3, 11):  # noqa: UP036 - this file runs before anything has checked
        sys.exit(f"dev.py needs Python 3.11 or later; this is {sys.version.split()[0]}")
    COMMANDS[command](rest)


def test(pytest_arguments: list[str]) -> None:
    """All checks that a commit must pass."""
    check([])
    pytest(pytest_arguments)


def check(arguments: list[str]) -> None:
    """What is checked without running any of the code."""
    make_environment()
    run("-m", "ruff", "check")
    run("-m", "mypy")


def pytest(arguments: list[str]) -> None:
    """The tests, on two workers."""
    make_environment()
    run("-m", "pytest", "-rs", "-n", "2", "--dist", "loadgroup", *arguments)


def demo(arguments: list[str]) -> None:
    """Fetch SmolLM2 and explain one of its answers."""
    make_environment()
    run("examples/models.py", "fetch", "smollm2")
    run("examples/demo_smollm2.py", str(cache_folder() / "smollm2"), *arguments)


def models(names: list[str]) -> None:
    """Fetch the named models, or list what there is."""
    make_environment()
    run("examples/models.py", *(["fetch", *names] if names else ["list"]))


def web(arguments: list[str]) -> None:
    """Check the source of the explorer's page, and that the committed page is what it builds. Needs node and npm."""
    npm = shutil.which("npm") or sys.exit("dev.py: web/ needs node 20 with npm; the committed page needs neither")
    for command in (["ci", "--no-audit", "--no-fund", "--loglevel=error"], ["run", "check"], ["test"], ["run", "same"]):
        say("npm " + " ".join(command))
        if status := subprocess.run([npm, *command], cwd=ROOT / "web").returncode:
            sys.exit(status)


def site(arguments: list[str]) -> None:
    """Build the documentation site."""
    make_environment()
    run("docs/site/build.py", "site")
    say(f"open {ROOT / 'site' / 'index.html'}")


def tutorials(names: list[str]) -> None:
    """Run the notebooks with trained models."""
    make_environment()
    run("docs/tutorials/remake.py", *names)


def wheel(arguments: list[str]) -> None:
    """Install the wheel into a new environment, with the pinned torch and what pip adds; run the README's code."""
    code = README_CODE.search(Path(ROOT, "README.md").read_text())
    assert code, "README.md has no code under `In a notebook`"
    with tempfile.TemporaryDirectory() as folder:
        source, environment, here = Path(folder, "source"), Path(folder, "environment"), Path(folder, "elsewhere")
        for made in (source, here):
            made.mkdir()
        for name in PACKED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, source)
        create_environment(environment)
        python = environment / "bin" / "python"
        run("-m", "pip", *QUIET, "wheel", "--no-deps", "--wheel-dir", folder, str(source), python=python)
        (built,) = Path(folder).glob("*.whl")
        run("-m", "pip", *QUIET, "install", "--no-compile", pinned_torch(), str(built), python=python)
        run("-I", "-c", code[1], python=python, folder=here)  # -I: nothing but what was installed can be imported


COMMANDS = {
    "test": test, "check": check, "pytest": pytest, "wheel": wheel, "demo": demo, "models": models, "web": web,
    "site": site, "tutorials": tutorials,
}  # fmt: skip
README_CODE = re.compile(r"^## In a notebook\n+```python\n(.*?)^```", re.S | re.M)
QUIET = ("--disable-pip-version-check", "--quiet")


def make_environment() -> None:
    """Install the pinned packages and this repository into .venv, unless it holds them already."""
    wanted = wanted_stamp()
    if STAMP.is_file() and STAMP.read_text() == wanted:
        return
    create_environment(ENVIRONMENT)
    say("installing the pinned packages into .venv: this takes minutes, once")
    pip = ("-m", "pip", *QUIET, "install", "--no-compile")  # Python compiles what is imported, which is little of it
    run(*pip, pinned_torch())
    run(*pip, "--no-deps", "--requirement", str(REQUIREMENTS))  # the list is complete; zennit would bring torchvision
    run(*pip, "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    STAMP.write_text(wanted)


def create_environment(folder: Path) -> None:
    """An empty virtual environment with pip."""
    say(f"making {folder.name}")
    try:
        venv.create(folder, clear=True, with_pip=True)
    except subprocess.CalledProcessError as error:
        sys.exit(f"dev.py: Python could not make {folder} ({error}); on Debian: apt-get install python3-venv")


def pinned_torch() -> str:
    """The one pin that keeps pip from a CUDA build of several gigabytes."""
    return next(line for line in REQUIREMENTS.read_text().splitlines() if line.startswith("torch=="))


def wanted_stamp() -> str:
    """Changes when .venv must be made anew: other pins, other metadata, another Python, a moved folder."""
    files = (REQUIREMENTS, Path(ROOT, "pyproject.toml"), Path(ROOT, "setup.py"))
    content = sys.version + str(ROOT) + "".join(file.read_text() for file in files)
    return hashlib.sha256(content.encode()).hexdigest()


def run(*arguments: str, python: Path = PYTHON, folder: Path = ROOT) -> None:
    """Run .venv's Python (or another) in the repository (or elsewhere), say how long it took, and exit if it fails."""
    say("python " + " ".join(arguments).partition("\n")[0])
    start = time.perf_counter()
    status = subprocess.run([python, *arguments], cwd=folder, env=environment()).returncode
    say(f"{'done' if status == 0 else 'failed'} in {time.perf_counter() - start:.0f} s")
    if status != 0:
        sys.exit(status)


def environment() -> dict[str, str]:
    """No model hub is ever asked, and each of two test workers gets one of two cores. Bytecode is written also where the
    shell, such as that of a container, says otherwise: pip compiled nothing, so each of the many processes that the tests
    start would compile torch and transformers anew, which takes longer than all else that it does."""
    found = {"OMP_NUM_THREADS": "1", **os.environ, "HF_HUB_OFFLINE": "1", "LXT_FX_MODELS": str(cache_folder())}
    found.pop("PYTHONDONTWRITEBYTECODE", None)
    return found


def cache_folder() -> Path:
    """Where fetched models lie: the same place as in examples/models.py."""
    return Path(os.environ.get("LXT_FX_MODELS") or Path.home() / ".cache" / "lxt_fx")


def say(line: str) -> None:
    print(f"dev.py: {line}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
