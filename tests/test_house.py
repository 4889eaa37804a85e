"""The rooms of the package and which may read which: imports go one way, those under TYPE_CHECKING too."""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType

import networkx as nx
import pytest

import lxt_fx

ROOT = Path(__file__).parents[1]

FOLDERS = {"lxt_fx": "lxt_fx", "passes": "lxt_fx.passes", "rule_table": "lxt_fx.rule_table"}

FLOORS: tuple[tuple[str, ...], ...] = (
    ("version",),
    ("base",),
    ("ops", "views"),
    ("rule_table", "packed", "functional", "results"),
    ("passes", "rules", "nn"),
    ("compiler",),
    ("attribution", "report"),
    ("ledger", "faithfulness", "inputs", "planning"),
    ("tasks",),
    ("inside",),
    ("explorer", "referee", "corpora", "distributed"),
    ("shell", "edits", "flow", "bridges"),
    ("__init__", "__main__"),
)
"""A room reads rooms of lower floors, and itself. On one floor rooms do not read one another."""

FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def sources() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for folder, name in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):  # which follows no symbolic link
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((name, *parts)).removesuffix(".__init__")] = path
    return found


def room_of(module: str) -> str:
    """The room of a module: the first name below the package; `__init__` for the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(module: str, path: Path, known: set[str]) -> list[tuple[str, int]]:
    """The modules of the package that a module imports anywhere in it, each with its line."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.split(".")[0] == "lxt_fx":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [(name if name in known else node.module, node.lineno) for name in names]
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names if alias.name.split(".")[0] == "lxt_fx"]
    return [(name, line) for name, line in found if name != module]


SOURCES = sources()
ARROWS = [
    (module, other, line) for module, path in SOURCES.items() for other, line in imports(module, path, set(SOURCES))
]


def test_every_room_has_a_floor() -> None:
    assert {room_of(module) for module in SOURCES} == set(FLOOR)


def test_the_page_lists_every_room_from_the_lowest_floor_up() -> None:
    page = (ROOT / "docs/how_it_works.md").read_text(encoding="utf-8").split("## The house")[1]
    names = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    listed = [Path(name.strip("` ")).stem for cell in names for name in cell.split(",")]
    assert sorted(listed) == sorted(set(FLOOR) - {"__main__"})
    assert [FLOOR[room] for room in listed] == sorted(FLOOR[room] for room in listed)


def test_imports_go_down() -> None:
    up = [
        f"{module}:{line} imports {other}"
        for module, other, line in ARROWS
        if room_of(module) != room_of(other) and FLOOR[room_of(other)] >= FLOOR[room_of(module)]
    ]
    assert not up, "\n".join(up)


@pytest.mark.parametrize("room", sorted(set(FLOOR) - {"__init__"}))
def test_no_circle_inside_a_room(room: str) -> None:
    graph = nx.DiGraph((m, o) for m, o, _ in ARROWS if room_of(m) == room_of(o) == room)
    assert not (circles := list(nx.simple_cycles(graph))), circles[:3]


def test_no_circle_between_the_folders_of_passes() -> None:
    inside = [(m.split(".")[2], o.split(".")[2]) for m, o, _ in ARROWS if room_of(m) == room_of(o) == "passes"]
    graph = nx.DiGraph((one, other) for one, other in inside if one != other)
    assert not (circles := list(nx.simple_cycles(graph))), circles[:3]


def test_no_module_hides_behind_a_function_of_the_package() -> None:
    """`import lxt_fx.show` would give the function, or turn it into the module, by the order of imports."""
    modules = {module.split(".")[1] for module in SOURCES if module.count(".") == 1}
    hidden = {name for name in modules & set(lxt_fx.__all__) if not isinstance(getattr(lxt_fx, name), ModuleType)}
    assert not hidden


def test_methods_reach_up_by_public_names_only() -> None:
    """`public("explore")`: the one way to a higher room, for a method that is short for a public function."""
    calls = [
        (module, node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None)
        for module, path in SOURCES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "public"
    ]
    assert calls and {name for _, name in calls} <= set(lxt_fx.__all__), calls
    by_name = [m for m, path in SOURCES.items() if 'import_module("lxt_fx' in path.read_text(encoding="utf-8")]
    assert by_name == ["lxt_fx", "lxt_fx.base.public_door"]
