"""Places inside a model: one way to say which value is meant, in every function that reads, conditions or changes one."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn
from torch.fx import Node

from lxt_fx.attribution.place_axes import axes_of
from lxt_fx.attribution.standard_places import standard_places
from lxt_fx.base.errors import InputError, UnknownNameError
from lxt_fx.base.nodes import module_path, written_shape
from lxt_fx.compiler.explained import Explained, check_explained
from lxt_fx.compiler.module_values import GraphValues, ModuleCall
from lxt_fx.views.listed import Listed

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class InsidePlace:
    """One value inside a model. `name` is how it was asked for: a standard name, a module path (its output), or `%node`.
    `node` is the node of the explained module's graph that computes it, the same in both forms. `shape` has free sizes as
    text, `axes` one name for each dimension, and `merged` the two that the first one holds, the outer one first, with their
    sizes: `(("batch", "s1"), ("tokens", "s2"))` for a value [batch * tokens, hidden]. It is empty if the first dimension
    holds one, or the graph does not say in which order. `module` is the innermost module whose code computes it."""

    name: str
    node: str
    shape: tuple[str, ...]
    axes: tuple[str, ...]
    module: str
    merged: tuple[tuple[str, str], ...] = ()


class Places(Listed, Mapping[str, InsidePlace]):
    """The standard places of a model, by name, in the order in which they are computed."""

    def __init__(self, places: Mapping[str, InsidePlace], model_class: str) -> None:
        self._places, self.model_class = dict(places), model_class

    def __getitem__(self, name: str) -> InsidePlace:
        if name not in self._places:
            raise UnknownNameError(f"places: {self.model_class} has no place {name!r}; {nearest(name, self._places)}")
        return self._places[name]

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        return f"Places({self.model_class}, {len(self)} places)"

    def __rich__(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table("place", "shape", "axes", "node", title=f"places of {self.model_class}", title_justify="left")
        for name, shown in _by_layer(self._places).items():
            table.add_row(name, Text(f"[{','.join(shown.shape)}]"), " ".join(_said_axes(shown)), f"%{shown.node}")
        return table


def places(explained: nn.Module) -> Places:
    """The places of a model that have standard names, found by the structure of its graph: no name of a module is read.

    With n layers, these are, as far as the model has them:

    | name | axes | value |
    |---|---|---|
    | `residual.0` to `residual.n` | batch, tokens, hidden | the residual stream before layer i; behind the last one |
    | `attention.i.queries`, `.keys`, `.values` | batch, heads, tokens, size | as the scores and the sum read them |
    | `attention.i.pattern` | batch, heads, queries, keys | the softmax, where the graph has it (eager attention) |
    | `attention.i.heads` | batch, heads, tokens, size | what each head gives, before the output projection |
    | `attention.i.output` | batch, tokens, hidden | what the output projection gives |
    | `mlp.i.neurons` | batch, tokens, neurons | what the down projection reads |
    | `mlp.i.output` | batch, tokens, hidden | what it gives, with experts the sum of theirs |
    | `experts.i.weights` | batch, tokens, experts | the weights of all experts, of which a router chooses some |
    | `mixer.i.output` | batch, tokens, hidden | what mixes tokens in another way gives: a recurrence, a convolution |
    | `logits` | batch, positions, entries | |
    | `residual.i.features`, `.error` | batch, tokens, features or hidden | of a dictionary that `splice` put there |

    `cross_attention.i...` reads another stream. The places of an encoder that is attended to are called `encoder...`, those
    of any other stream have the name of its leaf first (`pixel_values.residual.0`). Several of a kind in one layer are
    numbered: `mlp.3.1.neurons`. Values with other axes say so: `merged` has the two that lie in one dimension,
    `entries` are the tokens of all experts one after another, `dim1` is a dimension of which sizes do not tell. `watch`,
    `latent`, `conditional`, `steer`, `splice`, `corpus` and `Ledger.at` take these names, with `*` for any part between two
    dots, and besides them module paths and `%node`.

    Raises InputError for a model that was not transformed.
    """
    module = check_explained(explained, "places")
    found = {name: _place(module, name, node) for name, node in _standard(module).items()}
    return Places(found, module.record.model_class)


def places_at(explained: Explained, asked: str | Sequence[str], function: str) -> dict[str, InsidePlace]:
    """The places that are asked for, by name. Each is a standard name, a module path or a `%node`, with `*` for any one
    part between dots. Error messages name the `function`.

    Raises UnknownNameError, with the nearest names, for one that selects nothing that carries relevance; InputError where a
    module has no single output, or a name means a module and a standard place.
    """
    found: dict[str, InsidePlace] = {}
    for name in asked if isinstance(asked, Iterable) and not isinstance(asked, str) else (asked,):
        if not isinstance(name, str):
            raise InputError(f"{function}: a place is a standard name, a module path or a %node, as text; got {name!r}")
        found |= {each: _place(explained, each, node) for each, node in _nodes_at(explained, name, function).items()}
    return found


def node_at(explained: Explained, place: InsidePlace) -> Node:
    """The node of the place in this graph of the module, at which its relevance is complete (`GraphValues.at`)."""
    return explained._values().at(explained._values().by_name[place.node])


def nodes_of_names(explained: Explained) -> dict[str, str]:
    """The node, in this graph of the module, at which the relevance of each standard place and of each module with one
    output is complete."""
    values, found = explained._values(), {}
    for path, calls in values.calls.items():
        leaving = _leaving(values, calls)
        if len(leaving) == 1:
            found[path] = values.at(leaving[0]).name
    return found | {name: values.at(node).name for name, node in _standard(explained).items()}


def _nodes_at(explained: Explained, name: str, function: str) -> dict[str, Node]:
    values = explained._values()
    if name.startswith("%"):
        return _named(values, name[1:], function) or _nothing(explained, name, function)
    standard = _standard(explained, name)
    modules = _outputs(values, name, function)
    for both in standard.keys() & modules.keys():
        if standard[both] is not modules[both]:
            raise InputError(
                f"{function}: {both!r} is a standard place (%{standard[both].name}) and a module of the model "
                f"(%{modules[both].name}); say which by its node"
            )
    return standard | modules or _nothing(explained, name, function)


def _nothing(explained: Explained, name: str, function: str) -> dict[str, Node]:
    values = explained._values()
    paths = [path for path, calls in values.calls.items() if path and _leaving(values, calls)]
    known = [*standard_places(explained), *paths]
    known += [f"%{node.name}" for node in values.graph.nodes if values.carries(node)] if name.startswith("%") else []
    raise UnknownNameError(
        f"{function}: {name!r} selects nothing that carries relevance; {nearest(name, known)}; lxt_fx.places(explained) "
        "lists the standard places, show(explained, 'lowered') modules and nodes"
    )


def nearest(name: str, known: Sequence[str] | Mapping[str, object]) -> str:
    """The known names that are nearest to one, in a phrase."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.0)
    return f"the nearest are {', '.join(near)}" if near else "it has none"


def _fits(pattern: str, name: str) -> bool:
    if not ("*" in pattern or "?" in pattern or "[" in pattern):
        return pattern == name
    same = len(pattern.split(".")) == len(name.split("."))
    return same and all(map(fnmatch.fnmatchcase, name.split("."), pattern.split(".")))


def _standard(explained: Explained, pattern: str | None = None) -> dict[str, Node]:
    """The nodes of the standard places whose names fit the pattern (None: all) and that carry relevance."""
    values = explained._values()
    fitting = [(name, node) for name, node in standard_places(explained).items() if pattern is None or _fits(pattern, name)]
    found = {name: values.by_name[node] for name, node in fitting if node in values.by_name}
    return {name: node for name, node in found.items() if values.carries(node)}


def _named(values: GraphValues, pattern: str, function: str) -> dict[str, Node]:
    """The nodes whose names match and whose gradient is relevance. Raises UnknownNameError if only other nodes match."""
    named = [node for node in values.graph.nodes if fnmatch.fnmatchcase(node.name, pattern)]
    chosen = {f"%{node.name}": node for node in named if values.carries(node)}
    others = [node for node in named if values.carries(values.of(node))]
    if others and not chosen:
        raise UnknownNameError(
            f"{function}: %{others[0].name} belongs to an op of the explicit form, and its gradient is not a relevance; "
            f"take %{values.of(others[0]).name}, which has the same value"
        )
    return chosen


def _outputs(values: GraphValues, name: str, function: str) -> dict[str, Node]:
    """The output of each module that the name means, if it carries relevance."""
    chosen: dict[str, Node] = {}
    for path, calls in values.calls.items():
        if _fits(name, path) and (path or not name) and (found := _output(values, path, calls, function)) is not None:
            chosen[path] = found
    return chosen


def _output(values: GraphValues, path: str, calls: list[ModuleCall], function: str) -> Node | None:
    found = _leaving(values, calls)
    if len(found) > 1:
        what = f"is called {len(calls)} times" if len(calls) > 1 else f"gives {len(found)} values that carry relevance"
        raise InputError(
            f"{function}: {path or 'the model'} {what}, so it has no single output: it gives "
            f"{', '.join(f'%{node.name}' for node in found)}; take these nodes by name"
        )
    return found[0] if found else None


def _leaving(values: GraphValues, calls: list[ModuleCall]) -> list[Node]:
    """The values that leave the module in these calls and carry relevance."""
    return [node for call in calls for node in call.leaving if values.carries(node)]


def _place(explained: Explained, name: str, node: Node) -> InsidePlace:
    sizes = written_shape(node) or ()
    axes = axes_of(explained, name, node)
    return InsidePlace(name, node.name, sizes, axes.names, module_path(node), axes.merged)


def _by_layer(found: Mapping[str, InsidePlace]) -> dict[str, InsidePlace]:
    """One line for the places of one kind that differ in the number of the layer only: `mlp.0..29.neurons`."""
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for name, place in found.items():
        groups.setdefault((re.sub(r"\d+", "#", name, count=1), place.shape), []).append(name)
    lines = {}
    for (pattern, _), names in groups.items():
        layers = [re.search(r"\d+", name) for name in names]
        numbers = [layer.group() for layer in layers if layer is not None]
        shown = pattern.replace("#", f"{numbers[0]}..{numbers[-1]}" if len(numbers) > 1 else "".join(numbers), 1)
        lines[shown] = found[names[0]]
    return lines


def _said_axes(place: InsidePlace) -> tuple[str, ...]:
    """The axes as a table shows them: `batch*tokens` for two in one dimension."""
    return ("*".join(name for name, _ in place.merged), *place.axes[1:]) if place.merged else place.axes
