"""What holds for every bridge: nothing imports it, and without its peer the error names the extra."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PEERS = ("captum", "inseq", "quantus", "zennit", "transformer_lens")

ASKED = {
    "captum": "import lxt_fx.bridges.captum",
    "inseq": "import lxt_fx.bridges.inseq",
    "zennit": "from lxt_fx.bridges.zennit import imgify; imgify(torch.zeros(2, 2))",
}
"""What needs the peer. The other bridges import nothing of theirs."""


@pytest.fixture(scope="module")
def said() -> dict[str, list[Any]]:
    """By peer, in one process in which none can be imported: whether the error is one of ours, and its text."""
    code = f"""
import json, sys, torch
sys.modules |= dict.fromkeys({[*ASKED]!r})
import lxt_fx
said = {{}}
for name, code in {ASKED!r}.items():
    try:
        exec(code)
    except ImportError as error:
        said[name] = isinstance(error, lxt_fx.InputError), str(error)
print(json.dumps(said))"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", ASKED)
def test_without_its_peer_a_bridge_names_its_extra(name: str, said: dict[str, list[Any]]) -> None:
    ours, message = said[name]
    assert ours and message.startswith(f"lxt_fx.bridges.{name}: {name} does not import (ModuleNotFoundError")
    assert f"pip install 'lxt_fx[{name}]'" in message
    assert name in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_no_peer_is_loaded_by_the_package_or_by_a_bridge_that_only_follows_a_signature() -> None:
    code = """
import json, sys
import lxt_fx
exec("from lxt_fx import *", {})
import lxt_fx.bridges.quantus, lxt_fx.bridges.transformer_lens, lxt_fx.bridges.zennit, lxt_fx.bridges.pipelines
import lxt_fx.bridges.lxt
print(json.dumps(sorted(sys.modules)))"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert not loaded & set(PEERS) and "lxt_fx.bridges.zennit" in loaded
