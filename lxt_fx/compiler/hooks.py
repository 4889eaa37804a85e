"""Hooks on the submodules of an explained module.

These submodules hold parameters and nothing calls them, so torch would never run a hook of theirs. A call of an explained
module runs them itself, at the values that the graph has for the module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.fx import Node
from torch.utils.hooks import RemovableHandle

from lxt_fx.base.errors import CallError
from lxt_fx.base.torch_internals import hooks_of
from lxt_fx.passes.analysis.module_values import GraphValues, ModuleCall


class Told:
    """Whether a hook was ever put on a submodule: read in each call, where a search through all of them would cost time."""

    def __init__(self) -> None:
        self.any = False


class Place(nn.Module):
    """A submodule of an explained module: the place in the model that parameters and hooks belong to."""

    told: Told

    def register_forward_hook(self, *args: Any, **kwargs: Any) -> RemovableHandle:
        """As for any module. In a call the hook gets (module, inputs, output): the values of the graph that carry relevance
        and enter and leave the module, tensors without the tuple or class that the model's code had around them. It may
        read and save them, call `retain_grad` and `register_hook`, and must return None."""
        self.told.any = True
        return super().register_forward_hook(*args, **kwargs)

    def register_forward_pre_hook(self, *args: Any, **kwargs: Any) -> RemovableHandle:
        """As `register_forward_hook`, with (module, inputs)."""
        self.told.any = True
        return super().register_forward_pre_hook(*args, **kwargs)

    def register_full_backward_hook(self, *args: Any, **kwargs: Any) -> RemovableHandle:
        """Kept by torch, and refused in a call: see `refused`."""
        self.told.any = True
        return super().register_full_backward_hook(*args, **kwargs)

    def register_full_backward_pre_hook(self, *args: Any, **kwargs: Any) -> RemovableHandle:
        """Kept by torch, and refused in a call: see `refused`."""
        self.told.any = True
        return super().register_full_backward_pre_hook(*args, **kwargs)

    def register_backward_hook(self, *args: Any, **kwargs: Any) -> RemovableHandle:
        """Kept by torch, and refused in a call: see `refused`."""
        self.told.any = True
        return super().register_backward_hook(*args, **kwargs)


def made_places(module: nn.Module, told: Told) -> None:
    """Turns the empty modules that torch.fx makes for parameters into places."""
    for part in module.modules():
        if type(part) is nn.Module:
            part.__class__ = Place
            part.told = told  # type: ignore[assignment]


def hooked_places(module: nn.Module) -> dict[str, Place]:
    """The places that have hooks by now, by path."""
    return {path: part for path, part in module.named_modules() if isinstance(part, Place) and hooks_of(part)}


def hooks_said(model: nn.Module) -> tuple[str, ...]:
    """A sentence on the hooks of a model that is transformed: they run while its graph is captured, and not after that."""
    hooked = [path or "the model" for path, part in model.named_modules() if hooks_of(part)]
    if not hooked:
        return ()
    more = f" and {len(hooked) - 3} more" if len(hooked) > 3 else ""
    return (
        f"hooks on {', '.join(hooked[:3])}{more} ran while the graph was captured: what they returned is part of it, and "
        "none of them runs in a call",
    )


class HookRunner:
    """Runs the hooks of these places in one call of a graph.

    Raises CallError where a place has backward hooks, where a module has no output of its own in the graph or several, and
    where a hook returns something.
    """

    def __init__(self, values: GraphValues, places: Mapping[str, Place]) -> None:
        self.entering: dict[Node, list[_Call]] = {}
        self.first: dict[Node, list[_Call]] = {}
        self.leaving: dict[Node, list[_Call]] = {}
        for path, place in places.items():
            for call in _checked(values, path, place):
                running = _Call(path, place, [values.at(node) for node in call.entering])
                self.first.setdefault(call.first, []).append(running)
                self.leaving.setdefault(values.at(call.leaving[0]), []).append(running)
                for node in running.inputs:
                    self.entering.setdefault(node, []).append(running)

    def before(self, node: Node) -> None:
        """Pre-hooks of the modules that begin here."""
        for call in self.first.get(node, ()):
            call.begin()

    def after(self, node: Node, result: Any) -> None:
        """What enters is noted; forward hooks of the modules that end here run, the innermost module's first."""
        for call in self.entering.get(node, ()):
            call.values[node] = result
        for call in sorted(self.leaving.get(node, ()), key=lambda call: -len(call.path)):
            call.end(result)


class _Call:
    """A call of a module that is under way."""

    def __init__(self, path: str, place: Place, inputs: list[Node]) -> None:
        self.path, self.place, self.inputs = path, place, inputs
        self.values: dict[Node, Tensor] = {}

    def _given(self) -> tuple[Tensor, ...]:
        return tuple(self.values[node] for node in self.inputs)

    def begin(self) -> None:
        for hook, takes_named in hooks_of(self.place).forward_pre:
            self._nothing(hook(self.place, self._given(), *([{}] if takes_named else [])))

    def end(self, output: Tensor) -> None:
        for hook, takes_named in hooks_of(self.place).forward:
            self._nothing(hook(self.place, self._given(), *([{}] if takes_named else []), output))
        self.values.clear()

    def _nothing(self, returned: Any) -> None:
        if returned is not None:
            raise CallError(
                f"a hook on {self.path} returned a value ({type(returned).__name__}); what a hook computes has no rule, so "
                "relevance would be wrong behind it: return None, or put the change into the model before transform"
            )


def _checked(values: GraphValues, path: str, place: Place) -> list[ModuleCall]:
    """The calls of the module, each with one output."""
    if hooks_of(place).backward:
        raise CallError(
            f"{path} has a backward hook, and no module is called here whose inputs and outputs could be hooked; read "
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
