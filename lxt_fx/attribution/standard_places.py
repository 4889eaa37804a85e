"""The standard names of the places of a network, which are the same for every decoder, encoder and vision transformer.

Layers are counted from 0, in each stream of the network. `residual.3` is the residual stream before layer 3, and with n
layers `residual.n` is the one behind the last. `find_layers` finds them in the canonical graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar
from weakref import WeakKeyDictionary

from torch.fx import Graph, GraphModule, Node

from lxt_fx.attribution.dictionary_places import with_dictionaries, without_dictionaries
from lxt_fx.attribution.split_head import logits_index
from lxt_fx.base.nodes import shape
from lxt_fx.base.torch_internals import pytree
from lxt_fx.compiler.explained import Explained
from lxt_fx.passes.analysis.find_attention_parts import AttentionParts
from lxt_fx.passes.analysis.find_dictionaries import find_dictionaries
from lxt_fx.passes.analysis.find_layers import Layer, Stream, find_layers
from lxt_fx.passes.analysis.mark_flow import mark_flow
from lxt_fx.passes.analysis.relevance_leaves import relevance_leaves

T = TypeVar("T")

_FOUND: WeakKeyDictionary[Graph, Mapping[str, str]] = WeakKeyDictionary()
"""The standard places by the canonical graph that they were found in."""


def standard_places(explained: Explained) -> Mapping[str, str]:
    """The name of the node of each standard place in the graph of the module, from the leaf to the output. They are found
    once for each graph."""
    canonical = explained.record.stages["canonical"].graph
    if canonical not in _FOUND:
        dictionaries = find_dictionaries(canonical)
        plain, node_of = without_dictionaries(canonical, dictionaries)
        gm = GraphModule(explained, plain)
        flow = mark_flow(gm, relevance_leaves(plain))
        found = {name: node_of[node] for name, node in _all(find_layers(gm, flow))}
        named = with_dictionaries(found, dictionaries) | _logits(explained, canonical)
        order = {node: place for place, node in enumerate(canonical.nodes)}
        renamed = explained.record.renamed
        _FOUND[canonical] = {
            name: renamed.get(node.name, node.name) for name, node in sorted(named.items(), key=lambda one: order[one[1]])
        }
    return _FOUND[canonical]


def kind_of(name: str) -> str:
    """What a standard place is: `residual`, `heads`, `neurons`, ...; empty for what cannot be one."""
    return next((word for word in reversed(name.split(".")) if not word.isdigit()), "")


def _all(streams: tuple[Stream, ...]) -> Iterator[tuple[str, Node]]:
    """The places of all streams. That which ends last has plain names; one that it attends to is its `encoder`, any other
    has the name of its leaf."""
    for stream in streams:
        yield from _of_stream(stream, _prefix(stream, streams))


def _prefix(stream: Stream, streams: tuple[Stream, ...]) -> str:
    main = streams[-1] if len(streams) == 1 else max(streams, key=lambda one: _place(one.layers[-1].after))
    if stream is main:
        return ""
    attended = any(each.is_cross for layer in main.layers for each in layer.attentions)
    return "encoder." if attended and len(streams) == 2 else f"{stream.leaf.target}."


def _place(node: Node) -> int:
    return list(node.graph.nodes).index(node)


def _of_stream(stream: Stream, prefix: str) -> Iterator[tuple[str, Node]]:
    yield f"{prefix}residual.0", stream.layers[0].before
    for index, layer in enumerate(stream.layers):
        yield from _of_layer(layer, index, prefix)
        yield f"{prefix}residual.{index + 1}", layer.after


def _of_layer(layer: Layer, index: int, prefix: str) -> Iterator[tuple[str, Node]]:
    for kind, attentions in (
        ("attention", [each for each in layer.attentions if not each.is_cross]),
        ("cross_attention", [each for each in layer.attentions if each.is_cross]),
    ):
        for name, attention in _numbered(attentions, f"{prefix}{kind}.{index}"):
            yield f"{name}.output", attention.output
            for middle, parts in _numbered(attention.parts, name):
                yield from _of_attention(parts, middle)
    for name, mlp in _numbered(layer.mlps, f"{prefix}mlp.{index}"):
        yield f"{name}.output", mlp.output
        for middle, neurons in _numbered(mlp.neurons, name):
            yield f"{middle}.neurons", neurons
    routers = [router for mlp in layer.mlps for router in mlp.routers]
    for middle, router in _numbered(routers, f"{prefix}experts.{index}"):
        yield f"{middle}.weights", router
    for middle, mixer in _numbered(layer.mixers, f"{prefix}mixer.{index}"):
        yield f"{middle}.output", mixer


def _of_attention(parts: AttentionParts, name: str) -> Iterator[tuple[str, Node]]:
    yield f"{name}.queries", parts.queries
    yield f"{name}.keys", parts.keys
    yield f"{name}.values", parts.values
    if parts.pattern is not None:
        yield f"{name}.pattern", parts.pattern
    yield f"{name}.heads", parts.heads


def _numbered(found: Sequence[T], name: str) -> Iterator[tuple[str, T]]:
    """The name of the only one of a kind in a layer, or of several, which are numbered."""
    for number, each in enumerate(found):
        yield (name if len(found) == 1 else f"{name}.{number}"), each


def _logits(explained: Explained, canonical: Graph) -> dict[str, Node]:
    index = logits_index(explained)
    flat = pytree.tree_leaves(canonical.output_node().args[0])
    found = flat[index] if index is not None else None
    return {"logits": found} if isinstance(found, Node) and shape(found) is not None else {}
