"""Hooks on an explained module itself: they run as torch runs those of any module, around its whole call.

A call of an explained module is more than torch's: it finds the graph for its inputs, looks tokens up, and may run node by
node. So the hooks run here, once a call, with the arguments that the caller gave and the output that the caller gets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lxt_fx.base.errors import CallError, InputError
from lxt_fx.base.one_capture import is_compiling
from lxt_fx.base.torch_internals import Hooks, backward_hooks_of, hooks_of
from lxt_fx.base.warn_user import warn_user
from lxt_fx.compiler.hooks import HookFlag


class OwnHooks(nn.Module):
    """What registers hooks on an explained module itself. `own_hook_flag` says whether there may be one."""

    own_hook_flag: HookFlag

    def register_forward_hook(self, *args: Any, **kwargs: Any) -> RemovableHandle:
        """As for any module: the hook gets (module, args, output) of each call, or (module, args, kwargs, output) with
        `with_kwargs=True`, and what it returns takes the place of the output. Functions that do not call the module, such
        as `lxt_fx.audit`, raise CallError while it is registered."""
        handle = super().register_forward_hook(*args, **kwargs)
        self.own_hook_flag.set()
        return handle

    def register_forward_pre_hook(self, *args: Any, **kwargs: Any) -> RemovableHandle:
        """As for any module: the hook gets (module, args), or (module, args, kwargs) with `with_kwargs=True`, as the caller
        gave them, and may return others."""
        handle = super().register_forward_pre_hook(*args, **kwargs)
        self.own_hook_flag.set()
        return handle

    def register_full_backward_hook(self, *args: Any, **kwargs: Any) -> RemovableHandle:
        """As for any module: the hook gets (module, grad_input, grad_output). As in torch it sees the tensors that are
        given by position, and runs only where the output is a tensor or a tuple of tensors."""
        handle = super().register_full_backward_hook(*args, **kwargs)
        self.own_hook_flag.set()
        return handle

    def register_full_backward_pre_hook(self, *args: Any, **kwargs: Any) -> RemovableHandle:
        """As for any module: the hook gets (module, grad_output)."""
        handle = super().register_full_backward_pre_hook(*args, **kwargs)
        self.own_hook_flag.set()
        return handle

    def register_backward_hook(self, *args: Any, **kwargs: Any) -> RemovableHandle:
        """Raises InputError: torch's own documentation calls what such a hook gets wrong for more than one op."""
        raise InputError(
            "register_backward_hook: the gradients that it sees are those of the module's last op only, for any module of "
            "torch; use register_full_backward_hook, or read relevance with lxt_fx.watch"
        )


def own_hooks(module: OwnHooks) -> Hooks | None:
    """The hooks on the module itself, None if there are none; the flag then goes down."""
    if not module.own_hook_flag.is_set:
        return None
    raised, hooks = module.own_hook_flag.raised, hooks_of(module)
    if not hooks:
        module.own_hook_flag.found_none = raised
    return hooks or None


def called_with_hooks(
    module: OwnHooks, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """The output of the call, with the module's own hooks around it.

    Raises CallError where code is compiled, and for a pre-hook that returns what is no arguments.
    """
    hooks = own_hooks(module)
    if hooks is None:
        return call(*args, **kwargs)
    if is_compiling():
        raise CallError(
            "the module itself has hooks, which a compiled call would not run; remove them, or register them on what "
            "torch.compile returns"
        )
    reached = _Reached(args, dict(kwargs), list(hooks.always))
    try:
        return _called(module, hooks, call, reached)
    except Exception:
        for hook in reached.pending:
            _after_error(module, hook, reached, hooks)
        raise


@dataclass(slots=True)
class _Reached:
    """How far a call came: its arguments behind the pre-hooks, the hooks of `always_call=True` that did not run yet, and
    the output, None as long as there is none."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    pending: list[Callable[..., Any]]
    output: Any = None


def _called(module: OwnHooks, hooks: Hooks, call: Callable[..., Any], now: _Reached) -> Any:
    for hook, takes_named in hooks.forward_pre:
        returned = hook(module, now.args, now.kwargs) if takes_named else hook(module, now.args)
        now.args, now.kwargs = _changed(returned, now.args, now.kwargs, takes_named)
    at_output: Callable[[Any], Any] | None = None
    if hooks.backward:
        now.args, at_output = backward_hooks_of(module, now.args)
    now.output = call(*now.args, **now.kwargs)
    for hook, takes_named in hooks.forward:
        now.pending = [each for each in now.pending if each is not hook]
        returned = _run(module, hook, takes_named, now)
        now.output = now.output if returned is None else returned
    if at_output is None:
        return now.output
    if not isinstance(now.output, Tensor | tuple):
        raise CallError(
            f"a backward hook on the module itself cannot run: torch runs it where the output is a tensor or a tuple of "
            f"tensors, and this is {type(now.output).__name__}; read relevance with explained.with_leaves or lxt_fx.watch"
        )
    return at_output(now.output)


def _run(module: OwnHooks, hook: Callable[..., Any], takes_named: bool, now: _Reached) -> Any:
    return hook(module, now.args, *([now.kwargs] if takes_named else []), now.output)


def _changed(
    returned: Any, args: tuple[Any, ...], kwargs: dict[str, Any], takes_named: bool
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of the call behind a pre-hook that returned this."""
    if returned is None:
        return args, kwargs
    if not takes_named:
        return (returned if isinstance(returned, tuple) else (returned,)), kwargs
    if isinstance(returned, tuple) and len(returned) == 2:
        return returned
    raise CallError(
        f"a forward pre-hook with with_kwargs=True must return None or (args, kwargs), got {type(returned).__name__}"
    )


def _after_error(module: OwnHooks, hook: Callable[..., Any], now: _Reached, hooks: Hooks) -> None:
    """Runs a hook of `always_call=True` after the call or a hook failed. As in torch, what it raises itself is only a
    warning: the caller is to see the first error."""
    try:
        _run(module, hook, dict(hooks.forward)[hook], now)
    except Exception as error:
        warn_user(f"a forward hook with always_call=True raised {type(error).__name__} after the call had failed: {error}")
