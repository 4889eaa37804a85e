"""Private API of torch and transformers is used in two modules only, and a name that is gone is an error that says so."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from traceback import StackSummary
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.utils._python_dispatch
from torch import Tensor, nn
from torch.fx import Graph
from torch.fx.experimental import proxy_tensor, symbolic_shapes

import lxt_fx
from lxt_fx.base import torch_internals as internals
from lxt_fx.base import transformers_internals
from lxt_fx.base.torch_internals import MissingOp, aten

ROOT = Path(__file__).parents[1]
DOORS = {"torch_internals.py", "transformers_internals.py"}
FOREIGN = {"torch", "nn", "F", "functional", "transformers", "fx", "fx_traceback", "graph", "node", "gm", "exported"}
"""What names of a foreign package start with, and what graphs and nodes are called."""
DOCUMENTED = {"torch._check"}
BUILTIN = {"_asdict", "_replace", "_fields"}


def sources() -> dict[str, str]:
    """The text of each module of the package, by path."""
    files = [file for folder in ("lxt_fx", "passes", "rule_table") for file in (ROOT / folder).rglob("*.py")]
    return {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in files if file.name not in DOORS}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def own_names(trees: list[ast.Module]) -> set[str]:
    """Private names that our own classes have: methods, fields, what is set on `self` and was not read from torch."""
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    found = {each.name for owner in classes for each in owner.body if isinstance(each, ast.FunctionDef)}
    for owner in classes:
        fields = [each.target for each in owner.body if isinstance(each, ast.AnnAssign)]
        made = [each for each in owner.body if isinstance(each, ast.FunctionDef) and each.name in ("__init__", "_attach")]
        targets = [node for each in made for node in ast.walk(each) if isinstance(node, ast.Attribute)]
        found |= {each.id for each in fields if isinstance(each, ast.Name)}
        found |= {node.attr for node in targets if isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"}
    return {name for name in found if is_private(name)}


def private_uses(tree: ast.Module, own: set[str]) -> Iterator[str]:
    """Private names of others that the module reads, sets or imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            written = ast.unparse(node)
            foreign = written.split(".")[0] in FOREIGN or node.attr not in own | BUILTIN
            if foreign and not written.startswith("aten.") and written not in DOCUMENTED:
                yield written
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node).startswith("type("):
            yield ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr"):
            named = node.args[1]
            if isinstance(named, ast.Constant) and is_private(str(named.value)) and named.value not in own:
                yield ast.unparse(node)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith("lxt_fx"):
            parts = [*node.module.split("."), *(alias.name for alias in node.names)]
            if node.module != "__future__" and any(map(is_private, parts)):
                yield ast.unparse(node)
        elif isinstance(node, ast.Import) and any(is_private(part) for a in node.names for part in a.name.split(".")):
            yield ast.unparse(node)


def test_private_names_of_others_stand_in_the_two_modules_of_internals_only() -> None:
    trees = {path: ast.parse(text) for path, text in sources().items()}
    assert len(trees) > 100
    own = own_names(list(trees.values()))
    found = {f"{path}: {use}" for path, tree in trees.items() for use in private_uses(tree, own)}
    assert not found, "give each a function in lxt_fx/base/torch_internals.py or lxt_fx/base/transformers_internals.py"


@pytest.mark.parametrize(
    "line",
    [
        "gm.graph._codegen", "torch._C._functorch", "graph._own", "from torch._ops import OpOverload",
        "import torch._dynamo", "type(gm).forward = forward",
        "from torch.fx.graph import _PyTreeCodeGen", "getattr(exported, '_guards_code', ())", "config._field = 1",
        "torch.ops.aten._softmax_backward_data", "self._graph",
    ],
)  # fmt: skip
def test_a_private_use_is_found(line: str) -> None:
    assert list(private_uses(ast.parse(line), {"_own"}))


@pytest.mark.parametrize("line", ["self._own", "explained._own", "aten._to_copy.default", "torch._check", "x.__dict__"])
def test_an_own_or_documented_name_is_none(line: str) -> None:
    assert not list(private_uses(ast.parse(line), {"_own"}))


def test_lists_and_passes_read_aten_through_torch_internals() -> None:
    """`torch.ops.aten.name` is an AttributeError where a torch release drops it, `torch_internals.aten.name` is not."""
    trees = {path: ast.parse(text) for path, text in sources().items() if not path.startswith("lxt_fx/ops/")}
    reads = {f"{p}: {ast.unparse(n)}" for p, tree in trees.items() for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    assert not {read for read in reads if "torch.ops.aten" in read}


EXPORTED = SimpleNamespace()
GONE: dict[str, tuple[Any, str, Callable[[], Any]]] = {
    "_codegen": (None, "", lambda: internals.io_of(SimpleNamespace())),  # type: ignore[arg-type]
    "_guards_code": (None, "", lambda: internals.guards_of(EXPORTED)),  # type: ignore[arg-type]
    "_schema": (None, "", lambda: internals.schema_of(len)),
    "has_kernel_for_dispatch_key": (None, "", lambda: internals.writings_of(len)),  # type: ignore[arg-type]
    "DisableTorchFunction": (
        torch._C, "DisableTorchFunction", lambda: internals.writings_of(torch.ops.aten.outer.default)[0]()
    ),
    "_check_input_dim": (None, "", lambda: internals.check_input_dim(nn.Linear(1, 1), torch.ones(1))),
    "_PyTreeCodeGen": (torch.fx.graph, "_PyTreeCodeGen", lambda: internals.set_io(Graph(), None)),  # type: ignore[arg-type]
    "maybe_current_level": (torch._C._functorch, "maybe_current_level", internals.in_functorch),
    "is_legacy_batchedtensor": (
        torch._C._functorch, "is_legacy_batchedtensor", lambda: internals.is_legacy_batched(torch.ones(1))
    ),
    "_get_current_dispatch_mode": (
        torch.utils._python_dispatch, "_get_current_dispatch_mode", internals.in_dispatch_mode
    ),
    "optimization_hint": (symbolic_shapes, "optimization_hint", lambda: internals.size_on_example("s0")),
    "GuardOnDataDependentSymNode": (
        symbolic_shapes, "GuardOnDataDependentSymNode", lambda: internals.is_contiguous(torch.ones(1))
    ),
    "_set_grad_enabled": (torch._C, "_set_grad_enabled", internals.grad_mode_switch),
}  # fmt: skip


@pytest.mark.parametrize("name", GONE)
def test_a_name_that_is_gone_is_an_error_that_says_what_to_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, attribute, call = GONE[name]
    if owner is not None:
        monkeypatch.delattr(owner, attribute)
    with pytest.raises(lxt_fx.UnsupportedVersionError) as raised:
        call()
    monkeypatch.undo()
    assert str(raised.value).startswith(f"torch {torch.__version__} has no ")
    assert f"{name}, which lxt_fx needs to " in str(raised.value) and "install torch 2.13.0" in str(raised.value)


def test_a_private_argument_of_make_fx_that_is_gone_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def make_fx(function: Any, tracing_mode: str, pre_dispatch: bool, _allow_non_fake_inputs: bool) -> None: ...

    monkeypatch.setattr(proxy_tensor, "make_fx", make_fx)
    with pytest.raises(lxt_fx.UnsupportedVersionError, match="argument _error_on_data_dependent_ops of make_fx"):
        internals.real_tracer(len)


def test_a_forward_is_set_on_one_graph_module_only() -> None:
    graph = Graph()
    graph.output(graph.placeholder("x"))
    first, second = torch.fx.GraphModule({}, graph), torch.fx.GraphModule({}, graph)
    internals.set_forward(first, lambda self, x: x + 1)
    assert first(torch.zeros(1)) == 1 and second(torch.zeros(1)) == 0
    with pytest.raises(lxt_fx.UnsupportedVersionError, match="class of its own for each GraphModule"):
        internals.set_forward(nn.Linear(1, 1), len)  # type: ignore[arg-type]


def test_a_convolution_without_the_hook_of_ours_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    internals.check_convolution_hook()
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: x)
    with pytest.raises(lxt_fx.UnsupportedVersionError, match="Conv2d.forward that calls _conv_forward"):
        internals.check_convolution_hook()


class Halved(nn.Module):
    """Holds for an even number of tokens, which is a guard of its export."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], 2, x.shape[1] // 2).sum(1).exp()


def test_guards_that_are_gone_end_the_capture_instead_of_vanishing(monkeypatch: pytest.MonkeyPatch) -> None:
    export = torch.export.export

    def without_guards(*args: Any, **kwargs: Any) -> Any:
        program = export(*args, **kwargs)
        return SimpleNamespace(module=program.module)

    monkeypatch.setattr(torch.export, "export", without_guards)
    with pytest.raises(lxt_fx.UnsupportedVersionError, match="_guards_code.*to refuse inputs"):
        lxt_fx.transform(Halved().eval(), (torch.randn(2, 6),))


proxy: Any = torch.fx.proxy


def stack_of_node() -> str:
    """Where torch.fx says that a node comes from which is made here."""
    tracer = torch.fx.Tracer()
    tracer.graph, tracer.record_stack_traces = Graph(), True

    def forward() -> str:
        return str(tracer.create_node("placeholder", "x", (), {}).stack_trace)

    return forward()


def test_stacks_of_nodes_are_read_quickly_in_the_thread_that_captures_and_no_longer() -> None:
    of_torch = proxy.CapturedTraceback
    with internals.stacks_read_quickly():
        assert proxy.CapturedTraceback is not of_torch
    extract = mock.Mock(side_effect=of_torch.extract)
    with mock.patch.object(of_torch, "extract", extract), ThreadPoolExecutor(1) as other:
        with pytest.raises(KeyError), internals.stacks_read_quickly(), internals.stacks_read_quickly():
            extract.reset_mock()
            here = stack_of_node()
            assert extract.call_count == 0
            there = other.submit(stack_of_node).result()
            assert extract.call_count == 1
            raise KeyError
        assert proxy.CapturedTraceback is of_torch
        assert here.splitlines()[:2] == there.splitlines()[:2] == stack_of_node().splitlines()[:2]
    assert __file__ in here and "in forward" in here


class OtherFrames:
    """What another release of torch might read."""

    @staticmethod
    def extract() -> OtherFrames:
        return OtherFrames()

    def summary(self) -> StackSummary:
        return StackSummary.from_list([("model.py", 3, "forward", "x"), ("other.py", 4, "inner", "y")])


def test_stacks_that_torch_reads_in_another_way_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for other in (OtherFrames, object, None):
        monkeypatch.setattr(proxy, "CapturedTraceback", other)
        with internals.stacks_read_quickly():
            assert proxy.CapturedTraceback is other


def test_an_op_that_torch_lacks_is_no_error_before_it_is_called() -> None:
    assert aten.silu.default is torch.ops.aten.silu.default
    for missing in (aten.no_such_op.default, aten.silu.no_such_overload):
        assert isinstance(missing, MissingOp) and missing not in {aten.silu.default}
        with pytest.raises(lxt_fx.UnsupportedVersionError, match="no_such"):
            missing(torch.ones(1))
    assert aten.no_such_op.default is aten.no_such_op.default


def test_the_expert_setting_of_transformers_that_is_gone_is_an_error() -> None:
    import transformers

    model = nn.Module()
    model.config = transformers.LlamaConfig()  # type: ignore[assignment]
    with transformers_internals.traceable_experts(model):
        pass
    del model.config._experts_implementation_internal
    with (
        pytest.raises(lxt_fx.UnsupportedVersionError, match="no LlamaConfig._experts_implementation_internal"),
        transformers_internals.traceable_experts(model),
    ):
        pass
