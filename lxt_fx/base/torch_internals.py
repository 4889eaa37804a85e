"""All that lxt_fx uses of torch's private API: one small function for each use, and nothing private of torch elsewhere.

A private name may go with any release of torch. Each function says what it is for and what would happen without a check
once its name is gone; with the check, a missing name is an UnsupportedVersionError where it is first needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import CodeGen, PythonCode

from lxt_fx.base.errors import UnsupportedVersionError
from lxt_fx.version import TESTED

try:
    from torch._ops import OpOverload
    from torch.nn.modules.batchnorm import _BatchNorm
    from torch.nn.modules.conv import _ConvNd
    from torch.utils import _pytree as pytree
except ImportError as error:
    raise UnsupportedVersionError(
        f"torch {torch.__version__} lacks what lxt_fx needs for every graph ({error}); install torch {TESTED['torch']}, "
        "with which it was tested, or a newer lxt_fx"
    ) from error


__all__ = ["BatchNormNd", "ConvNd", "OpOverload", "pytree"]
"""Names of torch that are used as they are: the type of an op in a graph, nested containers (both as they were in torch
2.0), and the bases of convolutions and of batch norms, of which those in `lxt_fx.nn` are made."""

BatchNormNd = _BatchNorm
ConvNd = _ConvNd


def unsupported(missing: str, purpose: str) -> NoReturn:
    """Raises UnsupportedVersionError: what is missing, what lxt_fx needs it for, which torch was tested, what to do."""
    raise UnsupportedVersionError(
        f"torch {torch.__version__} has no {missing}, which lxt_fx needs {purpose}; install torch {TESTED['torch']}, with "
        "which it was tested, or a newer lxt_fx"
    )


def found(owner: Any, name: str, purpose: str) -> Any:
    """`owner.name`, or the error that says what for it is needed."""
    try:
        return getattr(owner, name)
    except AttributeError:
        where = owner.__name__ if isinstance(owner, (ModuleType, type)) else type(owner).__name__
        unsupported(f"{where}.{name}", purpose)


# --- ATen ops by name -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MissingOp:
    """An ATen op that this torch does not have. It may stand in a list or in a rule: no graph holds it, so it never
    matches. Calling it raises UnsupportedVersionError."""

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
    """`aten.silu.default` as under `torch.ops.aten`, but a name that a torch release has dropped, or does not have yet,
    is a `MissingOp` and no AttributeError: lists and rules name what some torch has, and the package can be imported."""

    def __getattr__(self, name: str) -> Any:
        vars(self)[name] = _Overloads(name)
        return vars(self)[name]


aten = _Aten()


def schema_of(op: Any) -> Any:
    """The schema of an op: names, defaults and kinds of its arguments, whether it writes, what its results alias. Every
    analysis rests on it; without it nothing is known of any op."""
    return found(op, "_schema", "to know the arguments of an op")


def base_name(op: Any) -> str:
    """The name of an op without namespace and overload: `silu` of `aten.silu.default`."""
    name: str = schema_of(op).name
    return name.split("::")[1]


def overload_name(op: Any) -> str:
    """The name of an op's overload: `Tensor` of `aten.add_.Tensor`. With it the functional form of an in-place op is
    found; without it every in-place op would be refused."""
    return str(found(op, "_overloadname", "to find the functional form of an in-place op"))


def softmax_backward(gradient: Tensor, weights: Tensor, dim: int) -> Tensor:
    """The gradient of softmax from its weights, in one kernel: s (g - sum g s). Without the private op it would be three
    kernels with other roundings."""
    op = aten._softmax_backward_data.default
    if isinstance(op, MissingOp):
        unsupported(op.name, "for the backward of softmax")
    result: Tensor = op(gradient, weights, dim, weights.dtype)
    return result


def is_global_switch(target: Any) -> bool:
    """Whether a function in a graph acts on the state of torch and not on its arguments: grad mode, the levels of a traced
    `vmap`. They live in private modules; were they moved, dead-code elimination would remove them, and the forward check
    of `transform` would fail."""
    return getattr(target, "__module__", "").startswith(("torch._C", "torch._functorch"))


# --- what a graph takes and gives -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GraphIO:
    """How a graph module is called: the names of its inputs, the structure of (args, kwargs), that of its output."""

    names: tuple[str, ...]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec


_IO = "to know how a graph packs its inputs and outputs"


def io_of(graph: Graph) -> GraphIO:
    """How the graph is called. torch.fx stores it in the code generator of the graph and nowhere else."""
    info = found(found(graph, "_codegen", _IO), "pytree_info", _IO)
    return GraphIO(tuple(info.orig_args), info.in_spec, info.out_spec)


def set_io(graph: Graph, io: GraphIO) -> None:
    """The graph is called so from now on. Without it a forward would take and give flat lists."""
    generator = found(torch.fx.graph, "_PyTreeCodeGen", _IO)
    graph.set_codegen(generator(found(torch.fx.graph, "_PyTreeInfo", _IO)(list(io.names), io.in_spec, io.out_spec)))


def copy_io(source: Graph, target: Graph) -> None:
    """The target is called as the source is, also where the source takes and gives plain values."""
    generator: CodeGen = found(source, "_codegen", _IO)
    target.set_codegen(generator)


# --- graph modules --------------------------------------------------------------------------------------------------------


def recompile_as(gm: GraphModule, graph: Graph) -> PythonCode:
    """Compiles the forward of the module from another graph than `gm.graph`, which stays. `Graph` and forward are tied by
    the private `_graph`; an assignment to `gm.graph` would make the other graph the module's own. `_lineno_map` belongs to
    the compiled code: left in place, torch.compile would look its lines up in `gm.graph`."""
    purpose = "to run a fused graph in the place of the one that is shown"
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
    """The module runs this function. torch.fx makes a class for each graph module and puts the forward there; were classes
    shared, this would change every module, so that is an error."""
    if "<locals>" not in type(gm).__qualname__:
        unsupported("class of its own for each GraphModule", "to give a module a forward that recomputes its segments")
    type(gm).forward = forward


def rename(node: Node, name: str) -> None:
    """The node is called so, or `name_1` where that is taken. Setting `node.name` alone could give two nodes one name."""
    found(node, "_rename", "to name nodes")(name)


# --- capture --------------------------------------------------------------------------------------------------------------


def unlifted(exported: ExportedProgram) -> GraphModule:
    """The exported program as a module without its own checks of guards, which refuse a size of 1 that the graph holds
    for. Releases before the checks have no such switch; where a later one loses it, the checks would refuse more calls."""
    switch = {"check_guards": False} if "check_guards" in signature(exported.module).parameters else {}
    module = exported.module(**switch)
    if not isinstance(module, GraphModule):
        unsupported("GraphModule behind ExportedProgram.module()", "to read an exported graph")
    return module


def guards_of(exported: ExportedProgram) -> tuple[str, ...]:
    """The conditions on input shapes under which an exported graph is the model, as Python expressions over `L`. Read as
    "no guards" when the name is gone, they would vanish without a word, and calls that break them would give wrong
    numbers."""
    if "check_guards" not in signature(ExportedProgram.module).parameters:
        return _guards_of_shapes(exported.graph_module.graph)
    return tuple(found(exported, "_guards_code", "to refuse inputs that an exported graph does not hold for") or ())


def _guards_of_shapes(graph: Graph) -> tuple[str, ...]:
    """Those conditions where a release (such as 2.6) neither checks them itself nor writes them down: every condition on a
    symbol that tracing met, with the size of an input in the place of each symbol, and that inputs with one symbol have one
    size. A condition on a symbol that is no size of an input is one on values, which an op in the graph checks."""
    purpose = "to refuse inputs that an exported graph does not hold for"
    from torch.fx.experimental import symbolic_shapes  # imports sympy

    sizes: dict[Any, list[str]] = {}
    environment: Any = None
    for node in graph.nodes:
        value = node.meta.get("val") if node.op == "placeholder" else None
        for dim, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
            if isinstance(size, torch.SymInt):
                environment = size.node.shape_env
                sizes.setdefault(size.node.expr, []).append(f"L['{node.name}'].size()[{dim}]")
    if environment is None:
        return ()
    printer = found(symbolic_shapes, "ShapeGuardPythonPrinter", purpose)(sizes, str, sizes)
    conditions = [guard.expr for guard in found(environment, "guards", purpose)]
    said = [printer.doprint(condition) for condition in conditions if condition.free_symbols <= sizes.keys()]
    same = [f"{first} == {other}" for first, *others in sizes.values() for other in others]
    return tuple(dict.fromkeys([*said, *same]))


def real_tracer(function: Callable[..., Any]) -> Callable[..., GraphModule]:
    """make_fx on real tensors: `function(*tensors)` runs once and every ATen op becomes a node, above the autograd ops
    that it is made of. Values that Python reads are no error, tensors from outside are constants, nodes know their lines.
    Two of the arguments are private; without them, models that read values could not be traced."""
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


# --- regions and modes ----------------------------------------------------------------------------------------------------


def grad_mode_region() -> Any:
    """What torch.export writes for a stretch of code with gradients off or on. Were it not known, what runs without
    gradient in the model would be an op without a rule."""
    import torch._higher_order_ops.wrap  # noqa: F401 - registers it

    return found(torch.ops.higher_order, "wrap_with_set_grad_enabled", "to inline regions without gradient")


def autocast_region() -> Any:
    """What torch.export writes for a stretch of code under autocast."""
    import torch._higher_order_ops.wrap  # noqa: F401 - registers it

    return found(torch.ops.higher_order, "wrap_with_autocast", "to inline or refuse regions under autocast")


def grad_mode_switch() -> Any:
    """What make_fx writes where gradients go off or on. Were it not known, relevance would pass through what the model
    computes without gradient."""
    return found(torch._C, "_set_grad_enabled", "to find regions without gradient")


_LEVELS = "to know whether it runs in a vmap"


def in_functorch() -> bool:
    """Whether this runs inside `torch.func.vmap`, `grad` or the like, where Python may not read values."""
    levels = found(torch._C, "_functorch", _LEVELS)
    return found(levels, "maybe_current_level", _LEVELS)() is not None


def is_legacy_batched(tensor: Tensor) -> bool:
    """Whether this is the batch of gradients of `is_grads_batched`, which is a vmap of another kind. Taken for a plain
    gradient it would be differentiated one by one, or fail."""
    levels = found(torch._C, "_functorch", _LEVELS)
    return bool(found(levels, "is_legacy_batchedtensor", _LEVELS)(tensor))


def in_dispatch_mode() -> bool:
    """Whether ops are recorded (make_fx) or run on fake tensors, where Python may not read values."""
    module = torch.utils._python_dispatch
    return found(module, "_get_current_dispatch_mode", "to know whether ops are traced")() is not None


# --- sizes that may be symbols --------------------------------------------------------------------------------------------


def size_on_example(size: Any) -> int:
    """A size as a number: of a symbol what it was in the example, 1 where values decide it. Only estimates of memory use
    it."""
    if isinstance(size, int):
        return size
    from torch.fx.experimental import symbolic_shapes  # imports sympy

    return int(found(symbolic_shapes, "optimization_hint", "to estimate the bytes of a symbolic size")(size, 1))


def is_contiguous(tensor: Tensor) -> bool:
    """Whether a reshape of the (fake) tensor is a view. Where that depends on values, it is taken for a copy, and the
    check of the forward would tell."""
    from torch.fx.experimental import symbolic_shapes  # imports sympy

    undecided = found(symbolic_shapes, "GuardOnDataDependentSymNode", "to treat sizes that values decide")
    try:
        return tensor.is_contiguous()
    except undecided:
        return False


# --- torch.nn -------------------------------------------------------------------------------------------------------------


def check_convolution_hook() -> None:
    """Raises UnsupportedVersionError where convolutions do not compute by `_conv_forward(input, weight, bias)`, which those
    of `lxt_fx.nn` replace by their rule: were it not called, they would be plain convolutions without a word."""
    for convolution in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        if "_conv_forward" not in convolution.forward.__code__.co_names:
            unsupported(f"{convolution.__name__}.forward that calls _conv_forward", "to give convolutions a rule")


def check_input_dim(module: nn.Module, x: Tensor) -> None:
    """The check of a batch norm that its input has the number of dims that its class says."""
    found(module, "_check_input_dim", "to check the input of a batch norm")(x)
