"""Analysis: the module in whose graph the model's gradient is lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.nn.modules.module import register_module_forward_hook

from lxt_fx.base.as_it_was import put_back_behind
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.base.nodes import computed_from, module_stack, source_line
from lxt_fx.base.torch_internals import pytree
from lxt_fx.passes.capture.capture import torch_state_restored
from lxt_fx.passes.capture.example import SEED, Example
from lxt_fx.passes.verify import TOLERANCES, forward_difference, gradient_difference
from lxt_fx.passes.verify_gradient.both_gradients import (
    NO_READS,
    Reads,
    asking_for_gradient,
    gradients_at,
    run_from,
    run_model_from,
)

_AGREE = 0.01
"""The largest difference of two gradients that are the same but for rounding."""


def find_lost_gradient(
    gm: GraphModule,
    inputs: Mapping[str, Any],
    leaves: Mapping[str, Tensor],
    model: nn.Module,
    example: Example,
    seeds: Sequence[Tensor | None],
    reads: Reads = NO_READS,
) -> str:
    """Analysis: names the innermost module that holds all ops between two values, and these ops. Graph and model have
    different gradients at the first value, which is the last one of that kind, and the same at the second.

    Values are compared where a module of the model returns them, and at the leaves.
    """
    with torch_state_restored(), gradients_on():
        models = _of_model(model, example, leaves, seeds, reads)
        graphs = _of_graph(gm, inputs, leaves, seeds)
        matched = {node: found for found in models if (node := _node_of(found, graphs)) is not None}
        agrees = {node: gradient_difference(matched[node].gradient, graphs[node].gradient) <= _AGREE for node in matched}
        differing = [node for node in graphs if agrees.get(node) is False]
        if not differing:
            return type(model).__name__
        between = _behind(differing[-1], agrees)
        ends = [node for node in between if agrees.get(node)]
        start = differing[-1]
        lost = (end for end in ends if _differ_between(matched[start], matched[end], graphs[start], graphs[end]))
        if (end := next(lost, None)) is not None:
            before = computed_from(end)
            between = [node for node in between if node in before]
    return _said(between, model)


def _said(between: Sequence[Node], model: nn.Module) -> str:
    stack = _common([module_stack(node) for node in between])
    path, name = stack[-1] if stack else ("", type(model).__name__)
    where = f"{path} ({name.rsplit('.', 1)[-1]})" if path else name.rsplit(".", 1)[-1]
    ops = [f"%{node.name}{f' ({line})' if (line := source_line(node)) else ''}" for node in between]
    return f"{where}, at {', '.join(ops[:4])}{' and more' if ops[4:] else ''}" if ops else where


@dataclass(frozen=True, slots=True)
class _Value:
    """A value with its gradient. `path` is the module of the model that returned it; empty for a leaf."""

    value: Tensor
    gradient: Tensor
    path: str = ""


def _of_model(
    model: nn.Module, example: Example, leaves: Mapping[str, Tensor], seeds: Sequence[Tensor | None], reads: Reads
) -> list[_Value]:
    """The leaves, and what each module of the model returns."""
    asking = asking_for_gradient(leaves)
    returned: list[tuple[str, Tensor]] = [("", leaf) for leaf in asking.values()]
    with put_back_behind(model):
        with _outputs_into(returned, model):
            output = run_model_from(model, example, asking, reads)
        found = gradients_at(output, {str(index): value for index, (_, value) in enumerate(returned)}, seeds, again=True)
    return [_Value(value, found[str(index)], path) for index, (path, value) in enumerate(returned)]


@contextmanager
def _outputs_into(returned: list[tuple[str, Tensor]], model: nn.Module) -> Iterator[None]:
    paths = {id(module): path for path, module in model.named_modules()}

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        path = paths.get(id(module))
        for value in pytree.tree_leaves(output) if path else ():
            if isinstance(value, Tensor) and value.requires_grad:
                returned.append((str(path), value))

    handle = register_module_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _of_graph(
    gm: GraphModule, inputs: Mapping[str, Any], leaves: Mapping[str, Tensor], seeds: Sequence[Tensor | None]
) -> dict[Node, _Value]:
    """Each node through which a gradient flows."""
    values: dict[Node, Tensor] = {}

    class Recorder(Interpreter):
        def run_node(self, n: Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, Tensor) and result.requires_grad and n.op in ("placeholder", "call_function"):
                values[n] = result
            return result

    torch.manual_seed(SEED)
    output = run_from(Recorder(gm), inputs, asking_for_gradient(leaves))
    found = gradients_at(output, {node.name: value for node, value in values.items()}, seeds, again=True)
    return {node: _Value(value, found[node.name]) for node, value in values.items()}


def _node_of(found: _Value, graphs: Mapping[Node, _Value]) -> Node | None:
    """The last node made inside the module that has the value it returns; for a leaf, the input of the graph."""
    last = None
    for node, other in graphs.items():
        inside = node.op == "placeholder" if not found.path else found.path in [path for path, _ in module_stack(node)]
        same = inside and other.value.shape == found.value.shape
        if same and forward_difference(found.value, other.value) <= TOLERANCES[torch.float32]:
            last = node
    return last


def _behind(start: Node, agrees: Mapping[Node, bool]) -> list[Node]:
    """The ops behind a value, up to the first at which the gradients agree. Those without a gradient count too."""
    found: dict[Node, None] = {}
    todo = [start]
    while todo:
        for reader in todo.pop().users:
            if reader.op == "call_function" and reader not in found:
                found[reader] = None
                if not agrees.get(reader):
                    todo.append(reader)
    return sorted(found)


def _differ_between(model_start: _Value, model_end: _Value, start: _Value, end: _Value) -> bool:
    """Whether model and graph pass different gradients from one value to an earlier one."""
    models, graphs = (
        torch.autograd.grad(
            last.value, first.value, model_end.gradient, True, allow_unused=True, materialize_grads=True
        )[0]
        for first, last in ((model_start, model_end), (start, end))
    )
    return gradient_difference(models, graphs) > _AGREE


def _common(stacks: Sequence[Sequence[tuple[str, str]]]) -> list[tuple[str, str]]:
    """The modules that all stacks begin with."""
    common: list[tuple[str, str]] = []
    for level in zip(*stacks, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return common
