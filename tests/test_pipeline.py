"""A pipeline over ranks gives the relevance of one process, reads only its own weights, and says who failed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from forked_ranks import forked
from same_ledger import check_same_ledger
from shared_captures import explained, one_worker, shared_model
from torch import Tensor, nn
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import lxt_fx
from lxt_fx.attribution.places import places_at
from lxt_fx.attribution.tapped import tapped
from lxt_fx.base.transformers_internals import stored_parts
from lxt_fx.distributed import peers, pipeline
from lxt_fx.distributed.checkpoint import Checkpoint
from lxt_fx.distributed.stage_module import StageModule
from lxt_fx.ops.moves import to_device

F64 = torch.float64
PLACES = ("residual.*", "attention.*.heads")
TARGETS: dict[str, list[int]] = {"bert": [1, 0]}


def inputs_of(name: str, examples: int = 5) -> dict[str, Tensor]:
    """Texts of several lengths: padded on the left for decoders, on the right else."""
    torch.manual_seed(1)
    ids, mask = torch.randint(3, 60, (examples, 7)), torch.ones(examples, 7, dtype=torch.long)
    for example, hidden in enumerate((2, 0, 4)[:examples]):
        mask[example, slice(hidden) if name in ("llama", "gemma3") else slice(7 - hidden, 7)] = 0
    given = {"input_ids": ids, "attention_mask": mask}
    return {**given, "decoder_input_ids": torch.randint(3, 60, (examples, 5))} if name == "t5" else given


@cache
def t5_model(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
    return T5ForConditionalGeneration(config).to(dtype).eval()


@cache
def module_of(name: str, table: str, dtype: torch.dtype = F64) -> lxt_fx.Explained:
    return lxt_fx.transform(t5_model(dtype), rules=table) if name == "t5" else explained(name, dtype, rules=table)


def by_hand(module: lxt_fx.Explained, given: dict[str, Tensor], targets: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
    """The relevance of leaf and places by torch alone, one backward for each target."""
    places = places_at(module, PLACES, "test")
    tap, bound = tapped(module, places).module, module._prepared((), given)[1]
    leaves = module._new_leaves(bound)
    output, inside = tap.forward(**{**bound, **leaves})
    found: list[list[Tensor]] = []
    for target in targets:
        logits = output.logits
        last = given["attention_mask"].cumsum(1).argmax(1)
        place = torch.full_like(last, -1) if "decoder_input_ids" in given else last
        picked = logits[:, target] if logits.dim() == 2 else logits[torch.arange(len(logits)), place, target]
        tensors = [leaves["inputs_embeds"], *inside]
        gradients = torch.autograd.grad(picked.sum(), tensors, retain_graph=True)
        found.append([(x * g).detach() for x, g in zip(tensors, gradients, strict=True)])
    stacked = [torch.stack(each) for each in zip(*found, strict=True)]
    return stacked[0].sum(-1), dict(zip(places, stacked[1:], strict=True))


def worst(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape and wanted.abs().max() > 0
    return float((found - wanted).abs().max() / wanted.abs().max())


def number_of(name: str, targets: list[int]) -> Any:
    """What an audit explains: a class or token; of T5, a sum of a logit and of a value of the encoder, which goes through
    all stages of the decoder."""
    return (lambda out: out.logits[:, -1, 7] + out.encoder_last_hidden_state[:, 0, 3]) if name == "t5" else targets[0]


def run(module: lxt_fx.Explained, given: dict[str, Tensor], **settings: Any) -> Callable[[int], Any]:
    """What each rank does: one call without places, one with them, and an audit, whose results it returns."""

    def work(rank: int) -> Any:
        pipe = pipeline(module, timeout=60, stages=settings.get("stages"), schedule=settings.get("schedule", "1f1b"))
        found = pipe.relevance_of(given, settings["targets"], size=settings.get("size"))
        if "schedule" in settings:
            return (found.relevance,)
        inside = pipe.relevance_of(given, settings["targets"], PLACES)
        ledger = pipe.audit(given, settings["audited"])
        return found.relevance, found.values, inside.relevance, inside.gathered(), set(inside.inside), inside.ranks, ledger

    return work


CASES = [
    *(
        pytest.param(name, table, 2, F64, marks=one_worker(name))
        for name in ("llama", "gemma3", "bert")
        for table in ("attnlrp",)
    ),
    pytest.param("t5", "attnlrp", 4, F64),
    pytest.param("t5", "cp_lrp", 4, F64, marks=pytest.mark.slow("cp_lrp of more models")),
    pytest.param("llama", "cp_lrp", 2, F64, marks=one_worker("llama")),
    pytest.param("llama", "attnlrp", 2, torch.float32, marks=one_worker("llama")),
    *(
        pytest.param(name, "cp_lrp", 2, F64, marks=[one_worker(name), pytest.mark.slow("cp_lrp of more models")])
        for name in ("gemma3", "bert")
    ),
    *(
        pytest.param(name, "attnlrp", 2, torch.float32, marks=[one_worker(name), pytest.mark.slow("float32 of more")])
        for name in ("gemma3", "bert")
    ),
    pytest.param("t5", "attnlrp", 2, torch.float32, marks=pytest.mark.slow("float32 of more, and fewer stages")),
]


@pytest.mark.parametrize(("name", "table", "ranks", "dtype"), CASES)
def test_ranks_find_what_one_process_finds(name: str, table: str, ranks: int, dtype: torch.dtype, tmp_path: Path) -> None:
    module, given, targets = module_of(name, table, dtype), inputs_of(name), TARGETS.get(name, [7, 9, 11])
    wanted, inside = by_hand(module, given, targets)
    audited = number_of(name, targets)
    parts = forked(ranks, run(module, given, targets=targets, size=2, audited=audited), tmp_path / "ranks")
    assert not (bad := [part for part in parts if not isinstance(part, tuple)]), bad
    limit = 1e-10 if dtype is F64 else 1e-5
    assert worst(parts[0][0], wanted) < limit and worst(parts[0][2], wanted) < limit
    check_same_ledger(parts[0][6], lxt_fx.audit(module, given, audited), limit)
    assert all(part[6] is None for part in parts[1:])
    for rank, (relevance, values, _, gathered, own, at, _) in enumerate(parts):
        assert (relevance is None) == (rank > 0) and values.shape == (len(targets), 5)
        assert own == {place for place, where in at.items() if where == rank} and set(gathered) == set(inside)
        assert all(worst(gathered[place], inside[place]) < limit for place in inside)
    assert len({*parts[0][5].values()}) > 1, "places lie at several ranks"
    assert torch.allclose(parts[0][1], numbers_of(module, given, targets), atol=1e-4)


def numbers_of(module: lxt_fx.Explained, given: dict[str, Tensor], targets: list[int]) -> Tensor:
    logits = module(**given).logits
    last = given["attention_mask"].cumsum(1).argmax(1)
    place = torch.full_like(last, -1) if "decoder_input_ids" in given else last
    rows = logits if logits.dim() == 2 else logits[torch.arange(len(logits)), place]
    return rows[:, targets].T.detach()


@one_worker("llama")
@pytest.mark.parametrize(("form", "schedule"), [("gradient", "gpipe"), ("explicit", "1f1b")])
def test_one_text_with_many_targets_by_either_schedule(form: Any, schedule: str, tmp_path: Path) -> None:
    """The explicit form with layers that are computed again, the other one with a function of the whole output."""
    again = "layers" if form == "explicit" else None
    module, given = explained("llama", F64, form=form, checkpoint=again), inputs_of("llama", 1)
    targets = [5, lxt_fx.Target.at(2, 9), lxt_fx.Target(3, minus=7)]
    targets += [] if form == "explicit" else [lambda out: out.logits[:, -1, 4]]
    wanted = lxt_fx.relevance_of(module, given, targets)
    parts = forked(2, run(module, given, targets=targets, schedule=schedule), tmp_path / "ranks")
    assert worst(parts[0][0], wanted) < 1e-10, parts


@one_worker("llama")
def test_fewer_micro_batches_than_ranks_run(tmp_path: Path) -> None:
    module, given = explained("llama", F64), inputs_of("llama", 1)
    parts = forked(2, lambda rank: pipeline(module, timeout=60).relevance_of(given, [7]).relevance, tmp_path / "ranks")
    assert isinstance(parts[0], Tensor), parts
    assert worst(parts[0], lxt_fx.relevance_of(module, given, [7])) < 1e-10


def without_values(model: Any) -> nn.Module:
    with torch.device("meta"):
        return type(model)(model.config).eval()


LONGER = pytest.mark.slow("gemma3 has all that llama has, and more buffers")


@pytest.mark.parametrize(
    "name", [pytest.param("llama", marks=[one_worker("llama"), LONGER]), pytest.param("gemma3", marks=one_worker("gemma3"))]
)
def test_each_rank_reads_its_own_weights_of_a_checkpoint_only(name: str, tmp_path: Path) -> None:
    model, given = shared_model(name, F64), inputs_of(name)
    wanted, ledger = lxt_fx.relevance_of(explained(name, F64), given, [7]), lxt_fx.audit(explained(name, F64), given, 7)
    model.save_pretrained(tmp_path / "model", max_shard_size="60KB")
    assert (tmp_path / "model/model.safetensors.index.json").exists()
    empty = without_values(model).double()
    module = lxt_fx.transform(empty)
    state = torch.get_rng_state()

    def work(rank: int) -> Any:
        pipe = pipeline(module, tmp_path / "model")
        assert torch.equal(torch.get_rng_state(), state), "nobody's random numbers are drawn"
        found, books = pipe.relevance_of(given, [7]), pipe.audit(given, 7)
        return found.relevance, set(pipe._weights._read), pipe.size, [stage.size for stage in pipe.stages], str(pipe), books

    parts = forked(2, work, tmp_path / "ranks")
    assert worst(parts[0][0], wanted) < 1e-10, parts
    assert parts[1][0] is None and "stage 1: model.layers.1" in parts[0][4]
    parts[0][5].check()  # its nodes have other names: on the meta device the capture has copies more
    for found, own in ((parts[0][5].by_layer(), ledger.by_layer()), (parts[0][5].by_cause(), ledger.by_cause())):
        assert list(found) == list(own)
        assert all(((found[key] - own[key]).abs() <= 1e-10 * ledger.scale()).all() for key in own)
    assert worst(parts[0][5].sources[0].relevance, ledger.sources[0].relevance) < 1e-10
    for rank, (_, read, size, sizes, _, _) in enumerate(parts):
        assert any(f"layers.{rank}." in path for path in read)
        assert not any(f"layers.{1 - rank}." in path for path in read)
        assert size == sizes[rank], "no byte beside the stage's"


@pytest.fixture(scope="module")
def meta_llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[lxt_fx.Explained, nn.Module, Path]:
    folder = tmp_path_factory.mktemp("llama")
    model = tiny.llama()
    model.save_pretrained(folder)
    empty = without_values(model)
    return lxt_fx.transform(empty), empty, folder


@one_worker("llama")
def test_names_that_are_missing_or_unknown_are_refused(
    meta_llama: tuple[lxt_fx.Explained, nn.Module, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    module, empty, folder = meta_llama
    state = load_file(folder / "model.safetensors")

    def saved(name: str, changed: dict[str, Tensor]) -> Path:
        (tmp_path / name).mkdir()
        save_file(changed, tmp_path / name / "model.safetensors")
        return tmp_path / name

    name = "model.layers.0.mlp.up_proj.weight"
    without = saved("without", {key: x for key, x in state.items() if key != name})
    more = saved("more", {**state, "model.extra.weight": torch.ones(2)})
    other = saved("other", {**state, name: torch.ones(3, 3)})
    old = saved("old", {key.removeprefix("model."): x for key, x in state.items()})

    def work(rank: int) -> Any:
        errors = []
        for weights, settings in (
            (without, {}),
            (more, {}),
            (other, {}),
            (tmp_path / "none", {}),
            (folder, {"stages": [1, 1]}),
        ):
            try:
                pipeline(module, weights, **settings)
                errors.append("")
            except lxt_fx.InputError as error:
                errors.append(str(error))
        pipeline(module, more, ignore=["model.extra.*"])
        found = pipeline(module, old).relevance_of(inputs_of("llama"), [7])
        return errors, found.relevance

    ((errors, relevance),) = forked(1, work, tmp_path / "ranks")
    assert f"does not have {name}, which LlamaForCausalLM reads" in errors[0]
    assert "has model.extra.weight, which LlamaForCausalLM has not" in errors[1]
    assert f"{name} is [3, 3] in the checkpoint, [48, 32] here" in errors[2]
    assert "no *.safetensors file" in errors[3] and "2 stages for 1 ranks" in errors[4]
    wanted = lxt_fx.relevance_of(explained("llama"), inputs_of("llama"), [7])
    assert worst(relevance, wanted) < 1e-5, "a name without the prefix of the base model is the one with it"


def experts() -> nn.Module:
    """Twelve experts: read as text, the tenth would come before the second."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "moe_intermediate_size": 16, "num_experts": 12}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, **heads, num_experts_per_tok=2)).eval()


def gated_vision() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 8, "patch_size": 4}
    return Dinov2Model(Dinov2Config(**sizes, use_swiglu_ffn=True)).eval()


@pytest.mark.parametrize("make", [experts, gated_vision], ids=["merged", "divided"])
def test_tensors_that_are_merged_or_divided_are_those_of_from_pretrained(
    make: Callable[[], nn.Module], tmp_path: Path
) -> None:
    model: Any = make()
    model.save_pretrained(tmp_path)
    checkpoint, state, found = Checkpoint(tmp_path), model.state_dict(), dict[str, Tensor]()
    assert not checkpoint.files.keys() <= state.keys()
    empty = without_values(model)
    for part in stored_parts(empty, list(checkpoint.files)):
        found |= part.read(lambda key: checkpoint.read(key, torch.device("cpu")), empty)
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


def test_a_checkpoint_with_a_tensor_for_each_expert_is_read_by_ranks(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model: Any = experts()
    model.save_pretrained(tmp_path / "whole")
    empty = without_values(model)
    module, given = lxt_fx.transform(empty), inputs_of("llama")
    state = load_file(tmp_path / "whole" / "model.safetensors")
    lost = "model.layers.1.mlp.experts.11.up_proj.weight"
    (tmp_path / "lost").mkdir()
    save_file({name: x for name, x in state.items() if name != lost}, tmp_path / "lost" / "model.safetensors")

    def work(rank: int) -> Any:
        said = ""
        try:
            pipeline(module, tmp_path / "lost", timeout=30)
        except lxt_fx.LxtFxError as error:
            said = str(error)
        return said, pipeline(module, tmp_path / "whole", timeout=30).relevance_of(given, [7, 9], size=2).relevance

    parts = forked(2, work, tmp_path / "ranks")
    assert worst(parts[0][1], lxt_fx.relevance_of(lxt_fx.transform(model), given, [7, 9])) < 1e-5
    said = "model.layers.1.mlp.experts.gate_up_proj cannot be made of model.layers.1.mlp.experts.0"
    assert any(said in refused for refused, _ in parts)


@pytest.fixture
def noticed_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that is gone is noticed after one second, not two and a half."""
    monkeypatch.setattr(peers, "BEAT", 0.1)
    monkeypatch.setattr(peers, "STILL", 1.0)


@pytest.mark.usefixtures("noticed_soon")
def test_a_killed_rank_is_named_by_all_others(tmp_path: Path) -> None:
    module = module_of("t5", "attnlrp")

    def work(rank: int) -> Any:
        pipe = pipeline(module, timeout=30)
        pipe.relevance_of(inputs_of("t5"), [7], size=1)
        if rank == 2:
            StageModule._forward = lambda self, number, taken: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment, method-assign, misc]
        begun = time.monotonic()
        with pytest.raises(lxt_fx.CallError) as caught:
            pipe.relevance_of(inputs_of("t5"), [7], size=1)
        return str(caught.value), time.monotonic() - begun

    parts = forked(3, work, tmp_path / "ranks")
    assert parts[2] is None
    for rank in (0, 1):
        said, seconds = parts[rank]
        assert "rank 2 (stage 2 of 3) is gone" in said and f"so rank {rank} (stage {rank} of 3) cannot go on" in said
        assert seconds < 15


@one_worker("llama")
@pytest.mark.slow
@pytest.mark.usefixtures("noticed_soon")
def test_a_rank_that_stops_answering_is_named_after_the_time_out(tmp_path: Path) -> None:
    module = module_of("llama", "attnlrp")

    def work(rank: int) -> Any:
        pipe = pipeline(module, timeout=4)
        if rank == 1:
            StageModule._forward = lambda self, number, taken: os.kill(os.getpid(), signal.SIGSTOP)  # type: ignore[assignment, method-assign, misc]
        begun = time.monotonic()
        with pytest.raises(lxt_fx.CallError) as caught:
            pipe.relevance_of(inputs_of("llama"), [7])
        return str(caught.value), time.monotonic() - begun

    parts = forked(2, work, tmp_path / "ranks")
    assert parts[1] is None and "rank 1 (stage 1 of 2) is gone" in parts[0][0] and 3 < parts[0][1] < 15


@one_worker("llama")
def test_an_error_at_one_rank_is_raised_at_all_and_the_next_call_runs(tmp_path: Path) -> None:
    module, given = module_of("llama", "attnlrp"), inputs_of("llama")

    def work(rank: int) -> Any:
        pipe = pipeline(module, timeout=30)
        said = []
        for target in (999, lambda out: out.logits.log().sum()):
            with pytest.raises(lxt_fx.LxtFxError) as caught:
                pipe.relevance_of(given, [target])
            said.append(f"{type(caught.value).__name__}: {caught.value}")
        return said, pipe.relevance_of(given, [7]).relevance

    parts = forked(2, work, tmp_path / "ranks")
    assert parts[1][0][0].startswith("InputError") and "999" in parts[1][0][0]
    assert "rank 1 (stage 1 of 2) failed, so rank 0 (stage 0 of 2) stops too" in parts[0][0][0] and "999" in parts[0][0][0]
    assert all("NonFiniteError: pipeline: rank 1: an explained number is not finite" in part[0][1] for part in parts)
    assert worst(parts[0][1], lxt_fx.relevance_of(module, given, [7])) < 1e-10


@one_worker("llama")
def test_what_a_pipeline_cannot_do_is_refused_by_name(tmp_path: Path) -> None:
    module, given = module_of("llama", "attnlrp"), inputs_of("llama")
    with pytest.raises(lxt_fx.InputError, match="torch.distributed was not started"):
        pipeline(module)
    with pytest.raises(lxt_fx.InputError, match="lxt_fx.transform"):
        pipeline(shared_model("llama", F64))
    with pytest.raises(lxt_fx.InputError, match="schedule"):
        pipeline(module, schedule="zb")  # type: ignore[arg-type]
    moved = explained("llama", F64)
    with moved.graph.inserting_before(moved.graph.output_node()):
        moved.graph.call_function(to_device, (next(iter(moved.graph.nodes)), torch.device("cpu")))
    with pytest.raises(lxt_fx.InputError, match="several devices of one process"):
        pipeline(moved)

    def work(rank: int) -> Any:
        pipe, said = pipeline(module), []
        cases: list[Callable[[], Any]] = [
            lambda: pipe.relevance_of(given, lambda out: out.logits[0, -1, :3]),
            lambda: pipe.relevance_of(given, [7], size=0),
            lambda: pipe.relevance_of(given, [7], "residual.9"),
            lambda: pipeline(module, timeout=0),
            lambda: pipe.relevance_of({"inputs_embeds": torch.ones(1, 3, 32).double(), "unknown": 3}, [7]),
        ]
        for case in cases:
            try:
                case()
                said.append("nothing")
            except lxt_fx.LxtFxError as error:
                said.append(str(error))
        return said

    (said,) = forked(1, work, tmp_path / "ranks")
    parts = ("give a list", "size must be", "residual.9", "timeout must be", "unknown was not captured")
    assert all(part in text for part, text in zip(parts, said, strict=True)), said


@pytest.mark.parametrize("mixed", [lambda y: y @ y.T, lambda y: y - y.mean(0)], ids=["pairs", "mean"])
def test_examples_that_depend_on_one_another_are_not_divided(mixed: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.GELU()) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return mixed(self.layers[1](self.layers[0](x)))

    given = torch.linspace(-1, 2, 12, dtype=F64).reshape(3, 4)
    module = lxt_fx.transform(Mixing().double().eval(), (given,))

    def work(rank: int) -> Any:
        pipe = pipeline(module)
        together = pipe.relevance_of(given, [1], size=3).leaves["x"]
        try:
            pipe.relevance_of(given, [1], size=2)
        except lxt_fx.InputError as error:
            return together, str(error)
        return together, "nothing"

    ((together, said),) = forked(1, work, tmp_path / "ranks")
    assert "depend on one another" in said and "size=3 keeps them together" in said
    leaf = given.clone().requires_grad_()
    module(leaf)[:, 1].sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(together[0], leaf.detach() * leaf.grad)


def test_weights_that_are_sharded_or_packed_are_refused() -> None:
    from lxt_fx.distributed.weights import Weights

    class Sharded(Tensor):
        pass

    module = explained("llama", F64)
    weights = Weights(module, None, torch.device("cpu"), (), {})
    owner = nn.Module()
    owner.weight = nn.Parameter(torch.ones(2).as_subclass(Sharded), requires_grad=False)
    with pytest.raises(lxt_fx.InputError, match="weight is a .*, which no stage can read"):
        weights.of(owner, ["weight"])
