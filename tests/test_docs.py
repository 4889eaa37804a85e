"""The code of the README and of docs/ runs, each page in one namespace, and the names that texts mention exist."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest
import torch
import zennit_rules

import lxt_fx

pytestmark = pytest.mark.usefixtures("remembered_captures")

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))]


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.S | re.M)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_code_of_the_page_runs(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All of it, but the blocks that begin with `# needs LIBRARY` where that is not installed: the test then is skipped
    behind the others, and says so. Files that it names without a folder are not left in the repository."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "page"}
    missing: list[str] = []
    if zennit_rules.SPEC is not None:
        zennit_rules.module("core")  # zennit in parts, as its package imports torchvision
    for number, block in enumerate(blocks(page)):
        needed = re.match(r"# needs (.*)", block)
        lacking = [name for name in needed[1].split() if importlib.util.find_spec(name) is None] if needed else []
        missing += lacking
        if not lacking:
            exec(compile(block, f"{page} block {number}", "exec"), namespace)
    if missing:
        pytest.skip(f"the rest of {page} ran; not installed: {', '.join(dict.fromkeys(missing))}")


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"])
def test_links_to_files_of_the_repository_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
        if "://" not in link:
            assert (ROOT / page).parent.joinpath(link).exists(), link


def files_named(text: str) -> set[str]:
    """Python files that a text names in backticks; a bare name lies in the folder of the last path of its line."""
    found, folder = set(), ""
    for line in text.splitlines():
        for name in re.findall(r"`([\w./]+\.py)`", line):
            folder, _, file = name.rpartition("/") if "/" in name else (folder, "", name)
            found.add(f"{folder}/{file}")
    return found


@pytest.mark.parametrize("page", ["docs/how_it_works.md", "CONTRIBUTING.md"])
def test_files_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / page).read_text().split("**Groups are found")[0]  # the prose names files of the table again
    assert files_named(text)
    assert not {name for name in files_named(text) if not (ROOT / name).exists()}


def test_the_table_of_steps_names_every_pass() -> None:
    table = files_named((ROOT / "docs/how_it_works.md").read_text())
    passes = {path.relative_to(ROOT).as_posix() for path in (ROOT / "passes").rglob("*.py") if path.name != "__init__.py"}
    assert passes - table == {"passes/positions/token_axis.py"}, "which holds what these passes share"


CODE = sorted(path for folder in ("lxt_fx", "passes", "rule_table") for path in (ROOT / folder).rglob("*.py"))
MENTION = re.compile(r"(?<![\w./%:-])lxt_fx((?:\.[A-Za-z_]\w*)+)")


def mentions(text: str) -> set[str]:
    """Dotted names that begin with `lxt_fx.`"""
    return {found for found in MENTION.findall(text) if not found.endswith(".py")}


def is_there(path: str) -> bool:
    """Whether attributes lead there from the package, modules that are not imported by then included; or an op is called
    so, as printed graphs write it."""
    found: object = lxt_fx
    parts = path.strip(".").split(".")
    if len(parts) == 1 and hasattr(torch.ops.lxt_fx, parts[0]):
        return True
    for place, part in enumerate(parts):
        inside = ".".join(["lxt_fx", *parts[: place + 1]])
        if not hasattr(found, part) and importlib.util.find_spec(inside) is None:
            return False
        if inside.startswith("lxt_fx.bridges.") and not hasattr(found, part):
            return True  # a bridge, which imports its peer
        found = getattr(found, part) if hasattr(found, part) else importlib.import_module(inside)
    return True


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "CHANGELOG.md"])
def test_every_name_of_the_package_that_a_page_mentions_exists(page: str) -> None:
    missing = {name for name in mentions((ROOT / page).read_text()) if not is_there(name)}
    assert not missing


def test_every_name_of_the_package_that_its_docstrings_and_messages_mention_exists() -> None:
    found = set()
    for path in CODE:
        texts = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
        found |= {(path.name, name) for text in texts if isinstance(text, str) for name in mentions(text)}
    assert len(found) > 40, "the search finds what it looks for"
    assert not {(file, name) for file, name in found if not is_there(name)}
