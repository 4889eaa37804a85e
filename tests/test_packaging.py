"""What pip installs holds every module, in whatever folder, although passes/ and rule_table/ lie outside of lxt_fx/."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from mypy.modulefinder import FindModuleCache, SearchPaths
from mypy.options import Options

ROOT = Path(__file__).parents[1]
FOLDERS = {"lxt_fx": "lxt_fx", "lxt_fx/passes": "passes", "lxt_fx/rule_table": "rule_table"}

PAGE, PAGE_BYTES, WHEEL_BYTES = "lxt_fx/explorer/bundle/", 100_000, 1_500_000
"""The built page of the explorer, the most bytes by which it may make the wheel grow, and the most of the wheel: 48 kB and
1.09 MB when this was written. More than 1 MB would be too large for what the page does."""


def installed_files(repository: Path = ROOT) -> dict[str, str]:
    """Path after installation -> path in the repository, of each module, template, style and page, read from the files."""
    found = {}
    for installed, folder in FOLDERS.items():
        for file in (repository / folder).rglob("*"):  # which goes into no symbolic link
            if file.suffix in (".py", ".j2", ".css", ".html"):
                inside = file.relative_to(repository / folder).as_posix()
                found[f"{installed}/{inside}"] = f"{folder}/{inside}"
    return found


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is packed, so that builds leave nothing in the working tree, with packages that nothing names."""
    copy = tmp_path_factory.mktemp("repository")
    for folder in ("lxt_fx", "passes", "rule_table"):
        shutil.copytree(ROOT / folder, copy / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "setup.py", "LICENSE", "README.md"):
        shutil.copy(ROOT / file, copy)
    for package in ("lxt_fx/new", "lxt_fx/new/inner", "passes/new", "passes/new/inner", "rule_table/new"):
        (copy / package).mkdir()
        for file in ("__init__.py", "module.py", "page.html.j2"):
            (copy / package / file).touch()
    return copy


def build(kind: str, repository: Path, target: Path) -> Path:
    """Build a `wheel`, `sdist` or `editable` wheel with the setuptools that is installed here."""
    code = f"import sys; from setuptools.build_meta import build_{kind} as build; build(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, target], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(target.iterdir())


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the copy."""
    return build("wheel", repository, tmp_path_factory.mktemp("wheel"))


def test_wheel_holds_every_module_and_template(repository: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed_files:
        packed = {name for name in packed_files.namelist() if name.startswith("lxt_fx/")}
    assert {"lxt_fx/passes/new/inner/module.py", "lxt_fx/new/inner/module.py", "lxt_fx/rule_table/new/module.py"} <= packed
    assert packed == {*installed_files(repository), "lxt_fx/py.typed"}


def test_wheel_stays_small_with_the_page(wheel: Path) -> None:
    """Compressed, as it is downloaded."""
    with zipfile.ZipFile(wheel) as packed:
        page = sum(one.compress_size for one in packed.infolist() if one.filename.startswith(PAGE))
        largest = max(packed.infolist(), key=lambda one: one.compress_size)
    assert 10_000 < page <= PAGE_BYTES, "the page is in the wheel, and makes it grow by little"
    assert wheel.stat().st_size <= WHEEL_BYTES, f"the largest file is {largest.filename}"


def test_sdist_holds_every_module_and_builds_the_same_wheel(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "sdist").mkdir()
    with tarfile.open(build("sdist", repository, tmp_path / "sdist")) as sdist:
        sdist.extractall(tmp_path, filter="data")
    unpacked = next(tmp_path.glob("lxt_fx-*"))
    for path in installed_files(repository).values():
        assert (unpacked / path).is_file(), path
    (tmp_path / "wheel").mkdir()
    with zipfile.ZipFile(build("wheel", unpacked, tmp_path / "wheel")) as wheel:
        assert set(installed_files(repository)) <= set(wheel.namelist())


def test_editable_install_imports_every_module(tmp_path: Path) -> None:
    """From another folder, so that only what pip installed can be found."""
    if not any(distribution.name == "lxt_fx" for distribution in importlib.metadata.distributions()):
        pytest.skip("lxt_fx is not installed here: pip install --no-deps -e .")
    modules = [path.removesuffix(".py").replace("/", ".") for path in installed_files() if path.endswith(".py")]
    code = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
    done = subprocess.run([sys.executable, "-c", code, *modules], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_mypy_finds_every_module() -> None:
    """It reads no package-dir mapping: it sees passes/ and rule_table/ through the symbolic links only."""
    finder = FindModuleCache(SearchPaths((str(ROOT),), (), (), ()), None, Options())
    for path in installed_files():
        if path.endswith(".py"):
            module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            assert finder.find_module(module) == str(ROOT / path), module


@pytest.mark.parametrize("statement", ["import passes", "from passes.mark_flow import mark_flow", "import rule_table"])
def test_ruff_refuses_the_bare_folders(statement: str) -> None:
    command = [sys.executable, "-m", "ruff", "check", "--output-format=concise", "--stdin-filename=lxt_fx/x.py", "-"]
    done = subprocess.run(command, input=statement + "\n", cwd=ROOT, capture_output=True, text=True)
    assert "TID251" in done.stdout
