"""The cache of captured graphs in files: another process takes them, and whatever is not the model's own is not taken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from kept_net import Net, block, captures_counted
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import lxt_fx
from lxt_fx.base import cache_files
from lxt_fx.compiler import pipeline
from lxt_fx.compiler.kept_captures import forget_captures
from lxt_fx.packed import known
from lxt_fx.shell.main import main


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of its own. Nothing that is kept in this process hides what the files do."""
    monkeypatch.setenv("LXT_FX_CACHE", str(tmp_path / "cache"))
    forget_captures()
    yield tmp_path / "cache"
    forget_captures()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def relevance(net: nn.Module, x: Tensor) -> Tensor:
    forget_captures()
    return lxt_fx.relevance_of(net, x, 1, reduce="none")


def files(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.safetensors"))


MODELS: dict[str, Callable[[], nn.Module]] = {name: tiny.MODELS[name] for name in ("llama", "gemma3", "bert", "vit")}


LIKE_GEMMA = pytest.mark.slow("a decoder or encoder of texts, as gemma3")
KINDS = [pytest.param(made, id=name, marks=[LIKE_GEMMA] * (name in ("llama", "bert"))) for name, made in MODELS.items()]


@pytest.mark.parametrize("made", KINDS)
def test_a_module_made_of_a_file_is_that_of_a_capture(made: Callable[[], nn.Module], cache: Path) -> None:
    first = lxt_fx.transform(made())
    forget_captures()
    with captures_counted() as captured:
        found = lxt_fx.transform(made())
        assert lxt_fx.certificate(found).to_dict() == lxt_fx.certificate(first).to_dict()
    assert not captured and len(files(cache)) == 1
    for stage in first.record.stages:
        assert lxt_fx.show(found, stage) == lxt_fx.show(first, stage)
    for name in ("sizes", "guards", "inputs", "called_with", "optional", "leaves", "given_alone", "constants", "order"):
        assert getattr(found.record, name) == getattr(first.record, name), name


def test_a_module_made_of_a_file_explains_other_sizes_positions_and_tables(cache: Path) -> None:
    ids = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    asked: list[dict[str, Any]] = [{"rules": "cp_lrp"}, {"positions": "last"}, {"form": "explicit"}, {"checkpoint": "sqrt"}]
    expected = [lxt_fx.transform(tiny.llama(layers=1), **settings) for settings in asked]
    for settings, one in zip(asked, expected, strict=True):
        forget_captures()
        with captures_counted() as captured:
            other = lxt_fx.transform(tiny.llama(layers=1), **settings)
        assert not captured
        for given in (ids, ids[:1, :4]):
            gradients = []
            for module in (one, other):
                output, leaves = module.with_leaves(input_ids=given)
                output.logits[:, -1, 5].sum().backward()
                gradients.append(leaves["inputs_embeds"].grad)
            torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)


def test_what_is_registered_for_layers_that_the_model_has_not_keeps_no_file_away(
    cache: Path, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "_REGISTERED", {})
    relevance(Net().eval(), x)

    class Packed(nn.Module):
        pass

    lxt_fx.register_packed(Packed, lambda layer: (layer.codes, None))
    with captures_counted() as captured:
        relevance(Net().eval(), x)
    assert not captured and len(files(cache)) == 1


def test_the_file_holds_no_weights(cache: Path, x: Tensor) -> None:
    net = Net().eval()
    relevance(net, x)
    with safe_open(str(files(cache)[0]), "pt") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    assert {tuple(tensor.shape) for tensor in held.values()} == {(4,)}, "the constants only"
    torch.testing.assert_close(next(iter(held.values())), block(net).constant)


def test_the_weights_are_those_of_the_model_that_takes_the_file(x: Tensor) -> None:
    first = Net().eval()
    relevance(first, x)
    other = Net().eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.3)
    with captures_counted() as captured:
        found = relevance(other, x)
    assert not captured
    os.environ["LXT_FX_CACHE"] = "off"
    torch.testing.assert_close(found, relevance(other, x))


def _patched(net: Net) -> None:
    block(net).forward = block(net).linear.forward


CHANGES: dict[str, Callable[[Net], Any]] = {
    "a number": lambda net: setattr(block(net), "scale", 0.9),
    "config": lambda net: net.config.norms.update(eps=2.0),
    "adapters": lambda net: setattr(block(net), "active", ["b"]),
    "a function": lambda net: setattr(block(net), "act", torch.tanh),
    "values of a constant": lambda net: block(net).constant.mul_(3),
    "a forward": _patched,
    "dtype": lambda net: net.double(),
    "a hook": lambda net: block(net).register_forward_hook(lambda module, inputs, output: 2 * output),
    "mode": lambda net: net.blocks.train(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_model_is_another_file(change: Callable[[Net], Any], cache: Path, x: Tensor) -> None:
    relevance(Net().eval(), x)
    net = Net().eval()
    change(net)
    with captures_counted() as captured:
        relevance(net, x.to(net.head.weight.dtype))
    assert len(captured) == 1 and len(files(cache)) == 2


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _rewritten(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A file with another header, and a checksum that fits: someone wrote it."""

    def rewrite(path: Path) -> None:
        with safe_open(str(path), "pt") as file:
            said = dict(file.metadata())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
        header = json.loads(said["capture"])
        edit(header)
        text = json.dumps(header)
        save_file(tensors, str(path), metadata={**said, "capture": text, "hash": cache_files._hash(text, tensors)})

    return rewrite


def _other_op(header: dict[str, Any]) -> None:
    node = next(node for node in header["graph"]["nodes"] if node["target"] == "aten.mul.Tensor")
    node["target"] = "aten.add.Tensor"


def _evil_op(header: dict[str, Any]) -> None:
    node = next(node for node in header["graph"]["nodes"] if node["target"] == "aten.mul.Tensor")
    node["target"] = "aten.from_file.default"


def _swapped(header: dict[str, Any]) -> None:
    names = header["tensors"]
    one, other = (name for name in names if name.endswith("linear.weight"))
    names[one], names[other] = names[other], names[one]


def _lost_gradient(header: dict[str, Any]) -> None:
    """The forward is right and the gradient is not: the last value is detached from one of its readers."""
    nodes = header["graph"]["nodes"]
    index = next(i for i, node in enumerate(nodes) if node["target"] == "aten.linear.default")
    operand = nodes[index]["args"]["tuple"][0]
    cut = {**nodes[index], "name": "cut", "target": "aten.detach.default", "args": {"tuple": [operand]}, "kwargs": {}}
    cut["type"] = next(node for node in nodes if node["name"] == operand["node"])["type"]
    nodes[index]["args"]["tuple"][0] = {"node": "cut"}
    nodes.insert(index, cut)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello"),
    "cut": _cut,
    "one bit": _one_bit,
    "another op": _rewritten(_other_op),
    "an op that a file may not call": _rewritten(_evil_op),
    "other weights": _rewritten(_swapped),
    "a lost gradient": _rewritten(_lost_gradient),
    "a guard that is code": _rewritten(lambda header: header.update(guards=["__import__('os').system('true')"])),
    "no graph": _rewritten(lambda header: header.pop("graph")),
    "a tensor that the model has not": _rewritten(lambda header: header["tensors"].update({"a.b": "m:no.such"})),
    "another format": _rewritten(lambda header: header.update(format=99)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_file_that_is_not_as_it_was_written_leads_to_a_capture(
    damage: Callable[[Path], None], cache: Path, x: Tensor
) -> None:
    expected = relevance(Net().eval(), x)
    (path,) = files(cache)
    whole = path.read_bytes()
    damage(path)
    with captures_counted() as captured:
        torch.testing.assert_close(relevance(Net().eval(), x), expected)
    assert len(captured) == 1
    assert len(path.read_bytes()) == len(whole), "and the file is written anew"
    with captures_counted() as captured:
        torch.testing.assert_close(relevance(Net().eval(), x), expected)
    assert not captured


def test_a_file_that_proves_wrong_later_leads_to_a_capture_too(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one that takes a mask as optional, which was so for other weights."""
    expected = lxt_fx.transform(tiny.llama(layers=1))
    (path,) = files(cache)
    forget_captures()
    check, failed = pipeline.check_on_padded_texts, list[bool]()

    def fails_once(source: Any, compiled: Any) -> str:
        if not failed:
            failed.append(True)
            raise lxt_fx.ForwardMismatchError("padded texts")
        return check(source, compiled)

    monkeypatch.setattr(pipeline, "check_on_padded_texts", fails_once)
    with captures_counted() as captured:
        found = lxt_fx.transform(tiny.llama(layers=1))
    assert len(captured) == 1 and failed and path.exists()
    assert lxt_fx.show(found) == lxt_fx.show(expected)


def test_a_file_under_the_key_of_another_model_is_not_taken(cache: Path, x: Tensor) -> None:
    relevance(Net().eval(), x)
    (first,) = files(cache)
    other = Net().eval()
    block(other).scale = 0.9
    expected = relevance(other, x)
    (second,) = set(files(cache)) - {first}
    second.write_bytes(first.read_bytes())
    with captures_counted() as captured:
        torch.testing.assert_close(relevance(other, x), expected)
    assert len(captured) == 1


def test_another_process_takes_the_file(cache: Path, x: Tensor) -> None:
    relevance(Net().eval(), x)
    code = """
import torch
from kept_net import Net, captures_counted
import lxt_fx
x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
with captures_counted() as captured:
    lxt_fx.relevance_of(Net().eval(), x, 1, reduce="none")
print(len(captured))
"""
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ":".join(paths)}
    )
    assert done.stdout.strip() == "0", done.stderr


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x if bool(x.sum() > 0) else x


def test_a_graph_of_one_branch_is_not_written(cache: Path) -> None:
    relevance(Branches(), torch.ones(2, 4))
    assert not files(cache)


def test_the_cache_is_off_if_the_variable_says_so(
    cache: Path, x: Tensor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LXT_FX_CACHE", "off")
    relevance(Net().eval(), x)
    assert cache_files.folder() is None and not cache.exists()
    _run("cache")
    assert "the cache is off" in capsys.readouterr().out
    monkeypatch.delenv("LXT_FX_CACHE")
    assert cache_files.folder() is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("LXT_FX_CACHE", "on")
    assert cache_files.folder() == cache / "lxt_fx" / "captures"


def test_a_folder_that_cannot_be_written_to_is_no_error(cache: Path, x: Tensor) -> None:
    cache.write_text("a file in the place of the folder")
    relevance(Net().eval(), x)
    assert not cache_files.entries()


def test_the_longest_unused_files_go_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"{number:064x}" for number in range(4)]
    for age, key in zip((30, 20, 10), keys, strict=False):
        cache_files.write(key, "{}", {}, {"model": "m"})
        os.utime(cache / f"{key}.safetensors", (1e9 - age, 1e9 - age))
    size = (cache / f"{keys[0]}.safetensors").stat().st_size
    assert cache_files.read(keys[0]) is not None  # used now
    monkeypatch.setattr(cache_files, "MOST_BYTES", 3 * size)
    cache_files.write(keys[3], "{}", {}, {"model": "m"})
    assert {entry.key for entry in cache_files.entries()} == {keys[0], keys[2], keys[3]}
    assert {path.name for path in cache.iterdir()} == {f"{key}.safetensors" for key in (keys[0], keys[2], keys[3])}


def _run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0


def test_the_command_lists_and_clears_the_files(cache: Path, x: Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    _run("cache")
    assert "holds no captures" in capsys.readouterr().out
    relevance(Net().eval(), x)
    (cache / "mine.safetensors").write_text("of someone else")
    _run("cache")
    shown = capsys.readouterr().out
    assert "Net" in shown and "1 captures" in shown and lxt_fx.__version__ in shown
    _run("cache", "clear")
    assert "removed 1 captures" in capsys.readouterr().out
    assert [path.name for path in cache.iterdir()] == ["mine.safetensors"]
