"""A model that is steered itself, in its forward and in `generate()`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from lxt_fx.base.errors import InputError
from lxt_fx.compiler.explained import Explained, check_explained
from lxt_fx.compiler.steered import check_steerable
from lxt_fx.compiler.transform import transform
from lxt_fx.inside.steering.edits import Edit
from lxt_fx.inside.steering.model_hooks import hooks_on, refuse_compiled
from lxt_fx.inside.steering.placed_edits import placed_edits
from lxt_fx.inside.steering.proved_points import hooked_edits
from lxt_fx.inside.steering.text_positions import Chosen

_OPEN: WeakKeyDictionary[nn.Module, list[Explained]] = WeakKeyDictionary()
"""The explained modules of the blocks that are open, by model: an inner block cannot transform a model that has hooks."""


@contextmanager
def steered_model(
    given: nn.Module,
    model: nn.Module,
    edits: Sequence[tuple[str, Edit]],
    chosen: Chosen,
    explained: nn.Module | None,
    inputs: Mapping[str, Any] | tuple[Any, ...] | None,
) -> Iterator[None]:
    """Steers a model, which `given` is or wraps, while the block runs."""
    refuse_compiled(given, model)
    found = _explained(model, explained, inputs)
    check_steerable(found, "steer")
    placed = placed_edits(found, edits, chosen, "steer")
    hooked = hooked_edits(model, found, placed, chosen, inputs)
    blocks = _OPEN.setdefault(model, [])
    blocks.append(found)
    try:
        with hooks_on(model, hooked, chosen):
            yield
    finally:
        blocks.remove(found)
        if not blocks:
            _OPEN.pop(model, None)


def _explained(
    model: nn.Module, explained: nn.Module | None, inputs: Mapping[str, Any] | tuple[Any, ...] | None
) -> Explained:
    """The explained module of the model, transformed now if none is given and none is open."""
    if explained is not None:
        found = check_explained(explained, "steer")
        own = {id(tensor) for tensor in chain(model.parameters(), model.buffers())}
        if not any(id(tensor) in own for tensor in chain(found.parameters(), found.buffers())):
            raise InputError(
                f"steer: explained= was not made from this {type(model).__name__}: they share no parameter; give what "
                "transform made of this model, or leave it out"
            )
        return found
    if blocks := _OPEN.get(model):
        return blocks[-1]
    args = inputs if isinstance(inputs, tuple) else ()
    return transform(model, args, None if isinstance(inputs, tuple) or inputs is None else dict(inputs))
