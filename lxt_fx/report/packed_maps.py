"""The layers with packed weights, as a certificate lists them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter

from torch.fx import Node

from lxt_fx.base.nodes import arguments, module_path
from lxt_fx.compiler.explained import Explained
from lxt_fx.ops.packed import packed_layer_of
from lxt_fx.passes.analysis.mark_flow import Flow


@dataclass(frozen=True, slots=True)
class PackedMap:
    """A layer whose weights are packed, by whose unpacked weights relevance passes. `rounds` says what its kernel rounds
    besides the weights, empty for nothing. `difference` is how far the kernel's values are from those of the unpacked
    weights on the example (relative L2), NaN where they were not compared."""

    node: str
    module: str
    scheme: str
    rounds: str
    difference: float


def packed_maps(explained: Explained, flow: Flow) -> Iterator[PackedMap]:
    """The packed layers on the relevance path, in graph order."""
    for node in explained.graph.nodes:
        weight = arguments(node).get("weight") if node in flow.carrying else None
        found = attrgetter(str(weight.target))(explained) if isinstance(weight, Node) and weight.op == "get_attr" else None
        if (layer := packed_layer_of(found)) is not None:
            yield PackedMap(node.name, module_path(node), layer.scheme, layer.rounds, layer.difference)
