"""What `import lxt_fx` loads: torch, the ops and the errors; every other part when it is first named."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import lxt_fx

ROOT = Path(__file__).parents[1]
DRAWING = ("transformers", "matplotlib", "typer", "rich", "jinja2", "pandas", "PIL", "safetensors", "starlette", "uvicorn")
SERVER = ("starlette", "uvicorn")
"""The extra `serve`."""

GRAPHS = ("networkx", "sympy")
"""What the analyses of a graph load."""

EVERY_MODULE = """
import importlib, pkgutil
for module in pkgutil.walk_packages(lxt_fx.__path__, "lxt_fx."):
    if module.name != "lxt_fx.__main__" and not module.name.startswith("lxt_fx.bridges."):  # those need their peers
        importlib.import_module(module.name)
"""

def in_fresh_process(code: str, answer: str) -> Any:
    """The value of the expression `answer` behind the code, as JSON, in a Python that has imported nothing."""
    written = f"{code}\nimport json, sys\nprint(json.dumps({answer}))"
    done = subprocess.run([sys.executable, "-c", written], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def imported() -> dict[str, Any]:
    """What a fresh process finds behind `import lxt_fx`, then behind a star import, then behind every module."""
    code = f"""
import sys
import lxt_fx, torch
found = dict(loaded=sorted(sys.modules), ops=sorted(torch.ops.lxt_fx), listed=dir(lxt_fx))
names = {{}}
exec("from lxt_fx import *", names)
found |= dict(loaded_by_star=sorted(sys.modules), starred=sorted(names), rules=lxt_fx.rules.__name__)
{EVERY_MODULE}
found |= dict(all_ops=sorted(torch.ops.lxt_fx))"""
    facts: dict[str, Any] = in_fresh_process(code, "found")
    return facts


def test_import_loads_no_package_but_torch(imported: dict[str, Any]) -> None:
    loaded = set(imported["loaded"])
    assert "torch" in loaded
    assert not {*DRAWING, *GRAPHS} & loaded
    assert not {"lxt_fx.compiler.pipeline", "lxt_fx.rule_table.rule", "lxt_fx.passes"} & loaded


def test_naming_everything_loads_no_package_that_draws_or_loads_models(imported: dict[str, Any]) -> None:
    loaded = set(imported["loaded_by_star"])
    assert "lxt_fx.compiler.pipeline" in loaded and not set(DRAWING) & loaded


def test_a_page_is_written_where_no_package_of_the_server_is_installed(tmp_path: Path) -> None:
    code = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {SERVER}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Missing())
import torch, lxt_fx
model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.SiLU(), torch.nn.Linear(3, 2)).eval()
found = lxt_fx.explain(model, None, torch.randn(4), 0)
lxt_fx.explore(found, path={str(tmp_path / "page.html")!r})
found.to_html({str(tmp_path / "same.html")!r})
try:
    lxt_fx.serve(model, None)
except lxt_fx.LxtFxError as error:
    message = str(error)
"""
    loaded, message = in_fresh_process(code, "[sorted(sys.modules), message]")
    pages = [(tmp_path / name).read_text(encoding="utf-8") for name in ("page.html", "same.html")]
    assert all('"kind":"numbers"' in page and "Sequential" in page for page in pages)
    assert not {name for name in loaded if name.partition(".")[0] in SERVER or name == "lxt_fx.explorer.server.app"}
    assert "lxt_fx[serve]" in message


def test_import_registers_every_op(imported: dict[str, Any]) -> None:
    assert imported["ops"] == imported["all_ops"] and len(imported["ops"]) > 50


def test_every_public_name_is_listed_before_it_is_loaded(imported: dict[str, Any]) -> None:
    assert {*lxt_fx.__all__, "__version__"} <= set(imported["listed"])
    assert set(lxt_fx.__all__) <= set(imported["starred"])


def test_a_module_of_the_package_is_an_attribute_and_another_name_is_none(imported: dict[str, Any]) -> None:
    assert imported["rules"] == "lxt_fx.rules"
    with pytest.raises(AttributeError, match="module 'lxt_fx' has no attribute 'no_such_name'"):
        lxt_fx.no_such_name  # noqa: B018


def test_help_of_the_command_waits_for_no_transformers() -> None:
    code = """
from lxt_fx.shell.main import main
for command in (["--help"], ["explain", "--help"], ["tables"]):
    try:
        main(command)
    except SystemExit:
        pass
print()"""
    assert not {"transformers", "matplotlib", "jinja2"} & set(in_fresh_process(code, "sorted(sys.modules)"))


def test_help_of_the_command_waits_for_typer_and_rich_only() -> None:
    code = """
import sys
sys.argv = ["/usr/bin/lxt-fx"]
from lxt_fx.shell.main import COMMANDS, main
for command in (["--help"], ["cache", "--help"], *([name, "--help"] for name in COMMANDS)):
    try:
        main(command)
    except SystemExit:
        pass
print()"""
    loaded = set(in_fresh_process(code, "sorted(sys.modules)"))
    assert "rich" in loaded and not {"torch", "numpy", "lxt_fx.ops", "transformers", "matplotlib"} & loaded


def test_the_cache_is_listed_without_torch(tmp_path: Path) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / f"{'a' * 64}.safetensors", metadata={"model": "tiny.Net", "nodes": "7"})
    code = f"""
import os, sys
os.environ["LXT_FX_CACHE"] = {str(tmp_path)!r}
sys.argv = ["/usr/bin/lxt-fx"]
from lxt_fx.base import cache_files
from lxt_fx.shell.main import main
found = [entry.about for entry in cache_files.entries()]
try:
    main(["cache"])
except SystemExit as stopped:
    found.append(stopped.code)
print()"""
    *found, code_of_exit, loaded = in_fresh_process(code, "[*found, sorted(sys.modules)]")
    assert found == [{"model": "tiny.Net", "nodes": "7"}] and not code_of_exit
    assert not {"torch", "lxt_fx.ops", "transformers"} & set(loaded)


def test_the_command_knows_the_stages() -> None:
    from lxt_fx.compiler import pipeline
    from lxt_fx.shell import graph_commands

    assert graph_commands.STAGES == pipeline.STAGES


def test_an_exported_program_of_an_explained_module_loads_behind_import_lxt_fx(tmp_path: Path) -> None:
    x = torch.randn(2, 4)
    explained = lxt_fx.transform(nn.Sequential(nn.Linear(4, 3), nn.SiLU(), nn.Linear(3, 2)).eval(), (x,))
    torch.export.save(torch.export.export(explained, (x,)), tmp_path / "saved.pt2")
    torch.save(x, tmp_path / "x.pt")
    code = f"""
import lxt_fx, torch
program = torch.export.load({str(tmp_path / 'saved.pt2')!r})
found = program.module()(torch.load({str(tmp_path / 'x.pt')!r}))
ops = [str(node.target) for node in program.graph.nodes]"""
    found, ops, loaded = in_fresh_process(code, "[found.tolist(), ops, 'lxt_fx.compiler.pipeline' in sys.modules]")
    torch.testing.assert_close(torch.tensor(found), explained(x))
    assert "lxt_fx.silu.default" in ops and not loaded


def test_type_checkers_see_the_names_that_are_there() -> None:
    """The block under TYPE_CHECKING, `__all__` and the table of modules name the same things."""
    tree = ast.parse((ROOT / "lxt_fx" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        f"{node.module}.{alias.name}": alias.name
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    table = {f"{module}.{name}": name for module, names in lxt_fx._NAMES.items() for name in names.split()}
    modules = {f"lxt_fx.{name}": name for name in ("distributed", "edits", "flow", "functional", "nn")}
    errors = {name for name in lxt_fx.__all__ if isinstance(getattr(lxt_fx, name), type) and name.endswith("Error")}
    assert seen == table | modules
    assert sorted(lxt_fx.__all__) == sorted({*seen.values(), *errors})


def test_an_op_that_torch_drops_is_skipped() -> None:
    """Those are in lists and rules; the package is imported and explains models that do not hold them."""
    code = f"""
import torch, torch._ops, torch.export
from torch import nn
dropped = {{"aten::mish", "aten::asinh", "aten::pixel_unshuffle", "aten::special_expit"}}
packet, namespace = torch._ops.OpOverloadPacket.__getattr__, torch._ops._OpNamespace.__getattr__
def no_packet(self, name):
    if f"{{self.name}}::{{name}}" in dropped:
        raise AttributeError(name)
    return namespace(self, name)
def no_overload(self, name):
    if (self._qualified_op_name, name) == ("aten::scatter", "value"):
        raise AttributeError(name)
    return packet(self, name)
for name in dropped:
    vars(torch.ops.aten).pop(name.split("::")[1], None)
vars(torch.ops.aten.scatter).pop("value", None)
torch._ops._OpNamespace.__getattr__, torch._ops.OpOverloadPacket.__getattr__ = no_packet, no_overload
import lxt_fx
{EVERY_MODULE}
torch._ops._OpNamespace.__getattr__, torch._ops.OpOverloadPacket.__getattr__ = namespace, packet  # torch needs them itself
from lxt_fx.rule_table import basic_rules as basic
x = torch.randn(2, 4)
explained = lxt_fx.transform(nn.Sequential(nn.Linear(4, 3), nn.SiLU(), nn.Linear(3, 2)).eval(), (x,))
named = [str(op) for rule in (basic.IDENTITY, basic.SELECT) for op in rule.ops]
try:
    lxt_fx.nn.Mish()(x)
except lxt_fx.UnsupportedVersionError as error:
    message = str(error)
"""
    named, difference, message = in_fresh_process(code, "[named, explained.record.forward_difference, message]")
    assert message.startswith("mish: torch ") and "has no op aten.mish" in message
    assert {"aten.silu.default", "aten.atan.default", "aten.scatter.src"} <= set(named)
    assert not {"aten.asinh.default", "aten.mish.default", "aten.scatter.value"} & set(named) and difference == 0
