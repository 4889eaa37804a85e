"""The plan of a model on devices: what it counts against what a run counts, and its arithmetic against a slow loop."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from forked_ranks import forked
from shared_captures import explained as shared
from shared_captures import one_worker, shared_model
from tiny import SIZES
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, Qwen3MoeConfig, Qwen3MoeForCausalLM, T5Config, T5ForConditionalGeneration

import lxt_fx
from lxt_fx.attribution.leaf_call import leaf_call
from lxt_fx.attribution.many_entries import Entries
from lxt_fx.attribution.many_targets import forward_run
from lxt_fx.attribution.split_head import split_model
from lxt_fx.compiler.nested_inputs import with_leaves_in
from lxt_fx.distributed import pipeline
from lxt_fx.ops import library
from lxt_fx.passes.segments.stages import stages_of
from lxt_fx.planning.at_targets import AnyEntries, tensor_paths
from lxt_fx.planning.devices import CLASSES, devices_of
from lxt_fx.planning.live_bytes import LiveBytes
from lxt_fx.planning.plan import EFFICIENCY, measured_of
from lxt_fx.planning.schedule import times_of
from lxt_fx.planning.stage_costs import Schedule, StageCost, pieces_of
from lxt_fx.shell.plan_command import ScheduleName

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "benchmarks/cost"), str(ROOT / "benchmarks/scale")]
import peaks  # noqa: E402


def moe() -> nn.Module:
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **experts, num_key_value_heads=2)).eval()


def t5() -> nn.Module:
    sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    return T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).eval()


def text(length: int = 24, batch: int = 2) -> dict[str, Tensor]:
    return {"input_ids": torch.arange(batch * length).reshape(batch, length) % 60}


class Asked(AnyEntries):
    """Another entry for each text and target, at the last position; of a model without logits, a number of its output."""

    def places(self, count: int, batch: int) -> Tensor:
        return torch.full((batch, self.count), count - 1)

    def entries(self, logits: Tensor, part: range) -> Entries:
        return Entries(torch.arange(len(logits) * self.count).reshape(-1, self.count)[:, part.start : part.stop], None)

    def totals(self, output: Any) -> tuple[Tensor, Tensor]:
        flat = output[0].reshape(len(output[0]), -1)
        picked = flat.gather(1, torch.arange(len(flat) * self.count).reshape(-1, self.count) % flat.shape[1]).T
        return picked.sum(1), picked


class NoModules:
    """In the place of what a counter of flops knows of modules: its hooks allow no gradient at a leaf."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def counter() -> FlopCounterMode:
    import cost_model

    transformers = torch.ops.transformers
    known = dict(cost_model.FUSED)
    if hasattr(transformers, "grouped_mm_fallback"):
        known[transformers.grouped_mm_fallback] = lambda a, b, *rest, **more: 2 * a.numel() * b[-1]
        known[transformers.grouped_mm_fallback_backward] = lambda a, b, *rest, **more: 4 * a.numel() * b[-1]
    made = FlopCounterMode(display=False, custom_mapping=known)
    made.mod_tracker = NoModules()
    return made


def counted(explained: Any, inputs: Mapping[str, Any], targets: int = 1) -> tuple[int, int, int]:
    """Flops of the forward and of the backward of one target, as `relevance_of` runs them, and bytes that the body saves
    beside weights."""
    weights = {x.untyped_storage().data_ptr() for x in (*explained.parameters(), *explained.buffers())}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    call = leaf_call(explained, (), dict(inputs), None, "the test")
    leaves = call.module._new_leaves(call.bound)  # of an encoder and a decoder those of both
    call = replace(call, leaves=leaves, bound=with_leaves_in(call.bound, leaves))
    with counter() as forward:
        run = forward_run(call, Asked(targets), "the test")
    with counter() as backward:
        run.gradients(list(call.leaves.values()), 0, 1, last=True)
    split = split_model(call.module)
    with saved_tensors_hooks(pack, lambda tensor: tensor):  # without the counter, under which no values are read
        made = call.output() if split is None else split.body(**call.bound)
    size = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    assert made is not None
    return int(forward.get_total_flops()), int(backward.get_total_flops()), size


def planned(
    explained: Any, inputs: Mapping[str, Any], checkpoint: Any = None, targets: int = 1
) -> tuple[int, int, int]:
    """The same by the plan."""
    found = measured_of(explained, inputs, checkpoint, batch=2, targets=targets, skips=True)
    named = {name for part in found.parts for name in part.saves}
    saved = sum(part.saved for part in found.parts) + found.bytes_of(named)
    every = (*found.parts, found.alone)
    return sum(part.forward_flops for part in every), sum(part.backward_flops for part in every), saved


MODELS = [
    "llama",
    pytest.param("gemma3", marks=pytest.mark.slow("windows, and a soft cap behind the logits")),
    pytest.param("bert", marks=pytest.mark.slow("something before the layers")),
    pytest.param("gpt2", marks=pytest.mark.slow("weights the other way round")),
]


@one_worker("llama")
@pytest.mark.parametrize("name", MODELS)
def test_flops_and_saved_bytes_are_those_of_a_run(name: str) -> None:
    explained = shared(name)
    assert planned(explained, text()) == counted(explained, text())


@one_worker("llama")
def test_a_plan_with_checkpoints_counts_the_second_forward() -> None:
    explained = lxt_fx.transform(shared_model("llama"), checkpoint="layers")
    assert planned(explained, text(), "layers") == counted(explained, text())


@pytest.mark.slow("experts")
def test_experts_are_counted_entry_by_entry() -> None:
    explained = lxt_fx.transform(moe())
    found, wanted = planned(explained, text()), counted(explained, text())
    assert found[:2] == wanted[:2]
    assert wanted[2] <= found[2] <= 1.001 * wanted[2]  # a run whose values can be read saves a few booleans less


@pytest.mark.parametrize("checkpoint", [None, "layers"])
def test_experts_that_were_captured_on_meta_are_planned_as_those_with_weights(checkpoint: Any) -> None:
    """On another device than a CPU transformers counts the entries of each expert in int32."""
    model, asked = moe(), {"tokens": 24, "dtype": torch.float32, "checkpoint": checkpoint}
    found, wanted = (lxt_fx.plan(given, "1x80GB", **asked) for given in (model.config, model))
    assert found.parts == wanted.parts and len(found.parts) > 2
    (alone,) = found.arrangement.stages
    assert alone.peak < 1.85 * found.weights, "views of weights are no memory of their own"


@pytest.mark.slow("an encoder beside a decoder")
@pytest.mark.parametrize("checkpoint", [None, "layers"])
def test_an_encoder_and_a_decoder_are_counted(checkpoint: Any) -> None:
    explained = lxt_fx.transform(t5(), checkpoint=checkpoint)
    inputs = text() | {"decoder_input_ids": text(7)["input_ids"]}
    assert planned(explained, inputs, checkpoint) == counted(explained, inputs)


@one_worker("llama")
def test_weights_are_those_of_the_model_and_nothing_of_it_changes() -> None:
    model = shared_model("llama")
    before = {name: (id(x), x.clone()) for name, x in model.state_dict(keep_vars=True).items()}
    plan = lxt_fx.plan(shared("llama"), "2xA100", tokens=8)
    own = {id(x): x for x in model.parameters()}.values()
    assert plan.parameters == sum(x.numel() for x in own)
    buffers = sum(x.nbytes for name, x in model.named_buffers() if name == "model.rotary_emb.inv_freq")
    assert plan.weights == sum(x.nbytes for x in own) + buffers
    after = model.state_dict(keep_vars=True)
    assert all(id(after[name]) == key and torch.equal(after[name], x) for name, (key, x) in before.items())
    assert sum(part.parameters for part in plan.parts) == plan.parameters


@pytest.mark.parametrize("name", ["llama", pytest.param("t5", marks=pytest.mark.slow("what passes through a stage"))])
def test_stages_are_those_of_the_pipeline(name: str) -> None:
    explained = shared(name) if name != "t5" else lxt_fx.transform(t5())
    plan = lxt_fx.plan(explained, "2xA100", tokens=24, stages=2, on="cpu")
    first = {path: x for front in explained._fronts for path, x in front.module.named_parameters()}
    split = split_model(explained)
    assert split is not None
    last = {path: attrgetter(path)(explained) for path in tensor_paths(split.head.graph)}
    own = stages_of(explained, split.body.graph, 2, in_first=first, in_last=last)
    found = plan.arrangement.stages
    assert [stage.layers for stage in found] == [stage.layers for stage in own]
    assert plan.layers_per_stage == tuple(len(stage.layers) for stage in own)
    assert [stage.weights for stage in found] == [stage.size for stage in own]
    inputs = text(batch=1) if name == "llama" else _both()
    measured = measured_of(explained, inputs, None, batch=1, targets=1, skips=True)
    assert [stage.sends for stage in found] == [measured.bytes_of(stage.gives) for stage in own]


@one_worker("llama")
def test_with_fewer_micro_batches_than_stages_all_are_in_flight() -> None:
    for count, in_flight in ((1, [1, 1]), (2, [2, 1]), (5, [2, 1])):
        plan = lxt_fx.plan(shared("llama"), "2xA100", tokens=24, stages=2, micro_batches=count, on="cpu")
        assert [cost.in_flight for cost in plan.arrangement.stages] == in_flight


def _both() -> dict[str, Tensor]:
    return text(batch=1) | {"decoder_input_ids": text(batch=1)["input_ids"]}


def stage(index: int, forward: float, backward: float, sends: int) -> StageCost:
    return StageCost(index, ("layer",), 1, 0, int(forward), int(backward), sends, 1, 0, 1, 1)


def looped(forward: Sequence[float], backward: Sequence[float], move: float, count: int) -> float:
    """GPipe micro-batch by micro-batch: a stage does one thing at a time, and each needs what the one before it made."""
    ready = [0.0] * count
    for place, seconds in enumerate(forward):
        free = 0.0
        for i in range(count):
            free = ready[i] = max(free, ready[i] + (move if place else 0.0)) + seconds
    turned = max(ready)
    ready = [turned] * count
    for place, seconds in enumerate(reversed(backward)):
        free = 0.0
        for i in range(count):
            free = ready[i] = max(free, ready[i] + (move if place else 0.0)) + seconds
    return max(ready)


@pytest.mark.parametrize(("stages", "count"), [(1, 1), (2, 16), (4, 5), (3, 1)])
def test_times_are_those_of_a_pipeline_step_by_step(stages: int, count: int) -> None:
    device = devices_of("1x1.5GB", flops=1e3, bandwidth=1e30).each
    costs = [stage(i, 1000 * (1 + i % 3), 2500 * (2 - i % 2), 0) for i in range(stages)]
    times = times_of(costs, device, torch.float32, 0.5, count)
    assert times.forward == tuple(cost.forward_flops / 500 for cost in costs)
    assert times.total == pytest.approx(looped(times.forward, times.backward, 0.0, count))
    equal = [stage(i, 1000, 2000, 0) for i in range(stages)]
    found = times_of(equal, device, torch.float32, 1.0, count)
    assert found.total == pytest.approx(3.0 * (count + stages - 1))
    assert found.bubble == pytest.approx((stages - 1) / (count + stages - 1))


def test_what_crosses_takes_its_time_and_so_does_reading_weights() -> None:
    device = devices_of("2x1.5GB", flops=1e3, bandwidth=10.0).each
    costs = [stage(0, 1000, 1000, 40), stage(1, 1000, 1000, 0)]
    times = times_of(costs, device, torch.float32, 1.0, 3)
    assert times.transfer == 4.0
    assert looped((1, 1), (1, 1), 4.0, 3) <= times.total == 8.0 + 2 * 4.0 * 3
    slow = StageCost(0, ("layer",), 1, 4078, 1, 1, 0, 1, 0, 1, 1)
    read = times_of([slow], CLASSES["A100"], torch.bfloat16, 1.0, 1)
    assert read.forward == read.backward == (4078 / 2039e9,)


@contextmanager
def alive(explained: Any, *buffers: Tensor) -> Iterator[LiveBytes]:
    """The bytes that ops of a run have alive, beside weights and buffers. Ops read values as they do outside of a mode."""
    live = LiveBytes([*explained.parameters(), *explained.buffers(), *buffers])
    with pytest.MonkeyPatch.context() as patched, live:
        patched.setattr(library, "in_dispatch_mode", lambda: False)
        yield live


@one_worker("llama")
@pytest.mark.parametrize(("checkpoint", "targets"), [(None, 1), ("layers", 1), (None, 3)])
@pytest.mark.parametrize("name", ["llama", pytest.param("experts", marks=pytest.mark.slow("views of weights"))])
def test_the_peak_is_what_a_run_has_alive(name: str, checkpoint: Any, targets: int) -> None:
    explained = lxt_fx.transform(shared_model("llama") if name == "llama" else moe(), checkpoint=checkpoint)
    plan = lxt_fx.plan(explained, "1xA100", tokens=160, targets=targets, on="cpu")
    inputs = text(160, batch=1)
    with alive(explained) as live:
        lxt_fx.relevance_of(explained, inputs, list(range(targets)), chunk=1)
    (stage,) = plan.arrangement.stages
    assert stage.peak - stage.weights == pytest.approx(live.peak, rel=0.04)


@one_worker("llama")
@pytest.mark.parametrize("schedule", ["1f1b", pytest.param("gpipe", marks=pytest.mark.slow("the other schedule"))])
def test_the_peak_of_a_stage_is_what_its_rank_has_alive(schedule: Any, tmp_path: Path) -> None:
    explained, inputs = shared("llama"), text(160, batch=5)
    ids = 4 * inputs["input_ids"].nbytes  # and a mask, whole and by micro-batch, which are no part of a plan
    plan = lxt_fx.plan(explained, "2xA100", tokens=160, stages=2, micro_batches=5, schedule=schedule, on="cpu")

    def work(rank: int) -> tuple[int, int]:
        pipe = pipeline(explained, timeout=60, schedule=schedule)
        pipe.relevance_of(inputs, [7], size=1)  # which makes the buffers
        assert pipe._built is not None
        engine = pipe._built[1]._engine[1]._stage
        infos = [info for each in (engine.args_recv_info, engine.grad_recv_info) for one in each.values() for info in one]
        buffers = [info.buffer for info in infos if info.buffer is not None]
        pipe._built[1].module.begin([], frozenset())
        with alive(explained, *buffers) as live:
            pipe.relevance_of(inputs, [7], size=1)
        size = sum(buffer.nbytes for buffer in buffers)
        return size, live.peak + size

    found = forked(2, work, tmp_path / "ranks")
    first, last = plan.arrangement.stages
    value = 160 * SIZES["hidden_size"] * 4
    assert [first.buffers - 5 * value, last.buffers] == [size for size, _ in found], "the first one has leaves beside"
    assert [stage.in_flight for stage in (first, last)] == ([5, 5] if schedule == "gpipe" else [2, 1])
    for cost, (_, peak) in zip((first, last), found, strict=True):
        print(f"{schedule} {cost.index}: {cost.peak - cost.weights} planned, {peak} alive")
        assert 0 <= peak - (cost.peak - cost.weights) <= ids + 1.5 * value, "the engine holds what it sent last"


@one_worker("llama")
def test_what_does_not_fit_says_what_would() -> None:
    explained = shared("llama")
    settings: dict[str, Any] = {"flops": 1e12, "bandwidth": 1e9, "tokens": 128, "on": "cpu"}
    plan = lxt_fx.plan(explained, "1x0.0004GB", **settings)
    assert not plan.fits and plan.arrangement.room == 360_000
    assert "does not fit" in repr(plan) and "does not fit" in str(plan)
    ways = {remedy.what: remedy for remedy in plan.remedies}
    leaner = lxt_fx.plan(explained, "1x0.0004GB", checkpoint="layers", **settings)
    assert ways['checkpoint="layers"'].peak == leaner.arrangement.peak < plan.arrangement.peak
    assert ways['checkpoint="layers"'].fits == leaner.fits
    packed = lxt_fx.plan(explained, "1x0.0004GB", bits=4, **settings)
    assert ways["bits=4"].peak == packed.arrangement.peak
    assert any(each.endswith("on disk, a copy on each device") for each in ways)
    roomy = lxt_fx.plan(explained, "1x0.08GB", **settings)
    assert roomy.fits and not roomy.remedies


@one_worker("llama")
def test_packed_weights_have_their_bits_and_scales() -> None:
    explained = shared("llama")
    plain, packed = (lxt_fx.plan(explained, "1xA100", tokens=8, bits=bits) for bits in (None, 4))
    matrices = [x for name, x in explained.named_parameters() if ".layers." in name and x.dim() == 2]
    count = sum(x.numel() for x in matrices)
    assert plain.weights - packed.weights == 4 * count - sum(round(x.numel() * 4.5 / 8) for x in matrices)
    assert packed.parameters == plain.parameters


@one_worker("llama")
def test_many_targets_of_a_text_are_many_backwards_of_one_forward() -> None:
    one, many = (lxt_fx.plan(shared("llama"), "1xA100", tokens=24, targets=k).arrangement for k in (1, 7))
    (forward,), (backward,) = one.times.forward, one.times.backward
    model = shared_model("llama")
    head = 2 * 2 * model.lm_head.weight.numel() / (EFFICIENCY * CLASSES["A100"].flops(torch.float32))
    assert many.times.total == pytest.approx(forward + 6 * head + 7 * backward) and many.explanations == 7
    assert many.per_hour == pytest.approx(3600 * 7 / many.times.total)


@pytest.mark.parametrize(
    ("written", "count", "name", "memory"),
    [("8x80GB", 8, "A100", 80e9), ("4xh100", 4, "H100", 80e9), ("24GB", 1, "RTX4090", 24e9), ("L40S", 1, "L40S", 48e9)],
)
def test_devices_are_read(written: str, count: int, name: str, memory: float) -> None:
    found = devices_of(written)
    assert (found.count, found.each.name, found.each.memory) == (count, name, memory)
    assert devices_of("2x3GiB", 1e12, 1e9).each.memory == 3 * 2**30
    changed = devices_of(written, 5e12, 7e9).each
    assert changed.flops(torch.bfloat16) == 5e12 and changed.link_bandwidth == 7e9


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"devices": "lots"}, "no device 'lots' is known"),
        ({"devices": "8 cards"}, 'written like "8x80GB"'),
        ({"devices": "0x80GB"}, "give one or more"),
        ({"devices": "2x99GB"}, "no device with 99 GB is known"),
        ({"tokens": 0}, "tokens must be a whole number"),
        ({"micro_batches": True}, "micro_batches must be"),
        ({"efficiency": 1.5}, "efficiency must be"),
        ({"on": "tpu"}, 'on must be "cuda" or "cpu"'),
        ({"bits": 3}, "bits must be None, 4 or 8"),
        ({"flops": -1.0}, "flops must be a number above 0"),
        ({"stages": 9}, "stages must be from 1 to 1"),
        ({"checkpoint": "all"}, "checkpoint must be"),
    ],
)
@one_worker("llama")
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(lxt_fx.InputError, match=re.escape(said)):
        lxt_fx.plan(shared("llama"), **{"tokens": 8, **arguments})


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(lxt_fx.InputError, match="neither a folder with a config"):
        lxt_fx.plan(str(tmp_path))
    with pytest.raises(lxt_fx.InputError, match="int is no model"):
        lxt_fx.plan(3)
    with pytest.raises(lxt_fx.InputError, match="Linear is no transformers model"):
        lxt_fx.plan(nn.Linear(2, 2))


@one_worker("llama")
def test_a_folder_with_a_config_alone_has_the_plan_of_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lxt_fx.shell.main import main

    LlamaConfig(**SIZES, num_key_value_heads=2, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    asked = ["--devices", "2x80GB", "--tokens", "24", "--dtype", "fp32", "--stages", "2", "--schedule", "gpipe"]
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(tmp_path), *asked, "--json", "-"])
    assert ended.value.code == 0
    found, other = (
        lxt_fx.plan(shared("llama"), "2x80GB", tokens=24, stages=2, schedule=name).to_dict() for name in ("gpipe", "1f1b")
    )
    assert json.loads(capsys.readouterr().out) == found != other


def test_the_command_has_the_schedules_of_the_plan() -> None:
    assert [name.value for name in ScheduleName] == [*get_args(Schedule)]


BIG = """
import time, torch, lxt_fx
from lxt_fx.planning.shapes import model_on_meta
import transformers.models.llama.modeling_llama
model = model_on_meta("llama-70b", torch.bfloat16)
start = time.process_time()
plan = lxt_fx.plan(model, "8x80GB", stages=8, checkpoint="layers")
print(time.process_time() - start, plan.parameters, len(plan.arrangement.stages), plan.arrangement.peak, plan.fits)
"""


@pytest.mark.slow("70 billion parameters on the meta device")
def test_a_model_of_70_billion_parameters_is_planned_in_half_a_minute() -> None:
    done = subprocess.run([sys.executable, "-c", BIG], capture_output=True, text=True, timeout=300, check=True)
    seconds, parameters, stages, peak, fits = done.stdout.split()
    assert int(parameters) == 70_553_706_496 and stages == "8" and fits == "True"
    assert 140e9 / 8 < int(peak) < 1.25 * 142e9 / 8
    assert float(seconds) < 30


@pytest.mark.slow("the peak of a process")
@pytest.mark.parametrize("checkpoint", peaks.CHECKPOINTS)
@pytest.mark.parametrize("name", peaks.SHAPES)
def test_the_peak_is_that_of_a_process(name: str, checkpoint: Any) -> None:
    planned, found = peaks.measured(name, checkpoint)
    assert 0.92 <= planned / found <= 1.08


def test_pieces_of_a_model_are_its_layers() -> None:
    found = measured_of(shared("llama"), text(), None, batch=2, targets=1, skips=False)
    names = [[part.name for part in piece] for piece in pieces_of(found)]
    assert names == [["model.layers.0"], ["model.layers.1", "behind the layers"]]


@pytest.mark.slow("the tables of docs/scale.md")
def test_the_tables_of_the_page_are_written(tmp_path: Path) -> None:
    page = (ROOT / "docs/scale.md").read_text()
    (tmp_path / "scale.md").write_text(page)
    config = {**SIZES, "num_key_value_heads": 2}
    run = {"config": config, "ranks": 2, "micro_batches": 4, "tokens": 16, "seconds": 2.5, "alone": 4.0}
    run["peaks"] = [2**20, 2**21]
    (tmp_path / "runs.json").write_text(json.dumps({"run": run}))
    command = [sys.executable, "benchmarks/scale/scale.py", "--quick", "--measured", str(tmp_path / "runs.json")]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "HF_HUB_OFFLINE": "1"}
    subprocess.run([*command, "--docs", str(tmp_path)], cwd=ROOT, check=True, timeout=300, env=environment)
    written = (tmp_path / "scale.md").read_text()
    assert len(re.findall(r"^\| (?:Llama|Qwen).* 1x80GB \| 16 \| as it is \| 1 ", written, re.M)) == 3
    (line,) = re.findall(r"^\| 2, 32 \| 16 \| 2 \| 4 \| ([\d.]+) \| 1.60 \| .* \| 2 MiB \|$", written, re.M)
    assert 1.4 < float(line) <= 4 * 2 / (4 + 2 - 1) + 0.01
    assert written.partition("<!-- planned")[0] == page.partition("<!-- planned")[0]
