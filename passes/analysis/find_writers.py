"""Analysis: what writes to the residual stream of a network, and what reads it.

In a network whose blocks add to one stream, each value of the stream is a sum of what was written before: of the embedding
and of what attentions and MLPs added. What reads such a sum reads all of its terms, and nothing else of the network. So
the causal order of a circuit, from a writer to a later reader, is read off the sums, and no name of a module is. Where a
dictionary takes the place of a value, its features and its error are the terms, and they read what that value was. The
stream may be multiplied with constants between its layers (Gemma 4, Doge): then all terms are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch.fx import GraphModule, Node

from lxt_fx.base.errors import InputError
from lxt_fx.base.nodes import arguments, computed_from, fixed_size, shape, written_shape
from lxt_fx.base.torch_internals import aten, aten_ops
from lxt_fx.ops.aten_kinds import LIKE_ANOTHER, SHAPE_READERS
from lxt_fx.ops.norms import LAST_DIMS
from lxt_fx.passes.analysis.find_attention_parts import RESHAPES, AttentionParts
from lxt_fx.passes.analysis.find_dictionaries import InsertedDictionary
from lxt_fx.passes.analysis.find_groups import find_groups
from lxt_fx.passes.analysis.find_layers import Stream
from lxt_fx.passes.analysis.mark_flow import Flow

_REPEATS = RESHAPES | aten_ops("expand repeat_interleave.self_int")
"""Ops that may stand between keys or values and their copies for each head of queries."""

_OF_SHAPES = SHAPE_READERS | aten_ops("sym_size.int sym_numel")
"""Ops that read a shape and no value."""

_SAME = RESHAPES | {aten.to.dtype}
"""Ops that the stream may go through: the order of all elements stays as it is."""


Scales = tuple[Node | float, ...]
"""Constants that the stream is multiplied with, one after another."""


@dataclass(frozen=True, slots=True)
class Read:
    """A value that is computed of one value of the stream, and of nothing else that the network wrote: queries, keys or
    values of an attention, what an MLP gives, the logits. `between` are the nodes from `stream` to `end`, with `end`, in
    graph order, and `held` are, among them, the statistics of norms, and norms that are one op. `shared` heads of `end` are
    copies of one, side by side (grouped-query attention)."""

    end: Node
    stream: Node
    between: tuple[Node, ...]
    shared: int = 1
    held: frozenset[Node] = frozenset()


@dataclass(frozen=True, slots=True)
class Write:
    """A term of the stream. `output` is what the part of the network gives (`Read.end` of an MLP), `added` what the stream
    has of it, behind norms and scales. With `parts`, the heads of an attention or the features of a dictionary, `between`
    are the nodes from these to `added`, and `held` the statistics of norms among them. `reads` are the ends of the reads
    that it is computed of."""

    output: Node
    added: Node
    reads: tuple[Node, ...]
    parts: Node | None = None
    between: tuple[Node, ...] = ()
    held: frozenset[Node] = frozenset()


@dataclass(frozen=True, slots=True)
class Written:
    """A stream as the sum of what was written: `writes` in graph order, the first of which is what enters the first layer;
    `reads` in graph order; `sums` has for each value of the stream the indices of the writes that it is the sum of.
    `scales` has for each value of the stream, and for `added` of each write, what the stream was multiplied with before."""

    writes: tuple[Write, ...]
    reads: tuple[Read, ...]
    sums: Mapping[Node, tuple[int, ...]]
    scales: Mapping[Node, Scales]


def find_writers(
    gm: GraphModule, flow: Flow, stream: Stream, logits: Node, dictionaries: Sequence[InsertedDictionary] = ()
) -> Written:
    """Analysis: the writers and readers of a stream, whose layers may be those of the graph without its dictionaries.

    Raises InputError, without the name of a function, where the stream is no plain sum, or a part reads it in several
    places: it says what stands in the way.
    """
    return _Finder(gm, flow, stream, dictionaries).found(logits)


class _Finder:
    """What is known while the writers of one stream are found."""

    def __init__(self, gm: GraphModule, flow: Flow, stream: Stream, dictionaries: Sequence[InsertedDictionary]) -> None:
        self.flow, self.first, self.last = flow, stream.layers[0].before, stream.layers[-1].after
        self.order = {node: place for place, node in enumerate(gm.graph.nodes)}
        groups = find_groups(gm, flow).by_root.values()
        self.statistics = frozenset(group.statistic for group in groups if group.statistic is not None)
        self.attentions = {each.output: each for layer in stream.layers for each in layer.attentions}
        parts = [mlp.output for layer in stream.layers for mlp in layer.mlps]
        self.outputs = {*self.attentions, *parts, *(mixer for layer in stream.layers for mixer in layer.mixers)}
        self.dictionaries = {each.result: each for each in dictionaries}
        self.features = {_reconstruction(each): each.features for each in dictionaries}
        self.errors = {each.error for each in dictionaries}
        self.terms: dict[Node, dict[Node, Scales]] = {}  # the terms of a value, and what each was multiplied with since

    def found(self, logits: Node) -> Written:
        last = next((each.result for each in self.dictionaries.values() if each.written is self.last), self.last)
        self._sum(last)
        if not any(self.first in terms for terms in self.terms.values()):
            raise InputError(
                f"the residual stream behind the last layer (%{last.name}) is no sum of what enters the first "
                f"(%{self.first.name}) and of what the layers add: something else than a constant factor, such as a norm, "
                "stands in the stream"
            )
        if elsewhere := [each.written.name for each in self.dictionaries.values() if each.result not in self.terms]:
            raise InputError(
                f"the dictionary at %{elsewhere[0]} stands neither in the residual stream nor at what a part adds to it"
            )
        scales = self._scales()
        terms = {term for node in self._streams() for term in self.terms[node]} - {self.first}
        reads: dict[Node, Read] = {}
        added = sorted(terms, key=self.order.__getitem__)
        writes = [Write(self.first, self.first, ()), *(self._write(node, reads) for node in added)]
        self._read(logits, reads)
        index = {write.added: at for at, write in enumerate(writes)}
        sums = {node: tuple(sorted(index[term] for term in self.terms[node])) for node in self._streams()}
        in_order = sorted(reads.values(), key=lambda read: self.order[read.end])
        return Written(tuple(writes), tuple(in_order), sums, scales)

    def _scales(self) -> dict[Node, Scales]:
        """What the stream was multiplied with before each of its values, and before each term was added."""
        found: dict[Node, Scales] = {self.first: ()}
        in_order = sorted(self._streams(), key=self.order.__getitem__)
        for node in (*in_order, *in_order):  # a sum of later terms alone is known the second time, by what adds it
            terms = self.terms[node]
            if node in self.dictionaries and (written := self.dictionaries[node].written) in found:
                found |= dict.fromkeys(terms, found[written])
            known = [(*found[term], *since) for term, since in terms.items() if term in found]
            for each, since in ((node, ()), *terms.items()) if known else ():
                added = known[0][: len(known[0]) - len(since)]
                if (*added, *since) != known[0] or found.setdefault(each, added) != added:
                    raise InputError(f"the terms of %{node.name} are not multiplied alike on their way through the stream")
        return found

    def _scale(self, node: Node, carrying: Sequence[Node]) -> Node | float | None:
        """What a product multiplies its one operand that carries relevance with, if that is a constant: a number, or a
        value that depends on no input, of one element or of one for each entry of hidden."""
        given = arguments(node)
        if node.target is not aten.mul.Tensor or len(carrying) != 1 or written_shape(node) != written_shape(carrying[0]):
            return None
        others = [each for each in (given["self"], given["other"]) if each is not carrying[0]]
        if len(others) != 1 or not isinstance(others[0], Node):
            return float(others[0]) if others else None
        sizes, hidden = shape(others[0]), fixed_size((shape(self.first) or (None,))[-1])
        if sizes is None or any(each.op == "placeholder" for each in computed_from(others[0])):
            return None
        fits = all(fixed_size(size) == 1 for size in sizes[:-1]) and (not sizes or fixed_size(sizes[-1]) in (1, hidden))
        return others[0] if fits else None

    def _sum(self, node: Node) -> dict[Node, Scales]:
        """The terms of a value of the stream; one that is no sum is a term itself."""
        if node not in self.terms:
            self.terms[node] = self._terms(node)
        return self.terms[node]

    def _terms(self, node: Node) -> dict[Node, Scales]:
        read = [operand.node for operand in self.flow.carrying_operands(node)]
        if node in self.dictionaries:
            one = self.dictionaries[node]
            if one.written not in self.outputs:
                self._sum(one.written)  # what is written before the dictionary is read before it
            return {_reconstruction(one): (), one.error: ()}
        if node is self.first or node in self.outputs:
            return {node: ()}
        adds = node.target is aten.add.Tensor and arguments(node).get("alpha", 1) == 1
        if adds and len(read) == 2 and len({written_shape(each) for each in read}) == 1:
            left, right = (self._sum(each) for each in read)
            if not left.keys().isdisjoint(right):
                raise InputError(f"%{node.name} adds a value to the residual stream that is in it already")
            return left | right
        if node.target in _SAME and self._is_stream(self._sum(read[0])):
            return self._sum(read[0])
        if (scale := self._scale(node, read)) is not None and self._is_stream(self._sum(read[0])):
            return {term: (*since, scale) for term, since in self._sum(read[0]).items()}
        return {node: ()}

    def _is_stream(self, terms: Mapping[Node, Scales]) -> bool:
        return len(terms) > 1 or terms.keys() == {self.first}

    def _write(self, added: Node, reads: dict[Node, Read]) -> Write:
        """A term of the stream, as the output of one part of the network."""
        if added in self.features:
            features = self.features[added]
            inner = self._from(features, self._back(added, {features})[0])
            return Write(features, added, (self._read(features, reads),), features, inner)
        if added in self.errors:
            return Write(added, added, (self._read(added, reads),))
        _, hit = self._back(added, self.outputs | self._streams())
        if len(hit) != 1 or not hit <= self.outputs:
            raise InputError(
                f"what %{added.name} adds to the residual stream comes of {self._said(hit)}, and of no single attention or "
                "MLP"
            )
        (output,) = hit
        if output not in self.attentions:
            return Write(output, added, (self._read(output, reads),))
        parts = self.attentions[output]
        if parts.is_cross or len(parts.parts) != 1:
            kind = "reads another stream" if parts.is_cross else f"has {len(parts.parts)} sets of heads"
            raise InputError(f"the attention that gives %{output.name} {kind}")
        return self._by_heads(output, added, parts.parts[0], reads)

    def _by_heads(self, output: Node, added: Node, parts: AttentionParts, reads: dict[Node, Read]) -> Write:
        three = (parts.queries, parts.keys, parts.values)
        for start, stops in ((added, {parts.heads}), (parts.heads, set(three))):
            _, hit = self._back(start, stops | self._streams())
            if not hit <= stops:
                raise InputError(
                    f"the attention that gives %{output.name} reads {self._said(hit - stops)} beside its queries, keys and "
                    "values: a gate on its heads, or an index that chooses keys"
                )
        for end in three:
            self._read(end, reads, 1 if end is parts.queries else _copies(self.flow, end))
        inner = self._from(parts.heads, self._back(added, {parts.heads})[0])
        return Write(output, added, three, parts.heads, inner, self.statistics.intersection(inner))

    def _read(self, end: Node, reads: dict[Node, Read], shared: int = 1) -> Node:
        """Adds the read that ends here, if it is not known: keys may be those of an earlier layer."""
        if end in reads:
            return end
        between, hit = self._back(end, self._streams())
        if len(hit) != 1:
            raise InputError(
                f"%{end.name} is computed of {self._said(hit)}, where one value of the residual stream is needed: its "
                "reader has no single place at which the stream can be read apart"
            )
        (stream,) = hit
        nodes = self._from(stream, between)
        held = self.statistics.intersection(nodes) | {node for node in nodes if node.target in LAST_DIMS}
        reads[end] = Read(end, stream, nodes, shared, held)
        return end

    def _streams(self) -> set[Node]:
        """The values of the stream that can be read: what enters, and the sums."""
        return {self.first, *(node for node, terms in self.terms.items() if self._is_stream(terms))}

    def _back(self, start: Node, stops: set[Node]) -> tuple[set[Node], set[Node]]:
        """All that a value is computed of, with itself, up to these nodes; and those of these that were met. What only
        reads a shape reads no value."""
        seen, todo, hit = {start}, [start], set()
        while todo:
            node = todo.pop()
            if node in stops and (node is not start or node in self.outputs):
                hit.add(node)
                continue
            if node.target in _OF_SHAPES:
                continue
            new = [one for one in _valued(node) if one not in seen]
            seen.update(new)
            todo += new
        return seen - hit, hit

    def _from(self, source: Node, nodes: set[Node]) -> tuple[Node, ...]:
        """Those of the nodes that are computed of another one, along values and not shapes, in graph order."""
        found = {source: None}
        for node in sorted(nodes, key=self.order.__getitem__):
            if node.target not in _OF_SHAPES and not found.keys().isdisjoint(_valued(node)):
                found[node] = None
        return tuple(found)[1:]

    def _said(self, nodes: set[Node]) -> str:
        names = [f"%{node.name}" for node in sorted(nodes, key=self.order.__getitem__)]
        return ", ".join(names) or "nothing that the network wrote"


def _valued(node: Node) -> list[Node]:
    """The inputs that a node reads the values of, not the shape alone."""
    return node.all_input_nodes[:1] if node.target in LIKE_ANOTHER else node.all_input_nodes


def _reconstruction(dictionary: InsertedDictionary) -> Node:
    """What a dictionary reconstructs from its features: what it adds beside its error."""
    (found,) = (node for node in dictionary.result.all_input_nodes if node is not dictionary.error)
    return found


def _copies(flow: Flow, node: Node) -> int:
    """How many copies of each head of keys or values stand side by side, one for each head of queries that reads it."""
    copies = 1
    while node.target in _REPEATS and len(found := flow.carrying_operands(node)) == 1:
        before = found[0].node
        if node.target not in RESHAPES:
            copies *= _growth(before, node)
        node = before
    return copies


def _growth(before: Node, after: Node) -> int:
    """How many times as many elements of fixed sizes a value has as the one before."""
    counts = [1, 1]
    for at, node in enumerate((before, after)):
        for size in shape(node) or ():
            counts[at] *= fixed_size(size) or 1
    return counts[1] // counts[0]
