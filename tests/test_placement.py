"""Placement in one process: models that accelerate dispatched, weights that are streamed, and moves between devices."""

from __future__ import annotations

import copy
import gc
import json
import operator
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import tiny
import torch
from shared_captures import explained as shared
from shared_captures import shared_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Interpreter
from transformers import AutoModelForCausalLM

import lxt_fx
from lxt_fx.base.errors import CallError, InputError
from lxt_fx.base.streamed_weight import StreamedWeight, is_streamed, streamed_weights
from lxt_fx.base.torch_internals import copied_graph
from lxt_fx.compiler.conversions import move_graph
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.weights_hash import weights_hash
from lxt_fx.ops.moves import to_device
from lxt_fx.passes.capture import offloaded as dispatched
from lxt_fx.passes.capture import refused_models
from lxt_fx.passes.placement import insert_moves as insertion
from lxt_fx.passes.placement.insert_moves import drop_moves, insert_moves
from lxt_fx.passes.placement.read_ahead import ReadAhead

IDS = torch.tensor([[5, 3, 9, 4, 1, 7]])
DISK = dict.fromkeys(("model.embed_tokens", "model.layers", "model.norm", "lm_head"), "disk") | {"model.rotary_emb": "cpu"}


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    return tiny.llama(layers=3)


@pytest.fixture(scope="module")
def in_memory(plain: nn.Module) -> Explained:
    return lxt_fx.transform(plain)


def from_shards(model: nn.Module, folder: Path, device_map: dict[str, str]) -> nn.Module:
    """The model read from several files of safetensors, as people load it."""
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return AutoModelForCausalLM.from_pretrained(folder, device_map=device_map, offload_folder=folder / "offloaded").eval()


def by_disk_offload(model: nn.Module, folder: Path) -> nn.Module:
    """In files of accelerate's own kind."""
    offloaded = copy.deepcopy(model)
    accelerate.disk_offload(offloaded, str(folder), execution_device="cpu")
    return offloaded


@pytest.fixture(scope="module")
def offloaded(plain: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    return from_shards(plain, tmp_path_factory.mktemp("shards"), DISK)


@pytest.fixture(scope="module")
def streamed(offloaded: nn.Module) -> Explained:
    return lxt_fx.transform(offloaded)


def relevance(explained: Explained, ids: Tensor = IDS) -> tuple[Tensor, Tensor]:
    """The logits, and the relevance of each token for one of them."""
    output, leaves = explained.with_leaves(input_ids=ids)
    output.logits[0, -1, 7].backward()
    leaf = leaves["inputs_embeds"]
    return output.logits.detach(), (leaf * leaf.grad).sum(-1).detach()


def assert_same(one: Explained, other: Explained, ids: Tensor = IDS) -> None:
    for found, expected in zip(relevance(one, ids), relevance(other, ids), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


class Alive:
    """What is alive of the weights that were read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tensors: list[weakref.ref[Tensor]] = []
        self.most = self.reads = 0
        self.lock = threading.Lock()
        load = StreamedWeight.load

        def counted(weight: StreamedWeight) -> Tensor:
            found = load(weight).clone()
            with self.lock:
                self.tensors.append(weakref.ref(found.untyped_storage()))
                self.most, self.reads = max(self.most, self.bytes), self.reads + 1
            return found

        monkeypatch.setattr(StreamedWeight, "load", counted)

    @property
    def bytes(self) -> int:
        return sum(found.nbytes() for each in self.tensors if (found := each()) is not None)


# A model with offloaded weights


def test_relevance_of_a_model_on_disk_is_that_of_the_model_in_memory(
    streamed: Explained, in_memory: Explained, offloaded: nn.Module
) -> None:
    assert {name for name, _ in streamed_weights(streamed)} == {name for name, _ in streamed.named_parameters()}
    assert streamed.record.forward_difference == 0.0
    assert_same(streamed, in_memory)
    padded = torch.tensor([[5, 3, 9, 4, 1, 7], [2, 8, 6, 0, 0, 0]])
    assert_same(streamed, in_memory, padded)
    assert all(parameter.is_meta for parameter in offloaded.parameters()), "the user's model is as it was"
    assert "_hf_hook" in vars(offloaded.lm_head)
    torch.testing.assert_close(offloaded(IDS).logits, in_memory(input_ids=IDS).logits)


def tied_on_cpu(folder: Path) -> tuple[nn.Module, nn.Module]:
    model = shared_model("gemma3")
    assert model.config.tie_word_embeddings
    return model, from_shards(model, folder, DISK | {"model.embed_tokens": "cpu", "lm_head": "cpu"})


def by_checkpoint(folder: Path) -> tuple[nn.Module, nn.Module]:
    model = shared_model("llama")
    model.save_pretrained(folder)
    with accelerate.init_empty_weights():
        empty = type(model)(model.config)
    return model, accelerate.load_checkpoint_and_dispatch(
        empty, str(folder), device_map=DISK, offload_folder=str(folder / "off"), offload_buffers=True
    ).eval()


def whole_on_disk(folder: Path) -> tuple[nn.Module, nn.Module]:
    model = shared_model("bert")
    return model, by_disk_offload(model, folder)


@pytest.mark.parametrize(
    "make",
    [
        tied_on_cpu,
        pytest.param(by_checkpoint, marks=pytest.mark.slow("another function of accelerate, the same hooks")),
        pytest.param(whole_on_disk, marks=pytest.mark.slow("an encoder, in files of accelerate's own kind")),
    ],
)
def test_each_way_of_accelerate_to_dispatch_is_explained(
    make: Callable[[Path], tuple[nn.Module, nn.Module]], tmp_path: Path
) -> None:
    model, dispatched = make(tmp_path)
    one, other = lxt_fx.transform(dispatched), lxt_fx.transform(model)
    assert is_streamed(one) and one.record.forward_difference <= 1e-6
    pairs = []
    for explained in (one, other):
        output, leaves = explained.with_leaves(input_ids=IDS)
        next(iter(output.values())).square().sum().backward()
        pairs.append([leaf * leaf.grad for leaf in leaves.values()])
    for found, expected in zip(*pairs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


def test_only_the_part_that_runs_and_the_one_read_ahead_are_alive(
    streamed: Explained, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[str, int] = {}
    for name, weight in streamed_weights(streamed):
        layer = ".".join(name.split(".")[:3]) if ".layers." in name else "the end"
        sizes[layer] = sizes.get(layer, 0) + weight.nbytes
    alive = Alive(monkeypatch)
    relevance(streamed)
    assert alive.most <= 2 * max(sizes.values()) < sum(sizes.values())
    assert alive.reads > 2 * len(list(streamed.parameters())) - 2, "forward and backward read each weight"
    gc.collect()
    assert alive.bytes == 0
    with torch.no_grad():
        streamed(input_ids=IDS)
    assert alive.bytes == 0


ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks" / "placement"))
from offload import MEBIBYTE, measured, save_model  # noqa: E402


@pytest.mark.slow("the memory of a process, which the test of the tensors that are alive stands for")
def test_a_model_of_three_times_the_allowed_memory_is_explained_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = save_model(tmp_path, layers=20, hidden=512, inner=1536) / MEBIBYTE
    found = {case: measured(tmp_path, case) for case in ("disk", "memory")}
    with capsys.disabled():
        for case, each in found.items():
            print(f"\n{case}: peak {each['peak']:.0f} MiB of {weights:.0f} MiB of weights, {each['seconds']}")
    assert found["disk"]["peak"] <= weights / 3 < found["memory"]["peak"]
    one, other = (torch.tensor(each["relevance"]) for each in found.values())
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6 * float(other.abs().max()))


def test_what_runs_node_by_node_reads_weights_again_in_the_backward(
    streamed: Explained, in_memory: Explained, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = "model.layers.1.mlp"
    alive = Alive(monkeypatch)
    with lxt_fx.watch(streamed, place) as found:
        output, _ = streamed.with_leaves(input_ids=IDS)
        weights = sum(weight.nbytes for _, weight in streamed_weights(streamed))
        assert alive.bytes < weights / 3, "a forward saves handles"
        output.logits[0, -1, 7].backward()
    with lxt_fx.watch(in_memory, place) as expected:
        relevance(in_memory)
    torch.testing.assert_close(found[place].relevance, expected[place].relevance)


def audited(explained: Explained) -> Tensor:
    ledger = lxt_fx.audit(explained, {"input_ids": IDS})
    return torch.stack([ledger.value, ledger.at("residual.1"), ledger.residual])


ASKED: dict[str, Callable[[Explained], Any]] = {
    "many targets": lambda explained: lxt_fx.relevance_of(explained, {"input_ids": IDS}, [1, 2, 3, 4]),
    "audit": audited,
    "embed": lambda explained: lxt_fx.embed(explained, IDS).detach(),
    "a copy": lambda explained: relevance(copy.deepcopy(explained))[1],
    "another table": lambda e: relevance(lxt_fx.transform(e, kwargs={"input_ids": IDS}, rules="cp_lrp"))[1],
    "positions": lambda e: lxt_fx.transform(e, kwargs={"input_ids": IDS}, positions="last")(input_ids=IDS).logits.detach(),
    "explicit": lambda e: lxt_fx.transform(e, kwargs={"input_ids": IDS}, form="explicit")(input_ids=IDS).logits.detach(),
}


@pytest.mark.parametrize("name", ASKED)
def test_what_is_asked_of_a_streamed_module_is_answered_as_in_memory(
    name: str, streamed: Explained, in_memory: Explained
) -> None:
    found, expected = ASKED[name](streamed), ASKED[name](in_memory)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * max(float(expected.abs().max()), 1.0))


def test_what_needs_all_weights_in_memory_is_refused(streamed: Explained, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="save: .* is offloaded and read for each use.*save the module of the model"):
        lxt_fx.save(streamed, tmp_path / "module.safetensors")
    with pytest.raises(InputError, match="compile: weights of .* are read for each use"):
        streamed.compile()
    with pytest.raises(InputError, match="cannot be converted from float32 on cpu to float16 on cpu"):
        streamed.half()
    with pytest.raises(InputError, match="place: weights of this module are offloaded already"):
        lxt_fx.place(streamed, "cpu")
    assert streamed.to("cpu") is streamed and streamed.device == torch.device("cpu")


def test_the_hash_of_offloaded_weights_is_that_of_their_values(
    streamed: Explained, in_memory: Explained, offloaded: nn.Module, plain: nn.Module
) -> None:
    assert weights_hash(streamed) == weights_hash(in_memory)
    assert weights_hash(offloaded) == weights_hash(plain)


def test_a_file_that_changed_is_an_error() -> None:
    weight = StreamedWeight(torch.empty(2, 3), lambda: torch.zeros(3, 2), torch.device("cpu"), "lm_head.weight")
    with pytest.raises(CallError, match=r"lm_head.weight was offloaded as \[2, 3\], and \[3, 2\] is read"):
        weight.load()


class ConstantOnItsDevice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.second(h * torch.tensor([1.0, 2.0, 3.0, 4.0], device=h.device))


def test_a_constant_whose_values_capture_did_not_see_is_refused_or_right(tmp_path: Path) -> None:
    net, x = ConstantOnItsDevice().eval(), torch.ones(2, 4)
    try:
        explained = lxt_fx.transform(by_disk_offload(net, tmp_path), (x,))
    except InputError as error:
        assert "a constant that the model's code makes" in str(error)
    else:
        torch.testing.assert_close(explained(x), net(x))


# Reading ahead


def weight_that_says(heard: list[str], name: str, fails: bool = False) -> StreamedWeight:
    def read() -> Tensor:
        heard.append(f"{name} in {threading.current_thread().name}")
        if fails:
            raise OSError("the disk is gone")
        return torch.ones(2)

    return StreamedWeight(torch.empty(2), read, torch.device("cpu"), name)


def test_the_next_part_is_read_ahead_in_the_forward_and_the_one_before_in_the_backward() -> None:
    heard: list[str] = []
    ahead = ReadAhead()
    for number in range(3):
        assert ahead.add([weight_that_says(heard, str(number))]) == number
    for number in range(3):
        ahead.take(number, ahead.after(number))
    own = threading.current_thread().name
    assert [each.split(" in ")[0] for each in heard] == ["0", "1", "2"]
    assert [each.split(" in ")[1] == own for each in heard] == [True, False, False]
    heard.clear()
    ahead.in_backward |= {1, 2}
    for number in (2, 1):
        ahead.take(number, ahead.before(number))
    assert [each.split(" in ")[0] for each in heard] == ["2", "1"] and own not in heard[1]


def test_what_a_read_ahead_raises_is_raised_where_the_weights_are_needed() -> None:
    ahead = ReadAhead()
    ahead.add([weight_that_says([], "0")])
    ahead.add([weight_that_says([], "1", fails=True)])
    ahead.take(0, ahead.after(0))
    with pytest.raises(OSError, match="the disk is gone"):
        ahead.take(1, None)


# A model on several devices, with nothing offloaded


@pytest.fixture
def on_two(plain: nn.Module, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A model with accelerate's hooks, of which the second layer is said to lie on another device of the one CPU."""
    model = accelerate.dispatch_model(copy.deepcopy(plain), {"": "cpu"}, force_hooks=True)
    second = {id(parameter) for parameter in model.model.layers[1].parameters()}
    other = torch.device("cpu", 1)
    monkeypatch.setattr(insertion, "device_of", lambda x: other if id(x) in second else x.device)
    monkeypatch.setattr(dispatched, "devices_of", lambda model: {torch.device("cpu"), other})
    return model


def test_a_model_on_several_devices_is_compared_forward_and_backward_and_nothing_is_offloaded(
    on_two: nn.Module, in_memory: Explained
) -> None:
    explained = lxt_fx.transform(on_two)
    assert len(moves(explained.graph)) == 5, "the residual in and out; cosine, sine and mask in"
    assert_same(explained, in_memory)
    assert not is_streamed(explained)
    assert {id(x) for x in explained.parameters()} <= {id(x) for x in on_two.parameters()}
    record = explained.record
    assert record.forward_difference == 0.0
    assert 0 <= record.gradient_difference < 1e-5 and record.gradient_note == ""
    assert "offload" not in str(lxt_fx.certificate(explained))
    assert "_hf_hook" in vars(on_two.lm_head), "the user's model is as it was"


class Detached(nn.Module):
    """A hook on a gradient, which no graph has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if h.requires_grad and not torch.compiler.is_compiling():
            h.register_hook(lambda gradient: 3 * gradient)
        return self.second(h)


def test_a_backward_that_capture_lost_is_found_on_several_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    net = accelerate.dispatch_model(Detached().eval(), {"": "cpu"}, force_hooks=True)
    monkeypatch.setattr(dispatched, "devices_of", lambda model: {torch.device("cpu"), torch.device("cpu", 1)})
    with pytest.raises(lxt_fx.GradientMismatchError, match="passes another gradient than the model"):
        lxt_fx.transform(net, (torch.ones(2, 4),))


# Moves


def moves(graph: Graph) -> list[tuple[str, str]]:
    """What each move reads, and where it goes."""
    return [(str(node.args[0]), str(node.args[1])) for node in graph.find_nodes(op="call_function", target=to_device)]


def test_a_layer_on_another_device_is_entered_and_left_by_moves_that_show_prints(
    in_memory: Explained, tmp_path: Path
) -> None:
    before = lxt_fx.show(in_memory, full=True)
    placed = lxt_fx.place(in_memory, {"": "cpu:0", "model.layers.1": "cpu:1"})
    assert_same(placed, in_memory)
    carrying = [line for line in lxt_fx.show(placed).splitlines() if "lxt_fx.to_device" in line]
    assert [line.split(", ")[-1].split(")")[0] for line in carrying] == ["cpu:1", "cpu:0"], "the residual goes in and out"
    assert all("| move" in line for line in carrying)
    assert len(moves(placed.graph)) == 5, "cosine, sine and mask go in too"
    assert lxt_fx.show(in_memory, full=True) == before and not moves(in_memory.graph)
    assert moves(lxt_fx.place(placed, "cpu").graph) == []
    with pytest.raises(InputError, match="save: the parts of this module are on several devices"):
        lxt_fx.save(placed, tmp_path / "module.safetensors")
    assert placed.lm_head.weight is in_memory.lm_head.weight
    assert placed.record.forward_difference == in_memory.record.forward_difference
    assert lxt_fx.audit(placed, {"input_ids": IDS}).residual == pytest.approx(0, abs=1e-6)


def fake_run(explained: Explained, place_of: Callable[[str], str], without: int | None = None) -> Any:
    """The canonical graph with moves, run on tensors that have devices and no values; `without` takes one move out."""
    graph, inputs = copied_graph(explained.record.stages["canonical"].graph, explained.graph), torch.device("cuda:0")
    names = {str(node.target) for node in graph.find_nodes(op="get_attr")}
    devices = {name: torch.device(place_of(name)) for name in names}
    move_graph(graph, inputs)
    insert_moves(graph, devices, inputs)
    if without is not None:
        move = list(graph.find_nodes(op="call_function", target=to_device))[without]
        move.replace_all_uses_with(move.args[0])
        graph.erase_node(move)

    class OnDevices(Interpreter):
        def fetch_attr(self, target: str) -> Any:
            held = operator.attrgetter(target)(explained)
            return torch.empty(held.shape, dtype=held.dtype, device=devices[target])

    with FakeTensorMode():
        shapes = ([2, 7, 32], torch.float32), ([2, 7], torch.long), ([2, 7], torch.long)
        given = [torch.empty(shape, dtype=dtype, device=inputs) for shape, dtype in shapes]
        return OnDevices(GraphModule(explained, graph)).run(*given, enable_io_processing=False), moves(graph)


@pytest.mark.parametrize("layers", ["1", "02", "2"])
def test_every_op_gets_its_operands_on_one_device_and_every_move_is_needed(in_memory: Explained, layers: str) -> None:
    def place_of(name: str) -> str:
        return "cuda:1" if ".layers." in name and name.split(".")[2] in layers else "cuda:0"

    (output,), inserted = fake_run(in_memory, place_of)
    assert output.device == torch.device("cuda:0")
    for number in range(len(inserted)):
        with pytest.raises(Exception, match="device"):
            fake_run(in_memory, place_of, without=number)


def test_a_map_of_one_device_inserts_nothing_and_moves_can_be_taken_out(in_memory: Explained) -> None:
    assert fake_run(in_memory, lambda name: "cuda:0")[1] == []
    graph = copied_graph(in_memory.record.stages["canonical"].graph, in_memory.graph)
    nodes = [str(node) for node in graph.nodes]
    devices = {str(node.target): torch.device("cpu:0") for node in graph.find_nodes(op="get_attr")}
    devices["lm_head.weight"] = torch.device("cpu:1")
    assert insert_moves(graph, devices, torch.device("cpu:0")) == drop_moves(graph) == 2
    assert [str(node) for node in graph.nodes] == nodes


# place


def test_weights_are_placed_on_disk_and_those_of_the_given_module_stay(in_memory: Explained, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "weights"
    placed = lxt_fx.place(in_memory, {"": "disk", "model.layers.0": "cpu"}, offload_folder=folder)
    names = {name for name, _ in streamed_weights(placed)}
    assert names == {name for name, _ in placed.named_parameters() if "layers.0." not in name}
    assert len(list(folder.glob("*.safetensors"))) == len(names) + 1, "the embedding computes the leaf"
    assert_same(placed, in_memory)
    assert not is_streamed(in_memory)
    with pytest.raises(InputError, match="is not empty, and another module may read what is there"):
        lxt_fx.place(in_memory, "disk", offload_folder=folder)


def test_auto_gives_whole_layers_to_what_has_room(in_memory: Explained, tmp_path: Path) -> None:
    room = {"cpu": "90KB", "disk": "1GB"}
    placed = lxt_fx.place(in_memory, "auto", max_memory=room, offload_folder=tmp_path)
    layers = {name.split(".")[2] for name, _ in streamed_weights(placed) if ".layers." in name}
    held = {name.split(".")[2] for name, weight in placed.named_parameters() if ".layers." in name and not weight.is_meta}
    assert layers and held and not layers & held, "no layer is divided"
    assert_same(placed, in_memory)


@pytest.mark.parametrize(
    ("device_map", "options", "match"),
    [
        ({"": "cpu", "model.layer.1": "cpu"}, {}, "nothing at 'model.layer.1'; did you mean 'model.layers.1'"),
        ({"model.layers": "cpu"}, {}, "says nothing of model.norm.weight, lm_head.weight"),
        ("meta", {}, "'the model' on 'meta', and no tensor can be made there"),
        ({"": "nowhere"}, {}, "on 'nowhere'"),
        ("disk", {}, "give offload_folder"),
        ("cpu", {"max_memory": {"cpu": "1GB"}}, 'max_memory is for device_map="auto"'),
    ],
)
def test_a_map_that_does_not_fit_is_refused_before_anything_moves(
    in_memory: Explained, device_map: Any, options: Any, match: str
) -> None:
    with pytest.raises(InputError, match=match):
        lxt_fx.place(in_memory, device_map, **options)


def test_modules_that_cannot_be_placed_are_refused(in_memory: Explained, tmp_path: Path) -> None:
    lxt_fx.save(in_memory, tmp_path / "module.safetensors")
    with pytest.raises(InputError, match="was loaded from a file.*explained.to"):
        lxt_fx.place(lxt_fx.load(tmp_path / "module.safetensors"), "cpu")
    with pytest.raises(InputError, match="was not made by lxt_fx.transform"):
        lxt_fx.place(nn.Linear(2, 2), "cpu")  # type: ignore[arg-type]


def test_a_placed_module_answers_other_calls_as_long_as_the_one_that_was_placed_is_there() -> None:
    explained, x = shared("llama"), lxt_fx.embed(shared_model("llama"), IDS).detach()
    placed = lxt_fx.place(explained, {"": "cpu:0", "lm_head": "cpu:1"})
    mask = torch.ones_like(IDS)
    assert placed._other_calls is None, "the shared capture has no further graphs"
    torch.testing.assert_close(placed(inputs_embeds=x, attention_mask=mask).logits, explained(input_ids=IDS).logits)


# Refusals

DIVIDED = """
import json, torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
import lxt_fx
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
net = lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
made = {
    "tensor parallel": parallelize_module(net(), mesh, {"0": ColwiseParallel()}),
    "FSDP2": fully_shard(net(), mesh=mesh),
    "FSDP": FullyShardedDataParallel(net(), device_id=torch.device("cpu")),
}
found = {}
for name, model in made.items():
    try:
        lxt_fx.transform(model, (torch.ones(2, 4),))
    except lxt_fx.InputError as error:
        found[name] = str(error)
print(json.dumps(found))
dist.destroy_process_group()
"""


def test_models_that_are_divided_over_ranks_are_refused_by_name() -> None:
    done = subprocess.run([sys.executable, "-c", DIVIDED], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert "0 has DTensor parameters (tensor parallelism)" in found["tensor parallel"]
    assert "register_sharding" in found["tensor parallel"]
    assert "was given to fully_shard (FSDP2)" in found["FSDP2"]
    assert "is wrapped in FullyShardedDataParallel (FSDP)" in found["FSDP"]
    assert all("from_pretrained(device_map=...)" in said for said in found.values())


def test_deepspeed_and_quantised_weights_on_disk_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    net, x = nn.Sequential(nn.Linear(4, 4)), torch.ones(2, 4)
    vars(net[0].weight).update(ds_id=3, ds_status="NOT_AVAILABLE")
    with pytest.raises(InputError, match="0 has parameters that DeepSpeed ZeRO-3 has divided"):
        lxt_fx.transform(net, (x,))
    offloaded = by_disk_offload(nn.Sequential(nn.Linear(4, 4)), tmp_path)
    monkeypatch.setattr(refused_models, "is_packed", lambda module: isinstance(module, nn.Linear))
    with pytest.raises(InputError, match=r"0 \(Linear\) is quantised, and weights of the model are offloaded"):
        lxt_fx.transform(offloaded, (x,))
