"""The standard names of the places of a network, which are the same for every decoder, encoder and vision transformer.

Layers are counted from 0, in each stream of the network. `residual.3` is the residual stream before layer 3, and with n
layers `residual.n` is the one behind the last. `find_layers` finds them in the canonical graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar
from weakref import WeakKeyDictionary

from torch.fx import Graph, GraphModule, Node

from lxt_fx.attribution.dictionary_places import with_dictionaries, without_dictionaries
from lxt_fx.attribution.split_head import logits_index
from lxt_fx.base.nodes import shape
from lxt_fx.base.torch_internals import pytree
from lxt_fx.compiler.explained import Explained
from lxt_fx.passes.analysis.find_dictionaries import find_dictionaries
from lxt_fx.passes.analysis.find_layers import Attention, Layer, Stream, find_layers
from lxt_fx.passes.analysis.mark_flow import mark_flow
from lxt_fx.passes.analysis.relevance_leaves import relevance_leaves

T = TypeVar("T")

HEADS = ("batch", "heads", "tokens", "size")
HIDDEN = ("batch", "tokens", "hidden")
AXES: Mapping[str, tuple[str, ...]] = {
    "residual": HIDDEN,
    "heads": HEADS,
    "queries": HEADS,
    "keys": HEADS,
    "values": HEADS,
    "pattern": ("batch", "heads", "queries", "keys"),
    "output": HIDDEN,
    "neurons": ("batch", "tokens", "neurons"),
    "weights": ("batch", "tokens", "experts"),
    "logits": ("batch", "positions", "entries"),
    "features": ("batch", "tokens", "features"),
    "error": HIDDEN,
}
"""The axes of each kind of place, where it has as many; a kind is the last word of its name that is no number."""

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
            name: renamed.get(node.name, node.name)
            for name, node in sorted(named.items(), key=lambda one: order[one[1]])
        }
    return _FOUND[canonical]


def kind_of(name: str) -> str:
    """What a standard place is: `residual`, `heads`, `neurons`, ..."""
    return next(word for word in reversed(name.split(".")) if not word.isdigit())


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
    for index, layer in enumerate(stream.layers):
        yield f"{prefix}residual.{index}", layer.before
        yield from _of_layer(layer, index, prefix)
    yield f"{prefix}residual.{len(stream.layers)}", stream.layers[-1].after


def _of_layer(layer: Layer, index: int, prefix: str) -> Iterator[tuple[str, Node]]:
    for kind, attentions in (
        ("attention", [each for each in layer.attentions if not each.is_cross]),
        ("cross_attention", [each for each in layer.attentions if each.is_cross]),
    ):
        yield from _numbered(attentions, f"{prefix}{kind}.{index}", _of_attention)
    pairs = list(zip(layer.neurons, layer.outputs, strict=True))
    yield from _numbered(pairs, f"{prefix}mlp.{index}", lambda pair: {"neurons": pair[0], "output": pair[1]})
    yield from _numbered(layer.routers, f"{prefix}experts.{index}", lambda router: {"weights": router})


def _numbered(
    found: Sequence[T], name: str, parts: Callable[[T], Mapping[str, Node | None]]
) -> Iterator[tuple[str, Node]]:
    """The parts of the only one of a kind in a layer, or of several, which are numbered."""
    for number, each in enumerate(found):
        middle = name if len(found) == 1 else f"{name}.{number}"
        for part, node in parts(each).items():
            if node is not None:
                yield f"{middle}.{part}", node


def _of_attention(attention: Attention) -> dict[str, Node | None]:
    return {
        "queries": attention.queries,
        "keys": attention.keys,
        "values": attention.values,
        "pattern": attention.pattern,
        "heads": attention.heads,
        "output": attention.output,
    }


def _logits(explained: Explained, canonical: Graph) -> dict[str, Node]:
    index = logits_index(explained)
    flat = pytree.tree_leaves(canonical.output_node().args[0])
    found = flat[index] if index is not None else None
    return {"logits": found} if isinstance(found, Node) and shape(found) is not None else {}
