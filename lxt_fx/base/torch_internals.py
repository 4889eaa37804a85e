"""All uses of torch's private API in lxt_fx: one small function for each use.

Any release of torch may remove a private name. Each function says what the name is for, and what would happen if it were
missing without a check. With the check, a missing name raises UnsupportedVersionError where it is first needed.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from inspect import signature
from traceback import FrameSummary, StackSummary
from types import FrameType, ModuleType
from typing import Any, NoReturn, get_args, get_type_hints

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.fx.graph import CodeGen, PythonCode
from torch.utils.hooks import BackwardHook

from lxt_fx.base.errors import UnsupportedVersionError
from lxt_fx.version import TESTED

try:
    from torch._ops import OpOverload
    from torch.nn.modules.batchnorm import _BatchNorm
    from torch.nn.modules.conv import _ConvNd
    from torch.utils import _pytree as pytree
    from torch.utils._python_dispatch import TorchDispatchMode
except ImportError as error:
    raise UnsupportedVersionError(
        f"torch {torch.__version__} lacks what lxt_fx needs for every graph ({error}); install torch {TESTED['torch']}, "
        "with which it was tested, or a newer lxt_fx"
    ) from error


__all__ = ["BatchNormNd", "ConvNd", "OpOverload", "TorchDispatchMode", "pytree"]
"""Names of torch that are used as they are: the type of an op in a graph, nested containers, what sees every op of a block
(all unchanged since torch 2.0), and the base classes of convolutions and batch norms, which those in `lxt_fx.nn` derive
from."""

BatchNormNd = _BatchNorm
ConvNd = _ConvNd


def unsupported(missing: str, purpose: str) -> NoReturn:
    """Raises UnsupportedVersionError: what is missing, what lxt_fx needs it for, which torch was tested, what to do."""
    raise UnsupportedVersionError(
        f"torch {torch.__version__} has no {missing}, which lxt_fx needs {purpose}; install torch {TESTED['torch']}, with "
        "which it was tested, or a newer lxt_fx"
    )


def found(owner: Any, name: str, purpose: str) -> Any:
    """`owner.name`; if it is missing, raises UnsupportedVersionError with its purpose."""
    try:
        return getattr(owner, name)
    except AttributeError:
        where = owner.__name__ if isinstance(owner, (ModuleType, type)) else type(owner).__name__
        unsupported(f"{where}.{name}", purpose)


# --- ATen ops by name -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MissingOp:
    """An ATen op that this torch does not have. Lists and rules may name it: no graph has it, so it never matches. Calling
    it raises UnsupportedVersionError."""

    name: str

    def __str__(self) -> str:
        return self.name

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        unsupported(self.name, "for what it computes here")


class _Overloads:
    """The overloads of one ATen op, each looked up once."""

    def __init__(self, name: str) -> None:
        self.op_name, self.packet = name, getattr(torch.ops.aten, name, None)

    def __getattr__(self, overload: str) -> Any:
        op = getattr(self.packet, overload, None)
        vars(self)[overload] = op if isinstance(op, OpOverload) else MissingOp(f"aten.{self.op_name}.{overload}")
        return vars(self)[overload]


class _Aten:
    """`aten.silu.default` as in `torch.ops.aten`. But an op that this torch does not have is a `MissingOp` and no
    AttributeError, so that lists and rules can name ops of any torch release and the package can still be imported."""

    def __getattr__(self, name: str) -> Any:
        vars(self)[name] = _Overloads(name)
        return vars(self)[name]


aten = _Aten()


def aten_op(name: str) -> Any:
    """The overload of that name, `add.Tensor`, or `silu` for `silu.default`; None where this torch does not have it."""
    packet, _, overload = name.partition(".")
    op = getattr(getattr(aten, packet), overload or "default")
    return None if isinstance(op, MissingOp) else op


def aten_ops(names: str) -> frozenset[Any]:
    """The overloads of these names, without those that this torch does not have."""
    return frozenset(op for name in names.split() if (op := aten_op(name)) is not None)


def schema_of(op: Any) -> Any:
    """The schema of an op: names, defaults and types of its arguments, which of them it writes, what its results alias.
    Every analysis needs it."""
    return found(op, "_schema", "to know the arguments of an op")


@dataclass(frozen=True, slots=True)
class ArgumentType:
    """What a schema says of an argument: its type as text (`Optional[List[int]]`), whether a call must give it, whether
    only by name, and whether one value may stand for a list of equal ones."""

    type: str
    required: bool
    by_name_only: bool
    repeats: bool


@cache
def argument_types(op: OpOverload) -> dict[str, ArgumentType]:
    """What the schema of an op says of each argument. Without it, what a file gives to an op could not be checked."""
    purpose = "to check what a file gives to an op"
    return {
        argument.name: ArgumentType(
            str(found(argument, "real_type", purpose)),
            not found(argument, "has_default_value", purpose)(),
            bool(found(argument, "kwarg_only", purpose)),
            found(argument, "N", purpose) is not None,
        )
        for argument in schema_of(op).arguments
    }


def base_name(op: Any) -> str:
    """The name of an op without namespace and overload: `silu` of `aten.silu.default`."""
    name: str = schema_of(op).name
    return name.split("::")[1]


def overload_name(op: Any) -> str:
    """The name of an op's overload: `data` of `aten.lstm.data`."""
    return str(found(op, "_overloadname", "to tell the overloads of an op apart"))


@cache
def written_by(op: OpOverload) -> tuple[str, ...]:
    """The names of the arguments that an op writes into: `self` of `add_`, `out` of `cumsum.out`."""
    arguments = schema_of(op).arguments
    return tuple(a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write)


@cache
def may_alias(op: Any) -> bool:
    """Whether the result of an op may share memory with what it reads, as that of a view does. True for what is no op."""
    return not isinstance(op, OpOverload) or any(value.alias_info is not None for value in schema_of(op).returns)


@cache
def functional_of(op: OpOverload, name: str) -> Any:
    """The overload of the op `name` that returns what `op` writes: it takes the same arguments, but for an `out`, and its
    first may have another name (`self` of `dropout_`). None if there is none. Overloads of the same name may take other
    things: `pow_.Scalar` is `pow.Tensor_Scalar`, and `pow.Scalar` has a number for its base."""
    packet = getattr(aten, name).packet
    taken = [a for a in schema_of(op).arguments if not (a.kwarg_only and a.name in written_by(op))]
    wanted = _names_and_types(taken)
    for overload in [] if packet is None else packet.overloads():
        functional = getattr(packet, overload)
        if _names_and_types(schema_of(functional).arguments) == wanted:
            return functional
    return None


def _names_and_types(arguments: list[Any]) -> list[tuple[str, str]]:
    return [(a.name if at else "", str(a.type)) for at, a in enumerate(arguments)]


def softmax_backward(gradient: Tensor, weights: Tensor, dim: int) -> Tensor:
    """The gradient of softmax from its weights, in one kernel: s (g - sum g s). Without the private op it would take three
    kernels, which round differently."""
    op = aten._softmax_backward_data.default
    if isinstance(op, MissingOp):
        unsupported(op.name, "for the backward of softmax")
    result: Tensor = op(gradient, weights, dim, weights.dtype)
    return result


_SWITCHES = ("torch._C", "torch._functorch", "torch.amp.autocast_mode")


def is_global_switch(target: Any) -> bool:
    """Whether a function in a graph changes the state of torch: grad mode, autocast, the levels of a traced `vmap`. Such
    functions are in private modules. If they moved, dead-code elimination would remove them and the forward check of
    `transform` would fail."""
    return getattr(target, "__module__", "").startswith(_SWITCHES)


# --- what a graph takes and gives -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GraphIO:
    """How a graph module is called: the names of its inputs, the structure of (args, kwargs), the structure of its
    output."""

    names: tuple[str, ...]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec


_IO = "to know how a graph packs its inputs and outputs"


def io_of(graph: Graph) -> GraphIO:
    """How the graph is called. torch.fx stores this only in the code generator of the graph."""
    info = found(found(graph, "_codegen", _IO), "pytree_info", _IO)
    return GraphIO(tuple(info.orig_args), info.in_spec, info.out_spec)


def set_io(graph: Graph, io: GraphIO) -> None:
    """Sets how the graph is called. Without it a forward would take and return flat lists."""
    generator = found(torch.fx.graph, "_PyTreeCodeGen", _IO)
    graph.set_codegen(generator(found(torch.fx.graph, "_PyTreeInfo", _IO)(list(io.names), io.in_spec, io.out_spec)))


def children_of(spec: pytree.TreeSpec) -> list[pytree.TreeSpec]:
    """The structures of the parts of a container. Older releases of torch have them as an attribute."""
    return list(spec.children()) if hasattr(spec, "children") else list(spec.children_specs)


def copy_io(source: Graph, target: Graph) -> None:
    """Makes the target be called as the source is, also if the source takes and returns plain values."""
    generator: CodeGen = found(source, "_codegen", _IO)
    target.set_codegen(generator)


def copied_graph(graph: Graph, called_as: Graph | None = None) -> Graph:
    """A copy of the graph that is called as another one is; if that is None, it takes and returns flat lists."""
    copy = Graph()
    copy.output(copy.graph_copy(graph, {}))
    if called_as is not None:
        copy_io(called_as, copy)
    return copy


# --- graph modules --------------------------------------------------------------------------------------------------------


def recompile_as(gm: GraphModule, graph: Graph) -> PythonCode:
    """Compiles the forward of the module from another graph; `gm.graph` does not change. torch.fx compiles the private
    `_graph`, and an assignment to `gm.graph` would make the other graph the module's own. `_lineno_map` belongs to the
    compiled code: if it stayed, torch.compile would look up its lines in `gm.graph`."""
    purpose = "to run a fused graph instead of the one that is shown"
    own = found(gm, "_graph", purpose)
    gm._graph = graph
    try:
        code = GraphModule.recompile(gm)
    finally:
        gm._graph = own
    found(gm, "_lineno_map", purpose)
    gm._lineno_map = None
    return code


def set_forward(gm: GraphModule, forward: Callable[..., Any]) -> None:
    """Makes the module run this function. torch.fx makes a class for each graph module and puts the forward there. If
    modules shared a class, this would change all of them, so that is an error."""
    if "<locals>" not in type(gm).__qualname__:
        unsupported("class of its own for each GraphModule", "to give a module a forward that recomputes its segments")
    type(gm).forward = forward


def rename(node: Node, name: str) -> None:
    """Renames the node, to `name_1` if the name is taken. An assignment to `node.name` could give two nodes the same
    name."""
    found(node, "_rename", "to name nodes")(name)


# --- capture --------------------------------------------------------------------------------------------------------------


def compiled_when_called() -> AbstractContextManager[Any]:
    """Inside the block, the graph modules that torch.export makes on its way compile their forward only if they are called.
    It makes a dozen and calls few. If torch had no such switch any more, they would be compiled as by default."""
    from torch.fx import _lazy_graph_module as lazy

    switch = getattr(lazy, "_use_lazy_graph_module", None)
    return nullcontext() if switch is None else switch(True)


def _quick_stack_type(of_torch: Any) -> Any:
    """What `CapturedTraceback` may be to the tracers of this thread; those of other threads get torch's own."""
    thread = threading.get_ident()

    class QuickStack(of_torch):  # type: ignore[misc]
        """The frames from the first `forward` on, whose lines are looked up when they are read."""

        is_quick = True

        def __init__(self, frames: list[FrameType]) -> None:
            codes = [(frame.f_code, frame.f_lineno) for frame in reversed(frames)]
            self.frames = [FrameSummary(c.co_filename, line, c.co_name, lookup_line=False) for c, line in codes]

        @staticmethod
        def extract(*, script: bool = False, cpp: bool = False, skip: int = 0) -> Any:
            if script or cpp or skip or threading.get_ident() != thread:
                return of_torch.extract(script=script, cpp=cpp, skip=0 if script or cpp else skip + 1)
            frames: list[FrameType] = []
            kept, frame = 0, sys._getframe(1)
            while frame is not None:
                frames.append(frame)
                kept = len(frames) if frame.f_code.co_name == "forward" else kept
                frame = frame.f_back  # type: ignore[assignment]
            return QuickStack(frames[:kept])

        def summary(self) -> StackSummary:
            """The outermost first."""
            return StackSummary.from_list(self.frames)

    return QuickStack


@contextmanager
def stacks_read_quickly() -> Iterator[None]:
    """Inside the block, torch.fx finds out where the nodes of this thread's tracers come from in a fifth of the time: it
    symbolizes the whole stack for each node, looks up the line of each frame, and drops all that is outside of the first
    `forward`. Here only what it keeps is made. For one thread at a time. If torch took stacks from elsewhere, or kept
    other frames, it would read them itself, in its own time."""
    proxy: Any = torch.fx.proxy
    of_torch = getattr(proxy, "CapturedTraceback", None)
    nested = getattr(of_torch, "is_quick", False)
    if nested or not isinstance(of_torch, type) or not _quick_stacks_are_torchs(of_torch):
        yield
        return
    quick = _quick_stack_type(of_torch)
    try:
        proxy.CapturedTraceback = quick
        yield
    finally:
        if proxy.CapturedTraceback is quick:  # nobody has set another meanwhile
            proxy.CapturedTraceback = of_torch


@cache
def _quick_stacks_are_torchs(of_torch: Any) -> bool:
    """Whether nodes get the same text either way, of whole stacks and of those that have the model's frames only."""
    proxy: Any = torch.fx.proxy

    def forward(whole: bool) -> str | None:
        tracer = torch.fx.Tracer()
        tracer.graph, tracer.record_stack_traces = Graph(), True
        tracer._record_forward_stack_traces_only = not whole
        return tracer.create_node("placeholder", "x", (), {}).stack_trace

    found_texts = []
    try:
        for proxy.CapturedTraceback in (of_torch, _quick_stack_type(of_torch)):
            found_texts.append([forward(whole) for whole in (True, False)])
    except Exception:  # whatever another release raises, its own stacks are right
        return False
    finally:
        proxy.CapturedTraceback = of_torch
    return found_texts[0] == found_texts[1] and None not in found_texts[0]


def unlifted(exported: ExportedProgram) -> GraphModule:
    """The exported program as a module that does not check guards itself: these checks refuse a size of 1, for which the
    graph is valid. Older releases of torch have neither checks nor switch. If a later one dropped the switch, more calls
    would be refused."""
    switch = {"check_guards": False} if "check_guards" in signature(exported.module).parameters else {}
    module = exported.module(**switch)
    if not isinstance(module, GraphModule):
        unsupported("GraphModule behind ExportedProgram.module()", "to read an exported graph")
    return module


def guards_of(exported: ExportedProgram) -> tuple[str, ...]:
    """The conditions on input shapes under which an exported graph computes what the model does, as Python expressions over
    `L`. If a missing name were read as "no guards", calls that break them would silently give wrong numbers."""
    if "check_guards" not in signature(ExportedProgram.module).parameters:
        return guards_of_graph(exported.graph_module.graph)
    return tuple(found(exported, "_guards_code", "to refuse inputs that an exported graph is not valid for") or ())


def guards_of_graph(graph: Graph) -> tuple[str, ...]:
    """The same conditions for releases (such as 2.6) that neither check them nor write them down: every condition on a
    symbol that tracing met, with the size of an input in place of the symbol, and equal sizes where inputs share a symbol.
    A condition on a symbol that is no size of an input concerns values, which an op in the graph checks."""
    purpose = "to refuse inputs that an exported graph is not valid for"
    from torch.fx.experimental import symbolic_shapes  # imports sympy

    sizes: dict[Any, list[str]] = {}
    derived: list[tuple[str, Any]] = []  # sizes that tracing found to be computed from others
    environment: Any = None
    for node in graph.nodes:
        value = node.meta.get("val") if node.op == "placeholder" else None
        for dim, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
            if isinstance(size, torch.SymInt):
                environment, expr = size.node.shape_env, size.node.expr
                written = f"L['{node.name}'].size()[{dim}]"
                if expr.is_symbol:
                    sizes.setdefault(expr, []).append(written)
                else:
                    derived.append((written, expr))
    if environment is None:
        return ()
    printer = found(symbolic_shapes, "ShapeGuardPythonPrinter", purpose)(sizes, str, sizes)
    conditions = [guard.expr for guard in found(environment, "guards", purpose)]
    said = [printer.doprint(condition) for condition in conditions if condition.free_symbols <= sizes.keys()]
    same = [f"{first} == {other}" for first, *others in sizes.values() for other in others]
    computed = [f"{written} == {printer.doprint(expr)}" for written, expr in derived]
    return tuple(dict.fromkeys([*said, *same, *computed]))


def real_tracer(function: Callable[..., Any]) -> Callable[..., GraphModule]:
    """make_fx on real tensors: `function(*tensors)` runs once, and every ATen op that it calls becomes a node with its
    source line. Ops are recorded before autograd decomposes them. Python may read values, and tensors from outside become
    constants. Two of the arguments are private; without them, models that read values could not be traced."""
    from torch.fx.experimental.proxy_tensor import make_fx

    private = {"_error_on_data_dependent_ops": False, "_allow_non_fake_inputs": True}
    if missing := private.keys() - signature(make_fx).parameters.keys():
        unsupported(f"argument {sorted(missing)[0]} of make_fx", "to trace models that read values")
    # torch 2.6 has no such argument: there, nodes of a real trace know their modules and not their lines
    lines = {"record_stack_traces": True} if "record_stack_traces" in signature(make_fx).parameters else {}
    traced: Callable[..., GraphModule] = make_fx(
        function, tracing_mode="real", pre_dispatch=True, **lines, **private,  # type: ignore[arg-type]
    )
    return traced


_WRITINGS = "to write out an op that has no rule"


def writings_of(op: OpOverload) -> list[Callable[..., Any]]:
    """How torch itself writes out an op in other ops, the best first: what a composite op calls, torch's decomposition into
    core ops, any other decomposition. Without them, every op that no rule lists would be refused."""
    found_ones: list[Callable[..., Any]] = []
    composite = found(torch._C, "DispatchKey", _WRITINGS).CompositeImplicitAutograd
    if found(op, "has_kernel_for_dispatch_key", _WRITINGS)(composite):
        found_ones.append(lambda *args, **kwargs: _decomposed(op, args, kwargs))
    return found_ones + [table[op] for table in _decompositions() if op in table]


@cache
def _decompositions() -> tuple[Any, Any]:
    import torch._decomp as decompositions  # imports sympy

    core = found(decompositions, "core_aten_decompositions", _WRITINGS)()
    return core, found(decompositions, "decomposition_table", _WRITINGS)


def _decomposed(op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The call of a composite op as the calls that it makes. Without the guard, make_fx would record the op itself."""
    with found(torch._C, "DisableTorchFunction", _WRITINGS)():
        return found(op, "decompose", _WRITINGS)(*args, **kwargs)


def traced_ops(function: Callable[..., Any], given: list[Any]) -> GraphModule:
    """The ops that the function calls on fake tensors and symbolic sizes, as a graph in which free sizes stay free. Ops are
    recorded as they are called, before autograd."""
    from torch._dispatch.python import enable_python_dispatcher  # imports sympy
    from torch.fx.experimental.proxy_tensor import make_fx

    fake = next((found(t, "fake_mode", _WRITINGS) for t in given if isinstance(t, Tensor)), None)
    with fake or nullcontext(), enable_python_dispatcher():
        traced = make_fx(function, tracing_mode="real", pre_dispatch=True, _allow_non_fake_inputs=True)(*given)
    assert isinstance(traced, GraphModule)
    return traced


def is_fake(tensor: Any) -> bool:
    """Whether the tensor has a shape and no values, on a device that it says."""
    from torch._subclasses.fake_tensor import FakeTensor  # imports sympy

    return isinstance(tensor, FakeTensor)


def known_values(tensor: Tensor) -> Any:
    """The values of a fake tensor that tracing knows, because the code wrote them as numbers: Python may read them."""
    held = getattr(tensor, "constant", None)
    return None if held is None else (str(held.dtype), repr(held.tolist()))


def new_fakes(like: list[Any], device: torch.device) -> list[Any]:
    """Fake tensors on the device in the place of tensors on the meta device, all of one mode."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # imports sympy

    with FakeTensorMode():
        return [
            torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device) if isinstance(x, Tensor) else x
            for x in like
        ]


def fake_mode() -> Any:
    """A new mode in which ops run on tensors that have a shape, a dtype and a device and no values. Without it, costs on a
    device could be counted by running there only."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # imports sympy

    return FakeTensorMode()


def fakes_beside(like: Tensor, tensors: Iterable[Tensor]) -> list[Tensor]:
    """Fake tensors in the place of tensors with values, of the mode of another fake tensor. Their sizes are numbers."""
    mode = found(like, "fake_mode", _VALUES)
    return [mode.from_tensor(tensor.detach(), static_shapes=True) for tensor in tensors]


def set_fake_values(modules: Iterable[GraphModule], symbols: Mapping[str, int]) -> None:
    """Gives each node of these graphs the value that capture would record: a fake tensor with its dtype, strides and
    symbolic sizes. Of the inputs, whose values say dtype and shape, the sizes that are no numbers are `symbols`, each with
    its size on an example. Without values, rules cannot tell the shapes that they ask for."""
    from torch._dynamo.source import ConstantSource
    from torch._subclasses.fake_tensor import FakeTensorMode  # imports sympy
    from torch.fx.experimental import symbolic_shapes

    environment = found(symbolic_shapes, "ShapeEnv", _VALUES)()
    mode = FakeTensorMode(shape_env=environment, allow_non_fake_inputs=False)
    free: dict[str, Any] = {}
    kinds: dict[Any, Any] = {}
    known: dict[Any, Any] = {}
    last = ""
    for name, size in sorted(symbols.items()):
        for number in range(100):  # torch chooses the name; products are sorted by it, and stand in printed graphs
            source = ConstantSource(f"{name}_{number}")
            symbol = environment.create_symbol(size, source, dynamic_dim=symbolic_shapes.DimDynamic.DYNAMIC)
            if str(symbol) > last:
                break
        last = str(symbol)
        free[name] = environment.create_symintnode(symbol, hint=size, source=source)
    for gm in modules:
        inputs = []
        with mode:
            for node in gm.graph.find_nodes(op="placeholder"):
                kind = node.meta.get("val")
                given = getattr(kind, "shape", None)
                sizes = None if given is None else [free[str(x)] if str(x) in free else int(x) for x in given]
                device = next((x.device for x in (*gm.parameters(), *gm.buffers())), torch.device("cpu"))
                inputs.append(kind if sizes is None else torch.empty(sizes, dtype=kind.dtype, device=device))
        _FakeValues(gm, mode, kinds, known).run(*inputs, enable_io_processing=False)


_VALUES = "to know dtypes and shapes of a graph that was read from a file"


class _FakeValues(Interpreter):
    """Runs a graph on fake tensors and notes the value of each node. Values of one kind are one object, so an op runs once
    for all nodes that call it alike: a model of many layers has as many kinds of nodes as one of two."""

    def __init__(self, gm: GraphModule, mode: Any, kinds: dict[Any, Any], known: dict[Any, Any]) -> None:
        super().__init__(gm)
        self.mode, self.kinds, self.known = mode, kinds, known

    def run(self, *args: Any, **settings: Any) -> Any:
        with self.mode, torch.no_grad():
            return super().run(*args, **settings)

    def run_node(self, n: Node) -> Any:
        n.meta["val"] = result = self._interned(super().run_node(n)) if n.op != "output" else super().run_node(n)
        return result

    def fetch_attr(self, target: str) -> Any:
        found = super().fetch_attr(target)
        key = "a tensor", found.dtype, found.shape, found.stride(), found.device
        if key not in self.kinds:
            self.kinds[key] = self.mode.from_tensor(found, static_shapes=True)
        return self.kinds[key]

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key = target, *map(_identified, args), *((name, _identified(each)) for name, each in kwargs.items())
        if key not in self.known:
            found = super().call_function(target, args, kwargs)
            if _is_data_dependent(found):
                return found
            self.known[key] = found
        return self.known[key]

    def _interned(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(map(self._interned, value)) if type(value) in (list, tuple) else value
        if isinstance(value, Tensor) and value.layout is torch.strided:
            return self.kinds.setdefault((value.dtype, str(value.shape), str(value.stride()), value.device), value)
        return value


def _identified(argument: Any) -> Any:
    """What distinguishes an argument: a fake tensor itself, the text of a size, else type and value."""
    if isinstance(argument, (list, tuple)):
        return type(argument), *map(_identified, argument)
    if isinstance(argument, slice):
        return slice, *map(_identified, (argument.start, argument.stop, argument.step))
    if isinstance(argument, Tensor):
        return Tensor, id(argument)
    return type(argument), str(argument)


def _is_data_dependent(value: Any) -> bool:
    """Whether a value has a size that only its input's values say, so that the next one has another."""
    if isinstance(value, (list, tuple)):
        return any(map(_is_data_dependent, value))
    sizes = value.shape if isinstance(value, Tensor) else [value]
    return any(isinstance(size, torch.SymInt) and "u" in str(size) for size in sizes)


_COMPILED = "to explain the model that torch.compile was given"


def compiled_from(module: nn.Module) -> nn.Module | None:
    """The module that `torch.compile` was given, if this is what it returned. That class is private, so it is known by its
    name. Taken for a model of its own, it would have no inputs by name, and its submodules other paths."""
    if type(module).__name__ != "OptimizedModule":
        return None
    inner: nn.Module = found(module, "_orig_mod", _COMPILED)
    return inner


def compiled_parts(model: nn.Module) -> list[str]:
    """The submodules that `torch.compile` or `compile()` compiled, by path; the model itself is called "the model"."""
    return [
        path or "the model"
        for path, part in model.named_modules()
        if compiled_from(part) is not None or getattr(part, "_compiled_call_impl", None) is not None
    ]


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Inside the block, submodules that `torch.compile` or `compile()` compiled are the plain ones, and functions that it
    compiled run as they are written. make_fx refuses a compiled function, torch.export loses the paths of the modules in
    it, and the compiler fails where capture watches what a model calls."""
    in_place = [(part, call) for part in model.modules() if (call := getattr(part, "_compiled_call_impl", None))]
    wrapped = [
        (part, name, child) for part in model.modules() for name, child in part.named_children() if compiled_from(child)
    ]
    try:
        for part, _ in in_place:
            part._compiled_call_impl = None
        for part, name, child in wrapped:
            part.add_module(name, compiled_from(child))
        with torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext():
            yield
    finally:
        for part, name, child in wrapped:
            part.add_module(name, child)
        for part, call in in_place:
            part._compiled_call_impl = call


@contextmanager
def compiled_as_written(now: bool) -> Iterator[None]:
    """Inside the block, functions that `torch.compile` compiled run as they are written. They would be compiled for the
    example, and make_fx refuses them. As long as the compiler was not imported nothing is compiled; `now` says that the
    block will compile. Without the setting of the second line, models with compiled functions are refused by make_fx."""
    if not now and "torch._dynamo.eval_frame" not in sys.modules:
        yield
        return
    import torch._dynamo.config as config

    with torch.compiler.set_stance("force_eager"), config.patch(error_on_nested_fx_trace=False):
        yield


_FLEX = "torch.nn.attention.flex_attention"
_FLEX_PURPOSE = "to take flex_attention apart"


@contextmanager
def flex_attention_as(attention: Callable[..., tuple[Tensor, ...]]) -> Iterator[None]:
    """Inside the block, `flex_attention` calls this function in the place of its op, with the arguments of the op, after
    its own checks but that of the device: on CPU, torch refuses tensors that ask for a gradient. The function returns the
    output and two statistics of the scores, of which releases such as 2.6 want the first only. Nothing is changed if the
    module was never imported."""
    flex: Any = sys.modules.get(_FLEX)
    if flex is None:
        yield
        return
    wanted = len(get_args(get_type_hints(mapped_flex_attention())["return"]))
    replaced: dict[str, Any] = {
        "flex_attention_hop": lambda *args, **kwargs: attention(*args, **kwargs)[:wanted],
        "_validate_device": lambda query, key, value: None,
    }
    if hasattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"):  # torch 2.6 has no such switch
        replaced["_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"] = True
    with _replaced(flex, replaced):
        yield


@contextmanager
def flex_mask_by(mask: Callable[[Any, Sequence[int], Any], Tensor]) -> Iterator[None]:
    """Inside the block, `create_mask` is `mask(function, sizes, device)`, and a BlockMask has its function, its length and
    one block. Its real blocks would be computed for one length."""
    flex: Any = sys.modules.get(_FLEX)
    if flex is None:
        yield
        return

    def create_mask(
        mod_fn: Any, B: int | None, H: int | None, Q_LEN: int, KV_LEN: int, device: Any = None, *_: Any, **__: Any
    ) -> Tensor:
        return mask(mod_fn, (B or 1, H or 1, Q_LEN, KV_LEN), device)

    def no_blocks(mask: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return mask, None

    def one_block(blocks: tuple[Tensor, None], function: Any, lengths: Any, *sizes: Any, **named: Any) -> Any:
        batch, heads = blocks[0].shape[:2]
        ones = torch.ones([batch, heads, 1], dtype=torch.int32, device=blocks[0].device)
        zeros = torch.zeros([batch, heads, 1, 1], dtype=torch.int32, device=blocks[0].device)
        return flex.BlockMask.from_kv_blocks(ones, zeros, mask_mod=function, seq_lengths=lengths)

    replaced = {
        "create_mask": create_mask,
        "_convert_mask_to_block_mask": no_blocks,
        "_create_sparse_block_from_block_mask": one_block,
        "_transpose_ordered": lambda counts, indices, *_: (counts, indices),  # for a backward that is not used
    }
    with _replaced(flex, replaced):
        yield


def mapped_flex_attention() -> Callable[..., Any]:
    """What the op of `flex_attention` runs without a compiler: `score_mod` and `mask_mod` mapped over all scores."""
    module = import_module("torch._higher_order_ops.flex_attention")  # its package has the op under that name
    mapped: Callable[..., Any] = found(module, "math_attention", _FLEX_PURPOSE)
    return mapped


@contextmanager
def _replaced(module: Any, replaced: dict[str, Any]) -> Iterator[None]:
    own = {name: found(module, name, _FLEX_PURPOSE) for name in replaced}
    try:
        for name, value in replaced.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in own.items():
            setattr(module, name, value)


# --- regions and modes ----------------------------------------------------------------------------------------------------


def grad_mode_region() -> Any:
    """The op that torch.export writes for code with gradients off or on. If it were not recognised, code without gradients
    would be an op without a rule."""
    import torch._higher_order_ops.wrap  # noqa: F401 - registers it

    return found(torch.ops.higher_order, "wrap_with_set_grad_enabled", "to inline regions without gradient")


def autocast_region() -> Any:
    """The op that torch.export writes for code under autocast."""
    import torch._higher_order_ops.wrap  # noqa: F401 - registers it

    return found(torch.ops.higher_order, "wrap_with_autocast", "to inline regions under autocast")


def autocast_switches() -> tuple[Any, Any]:
    """The functions that make_fx writes where autocast is entered and left. If they were not recognised, the casts in
    between would be lost, or those of the caller would get in."""
    module, purpose = torch.amp.autocast_mode, "to find blocks under autocast"
    return found(module, "_enter_autocast", purpose), found(module, "_exit_autocast", purpose)


def grad_mode_switch() -> Any:
    """The function that make_fx writes where gradients are switched off or on. If it were not recognised, relevance would
    pass through what the model computes without gradients."""
    return found(torch._C, "_set_grad_enabled", "to find regions without gradient")


def any_autocast() -> bool:
    """Whether autocast is on for any device. The public function wants a device, and costs more than a backward without
    autocast should. If it were missing, a backward under autocast would compute in another dtype than its forward."""
    on: bool = found(torch._C, "_is_any_autocast_enabled", "to run a backward in the dtype of its forward")()
    return on


def onednn_linear() -> Callable[..., Tensor] | None:
    """oneDNN's linear map in float32 (input, weight, bias, "none", [], ""), which torch's own compiler calls; None where
    torch's product of matrices is as fast, or this torch does not have it. MKL uses AVX-512 on Intel's processors only."""
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    amd = str(capabilities.get("cpu_name", "")).startswith("AMD") and capabilities.get("avx512_f")
    if not (amd and torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):  # type: ignore[no-untyped-call]
        return None
    linear: Callable[..., Tensor] | None = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return linear


_LEVELS = "to know whether it runs in a vmap"


def in_functorch() -> bool:
    """Whether this code runs inside `torch.func.vmap`, `grad` or the like, where Python cannot read values."""
    levels = found(torch._C, "_functorch", _LEVELS)
    return found(levels, "maybe_current_level", _LEVELS)() is not None


def is_legacy_batched(tensor: Tensor) -> bool:
    """Whether this is a batch of gradients of `is_grads_batched`, which is another kind of vmap. Treated as a plain
    gradient it would run gradient by gradient, or fail."""
    levels = found(torch._C, "_functorch", _LEVELS)
    return bool(found(levels, "is_legacy_batchedtensor", _LEVELS)(tensor))


def in_dispatch_mode() -> bool:
    """Whether ops are recorded (make_fx) or run on fake tensors, where Python cannot read values."""
    module = torch.utils._python_dispatch
    return found(module, "_get_current_dispatch_mode", "to know whether ops are traced")() is not None


def not_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator for a kernel in Python that a compiled graph calls while it runs. `torch.compile` would compile what the
    kernel calls, and with `fullgraph=True` refuse it. The public `torch.compiler.disable` imports the compiler at once;
    this one does when the kernel is first called."""
    disable = found(torch, "_disable_dynamo", "to run kernels of packed layers in compiled graphs")
    wrapped: Callable[..., Any] = disable(function)
    return wrapped


def function_base() -> Any:
    """The class through which every call of an `autograd.Function` goes, also one whose `apply` was stored before. Without
    it, capture would trace into forwards and lose the backwards that their authors wrote."""
    return found(torch.autograd.function, "_SingleLevelFunction", "to see calls of autograd.Functions")


# --- sizes that may be symbols --------------------------------------------------------------------------------------------


def size_on_example(size: Any) -> int:
    """A size as a number: for a symbol its size in the example, 1 if it is data-dependent. Estimates of memory and trials
    of other sizes use it. Releases such as 2.6 have it under another name."""
    if isinstance(size, int):
        return size
    from torch.fx.experimental import symbolic_shapes  # imports sympy

    name = "hint_int" if hasattr(symbolic_shapes, "hint_int") else "optimization_hint"
    return int(found(symbolic_shapes, name, "to estimate the bytes of a symbolic size")(size, 1))


_TRIED = "to try an op at other sizes"


def conditions_on(values: Iterable[Any]) -> list[Any]:
    """The conditions that tracing has put on symbols so far, as sympy expressions, if one of the values has symbolic
    sizes."""
    for value in values:
        for size in value.shape if isinstance(value, Tensor) else [value]:
            if isinstance(size, torch.SymInt):
                environment = found(size, "node", _TRIED).shape_env
                return [guard.expr for guard in found(environment, "guards", _TRIED)]
    return []


def sizes_tried(sizes: Iterable[Any], conditions: Iterable[Any]) -> list[dict[Any, int]]:
    """Numbers for the symbols in the sizes, by symbol: those of the example, each one more, and 1, where these meet the
    conditions. One empty dict where there are no symbols."""
    symbols: dict[Any, int] = {}
    for size in sizes:
        if isinstance(size, torch.SymInt):
            node = found(size, "node", _TRIED)
            for symbol in node.expr.free_symbols:
                symbols[symbol] = max(symbols.get(symbol, 2), size_on_example(size) if node.expr.is_symbol else 2)
    if not symbols:
        return [{}]
    others = {symbol: number + 1 for symbol, number in symbols.items()}, dict.fromkeys(symbols, 1)
    return [symbols, *(numbers for numbers in others if not any(_fails(c, numbers) for c in conditions))]


def _fails(condition: Any, numbers: Mapping[Any, int]) -> bool:
    """Whether a condition is false for these numbers, or has no value, as a remainder of a division by 0."""
    try:
        return bool(condition.xreplace(numbers) == False)  # noqa: E712 - sympy
    except ZeroDivisionError:
        return True


def size_at(size: Any, numbers: dict[Any, int]) -> int:
    """The size with these numbers for its symbols."""
    if isinstance(size, torch.SymInt):
        return int(found(size, "node", _TRIED).expr.xreplace(numbers))
    return int(size)


def is_contiguous(tensor: Tensor) -> bool:
    """Whether a reshape of the (fake) tensor is a view. If that is data-dependent the answer is False, and the check of the
    forward would find a mistake."""
    from torch.fx.experimental import symbolic_shapes  # imports sympy

    undecided = found(symbolic_shapes, "GuardOnDataDependentSymNode", "to treat data-dependent sizes")
    try:
        return tensor.is_contiguous()
    except undecided:
        return False


# --- torch.nn -------------------------------------------------------------------------------------------------------------


def check_convolution_hook() -> None:
    """Raises UnsupportedVersionError unless convolutions call `_conv_forward(input, weight, bias)`, which those of
    `lxt_fx.nn` override with their rule. If it were not called, they would silently be plain convolutions."""
    for convolution in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        if "_conv_forward" not in convolution.forward.__code__.co_names:
            unsupported(f"{convolution.__name__}.forward that calls _conv_forward", "to give convolutions a rule")


def check_conversion_hook() -> None:
    """Raises UnsupportedVersionError unless `to`, `half`, `cuda` and the like call `_apply(fn)`, which explained modules
    override. If it were not called, a conversion of an explained module would silently convert the user's model."""
    for method in (nn.Module.to, nn.Module.half, nn.Module.cuda, nn.Module.to_empty):
        if "_apply" not in method.__code__.co_names:
            unsupported(f"Module.{method.__name__} that calls _apply", "to leave the model as it is")


def convert_all(module: nn.Module, convert: Callable[[Tensor], Tensor]) -> None:
    """Converts all parameters and buffers of the module, as torch's own `to` does."""
    for part in module.modules():
        nn.Module._apply(part, convert, False)  # type: ignore[no-untyped-call]


def check_input_dim(module: nn.Module, x: Tensor) -> None:
    """The batch norm's own check that its input has the right number of dims."""
    found(module, "_check_input_dim", "to check the input of a batch norm")(x)


def version_of(tensor: Tensor) -> int:
    """How often the tensor was written to. Without it, a hook that changes a value in place would pass unseen."""
    return int(found(tensor, "_version", "to see what a hook changes in place"))


def hooks_of_tensor(tensor: Tensor) -> Any:
    """The hooks on the gradient of a tensor; None if it has none. They may hold the model, and without a look at them a
    capture that is kept with the model would keep it alive."""
    return found(tensor, "_backward_hooks", "to see whether a tensor holds its model")


def is_persistent(module: nn.Module, buffer: str) -> bool:
    """Whether a buffer of the module itself is in its `state_dict`."""
    return buffer not in module._non_persistent_buffers_set


def contents_of(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The dicts in which a module has its parameters, buffers and submodules. The public lists of these are new at each
    call, so whether something was replaced could be seen only by making all of them again, which is slow."""
    purpose = "to see whether a parameter, buffer or submodule was replaced"
    parameters, buffers, modules = (found(module, f"_{kind}", purpose) for kind in ("parameters", "buffers", "modules"))
    return parameters, buffers, modules


@dataclass(frozen=True, slots=True)
class Hooks:
    """The hooks of a module, in the order in which torch runs them. The flag in `forward_pre` and `forward` says whether
    the hook was registered with `with_kwargs=True`; `always` are the forward hooks that run after an error too."""

    forward_pre: tuple[tuple[Callable[..., Any], bool], ...]
    forward: tuple[tuple[Callable[..., Any], bool], ...]
    backward: bool
    always: tuple[Callable[..., Any], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.forward_pre or self.forward or self.backward)


def hooks_of(module: nn.Module) -> Hooks:
    """The hooks that a call of the module would run. torch has no public list of them, and without one, hooks on the
    submodules of an explained module could neither be run nor refused."""
    forward_pre, forward, backward_pre, backward = (
        found(module, f"_{kind}_hooks", "to find the hooks of a module")
        for kind in ("forward_pre", "forward", "backward_pre", "backward")
    )
    named, named_pre = (
        found(module, f"_{kind}_hooks_with_kwargs", "to call the hooks of a module") for kind in ("forward", "forward_pre")
    )
    always = found(module, "_forward_hooks_always_called", "to call the hooks of a module")
    return Hooks(
        tuple((hook, key in named_pre) for key, hook in forward_pre.items()),
        tuple((hook, key in named) for key, hook in forward.items()),
        bool(backward or backward_pre),
        tuple(hook for key, hook in forward.items() if key in always),
    )


def backward_hooks_of(module: nn.Module, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], Callable[[Any], Any]]:
    """The inputs of a call with the backward hooks of the module at them, and what puts them at the output: they then run
    as torch runs those of a module that it calls itself."""
    purpose = "to run the backward hooks of a module"
    full = list(found(module, "_backward_hooks", purpose).values())
    hook: Any = BackwardHook(module, full, list(found(module, "_backward_pre_hooks", purpose).values()))
    return hook.setup_input_hook(args), hook.setup_output_hook


def share_hooks(module: nn.Module, twin: nn.Module) -> None:
    """Gives a copy of a module the hooks of the module. torch.fx leaves them out, and they would never run."""
    kinds = ("forward", "forward_pre", "backward", "backward_pre")
    for name in (
        *(f"_{kind}_hooks" for kind in kinds),
        "_forward_hooks_with_kwargs",
        "_forward_pre_hooks_with_kwargs",
        "_forward_hooks_always_called",
    ):
        found(twin, name, "to copy the hooks of a module").update(found(module, name, "to copy the hooks of a module"))


_DIFFERENTIATED = ("CompositeImplicitAutograd", "Autograd", "AutogradCPU", "AutogradCUDA", "AutogradXPU", "AutogradOther")


@cache
def has_derivative(op: OpOverload) -> bool:
    """Whether an op has an autograd formula, or is made of ops that torch differentiates. Without the private queries an op
    that has none would pass a gradient that its kernel happens to leave, or nothing, and nobody would know."""
    has_kernel = found(torch._C, "_dispatch_has_kernel_for_dispatch_key", "to know whether an op has a derivative")
    name: str = schema_of(op).name
    called = f"{name}.{overload_name(op)}".removesuffix(".default")
    if not op.py_kernels and not any(has_kernel(called, key) for key in _DIFFERENTIATED):
        return False
    definitions = found(torch._library.custom_ops, "OPDEFS", "to know whether a custom op has a derivative")
    custom = definitions.get(name)
    return custom is None or getattr(custom, "_backward_fn", None) is not None


def default_store() -> Any:
    """The store of the default process group, through which ranks tell each other why they failed. Without it a rank could
    only say that a connection was closed."""
    distributed = import_module("torch.distributed.distributed_c10d")
    return found(distributed, "_get_default_store", "to say which rank failed")()
