"""What a unit writes into the residual stream, and which entries of the output its direction speaks for.

A neuron writes the column of the down projection that reads it, times its value. A head writes its value through its block
of the output projection, which is a direction for each number of its value; of these the strongest are shown (the left
singular vectors of the block). A unit of the residual stream, or of what an attention or an MLP gives, is a direction of
its own. Where a norm stands between the projection and the stream (Gemma 3, OLMo 2), the direction is taken times its
scale.

The direction is read by the head of the model as if it were all of the stream (nostalgebraist 2020, the logit lens; Geva et
al. 2021, Transformer Feed-Forward Layers Are Key-Value Memories): times the scale of the last norm, then times the rows of
the head. The norm's centring, its offset and its division by the size of the stream are left out, and so are biases and
soft caps: scores compare entries with one another, and are no logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node, map_arg

from lxt_fx.attribution.readable_tokens import readable_tokens
from lxt_fx.attribution.standard_places import kind_of, standard_places
from lxt_fx.attribution.target_names import class_labels
from lxt_fx.base.errors import InputError
from lxt_fx.base.nodes import computed_from, shape, value
from lxt_fx.compiler.explained import Explained
from lxt_fx.inputs.tools import tools_of
from lxt_fx.inside.corpus.header import PlaceHeader
from lxt_fx.inside.corpus.samples import needs_pyarrow
from lxt_fx.ops.aten_kinds import LINEAR_MAPS
from lxt_fx.passes.analysis.mark_flow import Flow, mark_flow
from lxt_fx.passes.analysis.relevance_leaves import relevance_leaves

OF_A_HEAD = 2
"""How many directions of a head are shown."""

CHUNK = 256
"""So many directions are read by the head at once."""

SCALE = 1e-3
"""A map counts as a scale for each entry of the stream if it is one up to this share. In half precision norms differ by up
to some 4e-3, so it is computed in float32."""


class _NotKnown(Exception):
    """Why it is not known what a unit writes."""


@dataclass(frozen=True, slots=True)
class Word:
    """An entry of the output: its index, how it is written, and the score of it."""

    entry: int
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Words:
    """The entries that a direction speaks most for and most against. A direction of a head has no sign of its own: both
    lists may change places."""

    most: tuple[Word, ...]
    least: tuple[Word, ...]


def directions(explained: Explained, place: str, unit: int) -> Tensor:
    """What a unit writes into the residual stream, [directions, hidden]: one direction, of a head as many as it has
    numbers. Raises InputError where it is not known."""
    try:
        return _Canonical(explained).directions(place, [unit])[0]
    except _NotKnown as why:
        raise InputError(f"directions: it is not known what {place} writes into the residual stream: {why}") from None


def words(explained: Explained, processor: Any, place: str, units: Iterable[int], count: int = 8) -> list[list[Words]]:
    """For each unit the `count` tokens or classes that what it writes speaks most for and against: one `Words`, of a head
    one for each of its two strongest directions. Raises InputError where it is not known what it writes, or how the head
    reads the residual stream."""
    try:
        return list(_words(_Canonical(explained), _Names(explained, processor), place, list(units), count))
    except _NotKnown as why:
        raise InputError(f"words: it is not known what {place} writes into the output: {why}") from None


def _words(canonical: _Canonical, names: _Names, place: str, units: list[int], count: int) -> Iterator[list[Words]]:
    head = canonical.head()
    for start in range(0, len(units), CHUNK):
        written = canonical.directions(place, units[start : start + CHUNK])
        strongest = [_strongest(each * head.scale) for each in written]
        scores = head.scores(torch.cat(strongest))
        count = min(count, scores.shape[1])
        most, least = scores.topk(count, 1), scores.topk(count, 1, largest=False)
        made = [Words(names.of(m, mi), names.of(v, vi)) for m, mi, v, vi in zip(*most, *least, strict=True)]
        at = 0
        for each in strongest:
            yield made[at : at + len(each)]
            at += len(each)


def _strongest(written: Tensor) -> Tensor:
    """The direction itself; of several their strongest combinations, each signed so that its largest entry is positive."""
    if len(written) == 1:
        return written
    _, sizes, right = torch.linalg.svd(written, full_matrices=False)
    found = (sizes[:, None] * right)[:OF_A_HEAD]
    signed: Tensor = found * found.gather(1, found.abs().argmax(1, keepdim=True)).sign()
    return signed


@dataclass(frozen=True, slots=True, eq=False)
class _Head:
    """The head of a model: the `scale` [hidden] of the norm before it, and its linear map."""

    scale: Tensor
    linear: Node
    canonical: _Canonical

    def scores(self, written: Tensor) -> Tensor:
        """Directions [count, hidden] through the linear map, [count, entries]."""
        found: Tensor = self.canonical.through(self.linear, written)
        return found


class _Canonical:
    """The canonical graph of a module, parts of which are run with other values."""

    def __init__(self, explained: Explained) -> None:
        graph = explained.record.stages["canonical"].graph
        self.explained, self.gm = explained, GraphModule(explained, graph)
        renamed = explained.record.renamed
        by_name = {renamed.get(node.name, node.name): node for node in graph.nodes}
        self.places = {name: by_name[node] for name, node in standard_places(explained).items() if node in by_name}
        self._flow: Flow | None = None

    @property
    def flow(self) -> Flow:
        """Which values carry relevance."""
        if self._flow is None:
            self._flow = mark_flow(self.gm, relevance_leaves(self.gm.graph))
        return self._flow

    def node(self, name: str) -> Node:
        """The node of a standard place."""
        if name not in self.places:
            raise _NotKnown(f"the model has no place {name}")
        found: Node = self.places[name]
        return found

    def directions(self, place: str, units: list[int]) -> list[Tensor]:
        """What each unit writes, [directions, hidden]."""
        if place not in self.places:
            raise _NotKnown("it is no standard place")
        kind, before = kind_of(place), place.rpartition(".")[0]
        if kind in ("residual", "output"):
            width = int((shape(self.node(place)) or (0,))[-1])
            basis = torch.eye(width)[units]
            scale = torch.ones(()) if kind == "residual" else self._scale_behind(self.node(place))
            return list((basis * scale)[:, None])
        if kind == "features":
            return list(self._of_features(place, units)[:, None])
        if kind not in ("neurons", "heads"):
            raise _NotKnown(f"{kind} are read by other ops before the stream")
        output = self.node(f"{before}.output")
        linear = self._linear_map(output)
        size = int((shape(self.node(place)) or (0,))[-1]) if kind == "heads" else 1
        width = self._width(linear)
        if max(units) * size + size > width:
            raise _NotKnown(f"its projection reads {width} numbers")
        basis = torch.zeros(len(units), size, width)
        for row, unit in enumerate(units):
            basis[row, :, unit * size : (unit + 1) * size] = torch.eye(size)
        written = self.through(linear, basis.flatten(0, 1)) * self._scale_behind(output)
        return list(written.reshape(len(units), size, -1))

    def _of_features(self, place: str, units: list[int]) -> Tensor:
        """The directions of features of a dictionary that stands in the residual stream or behind a projection, [features,
        hidden]."""
        of = place.partition(".features")[0]
        if kind_of(of) not in ("residual", "output"):
            raise _NotKnown(f"{of} is read by other ops before the stream")
        features = self.node(place)
        decoder = next((user for user in features.users if user.target in LINEAR_MAPS), None)
        if decoder is None:
            raise _NotKnown(f"no linear map reads {place} as it is")
        basis = torch.zeros(len(units), int((shape(features) or (0,))[-1]))
        basis[range(len(units)), units] = 1
        written = self.through(decoder, basis)
        return written if kind_of(of) == "residual" else written * self._scale_behind(self.node(of))

    def head(self) -> _Head:
        """The head that reads the last of the residual stream."""
        layers = [name for name in self.places if name.rpartition(".")[0] == "residual"]
        if not layers:
            raise _NotKnown("the model has no residual stream")
        last = self.node(max(layers, key=lambda name: int(name.rpartition(".")[2])))
        linear = self._linear_map(self.node("logits"))
        (read,) = self.flow.carrying_operands(linear)
        return _Head(self._scale(last, read.node), linear, self)

    def _linear_map(self, node: Node) -> Node:
        """The linear map of one value that this one comes from, by ops of one value (a reshape, a soft cap)."""
        while len(carrying := self.flow.carrying_operands(node)) == 1:
            if node.target in LINEAR_MAPS:
                return node
            node = carrying[0].node
        raise _NotKnown(f"%{node.name} is no linear map of one value")

    def through(self, linear: Node, values: Tensor) -> Tensor:
        """Values [count, width] through a linear map of the graph, without its bias, in float32."""
        (read,) = (operand.node for operand in self.flow.carrying_operands(linear))
        with torch.no_grad():
            constants = {node: self._value(node, {}) for node in linear.all_input_nodes if node is not read}
            device = next((each.device for each in constants.values() if isinstance(each, Tensor)), torch.device("cpu"))
            both = torch.cat([values, values.new_zeros(1, values.shape[1])]).to(device)
            found = self._run(linear, {**constants, read: both})
            written: Tensor = (found[:-1] - found[-1:]).float().cpu()
            return written

    def _width(self, linear: Node) -> int:
        (read,) = (operand.node for operand in self.flow.carrying_operands(linear))
        return int((shape(read) or (0,))[-1])

    def _scale_behind(self, output: Node) -> Tensor:
        """The scale between what a projection gives and the residual stream: of a norm that stands there, or 1."""
        after = False
        for node in self.gm.graph.nodes:
            after = after or node is output
            if not after or len(operands := self.flow.carrying_operands(node)) != 2:
                continue
            from_here = [operand.node for operand in operands if output in computed_from(operand.node)]
            if len(from_here) == 1:
                return self._scale(output, from_here[0])
        return torch.ones(())

    def _scale(self, start: Node, end: Node) -> Tensor:
        """The factor for each entry of the last dim by which a norm maps one value to another, up to one factor for all.
        It is measured: a norm of values of one size, half of them negative, gives these times its scale, plus an offset."""
        if start is end:
            return torch.ones(())
        width = int((shape(start) or (0,))[-1])
        draw = torch.Generator().manual_seed(0)
        signs = [
            torch.ones(width).index_fill(0, torch.randperm(width, generator=draw)[: width // 2], -1.0) for _ in range(2)
        ]
        sizes = torch.randn(width, generator=draw)
        one, other, odd = (self._odd_part(start, end, x) for x in (*signs, sizes))
        scale = one / signs[0]
        close = torch.allclose(other / signs[1], scale, rtol=SCALE, atol=SCALE * float(scale.abs().max()))
        if not close or not _is_affine(odd / scale, sizes):
            raise _NotKnown(f"between %{start.name} and %{end.name} stands more than a norm")
        return scale

    def _odd_part(self, start: Node, end: Node, x: Tensor) -> Tensor:
        """Half the difference of what the graph makes of x and of -x at `end`, if `start` has that value."""
        with torch.no_grad():
            dims = len(shape(start) or ())
            both = [self._value(end, {start: each.reshape(*[1] * (dims - 1), -1)}) for each in (x, -x)]
        found: Tensor = ((both[0] - both[1]) / 2).reshape(-1).float().cpu()
        return found

    def _value(self, node: Node, known: dict[Node, Any]) -> Any:
        """The value of a node that depends on known ones and on constants only, floats in float32."""
        if node in known:
            return known[node]
        if node.op == "get_attr":
            found: Any = self.gm
            for part in str(node.target).split("."):
                found = getattr(found, part)
            return found.float() if isinstance(found, Tensor) and found.is_floating_point() else found
        if isinstance(size := value(node), torch.SymInt):
            return _at_one(size)
        if node.op != "call_function":
            raise _NotKnown(f"it depends on the input {node.name} otherwise")
        for each in node.all_input_nodes:
            known[each] = self._value(each, known)
        return self._run(node, known)

    def _run(self, node: Node, known: Mapping[Node, Any]) -> Any:
        args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
        try:
            return node.target(*args, **kwargs)  # type: ignore[operator]
        except (RuntimeError, TypeError, NotImplementedError) as error:
            raise _NotKnown(f"%{node.name} does not take other values: {str(error).splitlines()[0]}") from None


def _at_one(size: torch.SymInt) -> int:
    """A size of the graph if each free size is 1, as it is where a value has one position."""
    expr = size.node.expr
    return int(expr.subs(dict.fromkeys(expr.free_symbols, 1)))


def _is_affine(found: Tensor, x: Tensor) -> bool:
    """Whether `found` is c x + m for two numbers, up to rounding."""
    a, b = x - x.mean(), found - found.mean()
    rest = b - a * (a @ b) / (a @ a)
    return bool(rest.norm() <= SCALE * b.norm()) and bool(b.norm() > 0)


class _Names:
    """How entries of the output are written."""

    def __init__(self, explained: Explained, processor: Any) -> None:
        self.labels = class_labels(explained, None)
        self.tokenizer = tools_of(processor, None, "words").tokenizer
        self.predicts_classes = explained.record.model_class.endswith("Classification")

    def of(self, scores: Tensor, entries: Tensor) -> tuple[Word, ...]:
        """The entries of one list."""
        return tuple(
            Word(entry, self._written(entry), score) for score, entry in zip(scores.tolist(), entries.tolist(), strict=True)
        )

    def _written(self, entry: int) -> str:
        if self.predicts_classes or self.tokenizer is None:
            return self.labels[entry] if entry < len(self.labels) else f"entry {entry}"
        return readable_tokens(self.tokenizer, [entry])[0]


def write_words(explained: Explained, processor: Any, places: Mapping[str, PlaceHeader], count: int, path: Path) -> None:
    """Writes a parquet file with what all units of these places write, where that is known; none where it is not."""
    path.unlink(missing_ok=True)
    if count < 1:
        return
    pa = needs_pyarrow("corpus")
    from pyarrow import parquet

    schema = pa.schema(
        {"place": pa.string(), "unit": pa.int64(), "direction": pa.int64(), "most": pa.bool_(), "entry": pa.int64(),
         "text": pa.string(), "score": pa.float32()}
    )  # fmt: skip
    canonical, names = _Canonical(explained), _Names(explained, processor)
    new, file = path.with_name(f"{path.name}.new"), None
    for place, header in places.items():
        try:
            found = _words(canonical, names, place, list(header.ids), count)
            for start in range(0, header.read, CHUNK):
                lines = [
                    {"place": place, "unit": unit, "direction": at, "most": most, "entry": word.entry, "text": word.text,
                     "score": word.score}
                    for unit, each in zip(header.ids[start : start + CHUNK], found, strict=False)
                    for at, one in enumerate(each)
                    for most, listed in ((True, one.most), (False, one.least))
                    for word in listed
                ]  # fmt: skip
                file = parquet.ParquetWriter(new, schema, compression="zstd") if file is None else file
                file.write_table(pa.Table.from_pylist(lines, schema=schema))
        except _NotKnown:
            continue
    if file is not None:
        file.close()
        new.replace(path)


def read_words(path: Path, place: str, unit: int) -> list[Words]:
    """What `write_words` wrote of a unit; nothing where that is not known."""
    if not path.is_file():
        return []
    needs_pyarrow("corpus")
    from pyarrow import parquet

    lines = parquet.read_table(path, filters=[("place", "=", place), ("unit", "=", unit)]).to_pylist()
    found: dict[int, tuple[list[Word], list[Word]]] = {}
    for line in lines:
        lists = found.setdefault(line["direction"], ([], []))
        lists[0 if line["most"] else 1].append(Word(line["entry"], line["text"], line["score"]))
    return [Words(tuple(most), tuple(least)) for most, least in found.values()]
