"""Transform: a model that takes token ids, or turns its input into codes, gets its embeddings as input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import networkx as nx
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from lxt_fx.base.nodes import module_path
from lxt_fx.base.torch_internals import GraphIO, aten, io_of, pytree, set_io
from lxt_fx.ops.aten_kinds import CONVOLUTIONS, MOVES, PRODUCTS, SUMS
from lxt_fx.passes.analysis.mark_flow import differentiable_graph, mark_flow
from lxt_fx.passes.capture.example import Example, token_embedding
from lxt_fx.passes.drop_dead import drop_dead

_AS_THEY_COME = frozenset(
    {aten.view.default, aten.reshape.default, aten.to.dtype, aten.contiguous.default, aten.clone.default}
    | {aten.unsqueeze.default, aten.squeeze.dim, aten.flatten.using_ints}
)
_JOINS = MOVES | SUMS | CONVOLUTIONS | PRODUCTS | {aten.linear.default}
"""Linear ops that join several lookups to one embedding."""


@dataclass(frozen=True, slots=True)
class Started:
    """The new inputs. `example` contains them, `embedding` is the module that makes them, `instead` names for each the ids
    that it replaces, and `joins` those that join several lookups."""

    example: Example
    embedding: nn.Module
    instead: Mapping[str, str]
    joins: frozenset[str] = frozenset()

    def guards(self, guards: Iterable[str]) -> tuple[str, ...]:
        """The guards on sizes, with embeddings in the place of their ids, which have the same batch and length. Guards on
        the inputs of a join are dropped, since the sizes of the join say as much."""
        gone = [f"L['{ids}']" for name, ids in self.instead.items() if name in self.joins]
        left = [guard for guard in guards if not any(given in guard for given in gone)]
        for name, ids in self.instead.items():
            left = [guard.replace(f"L['{ids}']", f"L['{name}']") for guard in left]
        return tuple(left)


def start_from_embeddings(gm: GraphModule, example: Example, model: nn.Module) -> Started | None:
    """Transform: the output of the token embedding for `input_ids` becomes the input `inputs_embeds`. Ids that nothing else
    reads are no input any more. The same goes for `decoder_input_ids`.

    Some models do not look their ids up directly (CANINE hashes them) or turn their input into codes (Mimi). There the new
    input is the first value that linear ops compute from lookups of one input: `inputs_embeds` for ids, else `embeddings`.
    Returns None where the graph has no lookups.
    """
    found = [lookup for lookup in _lookups(gm, example, model) if "input_ids" in lookup[0]]
    if not found:
        return _start_from_join(gm, example)
    embedding = found[0][2]
    values, instead = dict(example.kwargs), {}
    for ids, output, module in found:
        name = ids.replace("input_ids", "inputs_embeds")
        if module is not embedding or name in values:
            continue
        with torch.no_grad():
            values[name] = module(example.kwargs[ids]).detach().clone()
        _replace(gm, output, ids, name)
        instead[name] = ids
    return _started(gm, example, values, embedding, instead)


def _started(
    gm: GraphModule, example: Example, values: dict[str, Any], embedding: nn.Module, instead: Mapping[str, str]
) -> Started:
    _drop_idle(gm, values, set(instead.values()))
    spec = pytree.tree_structure(((), values))
    set_io(gm.graph, GraphIO(tuple(values), spec, io_of(gm.graph).out_spec))
    gm.recompile()
    return Started(replace(example, kwargs=values), embedding, instead)


def _start_from_join(gm: GraphModule, example: Example) -> Started | None:
    read = _inputs_read(gm)
    tables = [n for n in gm.graph.nodes if n.target is aten.embedding.default and not read[n.args[0]] and read[n]]
    carrying = mark_flow(gm, tables).carrying
    lookups = [node for node in tables if node in carrying]
    if not lookups:
        return None
    main = next((n for n in lookups if any("input_ids" in str(given.target) for given in read[n])), lookups[0])
    lookups = [node for node in lookups if read[node] == read[main]]
    while (join := _join(gm, lookups, carrying)) is None:
        lookups.pop()
    names = [str(node.target) for node in gm.graph.nodes if node in read[main]]
    ids = next((name for name in names if "input_ids" in name), names[0])
    name = ids.replace("input_ids", "inputs_embeds") if "input_ids" in ids else "embeddings"
    embedding = _part(gm, join)
    with torch.no_grad():
        value = embedding(*(example.kwargs[name] for name in names)).detach().clone()
    _replace(gm, join, ids, name)
    started = _started(gm, example, dict(example.kwargs) | {name: value}, embedding, {name: ids})
    return replace(started, joins=frozenset({name}))


def _inputs_read(gm: GraphModule) -> dict[Node, set[Node]]:
    """For each node the inputs that its value depends on; sizes do not count."""
    read: dict[Node, set[Node]] = {}
    for node in gm.graph.nodes:
        is_size = node.target is aten.sym_size.int
        read[node] = set().union(*(read[operand] for operand in node.all_input_nodes)) if not is_size else set()
        read[node] |= {node} if node.op == "placeholder" else set()
    return read


def _join(gm: GraphModule, lookups: list[Node], carrying: frozenset[Node]) -> Node | None:
    """The first node that depends on all of these lookups, with only linear joins in between."""
    if len(lookups) == 1:
        return lookups[0]
    graph = differentiable_graph(gm).subgraph(carrying).copy()
    between = [node for node in graph if node in lookups or node.target in _JOINS]
    behind = set.intersection(*(nx.descendants(graph.subgraph(between), node) for node in lookups))
    joins: list[Node] = [node for node in gm.graph.nodes if node in behind]
    for node in joins:
        before = nx.ancestors(graph, node) | {node}
        if all(user in before for lookup in lookups for user in graph.successors(lookup)):
            return node
    return None


def _part(gm: GraphModule, join: Node) -> GraphModule:
    """The part of the graph that computes the join, as a module of its own."""
    graph = Graph()
    copies: dict[Node, Node] = {}
    needed, todo = {join}, [join]
    while todo:
        for operand in todo.pop().all_input_nodes:
            if operand not in needed:
                needed.add(operand)
                todo.append(operand)
    for node in gm.graph.nodes:
        if node in needed:
            copies[node] = graph.node_copy(node, lambda operand: copies[operand])
    graph.output(copies[join])
    return GraphModule(gm, graph)


def _lookups(gm: GraphModule, example: Example, model: nn.Module) -> Iterator[tuple[str, Node, nn.Module]]:
    """(name of the ids, node of the embeddings, module) of each direct lookup of ids; lookups in the model's own token
    embedding come first."""
    own = token_embedding(model)
    embeddings = {id(module.weight): module for module in model.modules() if isinstance(module, nn.Embedding)}
    found: list[tuple[str, Node, nn.Module]] = []
    for node in gm.graph.nodes:
        if node.target is not aten.embedding.default or node.args[0].op != "get_attr":
            continue
        ids = node.args[1]
        while ids.target in _AS_THEY_COME and isinstance(ids.args[0], Node):
            ids = ids.args[0]
        module = embeddings.get(id(_attribute(gm, str(node.args[0].target))))
        if module is not None and isinstance(example.kwargs.get(str(ids.target)), Tensor):
            same = getattr(own, "weight", None) is module.weight
            found.append((str(ids.target), _end(node), own if own is not None and same else module))
    yield from sorted(found, key=lambda lookup: lookup[2] is not own)


def _attribute(gm: GraphModule, path: str) -> Any:
    for name in path.split("."):
        gm = getattr(gm, name)
    return gm


def _end(node: Node) -> Node:
    """The last node of the embedding module, which may scale the embeddings."""
    path = module_path(node)
    while path and len(node.users) == 1 and module_path(user := next(iter(node.users))) == path:
        node = user
    return node


def _replace(gm: GraphModule, output: Node, ids: str, name: str) -> None:
    last = next(node for node in reversed(gm.graph.nodes) if node.op == "placeholder")
    with gm.graph.inserting_after(last):
        leaf = gm.graph.placeholder(name)
    leaf.meta["val"] = output.meta["val"]
    output.replace_all_uses_with(leaf)
    (given,) = (node for node in gm.graph.nodes if node.op == "placeholder" and node.target == ids)
    for user in list(given.users):
        if user.target is aten.sym_size.int:  # batch and length, which the embeddings have too
            user.replace_input_with(given, leaf)
    drop_dead(gm)


def _drop_idle(gm: GraphModule, values: dict[str, Any], replaced: set[str]) -> None:
    """Drops ids that nothing reads any more."""
    for node in list(gm.graph.nodes):
        is_given = str(node.target).endswith("input_ids") or node.target in replaced
        if node.op == "placeholder" and not node.users and is_given:
            del values[str(node.target)]
            gm.graph.erase_node(node)
