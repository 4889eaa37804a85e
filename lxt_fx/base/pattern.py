"""Patterns of several nodes, written like the model's code as a function of variables.

    rsqrt, mean = Op(aten.rsqrt.default), Op(aten.mean.dim)

    def rms_norm(x, dims, eps):
        return x * rsqrt(mean(x**2, dims, keepdim=True) + eps)

    found = match(rms_norm, node, eps=number)  # Found: found["x"] is a node, found["eps"] a number

or a Mismatch, which prints as `%mul_3 other: expected aten.rsqrt.default, found %sqrt = aten.sqrt.default`.

A variable stands for the same node, literal or list wherever it is written. Operands of `+` and `*` match in either order.
An argument that the pattern leaves out must have its default. If an op does not change the number of dims, dims are
compared from the end: of three dims, -1 and 2 are the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch.fx import Node

from lxt_fx.base.nodes import arguments, value
from lxt_fx.base.torch_internals import OpOverload, aten, schema_of

Check = Callable[[Any], str | None]
"""Checks the value of a variable: returns what it would have to be, or None if it fits."""


@dataclass(frozen=True, slots=True)
class Found:
    """The value of each variable, and the nodes that the pattern matched, its root first."""

    values: Mapping[str, Any]
    nodes: tuple[Node, ...]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]


@dataclass(frozen=True, slots=True)
class NodeArgument:
    """An argument of a node and its value; the node itself if `argument` is empty."""

    node: Node
    argument: str
    value: Any


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Where the attempt that matched most of the pattern failed, and what was expected there."""

    place: NodeArgument
    expected: tuple[str, ...]

    def __str__(self) -> str:
        where = f"%{self.place.node.name} {self.place.argument}".rstrip()
        return f"{where}: expected {' or '.join(self.expected)}, found {_text(self.place.value)}"


def match(pattern: Callable[..., Part], node: Node, **checks: Check) -> Found | Mismatch:
    """Matches the pattern with this node as its root; `checks` are conditions on its variables."""
    search = _Search(checks)
    return next(search.readings(pattern, node), None) or search.mismatch()


def match_alone(pattern: Callable[..., Part], node: Node, **checks: Check) -> Found | Mismatch:
    """As `match`, but no node outside of the pattern may read the matched nodes, except for the root."""
    search = _Search(checks)
    for found in search.readings(pattern, node):
        outside = [NodeArgument(n, "reader", user) for n in found.nodes[1:] for user in n.users if user not in found.nodes]
        if not outside:
            return found
        search.refuse(found, outside[0], "none outside of the pattern")
    return search.mismatch()


def number(found: Any) -> str | None:
    """A check that the value is a literal number."""
    return None if isinstance(found, (int, float)) else "a number"


def exactly(wanted: Any) -> Check:
    """A check that the value is this node or literal."""
    return lambda found: None if found == wanted else _text(wanted)


class Part:
    """A part of a pattern; arithmetic on parts is a part."""

    def __add__(self, other: Any) -> Part:
        return Op(aten.add.Tensor, commutes=True)(self, other)

    def __sub__(self, other: Any) -> Part:
        return Op(aten.sub.Tensor)(self, other)

    def __mul__(self, other: Any) -> Part:
        return Op(aten.mul.Tensor, commutes=True)(self, other)

    def __truediv__(self, other: Any) -> Part:
        return Op(aten.div.Tensor)(self, other)

    def __pow__(self, exponent: Any) -> Part:
        return Op(aten.pow.Tensor_Scalar)(self, exponent)

    def __neg__(self) -> Part:
        return Op(aten.neg.default)(self)


@dataclass(frozen=True, slots=True)
class Op:
    """An op that a pattern calls with parts and literals. If it commutes, its first two operands match in either order."""

    target: Any
    commutes: bool = False

    def __call__(self, *args: Any, **kwargs: Any) -> Part:
        defaults = _defaults(self.target)
        names = list(defaults) or [f"arg{index}" for index in range(len(args))]
        assert len(args) <= len(names) and kwargs.keys() <= set(names), f"{self.target} has the arguments {names}"
        return _OpPart(self.target, self.commutes, {**defaults, **dict(zip(names, args, strict=False)), **kwargs})


@dataclass(frozen=True, slots=True, eq=False)
class _OpPart(Part):
    target: Any
    commutes: bool
    arguments: Mapping[str, Any]

    def __str__(self) -> str:
        return str(self.target)


@dataclass(frozen=True, slots=True, eq=False)
class _Variable(Part):
    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, eq=False)
class _AnyOf(Part):
    alternatives: tuple[Any, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Through(Part):
    ops: Collection[Any]
    part: Any


def any_of(*alternatives: Any) -> Part:
    """One of these parts or literals, the first that matches."""
    return _AnyOf(alternatives)


def through(ops: Collection[Any], part: Any) -> Part:
    """The part itself, or the part with some of these ops applied to it, each as its first argument."""
    return _Through(ops, part)


class _Search:
    """Tries all ways to match a pattern and records where each of them failed."""

    def __init__(self, checks: Mapping[str, Check]) -> None:
        self.checks = checks
        self.refused: list[tuple[int, NodeArgument, str]] = []

    def readings(self, pattern: Callable[..., Part], node: Node) -> Iterator[Found]:
        names, part = _written(pattern)
        assert self.checks.keys() <= names, f"{pattern.__name__} has the variables {names}"
        return self._read(part, NodeArgument(node, "", node), Found({}, ()))

    def refuse(self, so_far: Found, place: NodeArgument, expected: str) -> None:
        self.refused.append((len(so_far.nodes) + len(so_far.values), place, expected))

    def mismatch(self) -> Mismatch:
        furthest, place, _ = max(self.refused, key=lambda refused: refused[0])
        expected = [text for progress, where, text in self.refused if (progress, where) == (furthest, place)]
        return Mismatch(place, tuple(dict.fromkeys(expected)))

    def _read(self, part: Any, place: NodeArgument, so_far: Found) -> Iterator[Found]:
        got = place.value
        match part:
            case _Variable(name):
                yield from self._bind(name, place, so_far)
            case _AnyOf(alternatives):
                for alternative in alternatives:
                    yield from self._read(alternative, place, so_far)
            case _Through(ops, inner):
                yield from self._read(inner, place, so_far)
                if isinstance(got, Node) and got.target in ops:
                    name, operand = next(iter(arguments(got).items()))
                    inside = Found(so_far.values, (*so_far.nodes, got))
                    yield from self._read(part, NodeArgument(got, name, operand), inside)
            case _OpPart(target) if isinstance(got, Node) and got.target is target:
                yield from self._call(part, got, Found(so_far.values, (*so_far.nodes, got)))
            case list() if isinstance(got, list) and len(got) == len(part):
                places = [NodeArgument(place.node, f"{place.argument}[{index}]", item) for index, item in enumerate(got)]
                yield from self._read_all(part, places, so_far)
            case _ if part == got:
                yield so_far
            case _:
                self.refuse(so_far, place, _text(part))

    def _bind(self, name: str, place: NodeArgument, so_far: Found) -> Iterator[Found]:
        check = exactly(so_far.values[name]) if name in so_far.values else self.checks.get(name)
        wanted = check(place.value) if check else None
        if wanted is None:
            yield Found({**so_far.values, name: place.value}, so_far.nodes)
        else:
            self.refuse(so_far, place, f"{wanted} for {name}")

    def _call(self, call: _OpPart, node: Node, so_far: Found) -> Iterator[Found]:
        expected, given = _from_the_end(node, call.arguments), _from_the_end(node, _defaults(node.target) | arguments(node))
        names = list(expected | given)
        swapped = [*names[1::-1], *names[2:]]
        for order in [names, swapped] if call.commutes else [names]:
            places = [NodeArgument(node, name, given.get(name)) for name in order]
            yield from self._read_all([expected.get(name) for name in names], places, so_far)

    def _read_all(self, parts: list[Any], places: list[NodeArgument], so_far: Found) -> Iterator[Found]:
        if not parts:
            yield so_far
            return
        for further in self._read(parts[0], places[0], so_far):
            yield from self._read_all(parts[1:], places[1:], further)


@cache
def _written(pattern: Callable[..., Part]) -> tuple[frozenset[str], Part]:
    """The names of the pattern's variables, and the pattern as a tree of parts."""
    names = inspect.signature(pattern).parameters
    return frozenset(names), pattern(*map(_Variable, names))


@cache
def _defaults(target: Any) -> dict[str, Any]:
    """The arguments of an op with their defaults, or None without a default; empty for a function without a schema."""
    schema = schema_of(target).arguments if isinstance(target, OpOverload) else ()
    return {argument.name: argument.default_value for argument in schema}


def _from_the_end(node: Node, named: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, with dims counted from the end if the node and its first operand have the same number of dims."""
    values = (value(read) for read in (node, *node.all_input_nodes[:1]))
    ranks = {len(getattr(found[0] if isinstance(found, (list, tuple)) else found, "shape", ())) for found in values}

    def counted(dim: Any) -> Any:
        if isinstance(dim, list):
            return [counted(each) for each in dim]
        return dim - min(ranks) if isinstance(dim, int) and dim >= 0 else dim

    return {name: counted(found) if name == "dim" and len(ranks) == 1 else found for name, found in named.items()}


def _text(found: Any) -> str:
    if isinstance(found, list):
        return f"[{', '.join(map(_text, found))}]"
    if not isinstance(found, Node):
        return str(found)
    return f"%{found.name} = {found.target}" if found.op == "call_function" else f"%{found.name}"
