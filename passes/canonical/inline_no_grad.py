"""Transform: no_grad regions become plain nodes that read detached inputs, and autocast regions plain nodes."""

from __future__ import annotations

import itertools
import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from lxt_fx.base.nodes import computed_from, is_float, shape
from lxt_fx.base.torch_internals import aten, autocast_region, grad_mode_region, grad_mode_switch
from lxt_fx.ops.aten_kinds import BAGS, LOOK_UP, ONE_HOT, TIMES_TABLE
from lxt_fx.passes.drop_dead import drop_dead

_SET_GRAD = grad_mode_region()
_REGIONS = (_SET_GRAD, autocast_region())
_SWITCH = grad_mode_switch()
_VECTORS = ONE_HOT | {aten.eq.Tensor}
"""Ops that make one-hot vectors."""


def inline_no_grad(gm: GraphModule) -> int:
    """Transform: inlines each `wrap_with_set_grad_enabled` region (torch.export) and each stretch between two grad-mode
    switches (make_fx). The inputs of a region without gradient are detached, so it passes no relevance and saves nothing.
    So is what the region looks up in a table and computes on with: the model passes no gradient there either. A lookup that
    leaves the region as it is may be a leaf (a frozen table of tokens), since no gradient has to go further.

    A region under autocast is inlined unchanged: `write_casts` wrote what autocast does there into it.
    """
    edits = 0
    while regions := [node for node in gm.graph.nodes if node.op == "call_function" and node.target in _REGIONS]:
        for node in regions:  # a region may hold others: look again
            _inline_region(gm, node)
            edits += 1
    edits += _drop_switches(gm)
    if edits:
        drop_dead(gm)
        gm.delete_all_unused_submodules()
    return edits


def _inline_region(gm: GraphModule, region: Node) -> None:
    enabled, body_node, *inputs = _region_parts(region)
    assert isinstance(body_node, Node)
    body = gm.get_submodule(str(body_node.target))
    assert isinstance(body, GraphModule)
    with gm.graph.inserting_before(region):
        mapped: dict[Node, Any] = {}
        leaving: dict[Node, Node] = {}
        values = iter(inputs)
        for node in body.graph.nodes:
            if node.op == "placeholder":
                value = next(values)
                mapped[node] = value if enabled else _detached(gm, value)
            elif node.op == "output":
                _replace_outputs(gm, region, torch.fx.map_arg(node.args[0], lambda n: leaving.get(n, mapped[n])))
            else:
                mapped[node] = gm.graph.node_copy(node, lambda n: mapped[n])
                if node.op == "get_attr":
                    mapped[node].target = _adopt(gm, body, str(node.target))
                elif not enabled and _looks_up(mapped[node]):
                    leaving[node], mapped[node] = mapped[node], _detached(gm, mapped[node])
    gm.graph.erase_node(region)


def _region_parts(region: Node) -> tuple[Any, ...]:
    """(whether gradients are on inside, the body, its inputs...)."""
    if region.target is _SET_GRAD:
        return region.args
    _, _, _, _, *rest = region.args
    return True, *rest


def _adopt(gm: GraphModule, body: GraphModule, name: str) -> str:
    """Gives a constant or nested region of the body to the graph module, under an unused name."""
    attribute: Any = body
    for part in name.split("."):
        attribute = getattr(attribute, part)
    base = name.replace(".", "_")
    free = next(n for index in itertools.count() if not hasattr(gm, n := f"{base}_inlined_{index}"))
    if isinstance(attribute, torch.nn.Module):
        gm.add_submodule(free, attribute)
    else:
        gm.register_buffer(free, attribute)
    return free


def _detached(gm: GraphModule, value: Any) -> Any:
    if not isinstance(value, Node) or not is_float(value) or value.op == "get_attr":
        return value
    node = gm.graph.call_function(aten.detach.default, (value,))
    node.meta = dict(value.meta)
    return node


def _replace_outputs(gm: GraphModule, region: Node, outputs: Any) -> None:
    for user in list(region.users):
        assert user.target.__name__ == "getitem", user  # type: ignore[union-attr]
        user.replace_all_uses_with(outputs[user.args[1]])
        gm.graph.erase_node(user)


def _looks_up(node: Node) -> bool:
    """Whether the node reads a table at places given by whole numbers, or multiplies it with one-hot vectors."""
    if node.op != "call_function" or not is_float(node) or shape(node) is None:
        return False
    looking = node.args[0] if node.target is operator.getitem else node
    if isinstance(looking, Node) and looking.target in LOOK_UP | BAGS:
        return True
    return node.target in TIMES_TABLE and any(each.target in _VECTORS for each in computed_from(node))


def _drop_switches(gm: GraphModule) -> int:
    switches = [n for n in gm.graph.nodes if n.op == "call_function" and n.target is _SWITCH]
    entered: dict[Node, Node] = {}
    inside = _without_gradient(gm, switches)
    for node in list(gm.graph.nodes):
        if node in switches:
            entered = {}
        if node not in inside:
            continue
        for operand in list(node.all_input_nodes):
            if operand in inside or operand.op == "get_attr" or not is_float(operand):
                continue
            if operand not in entered:
                with gm.graph.inserting_before(node):
                    entered[operand] = _detached(gm, operand)
            node.replace_input_with(operand, entered[operand])
        if _looks_up(node):
            with gm.graph.inserting_after(node):
                detached = _detached(gm, node)
            node.replace_all_uses_with(detached, delete_user_cb=inside.__contains__)
            inside.add(detached)
    for node in switches:
        gm.graph.erase_node(node)
    return len(switches)


def _without_gradient(gm: GraphModule, switches: list[Node]) -> set[Node]:
    """The calls between a switch that turns gradients off and the next one."""
    enabled, found = True, set[Node]()
    for node in gm.graph.nodes:
        if node in switches:
            enabled = bool(node.args[0])
        elif not enabled and node.op == "call_function":
            found.add(node)
    return found
