"""A model as a graph calls it: each tensor of its inputs has a name of its own, and pytree can take its output apart."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from inspect import Parameter, Signature
from threading import RLock, get_ident
from typing import Any

from torch import Tensor, nn

from lxt_fx.base.torch_internals import pytree
from lxt_fx.base.user_objects import with_made_objects
from lxt_fx.passes.capture.example import Example
from lxt_fx.passes.capture.with_forward import with_forward

_ONE_AT_A_TIME = RLock()
"""Only one thread at a time changes how models are called."""


@dataclass(slots=True)
class Called:
    """What a capture saw of the model's calls: the classes of the caches that are left out of the output."""

    left_out: set[str] = field(default_factory=set)

    def sentences(self) -> tuple[str, ...]:
        """What is fixed in the graph because of that."""
        return tuple(f"the {name} of the model's output is left out: it is None" for name in sorted(self.left_out))


def leaf_names(inputs: Mapping[str, Any]) -> list[str]:
    """One identifier for each leaf of the inputs: `pixel_values`, or `images_0` inside a list."""
    names: list[str] = []
    for path, _ in pytree.tree_flatten_with_path(dict(inputs))[0]:
        parts = (str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path)
        name = re.sub(r"\W", "_", "_".join(parts))
        while name in names:
            name += "_"
        names.append(name)
    return names


def leaf_values(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of the inputs by these names."""
    return dict(zip(leaf_names(inputs), pytree.tree_leaves(dict(inputs)), strict=True))


def tensor_leaves(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors among them."""
    return {name: leaf for name, leaf in leaf_values(inputs).items() if isinstance(leaf, Tensor)}


def plain_leaves(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The others: numbers, None and the like next to tensors in a list or dict. A graph has them as constants."""
    return {name: leaf for name, leaf in leaf_values(inputs).items() if not isinstance(leaf, Tensor)}


@contextmanager
def called_by_leaf(
    model: nn.Module, example: Example, inside: Sequence[AbstractContextManager[Any]] = ()
) -> Iterator[Called]:
    """Inside the block the model takes each tensor of the example as a keyword argument (`tensor_leaves`), and gets it in
    its place among its own arguments. So it does not matter for capture whether forward names its inputs, or takes them
    through `*args`, `**kwargs`, lists, dicts or objects. Objects of its output are taken apart.

    The model's own hooks run in between, on the arguments and the output that they know. Afterwards the model is as before.
    Other threads may call it meanwhile, and get what they always got. Its forward runs within the contexts `inside`.
    """
    called, names, thread = Called(), leaf_names(example.kwargs), get_ident()
    flat, spec = pytree.tree_flatten(dict(example.kwargs))

    def with_own_arguments(module: nn.Module, args: Any, leaves: dict[str, Any]) -> Any:
        if get_ident() != thread:  # where the model is called as it always was
            return None
        values = [leaves[name] if isinstance(value, Tensor) else value for name, value in zip(names, flat, strict=True)]
        return replace(example, kwargs=pytree.tree_unflatten(values, spec)).arguments()

    def taken_apart(module: nn.Module, args: Any, output: Any) -> Any:
        return with_made_objects(output, called.left_out.add) if get_ident() == thread else None

    with _ONE_AT_A_TIME, _with_parameters(model, list(tensor_leaves(example.kwargs)), inside):
        before = model.register_forward_pre_hook(with_own_arguments, prepend=True, with_kwargs=True)
        behind = model.register_forward_hook(taken_apart)
        try:
            yield called
        finally:
            before.remove()
            behind.remove()


@contextmanager
def _with_parameters(
    model: nn.Module, names: Sequence[str], inside: Sequence[AbstractContextManager[Any]]
) -> Iterator[None]:
    """Inside the block the signature of the model's forward has these parameters. torch.export reads it."""
    own, thread = model.forward, get_ident()

    def forward(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for context in inside if get_ident() == thread else ():
                stack.enter_context(context)
            return own(*args, **kwargs)

    forward.__signature__ = Signature([Parameter(name, Parameter.KEYWORD_ONLY) for name in names])  # type: ignore[attr-defined]
    with with_forward(model, forward):
        yield
