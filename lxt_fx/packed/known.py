"""Which layers of a model are packed, and the registration of a user's own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lxt_fx.base.errors import CaptureError, InputError
from lxt_fx.ops.packed import PackedLayer, Unpack
from lxt_fx.packed import bitsandbytes_layers, other_layers, torchao_weights
from lxt_fx.packed.refused import REFUSED
from lxt_fx.packed.scheme import Scheme, shell

LAYERS: Mapping[str, Scheme] = {**bitsandbytes_layers.LAYERS, **other_layers.LAYERS}
"""By the full name of the class, so that no package is imported for it."""

_TOO_WIDE = (nn.Module, nn.Linear, Tensor, nn.Parameter)
_REGISTERED: dict[type, Scheme] = {}


def register_packed(cls: type, unpack: Unpack, *, scheme: str | None = None, rounds: str = "") -> None:
    """Makes `transform` treat layers of a class as linear maps of packed weights: z = x W^T + b.

    Each such layer becomes one node, `lxt_fx::packed_linear`. Its value is what the layer's own forward computes. Relevance
    passes by W under all rules for linear maps, and W is unpacked in the backward and not saved.

        lxt_fx.register_packed(Int4Linear, lambda layer: (layer.codes.float() * layer.scales, layer.bias), scheme="int4")

    `cls` is a subclass of nn.Module whose forward takes x [..., in] and returns [..., out], or a subclass of Tensor, for an
    nn.Linear with such a weight. `unpack` takes a layer to its weight [out, in] and its bias [out] or None, both of a
    floating-point dtype. `scheme` is what `show` and certificates call it, the name of the class if None. `rounds` says
    what the kernel rounds besides the weights, as "its input to int8"; without it, `transform` refuses a layer whose values
    on the example are not those of the unpacked weights. A later call for the same class takes the place of an earlier one;
    modules that are transformed already do not change.

    Raises InputError for another kind of class, and an unpack that cannot be called.
    """
    if not (isinstance(cls, type) and issubclass(cls, (nn.Module, Tensor))) or cls in _TOO_WIDE:
        raise InputError(
            f"register_packed: cls must be the class of your packed layers, or of their weights, got {cls!r}; give a "
            "subclass of torch.nn.Module or torch.Tensor"
        )
    if not callable(unpack):
        raise InputError(f"register_packed: unpack must be a function of a layer, got {unpack!r}")
    if not isinstance(rounds, str) or not isinstance(scheme, (str, type(None))):
        raise InputError(f"register_packed: scheme and rounds are texts, got {scheme!r} and {rounds!r}")
    name = scheme or cls.__name__
    _REGISTERED[cls] = Scheme(unpack, lambda layer: name, lambda layer: rounds)


def registered_in(model: nn.Module) -> frozenset[tuple[type, Scheme]]:
    """What was registered for layers of this model: a graph that was captured without it may be another one now."""
    classes = {kind for module in model.modules() for kind in type(module).__mro__} if _REGISTERED else set()
    classes |= {kind for parameter in model.parameters() for kind in type(parameter).__mro__} if _REGISTERED else set()
    return frozenset((kind, scheme) for kind, scheme in _REGISTERED.items() if kind in classes)


def packed_layer(module: nn.Module, path: str) -> PackedLayer | None:
    """The packed layer that a module is, or None for any other. Raises CaptureError for one that is packed and no linear
    map."""
    found = _scheme_of(module)
    if found is None:
        _check_not_refused(module, path)
        return None
    if (why := found.holds(module)) is not None:
        raise CaptureError(
            f"transform: {path} is a {type(module).__name__} ({found.named(module)}) that is no linear map of packed "
            f"weights: {why}"
        )
    return PackedLayer(shell(module), type(module).forward, found.unpack, found.named(module), found.rounds(module))


def is_packed(module: nn.Module) -> bool:
    """Whether the weights of a layer are packed, in a way that is known or refused."""
    return _scheme_of(module) is not None or any(_name(cls) in REFUSED for cls in type(module).__mro__)


def _scheme_of(module: nn.Module) -> Scheme | None:
    """A scheme for the class of the module, or for that of its weight. A subclass with a forward of its own is another
    layer; one that is registered is taken as it is. A scripted module has no forward in its class, and is traced."""
    if isinstance(module, torch.jit.ScriptModule):
        return None
    for cls in type(module).__mro__:
        if cls in _REGISTERED:
            return _REGISTERED[cls]
        if type(module).forward is getattr(cls, "forward", None) and (found := LAYERS.get(_name(cls))) is not None:
            return found
    weight = getattr(module, "weight", None)
    if type(module).forward is not nn.Linear.forward or not isinstance(weight, Tensor):
        return None
    for cls in type(weight).__mro__:
        found = _REGISTERED.get(cls) or torchao_weights.WEIGHTS.get(_name(cls))
        if found is not None:
            return found
    return None


def _check_not_refused(module: nn.Module, path: str) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        return
    for cls in type(module).__mro__:
        if (found := REFUSED.get(_name(cls))) is not None and type(module).forward is getattr(cls, "forward", None):
            why, instead = found
            raise CaptureError(
                f"transform: {path} is a {cls.__name__}, a packed layer that cannot be explained: {why}.\n  to go on: load "
                f"the model with from_pretrained(..., {instead})"
            )


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


__all__ = ["packed_layer", "register_packed", "registered_in"]
