"""Relevance inside the model: at the output of any module, or at any node of the graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.fx import Node

from lxt_fx.attribution.places import node_at, places_at
from lxt_fx.base.errors import InputError, UnknownNameError
from lxt_fx.compiler.explained import Explained, check_explained


@dataclass(slots=True)
class Watched:
    """A value inside the model and, after `backward()`, its gradient (in explicit form its relevance)."""

    name: str
    value: Tensor
    form: str

    @property
    def relevance(self) -> Tensor:
        """value * gradient, or in explicit form the gradient, which is the relevance. It has the shape of the value, such
        as [batch, tokens, hidden] for a layer's output.

        Raises InputError if `backward()` was not called yet.
        """
        if self.value.grad is None:
            raise InputError(f"watch: {self.name} has no gradient yet; call backward() on what is to be explained first")
        return self.value.grad if self.form == "explicit" else self.value.detach() * self.value.grad


@dataclass(slots=True)
class Watch(Mapping[str, Watched]):
    """The watched values by the name of their place; each call of the module fills it. `nodes` gives for each of them the
    name of the graph's node that computes it, which is the same in both forms."""

    nodes: Mapping[str, str]
    found: dict[str, Watched] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Watched:
        if name not in self.nodes:
            raise UnknownNameError(f"watch: {name!r} is not watched; watched: {', '.join(self.nodes)}")
        if name not in self.found:
            raise InputError(f"watch: {name} has no value yet; call the explained module itself inside the with block")
        return self.found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)


@contextmanager
def watch(explained: Explained, *places: str) -> Iterator[Watch]:
    """Records values inside the model, and their relevance, while the `with` block runs.

    A place is a standard name (`residual.3`, `mlp.*.neurons`; `lxt_fx.places` lists them), a module path
    (`model.layers.*` is the output of each layer; `*` stands for one part between dots), or a `%node` as
    `show(explained, "lowered")` prints it. Calls inside the block run node by node, which is slower.

        with lxt_fx.watch(explained, "model.layers.*") as layers:
            explained(inputs_embeds=e).logits[0, -1, 42].backward()
        layers["model.layers.0"].relevance.sum(-1)

    Both forms give the same relevance (in explicit form start with `logit.backward(logit)`). With
    `transform(positions=...)`, a value that is not needed at the other positions is computed at the chosen ones only; its
    relevance at the others is 0.

    Raises UnknownNameError if a place selects nothing that carries relevance. Raises InputError if a module is called
    several times or has several outputs that carry relevance (its relevance is then not that of one value), and for a model
    that was not transformed.
    """
    check_explained(explained, "watch")
    seen = Watch({name: place.node for name, place in places_at(explained, places, "watch").items()})
    with explained._observed_by(lambda module: _Saver(module, places, seen)):
        yield seen


class _Saver:
    """Records the watched values as they are computed, and makes autograd retain their gradients."""

    def __init__(self, explained: Explained, places: tuple[str, ...], seen: Watch) -> None:
        self.names: dict[Node, list[str]] = {}
        for name, place in places_at(explained, places, "watch").items():
            self.names.setdefault(node_at(explained, place), []).append(name)
        self.seen, self.form = seen, explained.record.form

    def before(self, node: Node) -> None:
        """Does nothing."""

    def after(self, node: Node, result: Any) -> None:
        """Records the value of a watched node."""
        for name in self.names.get(node, ()):
            if result.requires_grad and not result.is_leaf:
                result.retain_grad()
            self.seen.found[name] = Watched(name, result, self.form)
