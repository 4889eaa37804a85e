"""What holds for every bridge: nothing imports it, and without its peer the error names the extra."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PEERS = ("captum", "inseq", "quantus", "zennit", "transformer_lens")

ASKED = {
    "captum": "import lxt_fx.bridges.captum",
    "inseq": "import lxt_fx.bridges.inseq",
    "zennit": "from lxt_fx.bridges.zennit import imgify; imgify(torch.zeros(2, 2))",
}
"""What needs the peer. The other bridges import nothing of theirs."""


@pytest.mark.parametrize("name", ASKED)
def test_without_its_peer_a_bridge_names_its_extra(name: str) -> None:
    code = f"""
import sys, torch
sys.modules[{name!r}] = None
import lxt_fx
try:
    {ASKED[name]}
except ImportError as error:
    print(isinstance(error, lxt_fx.InputError), error)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()[-1]
    assert said.startswith(f"True lxt_fx.bridges.{name}: {name} does not import (ModuleNotFoundError"), done.stderr
    assert f"pip install 'lxt_fx[{name}]'" in said
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
