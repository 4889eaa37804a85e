"""Steering of a model by hooks, which are on its modules while a block runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lxt_fx.base.errors import CallError, InputError
from lxt_fx.base.one_capture import is_compiling
from lxt_fx.base.torch_internals import compiled_parts, in_dispatch_mode, pytree
from lxt_fx.base.user_objects import is_cache
from lxt_fx.base.warn_user import warn_user
from lxt_fx.compiler.hooks import PAUSED, PassingHook
from lxt_fx.inside.steering.hook_points import LAYOUTS, HookPoint
from lxt_fx.inside.steering.placed_edits import PlacedEdit
from lxt_fx.inside.steering.text_positions import Chosen
from lxt_fx.ops.steering import at_positions
from lxt_fx.passes.capture.signature import named_signature


@dataclass(frozen=True, slots=True, eq=False)
class HookedEdit:
    """An edit, where the model has its value, and the number and size of the heads there."""

    edit: PlacedEdit
    point: HookPoint
    heads: tuple[int, int]


@contextmanager
def hooks_on(model: nn.Module, edits: Sequence[HookedEdit], chosen: Chosen, *, proves: bool = False) -> Iterator[None]:
    """The edits act in every call of the model inside the block. All hooks are removed behind it, also if it raises. Hooks
    that prove something act while others are paused."""
    past = _Past()
    with ExitStack() as handles:

        def put(handle: RemovableHandle) -> None:
            handles.callback(handle.remove)

        if not chosen.all:
            put(model.register_forward_pre_hook(past.begin, with_kwargs=True, prepend=True))
            put(model.register_forward_hook(past.end, always_call=True))
        acting = [_Acting(each, chosen, past, type(model).__name__, proves) for each in edits]
        for act in acting:
            module = model.get_submodule(act.hooked.point.path)
            if act.hooked.point.entering:
                put(module.register_forward_pre_hook(act.on_inputs, with_kwargs=True))
            else:
                put(module.register_forward_hook(act.on_output))
        yield
        if idle := {act.hooked.edit.place.name: None for act in acting if not act.acted}:
            warn_user(
                f"steer: nothing was changed at {', '.join(idle)}: inside the block no call of {type(model).__name__} came "
                "to these places and positions (a copy that torch.compile made before has no hooks)"
            )


def refuse_compiled(given: nn.Module, model: nn.Module) -> None:
    """Raises InputError for a model that `torch.compile` compiled, whose code may know nothing of new hooks."""
    parts = ["the model"] if given is not model and compiled_parts(given) else compiled_parts(model)
    if parts:
        raise InputError(
            f"steer: {parts[0]} is compiled, and compiled code may neither run new hooks nor forget them; steer the model "
            "that was compiled, before torch.compile, or an explained module"
        )


class _Past(threading.local):
    """How many positions the cache of each running call of the model has, by thread; the calls of one thread nest."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.lengths.append(_cached(model, args, kwargs))

    def end(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.lengths:
            self.lengths.pop()


def _cached(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """The number of positions in the cache that a call gets."""
    names = list(named_signature(model).parameters)
    for name, given in {**dict(zip(names, args, strict=False)), **kwargs}.items():
        if given is None:
            continue
        if is_cache(given):
            length = getattr(given, "get_seq_length", None)
            try:
                if length is not None:
                    return int(length())
            except (ValueError, TypeError, NotImplementedError, IndexError) as error:
                raise CallError(_no_length(model, name)) from error
            raise CallError(_no_length(model, name))
        if name.startswith("past") or name in ("mems", "cache_params", "state"):
            raise CallError(_no_length(model, name))
    return 0


def _no_length(model: nn.Module, name: str) -> str:
    return (
        f"steer: {type(model).__name__} continues a text by {name}, which does not say how many positions it has, so "
        "positions of the whole text are not known; generate with use_cache=False, or leave positions out"
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Acting(PassingHook):
    """One edit as hooks of a module."""

    hooked: HookedEdit
    chosen: Chosen
    past: _Past
    model_class: str
    proves: bool
    acted: list[None] = field(default_factory=list)

    def on_inputs(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A forward pre-hook."""
        key = self.hooked.point.key
        if isinstance(key, int) and key < len(args):
            return (*args[:key], self.changed(args[key]), *args[key + 1 :]), kwargs
        if isinstance(key, str) and key in kwargs:
            return args, {**kwargs, key: self.changed(kwargs[key])}
        raise CallError(
            f"steer: {self.hooked.point.path} was called in another way than on the example that its place was found by: "
            f"its input {key} is missing; steer an explained module instead"
        )

    def on_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """A forward hook."""
        key = self.hooked.point.key
        if key is None:
            return self.changed(output)
        if isinstance(key, int):
            leaves, spec = pytree.tree_flatten(output, is_leaf=lambda found: found is not output)
            return pytree.tree_unflatten([*leaves[:key], self.changed(leaves[key]), *leaves[key + 1 :]], spec)
        output[key] = self.changed(output[key])
        return output

    def changed(self, found: Tensor) -> Tensor:
        """The value with the edit, in its layout."""
        if PAUSED.get() and not self.proves:
            return found
        if is_compiling() or in_dispatch_mode():
            raise InputError(
                f"steer: {self.model_class} is steered by hooks, and what is captured or compiled of it now would stay "
                "steered; transform or compile it before the block, and steer the explained module"
            )
        layout = LAYOUTS[self.hooked.point.layout]
        x, numbers = layout.to_place(found, self.hooked.heads), self.hooked.edit.affine
        at = None if self.chosen.all else self._positions(x)
        if not self.acted and (at is None or bool(at.any())):
            self.acted.append(None)
        y = x
        if numbers.factor is not None:
            y = y * _where(at, numbers.factor.to(x.dtype), 1.0)
        if numbers.shift is not None:
            y = y + _where(at, numbers.shift.to(x.dtype), 0.0)
        return layout.back(y)

    def _positions(self, x: Tensor) -> Tensor:
        """Which positions of this call are steered, in a shape that broadcasts to the value."""
        chosen, dim, first = self.chosen, self.hooked.edit.tokens, 0
        if self.hooked.point.continues:
            if not self.past.lengths:
                raise CallError(
                    f"steer: {self.hooked.point.path} was called without {self.model_class} itself, so its positions in "
                    "the text are not known; call the model, or leave positions out"
                )
            first = self.past.lengths[-1]
        at = at_positions(x.shape[dim], first, chosen.at, chosen.span, chosen.mask, x.device)
        examples = at.shape[0] if at.dim() > 1 else 1
        if examples not in (1, x.shape[0]):
            raise CallError(
                f"steer: the mask has {examples} examples, and this call has {x.shape[0]}; with beams or several answers "
                "to a prompt, repeat the mask for each, or give one for all of them: [tokens]"
            )
        sizes = [1] * x.dim()
        sizes[0], sizes[dim] = examples, x.shape[dim]
        return at.reshape(sizes)


def _where(at: Tensor | None, amount: Tensor, elsewhere: float) -> Tensor:
    return amount if at is None else torch.where(at, amount, elsewhere)


@contextmanager
def others_paused() -> Iterator[None]:
    """The hooks of blocks that are open let values pass as they are, for calls of this thread inside the block."""
    before = PAUSED.set(True)
    try:
        yield
    finally:
        PAUSED.reset(before)


Recorded = dict[tuple[str, bool], list[dict[int | str | None, Tensor]]]
"""The tensors that a module took or returned, by path and side, for each of its calls."""


@contextmanager
def recorded(model: nn.Module, wanted: Sequence[tuple[str, bool]]) -> Iterator[Recorded]:
    """Records what these modules take or return inside the block."""
    found: Recorded = {}
    with ExitStack() as handles:
        for path, entering in wanted:
            module, hook = model.get_submodule(path), _recorder(found, path, entering)
            handle = (
                module.register_forward_pre_hook(hook, with_kwargs=True) if entering else module.register_forward_hook(hook)
            )
            handles.callback(handle.remove)
        yield found


def _recorder(found: Recorded, path: str, entering: bool) -> Callable[..., None]:
    def inputs(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        named: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        found.setdefault((path, True), []).append({k: v.detach() for k, v in named.items() if isinstance(v, Tensor)})

    def output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        named: dict[Any, Any]
        if isinstance(output, Tensor):
            named = {None: output}
        elif isinstance(output, Mapping):
            named = dict(output.items())
        else:
            named = dict(enumerate(output)) if isinstance(output, (tuple, list)) else {}
        found.setdefault((path, False), []).append({k: v.detach() for k, v in named.items() if isinstance(v, Tensor)})

    return inputs if entering else output
