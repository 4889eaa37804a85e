"""Analysis: which sums subtract a held copy of one of their own terms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule, Node

from lxt_fx.base.nodes import arguments
from lxt_fx.base.torch_internals import aten
from lxt_fx.ops import products
from lxt_fx.passes.analysis.mark_flow import Flow

_HELD = frozenset({aten.detach.default, products.hold})
_SUMS = frozenset({aten.add.Tensor, aten.sub.Tensor})
_SAME_VALUE = frozenset({aten.to.dtype, aten.clone.default, aten.contiguous.default})
_SIGNS: dict[Any, tuple[int, ...]] = {aten.add.Tensor: (1, 1), aten.sub.Tensor: (1, -1), aten.neg.default: (-1,)}

Terms = Counter[tuple[Node, bool]]
"""How often each (value, whether it is held) is added; a negative number if it is subtracted."""


@dataclass(frozen=True, slots=True)
class Cancelling:
    """`sums` contain a term and its own held copy with the other sign. `nothing` are other such sums that are always 0
    (`soft - soft.detach()`) and that only `sums` read."""

    sums: frozenset[Node]
    nothing: frozenset[Node]


def find_cancelling(gm: GraphModule, flow: Flow) -> Cancelling:
    """Analysis: sums like `hard + soft - soft.detach()` (the straight-through estimator), which have the value of `hard`
    and the gradient of `soft`, in any order of terms. Such a sum can be 0 while its terms are not."""
    sums = [node for node in gm.graph.nodes if node in flow.carrying and node.target in _SUMS and not node.kwargs]
    if not any(node.target in _HELD for node in gm.graph.nodes):
        return Cancelling(frozenset(), frozenset())
    terms: dict[Node, Terms] = {}
    for node in gm.graph.nodes:
        terms[node] = _terms(node, terms)
    nothing = {node for node in sums if _is_nothing(terms[node])}
    found = {node for node in sums if node not in nothing and _meet(node, terms, nothing)}
    carrying_readers = {node: [user for user in node.users if user in flow.carrying] for node in nothing}
    read_by_sums = {node for node, readers in carrying_readers.items() if readers and found.issuperset(readers)}
    return Cancelling(frozenset(found | (nothing - read_by_sums)), frozenset(read_by_sums))


def _is_nothing(terms: Terms) -> bool:
    return all(terms[value, True] == -terms[value, False] for value, _ in terms)


def _meet(node: Node, terms: Mapping[Node, Terms], nothing: set[Node]) -> bool:
    """Whether the held copy of a term of one operand is subtracted with the other operand, or an operand is always 0."""
    if not nothing.isdisjoint(node.all_input_nodes):
        return True
    if len(node.all_input_nodes) < 2:
        return False
    first, second = (terms[operand] for operand in node.all_input_nodes)
    sign = _SIGNS[node.target][1]
    return any(count * sign * first.get((value, not held), 0) < 0 for (value, held), count in second.items())


def _terms(node: Node, known: Mapping[Node, Terms]) -> Terms:
    """The terms that the node adds; the node itself where it is not a sum."""
    if node.target in _HELD:
        held: Terms = Counter()
        for (value, _), count in known[node.all_input_nodes[0]].items():
            held[value, True] += count
        return held
    if node.target in _SAME_VALUE:
        return known[node.all_input_nodes[0]]
    if node.target not in _SIGNS or arguments(node).get("alpha", 1) != 1:
        return Counter({(node, False): 1})
    total: Terms = Counter()
    for operand, sign in zip(node.args, _SIGNS[node.target], strict=False):
        for term, count in known[operand].items() if isinstance(operand, Node) else ():
            total[term] += sign * count
    return total
