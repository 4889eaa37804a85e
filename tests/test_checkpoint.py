"""transform(checkpoint=...): the same relevance from less memory, and all that can be seen of the module stays whole."""

from __future__ import annotations

import copy
import gc
import json
import os
import subprocess
import sys
import weakref
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from golden_cases import relative
from rounding import ROUNDINGS
from rounding import assert_same as assert_same_numbers
from saved import saved_bytes
from shared_captures import explained as compiled
from shared_captures import shared_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

import lxt_fx
from lxt_fx.compiler.explained import Explained
from lxt_fx.passes.capture.example import made_example
from lxt_fx.passes.fuse.fuse import fuse
from lxt_fx.passes.segments.by_segments import Segments
from lxt_fx.passes.segments.find_segments import segments_of

FAMILIES = ("llama", "gpt2", "bert", "vit", "whisper")


@cache
def family(name: str) -> tuple[Explained, dict[str, Tensor]]:
    """A tiny model without checkpoints, and its inputs."""
    explained = compiled(name)
    made = made_example(shared_model(name)).kwargs
    given = {name: value for name, value in made.items() if name in explained.record.called_with}
    return explained, explained._prepared((), given)[1]


@cache
def deep_llama() -> Explained:
    """Nine layers."""
    torch.manual_seed(0)
    config = LlamaConfig(**{**tiny.SIZES, "num_hidden_layers": 9}, num_key_value_heads=2)
    return lxt_fx.transform(LlamaForCausalLM(config).eval().requires_grad_(False))


def again(explained: Explained, inputs: dict[str, Tensor], **options: Any) -> Explained:
    """The same graph with other options, without a new capture."""
    return lxt_fx.transform(explained, kwargs=inputs, **options)


def segments(explained: Explained, checkpoint: Any) -> Segments:
    """Those of the graph as it stands."""
    return segments_of(explained, explained.fused, checkpoint)


def recut(explained: Explained, checkpoint: Any) -> Explained:
    """The module itself, cut anew."""
    explained._cut(None if checkpoint is None else segments(explained, checkpoint))
    return explained


def results(explained: Explained, inputs: dict[str, Tensor]) -> list[Tensor]:
    """The output, then the gradient at each leaf."""
    leaves = {n: v.clone().requires_grad_(True) if v.is_floating_point() else v for n, v in inputs.items()}
    output = explained(**leaves)
    output = output if isinstance(output, Tensor) else output[0]
    output.flatten()[3].backward(output.flatten()[3].detach() if explained.record.form == "explicit" else None)
    return [output.detach(), *(leaf.grad for leaf in leaves.values() if leaf.requires_grad)]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert_same_numbers(one, other)
    assert expected[-1].abs().max() > 0


class Counts(TorchDispatchMode):
    """How often each op ran, and the most bytes that results held at once, parameters (and views of them) left out."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.weights = [tensor.untyped_storage() for tensor in (*module.parameters(), *module.buffers())]
        self.ops: Counter[str] = Counter()
        self.live = self.peak = 0
        self.known = set(map(id, self.weights))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops[func.overloadpacket.__name__] += 1
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if id(storage) in self.known:
            return
        self.known.add(id(storage))
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, id(storage), storage.nbytes())

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


@pytest.mark.parametrize("name", FAMILIES)
def test_relevance_and_forward_are_the_same(name: str) -> None:
    explained, inputs = family(name)
    cut = again(explained, inputs, checkpoint="layers")
    assert cut.segments is not None
    assert len(cut.segments.starts) == (4 if name == "whisper" else 2)
    assert_same(results(cut, inputs), results(explained, inputs))


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_explicit_form_is_the_same(name: str) -> None:
    explained, inputs = family(name)
    plain, cut = (again(explained, inputs, form="explicit", checkpoint=c) for c in (None, "layers"))
    assert cut.segments is not None and len(cut.segments.starts) == 2
    assert_same(results(cut, inputs), results(plain, inputs))


@pytest.mark.parametrize("batch, tokens", [(1, 5), (3, 11)])
def test_segments_hold_for_other_batches_and_lengths(batch: int, tokens: int) -> None:
    explained, inputs = family("llama")
    cut = again(explained, inputs, checkpoint="layers")
    mask = torch.ones(batch, tokens, dtype=torch.long)
    mask[0, :2] = 0
    other = {"inputs_embeds": torch.randn(batch, tokens, 32), "attention_mask": mask}
    assert_same(results(cut, other), results(explained, other))


def test_both_towers_of_whisper_are_cut_and_both_inputs_get_their_relevance() -> None:
    explained, inputs = family("whisper")
    cut = again(explained, inputs, checkpoint=2)
    assert cut.segments is not None
    assert cut.segments.places == (
        "model.encoder.layers.0 to model.encoder.layers.1",
        "model.decoder.layers.0 to model.decoder.layers.1",
    )
    found = results(cut, inputs)
    assert len(found) == 3 and all(gradient.abs().max() > 0 for gradient in found)


@pytest.mark.parametrize(
    "checkpoint, sizes", [("layers", [1] * 9), ("sqrt", [3, 3, 3]), (2, [2, 2, 2, 2, 1]), (4, [4, 4, 1]), (100, [9])]
)
def test_segments_have_the_layers_that_were_asked_for(checkpoint: Any, sizes: list[int]) -> None:
    found = segments(deep_llama(), checkpoint)
    ends = [sum(sizes[:index]) for index in range(len(sizes) + 1)]
    expected = [
        f"model.layers.{a}" + (f" to model.layers.{b - 1}" if b > a + 1 else "")
        for a, b in zip(ends, ends[1:], strict=False)
    ]
    assert list(found.places) == expected
    assert str(found).startswith(f"{len(sizes)} segments: model.layers.0")


def test_fewer_segments_save_less_for_the_backward() -> None:
    explained, inputs = deep_llama(), {"inputs_embeds": torch.randn(1, 48, 32)}
    plain, one, three, all_of_them = (saved_bytes(recut(explained, c), inputs) for c in (None, 1, 3, 9))
    # Measured: 345, 59, 24 and 12 KB.
    assert one < 0.2 * plain
    assert three < 0.5 * one
    assert all_of_them < 0.6 * three


def test_peak_of_live_tensors_is_least_at_the_square_root() -> None:
    explained, inputs = deep_llama(), {"inputs_embeds": torch.randn(1, 48, 32)}
    peaks = {}
    for checkpoint in (None, "sqrt", 9):
        recut(explained, checkpoint)
        with Counts(explained) as counts:
            results(explained, inputs)
        peaks[checkpoint] = counts.peak
    # Measured: 619, 258 and 621 KB.
    assert peaks["sqrt"] < 0.5 * peaks[None]
    assert peaks["sqrt"] < 0.5 * peaks[9]


def test_what_can_be_seen_is_the_whole_graph(tmp_path: Path) -> None:
    explained, inputs = family("llama")
    cut = again(explained, inputs, checkpoint="layers")
    plain = again(explained, inputs)
    assert lxt_fx.show(cut, "lowered") == lxt_fx.show(plain, "lowered")
    assert str(lxt_fx.certificate(cut)) == str(lxt_fx.certificate(plain))
    assert cut.code == plain.code
    assert [name for name, _ in cut.named_modules()] == [name for name, _ in plain.named_modules()]
    assert [id(p) for p in cut.parameters()] == [id(p) for p in plain.parameters()]


def test_audit_and_watch_run_as_without_checkpoints() -> None:
    explained, inputs = family("llama")
    cut = again(explained, inputs, checkpoint="layers")
    ledgers = [lxt_fx.audit(module, inputs, lambda out: out.logits[:, -1, 3]) for module in (cut, explained)]
    for group in ("by_layer", "by_cause", "by_rule"):
        found, expected = (getattr(ledger, group)() for ledger in ledgers)
        assert found.keys() == expected.keys()
        scale = float(ledgers[1].scale().max())
        assert all(bool((found[name] - amount).abs().max() <= ROUNDINGS * scale) for name, amount in expected.items())
    assert_same_numbers(ledgers[0].sources[0].relevance, ledgers[1].sources[0].relevance)
    watched = []
    for module in (cut, explained):
        with lxt_fx.watch(module, "model.layers.*") as layers:
            results(module, inputs)
        watched.append([layers[f"model.layers.{index}"].relevance for index in range(2)])
    assert_same(*watched)


def test_saved_module_is_cut_where_it_was(tmp_path: Path) -> None:
    explained, inputs = family("llama")
    cut = again(explained, inputs, checkpoint="layers")
    lxt_fx.save(cut, tmp_path / "cut.safetensors")
    loaded = lxt_fx.load(tmp_path / "cut.safetensors")
    assert loaded.segments == cut.segments
    assert saved_bytes(loaded, inputs) == saved_bytes(cut, inputs) < 0.5 * saved_bytes(explained, inputs)
    assert_same(results(loaded, inputs), results(explained, inputs))


def test_copy_is_cut_too_and_has_its_own_weights() -> None:
    explained, inputs = family("llama")
    cut = again(explained, inputs, checkpoint="layers")
    before = results(cut, inputs)
    twin = copy.deepcopy(cut)
    assert twin.segments == cut.segments
    assert_same(results(twin, inputs), before)
    with torch.no_grad():
        twin.get_parameter("model.layers.1.mlp.up_proj.weight").mul_(2)
    assert relative(results(twin, inputs)[0], before[0]) > 1e-3
    assert_same(results(cut, inputs), before)


def test_edit_of_the_graph_reaches_the_segments() -> None:
    explained, inputs = family("llama")
    cut = again(explained, inputs, checkpoint="layers")
    before = results(cut, inputs)
    node = next(n for n in reversed(cut.graph.nodes) if n.op == "call_function" and "silu" in str(n.target))
    with cut.graph.inserting_after(node):
        twice = cut.graph.call_function(torch.ops.aten.mul.Tensor, (node, 2.0))
    twice.meta = dict(node.meta)
    node.replace_all_uses_with(twice, delete_user_cb=lambda user: user is not twice)
    cut.recompile()
    after = results(cut, inputs)
    assert relative(after[0], before[0]) > 1e-3
    whole = lxt_fx.watch(cut, f"%{node.name}")
    with whole:  # node by node, as the graph stands before ops are fused
        torch.testing.assert_close(results(cut, inputs), after)


def test_batched_backward_recomputes_too() -> None:
    explained, inputs = family("llama")
    cut = again(explained, inputs, checkpoint="layers")
    gradients = []
    for module in (cut, explained):
        leaf = inputs["inputs_embeds"].clone().requires_grad_(True)
        logits = module(inputs_embeds=leaf).logits[0, -1, :4]
        gradients.append(torch.autograd.grad(logits, leaf, torch.eye(4), is_grads_batched=True)[0])
    assert_same(gradients[:1], gradients[1:])


def test_compiled_with_one_graph() -> None:
    explained, inputs = family("llama")
    cut = again(explained, inputs, checkpoint="layers")
    compiled = torch.compile(cut, backend="aot_eager", fullgraph=True)
    leaves = [inputs["inputs_embeds"].clone().requires_grad_(True) for _ in range(2)]
    for module, leaf in zip((compiled, explained), leaves, strict=True):
        module(inputs_embeds=leaf).logits[0, -1, 3].backward()
    assert_same([leaves[0].grad], [leaves[1].grad])


def test_without_gradient_nothing_is_saved() -> None:
    explained, inputs = family("bert")
    cut = again(explained, inputs, checkpoint="layers")
    with torch.no_grad():
        output = cut(**inputs).logits
    assert not output.requires_grad
    assert_same_numbers(output, results(explained, inputs)[0])


def test_nothing_of_a_module_with_segments_outlives_it() -> None:
    explained, inputs = family("llama")
    cut = copy.deepcopy(again(explained, inputs, checkpoint="layers"))
    results(cut, inputs)
    gone = [weakref.ref(cut), weakref.ref(cut.graph), *map(weakref.ref, cut.parameters())]
    assert all(reference() is not None for reference in gone)
    del cut
    gc.collect()
    assert [reference() for reference in gone if reference() is not None] == []


@pytest.mark.parametrize("asked", [0, -1, "foo", True, 1.5, "2"])
def test_what_is_no_checkpoint_is_refused(asked: Any) -> None:
    with pytest.raises(lxt_fx.InputError, match="checkpoint must be None"):
        lxt_fx.transform(tiny.Mlp(), (torch.randn(2, 6),), checkpoint=asked)


class Block(nn.Module):
    """A layer with modules of its own; `table`, if it has one, is computed from a parameter and passed on to the next."""

    def __init__(self, *, makes_table: bool = False) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.angles = nn.Parameter(torch.randn(8)) if makes_table else None

    def forward(self, x: Tensor, table: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        if self.angles is not None:
            table = self.angles.cos()
        y = self.down(torch.relu(self.up(self.norm(x))))
        return x + y * (1.0 if table is None else table), table


class Blocks(nn.Module):
    """Blocks, the first of which makes a table that all of them read."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block(makes_table=index == 0) for index in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        table = None
        for block in self.blocks:
            x, table = block(x, table)
        return x


def compared(net: nn.Module, *, checkpoint: Any = "layers") -> tuple[Explained, Counts]:
    """The net with segments, which gave what it gives without, and what ran in one call of it."""
    leaf = "input" if isinstance(net, nn.Sequential) else "x"
    inputs = {leaf: torch.randn(3, 8)}
    plain = lxt_fx.transform(net.eval(), kwargs=inputs)
    cut = again(plain, inputs, checkpoint=checkpoint)
    expected = results(plain, inputs)
    with Counts(cut) as counts:
        found = results(cut, inputs)
    assert_same(found, expected)
    return cut, counts


def test_constant_that_several_segments_read_is_computed_once() -> None:
    cut, counts = compared(Blocks())
    assert cut.segments is not None
    assert cut.segments.places == tuple(f"blocks.{index}" for index in range(4))
    assert counts.ops["cos"] == 1
    assert counts.ops["relu"] == 8  # forward and again


class Routed(nn.Module):
    """A layer whose experts stand beside one another: they are no layers, though there are more of them."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([Block() for _ in range(5)])

    def forward(self, x: Tensor) -> Tensor:
        return x + sum(expert(x)[0] for expert in self.experts)


class Model(nn.Module):
    """A head made of an `nn.Sequential`, which is no run of layers, over layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([Routed() for _ in range(3)])
        self.head = nn.Sequential(*[nn.Linear(8, 8) for _ in range(6)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def test_layers_are_modules_that_read_one_another() -> None:
    cut, _ = compared(Model())
    assert cut.segments is not None
    assert cut.segments.places == ("layers.0", "layers.1", "layers.2")
    assert cut.segments.end != "output"  # the head is in no segment


class Stage(nn.Module):
    """Three blocks and a step after them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(3)])
        self.down = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)[0]
        return self.down(x)


def test_longest_run_wins_over_the_run_around_it() -> None:
    torch.manual_seed(0)
    cut, _ = compared(nn.Sequential(Stage(), Stage()))
    assert cut.segments is not None
    assert cut.segments.places == tuple(f"{stage}.blocks.{block}" for stage in range(2) for block in range(3))


class Noisy(nn.Module):
    """Draws random numbers in each layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Block() for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)[0]
            x = x * torch.rand_like(x)
        return x


def test_random_numbers_are_the_same_when_they_are_drawn_again() -> None:
    inputs = {"x": torch.randn(3, 8)}
    plain = lxt_fx.transform(Noisy().eval(), kwargs=inputs)
    cut = again(plain, inputs, checkpoint="layers")
    found = []
    for module in (cut, plain):
        torch.manual_seed(1)
        found.append(results(module, inputs))
    assert_same(*found)


class Looped(nn.Module):
    """No layers by module: one attention, nine times; a plain function otherwise."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(9):
            scores = torch.softmax(self.q(x) @ self.k(x).transpose(-1, -2), -1)
            x = x + torch.relu(scores @ self.v(x))
        return x


@pytest.mark.parametrize("checkpoint, count", [("layers", 9), ("sqrt", 3), (2, 5)])
def test_graph_without_layers_is_cut_in_equal_pieces(checkpoint: Any, count: int) -> None:
    cut, counts = compared(Looped(), checkpoint=checkpoint)
    assert cut.segments is not None and len(cut.segments.starts) == count
    assert counts.ops["relu"] == 18
    position = {node.name: index for index, node in enumerate(fuse(cut).nodes)}
    cuts = [position[name] for name in (*cut.segments.starts, cut.segments.end)]
    pieces = [b - a for a, b in zip(cuts, cuts[1:], strict=False)]
    assert max(pieces) <= 2.5 * min(pieces)


def test_graph_that_is_captured_again_is_cut_again() -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Block() for _ in range(2)])

        def forward(self, x: Tensor, n: Tensor) -> Tensor:
            for block in self.blocks[: n.tolist()[0]]:
                x = block(x)[0]
            return x

    inputs = {"x": torch.randn(3, 8), "n": torch.tensor([2])}
    cut = lxt_fx.transform(Reading().eval(), kwargs=inputs, dynamic="recapture", checkpoint="layers")
    other = inputs | {"n": torch.tensor([1])}
    found, _ = cut._prepared((), other)
    assert found is not cut
    assert found.segments is not None
    plain = lxt_fx.transform(Reading().eval(), kwargs=other)
    assert results(cut, other)[0].shape == results(plain, other)[0].shape


@pytest.mark.slow
def test_benchmark_of_memory_runs(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, "benchmarks/cost/memory.py", "--quick", "--out", str(tmp_path)]
    subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, check=True)
    results = json.loads(Path(tmp_path, "memory.json").read_text())["results"]
    # Measured: 0.05 and 0.92 of what the plain gradient saves.
    assert results["ours, sqrt"]["4"]["saved"] < 0.1 * results["plain"]["4"]["saved"]
    assert results["ours"]["4"]["saved"] < results["plain"]["4"]["saved"]
    assert results["ours, sqrt"]["4"]["difference"] == 0
    assert Path(tmp_path, "memory.png").stat().st_size > 5000
