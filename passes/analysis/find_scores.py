"""Analysis: where the queries and keys of an attention meet, as one op or as a product that is written out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch.fx import Node

from lxt_fx.base.nodes import arguments, computed_from
from lxt_fx.base.torch_internals import aten, aten_ops
from lxt_fx.ops.aten_kinds import CONTRACTIONS, FILLS, PRODUCTS
from lxt_fx.passes.analysis.find_attention_parts import RESHAPES
from lxt_fx.passes.analysis.mark_flow import Flow

_FUSED = aten.scaled_dot_product_attention.default
_ADDS = aten_ops("add.Tensor")
_SAME = RESHAPES | FILLS | aten_ops("to.dtype expand")


@dataclass(frozen=True, slots=True)
class Meeting:
    """The op that multiplies queries by keys: `product`, a fused attention or a product of two, with its operands.
    `from_queries` and `from_keys` are the nodes that lead to the operands from where reads end. `scores` are what the
    product becomes by constant factors, before masks, soft caps and biases; `factors` are these nodes. `added` is what is
    added to the scores before the softmax and is computed of no input: biases of positions and masks. Of a fused attention
    `scores` is None: the graph has none, and `added` is its mask."""

    product: Node
    queries: Node
    keys: Node
    from_queries: tuple[Node, ...]
    from_keys: tuple[Node, ...]
    scores: Node | None
    factors: tuple[Node, ...]
    added: tuple[Node, ...]


def find_meeting(flow: Flow, queries: Node, keys: Node) -> Meeting | None:
    """Analysis: where these queries and keys meet, which end reads of the stream. None where that is no fused attention and
    no single product with queries on the left: an einsum, or several products."""
    behind, other = _up_to_products(queries), _up_to_products(keys)
    found = [node for node in behind if node in other and (node.target is _FUSED or node.target in CONTRACTIONS)]
    if len(found) != 1 or found[0].target not in (_FUSED, aten.matmul.default):
        return None
    (product,) = found
    given = list(arguments(product).values())
    left, right = given[:2]
    if left not in behind | {queries: None} or right not in other | {keys: None}:
        return None
    paths = tuple(_between(queries, left, behind)), tuple(_between(keys, right, other))
    if product.target is _FUSED:
        mask = arguments(product).get("attn_mask")
        return Meeting(product, left, right, *paths, None, (), (mask,) if isinstance(mask, Node) else ())
    factors = tuple(_factors(flow, product))
    scores = factors[-1] if factors else product
    return Meeting(product, left, right, *paths, scores, factors, tuple(_added(flow, scores)))


def _up_to_products(start: Node) -> dict[Node, None]:
    """What is computed of a value, up to the first products and attentions."""
    found: dict[Node, None] = {}
    todo = [start]
    while todo:
        for user in todo.pop().users:
            if user not in found:
                found[user] = None
                if user.target is not _FUSED and user.target not in CONTRACTIONS:
                    todo.append(user)
    return found


def _between(start: Node, end: Node, behind: dict[Node, None]) -> Iterator[Node]:
    """The nodes from one to the other, in graph order."""
    if end is not start:
        before = computed_from(end)
        yield from (node for node in end.graph.nodes if node in before and node in behind)


def _reader(flow: Flow, node: Node) -> Node | None:
    """The only node that a value goes on to with its gradient."""
    found = [user for user in node.users if user in flow.carrying]
    return found[0] if len(found) == 1 and len(flow.carrying_operands(found[0])) == 1 else None


def _factors(flow: Flow, product: Node) -> Iterator[Node]:
    """The products with constants that stand behind the product of queries and keys, up to the division of a soft cap."""
    node = _reader(flow, product)
    while node is not None and node.target in PRODUCTS and arguments(node)["other"] not in flow.carrying:
        behind = _reader(flow, node)
        if behind is not None and behind.target is aten.tanh.default:
            return
        yield node
        node = behind


def _added(flow: Flow, scores: Node) -> Iterator[Node]:
    """What is added between scores and softmax."""
    before, node = scores, _reader(flow, scores)
    while node is not None and (node.target in _SAME or node.target in _ADDS):
        if node.target in _ADDS:
            yield from (each for each in node.all_input_nodes if each is not before)
        before, node = node, _reader(flow, node)
