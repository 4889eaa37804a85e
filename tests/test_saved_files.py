"""A saved file is data: whoever wrote it, `load` gives a module or an InputError, and runs nothing that it says."""

from __future__ import annotations

import copy
import io
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from saved_headers import Header, code, edited, fuzzed, load_text, odd_values, parts_of, written
from shared_captures import each_model, explained, one_worker, shared_model
from tiny import Mlp
from torch import Tensor, nn

import lxt_fx
from lxt_fx.compiler.size_guards import compiled_guard, holds
from lxt_fx.ops.pure_ops import is_pure

Parts = tuple[Header, dict[str, Tensor]]


@dataclass
class Answer:
    """An output class of a user."""

    score: Tensor


class Net(nn.Module):
    """One of each kind of argument: sizes, dtypes, slices, a buffer, a batch norm, an input with the name of a builtin."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.register_buffer("table", torch.arange(6.0))

    def forward(self, input: Tensor) -> dict[str, Tensor]:
        x = self.norm(self.first(input)) + self.table
        x = torch.cat([x[:, 1:4], x.new_zeros(x.shape[0], 2), x.to(torch.float64).float()], -1)
        return {"scores": x, "gate": nn.functional.gelu(x, approximate="tanh")}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return parts_of(lxt_fx.transform(Net().eval(), (torch.randn(3, 6),)), tmp_path_factory.mktemp("base"))


def node(header: Header, start: str) -> dict[str, Any]:
    """The first node whose op or kind starts so."""
    nodes = header["graph"]["nodes"]
    return next(n for n in nodes if n["op"] == start or (n["op"] == "call_function" and str(n["target"]).startswith(start)))


def output_of(header: Header) -> dict[str, Any]:
    found: dict[str, Any] = header["graph"]["out"]
    return found


def call(target: str, *args: Any, **kwargs: Any) -> Callable[[Header], None]:
    """Makes the call of `gelu` another one."""

    def edit(header: Header) -> None:
        gelu = node(header, "lxt_fx.gelu")
        gelu |= {"target": target, "args": {"tuple": [gelu["args"]["tuple"][0] if a is ... else a for a in args]}}
        gelu["kwargs"] = kwargs

    return edit


def put(text: Any, *keys: Any) -> Callable[[Header], None]:
    """Puts a value at a place of the header."""

    def edit(header: Header) -> None:
        place: Any = header
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = text

    return edit


def chain_of_squares(header: Header) -> None:
    nodes = header["graph"]["nodes"]
    at = nodes.index(node(header, "lxt_fx.gelu"))
    last = {"name": "square_0", "args": {"tuple": [2**40, 2**40]}}
    for count in range(8):
        same = {"op": "call_function", "target": "operator.mul", "kwargs": {}, "type": "s0", "many": False}
        nodes.insert(at + count, same | last | {"stack": 0, "trace": 0})
        last = {"name": f"square_{count + 1}", "args": {"tuple": [{"node": last["name"]}] * 2}}


def two_outputs(header: Header) -> None:
    nodes = header["graph"]["nodes"]
    nodes.append(nodes[-1] | {"name": "output_2"})


def circle(header: Header) -> None:
    linear = node(header, "lxt_fx.linear")
    linear["args"]["tuple"][0] = {"node": linear["name"]}


def renamed_tensor(name: str) -> Callable[[Header], None]:
    def edit(header: Header) -> None:
        header["tensors"][name] = header["tensors"].pop("table")

    return edit


def run_statistics(header: Header) -> None:
    tensors = [n["name"] for n in header["graph"]["nodes"] if n["op"] == "get_attr"]
    x = {"node": node(header, "placeholder")["name"]}
    mean = {"node": tensors[0]}
    call("aten.batch_norm.default", x, None, None, mean, mean, True, 0.1, 1e-5, False)(header)


CRAFTED: dict[str, tuple[Callable[[Header], None], str]] = {
    "a format of before": (put(2, "format"), "has format 2, this version reads 4"),
    "no record": (lambda h: h.pop("record"), "has no 'record'"),
    "a graph that is a list": (put([], "graph"), "graph must be an object, not a list"),
    "a keyword as a node": (lambda h: node(h, "aten.cat").update(name="lambda"), "no name of a variable"),
    "a name of the code": (lambda h: node(h, "aten.cat").update(name="torch"), "code of a graph uses itself"),
    "self as an input": (lambda h: node(h, "placeholder").update(target="self"), "code of a graph uses itself"),
    "one name twice": (lambda h: node(h, "aten.cat").update(name=node(h, "lxt_fx.linear")["name"]), "another node"),
    "a builtin as a node": (lambda h: h["graph"]["nodes"][-1].update(name="open"), "torch.fx does not take"),
    "a circle": (circle, "no earlier node has this name"),
    "two outputs": (two_outputs, "comes after the output"),
    "no output": (lambda h: h["graph"]["nodes"].pop(), "has no output"),
    "a method": (lambda h: node(h, "lxt_fx.gelu").update(op="call_method"), "is none of placeholder, get_attr"),
    "a tensor that is a method": (renamed_tensor("forward"), "a name that a module uses itself"),
    "a tensor that is a record": (renamed_tensor("record"), "a name that a module uses itself"),
    "a tensor in a tensor": (renamed_tensor("first.weight.x"), "as a tensor and as a module"),
    "a path of no tensor": (lambda h: node(h, "get_attr").update(target="first"), "the file has no tensor of this name"),
    "a file as a tensor": (call("aten.from_file.default", "/etc/hostname", False, 4), "not on the list of ops"),
    "a tensor into a file": (call("aten.save.default", ..., "/tmp/x"), "not on the list|has no such op"),
    "an op in place": (call("aten.add_.Tensor", ..., 1), "not on the list of ops that only compute"),
    "an op with a hidden write": (run_statistics, "write into its running statistics"),
    "no op": (call("os.system", "true"), "no op of torch"),
    "an attribute of an op": (call("aten.add.__class__"), "has no such op"),
    "a size without bound": (call("aten.zeros.default", {"list": [10**6, 10**6]}), "more than 2147483648 elements"),
    "a range without bound": (call("aten.arange.default", 1e15), "more than 2147483648 elements"),
    "a short range of tiny steps": (call("aten.arange.start_step", 0, 1000, 1e-12), "more than 2147483648 elements"),
    "a number without bound": (chain_of_squares, "a whole number of more than 4096 bits"),
    "a text as a number": (call("aten.unsqueeze.default", ..., "0"), "a dim that is no int"),
    "an argument too many": (call("aten.relu.default", ..., 1), "2 arguments; it takes 1"),
    "an argument that is missing": (call("aten.unsqueeze.default", ...), "gives aten.unsqueeze.default no dim"),
    "an argument that is none": (call("aten.relu.default", ..., inplace=True), "which it does not take"),
    "pinned memory": (call("aten.zeros.default", {"list": [2]}, pin_memory=True), "pin memory"),
    "a function as a dtype": (call("aten.to.dtype", ..., {"torch": "load"}), "is none of"),
    "code as a device": (call("aten.zeros.default", {"list": [2]}, device={"device": "cpu'); f("}), "is no device"),
    "a default factory": (lambda h: output_of(h).update(type="collections.defaultdict"), "neither a list, tuple or dict"),
    "a command of transformers": (lambda h: output_of(h).update(type="transformers.commands.run.Run"), "neither a list"),
    "a model as an output": (
        lambda h: output_of(h).update(type="transformers.models.llama.modeling_llama.LlamaModel"), "no output class",
    ),
    "a field that an output lacks": (
        lambda h: output_of(h).update(type="transformers.modeling_outputs.CausalLMOutput"), "no field of",
    ),
    "an enum that imports": (
        lambda h: output_of(h).update(keys={"__enum__": True, "fqn": "os:system", "name": "x"}), "must be a list",
    ),
    "an output without an end": (put([], "graph", "out", "parts"), "different texts or whole numbers"),
    "a guard that calls": (put(["().__class__"], "record", "guards"), "cannot be checked"),
    "a guard that reads a value": (put(["L['input'].tolist()"], "record", "guards"), "cannot be checked"),
    "a guard without end": (put(["9**9**9**9 == 1"], "record", "guards"), "exponent is no small number"),
    "a guard of large numbers": (put(["((9**999)**999) == 1"], "record", "guards"), "longer than 4096 bits"),
    "a guard that is too deep": (put(["-" * 5000 + "1 == 1"], "record", "guards"), "cannot be checked"),
    "a guard on no input": (put(["L['y'].size()[0] == 1"], "record", "guards"), "which is no input"),
    "a line end in a trace": (put("x\rimport os", "graph", "traces", 0), "holds a control character"),
    "an index of no rule": (lambda h: h["rules"]["stages"]["lowered"]["nodes"].update(gelu=999), "it must be from 0 to"),
    "an input that no version makes": (put(["input"], "record", "optional"), "no input that can be left out"),
    "segments of no graph": (
        lambda h: h.update(segments={"starts": ["nothing"], "end": "output", "places": ["x"]}), "does not have",
    ),
    "a size that is negative": (lambda h: node(h, "placeholder").update(type=["float32", [-1]]), "it must be from 0"),
    "a dtype that is none": (lambda h: node(h, "placeholder").update(type=["__loader__", [1]]), "is none of"),
}  # fmt: skip


@pytest.mark.parametrize("case", CRAFTED)
def test_a_crafted_file_is_refused(case: str, base: Parts, tmp_path: Path) -> None:
    header, tensors = base
    edit, why = CRAFTED[case]
    assert isinstance(load_text(json.dumps(header), tensors), lxt_fx.Explained)
    crafted = copy.deepcopy(header)
    edit(crafted)
    with pytest.raises(lxt_fx.InputError, match=why) as raised:
        lxt_fx.load(written(crafted, tensors, tmp_path))
    assert str(raised.value).startswith(f"load: {tmp_path}") and len(str(raised.value)) < 700


PLACES: dict[str, Callable[[Header, str], None]] = {
    "name of an input": lambda h, text: node(h, "placeholder").update(target=text),
    "name of a node": lambda h, text: node(h, "aten.cat").update(name=text),
    "name in the signature": lambda h, text: h["graph"].update(names=[text]),
    "key of the inputs": lambda h, text: h["graph"]["in"]["parts"][1].update(keys=[text]),
    "name of both": lambda h, text: (h["graph"].update(names=[text]), h["graph"]["in"]["parts"][1].update(keys=[text])),
    "path of a tensor": lambda h, text: node(h, "get_attr").update(target=text),
    "name of a tensor": lambda h, text: h["tensors"].update({text: h["tensors"].pop("table")}),
    "path and name of a tensor": lambda h, text: (
        h["tensors"].update({text: "table"}),
        next(n for n in h["graph"]["nodes"] if n["target"] == "table").update(target=text),
    ),
    "name of an argument": lambda h, text: node(h, "lxt_fx.gelu").update(kwargs={text: "none"}),
    "op": lambda h, text: node(h, "lxt_fx.gelu").update(target=text),
    "op of torch": lambda h, text: node(h, "lxt_fx.gelu").update(target=f"aten.{text}.default"),
    "dtype": lambda h, text: node(h, "aten.to.dtype")["args"]["tuple"].__setitem__(1, {"torch": text}),
    "device": lambda h, text: node(h, "aten.new_zeros")["kwargs"].update(device={"device": text}),
    "guard": lambda h, text: h["record"].update(guards=[text]),
    "class of an output": lambda h, text: output_of(h).update(type=text),
    "name in a printed graph": lambda h, text: h["printed"]["capture"]["nodes"][0].update(name=text),
    "argument in a printed graph": lambda h, text: h["printed"]["capture"]["nodes"][-2].update(
        target={"printed": "x"}, kwargs={text: 1}
    ),
    "start of a segment": lambda h, text: h.update(segments={"starts": [text], "end": "output", "places": ["x"]}),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_code_in_a_file_is_refused_wherever_it_stands(place: str, base: Parts, tmp_path: Path) -> None:
    header, tensors = base
    for text in code(tmp_path / "effect"):
        crafted = copy.deepcopy(header)
        PLACES[place](crafted, text)
        with pytest.raises(lxt_fx.InputError):
            lxt_fx.load(written(crafted, tensors, tmp_path))
        assert not (tmp_path / "effect").exists()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "cannot be read"), ("[1, 2]", "must be an object"), ("null", "must be an object"), ("[" * 10**5, "too deeply"),
        ('{"format": 3, "format": 3}', "names a key twice"), ('{"format": ' + "9" * 5000 + "}", "cannot be read"),
        ('{"format": ' + "9" * 4000 + "}", "has format of another kind"),
    ],
)  # fmt: skip
def test_what_is_no_header_is_refused(text: str, why: str, base: Parts, tmp_path: Path) -> None:
    with pytest.raises(lxt_fx.InputError, match=why):
        lxt_fx.load(written(text, base[1], tmp_path))


def test_what_is_no_whole_file_is_refused(base: Parts, tmp_path: Path) -> None:
    whole = written(*base, tmp_path).read_bytes()
    lxt_fx.load(written(*base, tmp_path))
    for count in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut").write_bytes(whole[:count])
        with pytest.raises(lxt_fx.InputError, match="no file of lxt_fx.save, or not all of one"):
            lxt_fx.load(tmp_path / "cut")
    for path, why in ((tmp_path / "nothing", "there is no such file"), (tmp_path, "no file of")):
        with pytest.raises(lxt_fx.InputError, match=why):
            lxt_fx.load(path)
    torch.save({"a": 1}, tmp_path / "pickle")
    with pytest.raises(lxt_fx.InputError, match="no file of"):
        lxt_fx.load(tmp_path / "pickle")
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "other")
    with pytest.raises(lxt_fx.InputError, match="was not written by lxt_fx.save"):
        lxt_fx.load(tmp_path / "other")


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False))
def test_any_edit_of_a_header_gives_a_module_or_an_input_error(base: Parts, choice: Any) -> None:
    header, tensors = base
    effect = Path("never_written_by_a_header")
    load_text(json.dumps(edited(header, choice, odd_values(effect))), tensors)
    assert not effect.exists()


@pytest.mark.slow
def test_ten_minutes_of_edits_give_modules_or_input_errors(tmp_path: Path) -> None:
    bases = [parts_of(lxt_fx.transform(Net().eval(), (torch.randn(3, 6),)), tmp_path)]
    for name in ("llama", "vit", "bert"):
        bases.append(parts_of(explained(name, checkpoint="layers"), tmp_path))
        bases.append(parts_of(explained(name, form="explicit"), tmp_path))
    said = fuzzed(600, bases, tmp_path / "effect")
    assert said.total() > 1000 and said["loaded"] < said.total()


# --- what a loaded module can do ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["gradient", "explicit"])
@pytest.mark.parametrize("name", each_model(["llama", "vit"]))
def test_a_loaded_module_has_every_stage_and_the_certificate(name: str, form: Any, tmp_path: Path) -> None:
    module = explained(name, form=form)
    lxt_fx.save(module, tmp_path / "module.safetensors")
    loaded = lxt_fx.load(tmp_path / "module.safetensors")
    assert list(loaded.record.stages) == list(module.record.stages)
    for stage in (*module.record.stages, "modules"):
        assert lxt_fx.show(loaded, stage, full=True) == lxt_fx.show(module, stage, full=True)
    assert lxt_fx.show(loaded) == lxt_fx.show(module)
    assert lxt_fx.diff(loaded, "capture", "rules") == lxt_fx.diff(module, "capture", "rules")
    assert lxt_fx.certificate(loaded) == lxt_fx.certificate(module)


def test_ops_that_a_file_may_not_call_are_printed_and_cannot_be_run(tmp_path: Path) -> None:
    class InPlace(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 2
            y.add_(1)
            return y * x

    module = lxt_fx.transform(InPlace(), (torch.randn(2, 3),))
    lxt_fx.save(module, tmp_path / "module.safetensors")
    loaded = lxt_fx.load(tmp_path / "module.safetensors")
    assert "add_(" in lxt_fx.show(loaded, "capture")
    assert lxt_fx.show(loaded, "capture") == lxt_fx.show(module, "capture")
    (inert,) = (n.target for n in loaded.record.stages["capture"].graph.nodes if str(n.target) == "add_")
    with pytest.raises(lxt_fx.InputError, match="cannot be run"):
        inert(torch.ones(1), 1)


@one_worker("llama")
def test_a_loaded_module_says_why_it_cannot_be_put_under_another_table(tmp_path: Path) -> None:
    lxt_fx.save(explained("llama"), tmp_path / "module.safetensors")
    loaded = lxt_fx.load(tmp_path / "module.safetensors")
    with pytest.raises(lxt_fx.InputError, match="has the graph before its rules as text only; give the model"):
        lxt_fx.transform(loaded, kwargs={"inputs_embeds": torch.randn(1, 3, 32)}, rules="gradient")


@one_worker("llama")
def test_audit_watch_and_targets_work_on_a_loaded_module(tmp_path: Path) -> None:
    module = explained("llama")
    lxt_fx.save(module, tmp_path / "module.safetensors")
    loaded = lxt_fx.load(tmp_path / "module.safetensors")
    given = {"inputs_embeds": torch.randn(1, 4, 32)}
    for one in (module, loaded):
        lxt_fx.audit(one, given).check()
    torch.testing.assert_close(lxt_fx.audit(loaded, given).value, lxt_fx.audit(module, given).value)
    relevances = [lxt_fx.relevance_of(one, given, [1, 5]) for one in (module, loaded)]
    torch.testing.assert_close(*relevances)
    watched = []
    for one in (module, loaded):
        leaf = given["inputs_embeds"].clone().requires_grad_(True)
        with lxt_fx.watch(one, "model.layers.0.mlp") as seen:
            one(inputs_embeds=leaf).logits[0, -1, 3].backward()
        watched.append(seen["model.layers.0.mlp"].relevance)
    torch.testing.assert_close(*watched)


@one_worker("bert")
def test_names_of_classes_are_in_the_file(tmp_path: Path) -> None:
    module = explained("bert")
    lxt_fx.save(module, tmp_path / "module.safetensors")
    assert lxt_fx.load(tmp_path / "module.safetensors").config.id2label == shared_model("bert").config.id2label


def test_tensors_of_one_storage_are_written_once(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.part = (nn.Linear(8, size, bias=False) for size in (8, 8, 4))
            self.down.weight = nn.Parameter(self.up.weight.data)  # another object, the same storage
            self.part.weight = nn.Parameter(self.up.weight.data[:4])  # a part of it, which is another tensor

        def forward(self, x: Tensor) -> Tensor:
            return self.part(self.down(self.up(x)))

    model, x = Tied().eval(), torch.randn(2, 8)
    header, tensors = parts_of(lxt_fx.transform(model, (x,)), tmp_path)
    assert header["tensors"]["down.weight"] == header["tensors"]["up.weight"]
    assert sorted(map(tuple, (t.shape for t in tensors.values()))) == [(4, 8), (8, 8)]
    loaded = lxt_fx.load(tmp_path / "whole.safetensors")
    torch.testing.assert_close(loaded(x), model(x))
    assert loaded.get_parameter("up.weight") is loaded.get_parameter("down.weight")


@one_worker("gpt2")
def test_a_tied_embedding_is_written_once(tmp_path: Path) -> None:
    header, tensors = parts_of(explained("gpt2"), tmp_path)
    table = explained("gpt2").get_parameter("lm_head.weight")
    same = [name for name, tensor in tensors.items() if tensor.shape == table.shape and torch.equal(tensor, table.cpu())]
    assert len(same) == 1 and header["embedding"] is None


@one_worker("llama")
def test_pickle_points_to_save() -> None:
    module = explained("llama")
    for dump in (pickle.dumps, lambda found: torch.save(found, io.BytesIO()), lambda found: pickle.dumps({"a": found})):
        with pytest.raises(lxt_fx.InputError, match=r"lxt_fx.save\(explained, path\)"):
            dump(module)
    assert isinstance(copy.deepcopy(module), lxt_fx.Explained)


def test_an_output_class_of_the_users_is_named_to_load(tmp_path: Path) -> None:
    torch.utils._pytree.register_dataclass(Answer, serialized_type_name=f"{Answer.__module__}.{Answer.__name__}")

    class Answers(nn.Module):
        def forward(self, x: Tensor) -> Answer:
            return Answer(x * 2)

    x = torch.randn(2, 3)
    lxt_fx.save(lxt_fx.transform(Answers(), (x,)), tmp_path / "module.safetensors")
    torch.testing.assert_close(lxt_fx.load(tmp_path / "module.safetensors", outputs=(Answer,))(x).score, x * 2)
    with pytest.raises(lxt_fx.InputError, match=r"if it is yours, name it: load\(path, outputs="):
        lxt_fx.load(tmp_path / "module.safetensors")


# --- guards and ops -------------------------------------------------------------------------------------------------------

SIZE = "L['x'].size()[0]"


@pytest.mark.parametrize(
    ("guard", "true", "false"),
    [
        (f"{SIZE} % 4 == 0", 8, 6), (f"({SIZE} + 3) // 4 != 2", 9, 8), (f"max(1, {SIZE} - 2) <= 3", 5, 6),
        (f"{SIZE}**2 < 50", 7, 8), (f"not ({SIZE} == 3 or {SIZE} > 5)", 4, 3), (f"math.ceil({SIZE} / 2) == 2", 3, 5),
        (f"(1 if {SIZE} > 2 else 0) == 1", 3, 2), (f"7 % ({SIZE} - 3) == 0", 4, 3),
    ],
)  # fmt: skip
def test_a_guard_is_computed(guard: str, true: int, false: int) -> None:
    code = compiled_guard(guard)
    assert holds(code, {"x": torch.ones(true)}) and not holds(code, {"x": torch.ones(false)})


def test_a_guard_that_cannot_be_computed_is_an_error_of_a_captured_module_too() -> None:
    module = lxt_fx.transform(Mlp().eval(), (torch.randn(2, 6),))
    with pytest.raises(lxt_fx.InputError, match="cannot be checked.*capture with fixed sizes"):
        module._attach(replace(module.record, guards=("L['x'].stride()[0] == 1",)), None)


def test_no_pure_op_writes_or_opens() -> None:
    """By the schemas of this torch: every op that a file may call returns something and writes nothing."""
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")]
    ops = [found for name in names if (found := _found(name)) is not None]
    pure = [op for op in ops if is_pure(op)]
    assert 400 < len(pure) < 1200
    for op in pure:
        assert op._schema.returns and not op._schema.is_mutable, op
        assert not op._schema.name.endswith("_") or op._schema.name.endswith("__"), op
        assert not any(str(argument.real_type) in ("Storage", "Stream") for argument in op._schema.arguments), op
        assert not any(word in op._schema.name for word in ("file", "save", "load", "print", "set_", "resize", "pin_")), op


def _found(name: str) -> Any:
    packet, _, overload = name.removeprefix("aten::").partition(".")
    return getattr(getattr(torch.ops.aten, packet, None), overload or "default", None)
