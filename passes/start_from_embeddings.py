"""Transform: a model that takes token ids and nothing else starts from its token embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from lxt_fx.inputs import Example, token_embedding
from lxt_fx.nodes import module_path
from lxt_fx.passes.drop_dead import drop_dead
from lxt_fx.passes.op_kinds import MOVES

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Started:
    """The example with embeddings among its inputs, what makes them, and for each the ids in whose place it is."""

    example: Example
    embedding: nn.Module
    instead: Mapping[str, str]

    def guard(self, guard: str) -> str:
        """A condition on sizes, read off the embeddings, which share batch and length with their ids."""
        for name, ids in self.instead.items():
            guard = guard.replace(f"L['{ids}']", f"L['{name}']")
        return guard


def start_from_embeddings(gm: GraphModule, example: Example, model: nn.Module) -> Started | None:
    """Transform: what the token embedding gives for `input_ids` becomes an input of its own, `inputs_embeds`; ids that
    nothing else reads are no input any more (and `decoder_input_ids` likewise).

    Returns None where the graph has no such embedding, or looks its tokens up in another way than by the ids as they come.
    """
    found = list(_lookups(gm, example, model))
    if not found:
        return None
    embedding = found[0][2]
    values, instead = dict(example.kwargs), {}
    for ids, output, module in found:
        name = ids.replace("input_ids", "inputs_embeds")
        if module is not embedding or name == ids or name in values:
            continue
        with torch.no_grad():
            values[name] = module(example.kwargs[ids]).detach().clone()
        _replace(gm, output, ids, name)
        instead[name] = ids
    _drop_idle(gm, values)
    spec = pytree.tree_structure(((), values))
    codegen: Any = gm.graph._codegen
    gm.graph._codegen = _PyTreeCodeGen(_PyTreeInfo(list(values), spec, codegen.pytree_info.out_spec))
    gm.recompile()
    return Started(replace(example, kwargs=values), embedding, instead)


def _lookups(gm: GraphModule, example: Example, model: nn.Module) -> Iterator[tuple[str, Node, nn.Module]]:
    """(name of the ids, the node of the embeddings, the module) of each lookup of ids as they come, those in the model's
    own token embedding first."""
    own = token_embedding(model)
    embeddings = {id(module.weight): module for module in model.modules() if isinstance(module, nn.Embedding)}
    found: list[tuple[str, Node, nn.Module]] = []
    for node in gm.graph.nodes:
        if node.target is not aten.embedding.default or node.args[0].op != "get_attr":
            continue
        ids = node.args[1]
        while ids.target in MOVES and isinstance(ids.args[0], Node):
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
    """The last node of the embedding module, which may scale what it looks up."""
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


def _drop_idle(gm: GraphModule, values: dict[str, Any]) -> None:
    """Ids that nothing reads any more."""
    for node in list(gm.graph.nodes):
        if node.op == "placeholder" and not node.users and str(node.target).endswith("input_ids"):
            del values[str(node.target)]
            gm.graph.erase_node(node)
