"""Hooks on the submodules of an explained module.

These submodules only have parameters. The graph does not call them, so torch would never run their hooks. A call of the
explained module runs the hooks itself, with the values that the graph has for the submodule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from torch.fx import Node
from torch.utils.hooks import RemovableHandle

from lxt_fx.base.errors import CallError, InputError
from lxt_fx.base.torch_internals import check_conversion_hook, hooks_of, version_of
from lxt_fx.compiler.conversions import Convert, check_conversion
from lxt_fx.compiler.module_values import GraphValues, ModuleCall


class HookFlag:
    """Whether submodules may have hooks. Each call reads this flag; to search all submodules would be slow.

    A call that finds no hook takes the flag down as it was before the search: a hook that another thread registers
    meanwhile raises it again.
    """

    def __init__(self) -> None:
        self.raised: object | None = None
        self.found_none: object | None = None

    @property
    def is_set(self) -> bool:
        """Whether a hook was registered since none was found."""
        return self.raised is not self.found_none

    def set(self) -> None:
        """To be called when a hook is registered, after that."""
        self.raised = object()


def hooked_now(module: nn.Module, hook_flag: HookFlag) -> dict[str, Hookable]:
    """The submodules that have hooks now, by path; none where the flag is down, and if there are none it goes down."""
    if not hook_flag.is_set:
        return {}
    raised = hook_flag.raised
    places = hooked_modules(module)
    if not places:
        hook_flag.found_none = raised
    return places


class Hookable(nn.Module):
    """A submodule of an explained module, which has parameters and hooks."""

    hook_flag: HookFlag

    def _apply(self, fn: Convert, recurse: bool = True) -> Hookable:
        """What torch's `to`, `half`, `cuda` and the like call. Raises InputError, unless it changes nothing."""
        check_conversion(self, fn, "a submodule")
        return self

    def __getitem__(self, index: int) -> nn.Module:
        """The part of this number, where the model has a list of modules: `explained.model.layers[0]`."""
        numbers = [name for name, _ in self.named_children() if name.isdigit()]
        if not numbers:
            raise TypeError("this part of an explained module is no list of modules; its parts have names")
        layers = numbers == list(map(str, range(len(numbers)))) and all(list(part.children()) for part in self)
        if index < 0 and not layers:  # the model's list may go on with an activation, which is not here
            raise IndexError(f"these parts of an explained module are counted from the start, got {index}")
        wanted = str(index if index >= 0 else index + len(numbers))
        if wanted not in numbers:
            raise IndexError(f"an explained module holds the parts {', '.join(numbers)} here, and no {index}")
        return self.get_submodule(wanted)

    def __iter__(self) -> Iterator[nn.Module]:
        """The numbered parts, without those of the model that have no parameters."""
        return (part for name, part in self.named_children() if name.isdigit())

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise AttributeError(
                f"this part of an explained module has no {name!r}: it has the parameters of the model's module and no "
                "code, and no parts without parameters; read values and their relevance with lxt_fx.watch and the path"
            ) from None

    def register_forward_hook(self, *args: Any, **kwargs: Any) -> RemovableHandle:
        """As for any module. In a call the hook gets (module, inputs, output): the values that carry relevance and enter or
        leave the module in the graph, as plain tensors without the model's own tuples or output classes. It may read and
        save them, call `retain_grad` and `register_hook`, and must return None."""
        handle = super().register_forward_hook(*args, **kwargs)
        self.hook_flag.set()
        return handle

    def register_forward_pre_hook(self, *args: Any, **kwargs: Any) -> RemovableHandle:
        """As `register_forward_hook`, with (module, inputs)."""
        handle = super().register_forward_pre_hook(*args, **kwargs)
        self.hook_flag.set()
        return handle

    def register_full_backward_hook(self, *args: Any, **kwargs: Any) -> RemovableHandle:
        """Registered as on any module, but a call raises CallError: no module is called whose gradients could be hooked."""
        handle = super().register_full_backward_hook(*args, **kwargs)
        self.hook_flag.set()
        return handle

    def register_full_backward_pre_hook(self, *args: Any, **kwargs: Any) -> RemovableHandle:
        """Registered as on any module, but a call raises CallError: no module is called whose gradients could be hooked."""
        handle = super().register_full_backward_pre_hook(*args, **kwargs)
        self.hook_flag.set()
        return handle

    def register_backward_hook(self, *args: Any, **kwargs: Any) -> RemovableHandle:
        """Registered as on any module, but a call raises CallError: no module is called whose gradients could be hooked."""
        handle = super().register_backward_hook(*args, **kwargs)
        self.hook_flag.set()
        return handle


def make_hookable(module: nn.Module, hook_flag: HookFlag) -> None:
    """Turns the empty modules that torch.fx makes for parameters into `Hookable` ones."""
    check_conversion_hook()
    for part in module.modules():
        if type(part) is nn.Module:
            part.__class__ = Hookable
            part.hook_flag = hook_flag  # type: ignore[assignment]


def hooked_modules(module: nn.Module) -> dict[str, Hookable]:
    """The submodules that have hooks now, by path."""
    return {path: part for path, part in module.named_modules() if isinstance(part, Hookable) and hooks_of(part)}


def hooks_sentence(model: nn.Module) -> tuple[str, ...]:
    """A sentence about the hooks of a model that is transformed, if it has any: they run during capture only."""
    hooked = [path or "the model" for path, part in model.named_modules() if hooks_of(part)]
    if not hooked:
        return ()
    more = f" and {len(hooked) - 3} more" if len(hooked) > 3 else ""
    return (
        f"hooks on {', '.join(hooked[:3])}{more} ran while the graph was captured: what they returned is part of it, and "
        "none of them runs in a call",
    )


class PassingHook:
    """The owner of hooks that are on a model for the time of a `with` block. What they return must not become part of a
    graph, which would have it for ever."""


PAUSED: ContextVar[bool] = ContextVar("PAUSED", default=False)
"""Whether this thread (or coroutine) calls models as they are without such hooks."""


def refuse_passing_hooks(model: nn.Module, function: str) -> None:
    """Raises InputError, in the name of `function`, for a model that has such hooks: it is steered."""
    for path, part in model.named_modules():
        hooks = hooks_of(part)
        owners = (getattr(hook, "__self__", None) for hook, _ in (*hooks.forward_pre, *hooks.forward))
        if any(isinstance(owner, PassingHook) for owner in owners):
            raise InputError(
                f"{function}: the model is steered by hooks at {path}, and its graph would stay steered after the block; "
                "transform the model before the block, and steer the explained module: steer(explained, ...)"
            )


class HookRunner:
    """Runs the hooks of these submodules in one call of a graph.

    Raises CallError for backward hooks, for a submodule that does not have exactly one output in the graph, and for a hook
    that returns a value or changes one in place.
    """

    def __init__(self, values: GraphValues, places: Mapping[str, Hookable]) -> None:
        self.entering: dict[Node, list[_RunningCall]] = {}
        self.first: dict[Node, list[_RunningCall]] = {}
        self.leaving: dict[Node, list[_RunningCall]] = {}
        for path, place in places.items():
            for call in _checked(values, path, place):
                running = _RunningCall(path, place, [values.at(node) for node in call.entering])
                self.first.setdefault(call.first, []).append(running)
                self.leaving.setdefault(values.at(call.leaving[0]), []).append(running)
                for node in running.inputs:
                    self.entering.setdefault(node, []).append(running)

    def before(self, node: Node) -> None:
        """Runs the pre-hooks of the modules that begin at this node."""
        for call in self.first.get(node, ()):
            call.begin()

    def after(self, node: Node, result: Any) -> None:
        """Records inputs of modules, and runs the forward hooks of the modules that end at this node, innermost first."""
        for call in self.entering.get(node, ()):
            call.values[node] = result
        for call in sorted(self.leaving.get(node, ()), key=lambda call: -len(call.path)):
            call.end(result)


class _RunningCall:
    """One call of a submodule with hooks, as the graph runs it."""

    def __init__(self, path: str, place: Hookable, inputs: list[Node]) -> None:
        self.path, self.place, self.inputs = path, place, inputs
        self.values: dict[Node, Tensor] = {}

    def _given(self) -> tuple[Tensor, ...]:
        return tuple(self.values[node] for node in self.inputs)

    def begin(self) -> None:
        for hook, takes_named in hooks_of(self.place).forward_pre:
            self._run(hook, self._given(), takes_named, ())

    def end(self, output: Tensor) -> None:
        for hook, takes_named in hooks_of(self.place).forward:
            self._run(hook, self._given(), takes_named, (output,))
        self.values.clear()

    def _run(
        self, hook: Callable[..., Any], given: tuple[Tensor, ...], takes_named: bool, output: tuple[Tensor, ...]
    ) -> None:
        before = [version_of(tensor) for tensor in (*given, *output)]
        returned = hook(self.place, given, *([{}] if takes_named else []), *output)
        if [version_of(tensor) for tensor in (*given, *output)] != before:
            raise CallError(
                f"a hook on {self.path} changed a value in place; what a hook computes has no rule, so relevance would be "
                "wrong from there on: only read the values, or change the model before transform"
            )
        if returned is not None:
            raise CallError(
                f"a hook on {self.path} returned a value ({type(returned).__name__}); what a hook computes has no rule, so "
                "relevance would be wrong from there on: return None, or change the model before transform"
            )


def _checked(values: GraphValues, path: str, place: Hookable) -> list[ModuleCall]:
    """The calls of the module in the graph. Raises CallError unless each has one output and no hook is a backward hook."""
    if hooks_of(place).backward:
        raise CallError(
            f"{path} has a backward hook, and an explained module calls no submodule whose gradients could be hooked; read "
            f'relevance with lxt_fx.watch(explained, "{path}"), or call output.register_hook in a forward hook'
        )
    calls = values.calls.get(path, [])
    wrong = next((call for call in calls if len(call.leaving) != 1), None)
    if not calls or wrong is not None:
        names = ", ".join(f"%{node.name}" for node in wrong.leaving) if wrong else ""
        raise CallError(
            f"a hook on {path} cannot run: in the graph the module has "
            f"{f'several outputs: {names}' if names else 'no output of its own'}; "
            'remove the hook, and read what you need with lxt_fx.watch(explained, "%node")'
        )
    return calls
