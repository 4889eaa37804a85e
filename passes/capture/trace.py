"""Capture by real tensors: the model runs once on the example, and every ATen op that it calls becomes a node.

Data-dependent Python code (`.item()`, `.tolist()`, a branch on a tensor, a loop over the experts that were hit) runs on the
values of the example, and the graph holds its result. Every call of the graph checks each value that Python read, and each
data-dependent size, against the example (`lxt_fx::expect_values`, `lxt_fx::expect_sizes`). An input for which the model
would take another branch is an error, never a wrong answer.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx import traceback as fx_traceback
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from lxt_fx.base.nodes import module_path, source_line
from lxt_fx.base.torch_internals import aten, aten_ops, pytree, real_tracer, rename
from lxt_fx.ops import expectations
from lxt_fx.passes.capture.called_by_leaf import leaf_names
from lxt_fx.passes.capture.example import Example

_READS = frozenset({aten.item.default, aten._local_scalar_dense.default})
_SIZED_BY_VALUES = aten_ops(
    "nonzero_numpy where repeat_interleave.self_Tensor tensor_split.tensor_indices_or_sections"
)
"""Composed ops with a data-dependent shape: torch tags only the ops that they are made of."""
_READS_WHOLE = frozenset({Tensor.tolist, Tensor.numpy, Tensor.__array__})


def trace(model: nn.Module, example: Example) -> tuple[GraphModule, pytree.TreeSpec]:
    """The graph of the model on the example, and the structure of its output. The model is called by leaf
    (`called_by_leaf`). Raises what tracing raises."""
    names, out_specs = leaf_names(example.kwargs), []

    def forward(*leaves: Any) -> list[Any]:
        tensors = {name: leaf for name, leaf in zip(names, leaves, strict=True) if isinstance(leaf, Tensor)}
        flat_out, spec = pytree.tree_flatten(model(**tensors))
        out_specs.append(spec)
        return flat_out

    tracer = real_tracer(forward)  # which turns every non-tensor leaf into a constant of the graph
    with _module_stacks(model), _WholeReads():
        gm = tracer(*pytree.tree_leaves(dict(example.copied().kwargs)))
    for node, name in zip(_placeholders(gm), names, strict=True):
        node.target = name
        rename(node, name)
    _name_parameters(gm, model)
    _record_values(gm, pytree.tree_leaves(dict(example.copied().kwargs)))
    _expect_again(gm)
    return gm, out_specs[-1]


@contextmanager
def _module_stacks(model: nn.Module) -> Iterator[None]:
    """Nodes made inside record their module stack as `torch.export` does (`nn_module_stack`); the second call of a module
    is `path@1`."""
    paths = {id(module): path for path, module in model.named_modules()}
    calls: Counter[str] = Counter()
    thread = threading.get_ident()
    stacks: list[dict[str, tuple[str, str]]] = [{}]

    def enter(module: nn.Module, args: Any) -> None:
        if threading.get_ident() != thread:
            return  # hooks on all modules run in all threads
        stack = stacks[-1]
        if (path := paths.get(id(module))) is not None:
            call = f"{path}@{calls[path]}" if calls[path] else path
            calls[path] += 1
            stack = stack | {call: (path, f"{type(module).__module__}.{type(module).__qualname__}")}
        stacks.append(stack)
        fx_traceback.get_current_meta()["nn_module_stack"] = stack

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() == thread:
            stacks.pop()
            fx_traceback.get_current_meta()["nn_module_stack"] = stacks[-1]

    hooks = register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)
    try:
        with fx_traceback.preserve_node_meta():
            yield
    finally:
        fx_traceback.get_current_meta().pop("nn_module_stack", None)
        for hook in hooks:
            hook.remove()


class _WholeReads(TorchFunctionMode):
    """Inserts a guard where Python reads a whole tensor, since no ATen op shows that."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _READS_WHOLE:
            read = result.tolist() if hasattr(result, "tolist") else result
            values = [float(value) for value in pytree.tree_leaves(read)]
            expectations.expect_values(args[0].detach(), values, "")
        return result


def _expect_again(gm: GraphModule) -> None:
    """Inserts a guard after each op whose value Python read or whose output shape is data-dependent. What depends on no
    input needs none."""
    depends = set(_placeholders(gm))
    for node in list(gm.graph.nodes):
        if depends.isdisjoint(node.all_input_nodes):
            if node.target is expectations.expect_values:
                gm.graph.erase_node(node)
            continue
        depends.add(node)
        where = str(source_line(node) or module_path(node))
        if node.target is expectations.expect_values:
            node.update_arg(2, where)
        elif node.target in _READS:
            _insert(gm, node, expectations.expect_values, (node.args[0], [float(node.meta["val"])], where))
        elif _sized_by_values(node):
            for value, tensor in _tensors(gm, node):
                _insert(gm, value, expectations.expect_sizes, (value, list(tensor.shape), where))


def _insert(gm: GraphModule, after: Node, op: Any, args: tuple[Any, ...]) -> None:
    with gm.graph.inserting_after(after):
        expectation = gm.graph.call_function(op, args)
    expectation.meta = {key: after.meta[key] for key in ("nn_module_stack", "stack_trace") if key in after.meta}


def _sized_by_values(node: Node) -> bool:
    if node.target in _SIZED_BY_VALUES:
        return True
    if torch.Tag.dynamic_output_shape not in getattr(node.target, "tags", ()):
        return False
    if node.target is not aten.index.Tensor:
        return True
    indices = [index for index in node.args[1] if isinstance(index, Node)]  # type: ignore[union-attr]
    return any(index.meta["val"].dtype in (torch.bool, torch.uint8) for index in indices)


def _tensors(gm: GraphModule, node: Node) -> list[tuple[Node, Tensor]]:
    """The node and its value; for a tuple, its items that are read, with their values."""
    if isinstance(node.meta["val"], Tensor):
        return [(node, node.meta["val"])]
    return [(user, user.meta["val"]) for user in node.users if isinstance(user.meta.get("val"), Tensor)]


def _placeholders(gm: GraphModule) -> list[Node]:
    return [node for node in gm.graph.nodes if node.op == "placeholder"]


def _name_parameters(gm: GraphModule, model: nn.Module) -> None:
    """make_fx calls parameters `_param_constant3`; this gives them the names that they have in the model."""
    owned = {id(t): name for name, t in (*model.named_buffers(), *model.named_parameters())}
    for node in gm.graph.nodes:
        if node.op != "get_attr":
            continue
        name = owned.get(id(getattr(gm, node.target, None)))
        if name is None:
            continue
        _place(gm, name, getattr(gm, node.target))
        node.target = name
        rename(node, name.replace(".", "_"))
    read = {node.target for node in gm.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in gm.named_parameters(recurse=False, remove_duplicate=False) if name not in read]:
        delattr(gm, name)


def _place(gm: GraphModule, path: str, tensor: Tensor) -> None:
    *modules, last = path.split(".")
    owner: nn.Module = gm
    for name in modules:
        if name not in dict(owner.named_children()):
            owner.add_module(name, nn.Module())
        owner = getattr(owner, name)
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(last, tensor)
    else:
        owner.register_buffer(last, tensor)


def _record_values(gm: GraphModule, flat: list[Any]) -> None:
    """Runs the traced graph once and records shape and dtype of each value (as a `meta` tensor) for the analyses."""

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: Node) -> Any:
            result = super().run_node(n)
            n.meta["val"] = pytree.tree_map(lambda t: t.to("meta") if isinstance(t, Tensor) else t, result)
            return result

    with torch.no_grad():
        Recorder(gm).run(*flat)
