"""Capture of packed layers: each becomes one node that calls the layer's own kernel."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lxt_fx.base.errors import CaptureError, InputError
from lxt_fx.base.torch_internals import contents_of
from lxt_fx.ops.own_backward import running
from lxt_fx.ops.packed import PackedLayer, packed_linear, weight_of
from lxt_fx.packed.known import packed_layer
from lxt_fx.passes.capture.layer_kinds import SAME
from lxt_fx.passes.capture.with_forward import with_forward
from lxt_fx.passes.verify import gradient_difference

EXACT, ROUNDED = 0.05, 0.5
"""The largest difference between the values of a kernel and of the unpacked weights (relative L2) of a layer that says that
it rounds nothing but its weights, and of one that rounds its input: beyond it, other weights are unpacked than the kernel
multiplies with."""

SIGNS_EXACT, SIGNS_ROUNDED = 0.02, 0.1
"""The same for inputs of one magnitude, which are rounded alike: up to a factor, nothing is left but the weights."""

_NAME = "packed_weight"
_HOOKED_FORWARD = "_old_forward"
"""Where accelerate, which puts a forward of its own on a module, stores that of the class."""


@dataclass(frozen=True, slots=True)
class Found:
    """A packed layer of the model: the user's module, the layer, and its weight as a graph holds it."""

    module: nn.Module
    layer: PackedLayer
    weight: Tensor


@dataclass(frozen=True, slots=True)
class PackedLayers:
    """The packed layers of a model by path. `dtypes` are those that a kernel gave for an input of another one."""

    found: Mapping[str, Found]
    dtypes: dict[tuple[str, torch.dtype], torch.dtype] = field(default_factory=dict)

    @contextmanager
    def compared(self) -> Iterator[None]:
        """While the model runs inside, its kernels are compared with the unpacked weights. Raises CaptureError where they
        differ by more than the layer says that it rounds."""

        def forward(path: str, found: Found, x: Tensor) -> Tensor:
            layer = found.layer
            z = layer(x)
            self.dtypes[path, x.dtype] = z.dtype
            if math.isnan(layer.difference) and x.numel():
                layer.difference = _checked(path, layer, x, z)
                layer.has_backward = _has_backward(layer, x)
            return z

        with self._replaced(forward):
            yield

    @contextmanager
    def as_ops(self) -> Iterator[None]:
        """Inside, a call of a packed layer is one op, `lxt_fx::packed_linear`, which capture does not look into. The model
        is restored at the end, also where capture fails."""

        def forward(path: str, found: Found, x: Tensor) -> Tensor:
            traced: Tensor = getattr(found.module, _NAME)
            z: Tensor = packed_linear(x, traced, found.layer.scheme, self._other_dtype(path, x))
            return z

        for found in self.found.values():
            contents_of(found.module)[1][_NAME] = found.weight
        try:
            with self._replaced(forward):
                yield
        finally:
            for found in self.found.values():
                contents_of(found.module)[1].pop(_NAME, None)

    def on_twin(self, twin: nn.Module) -> PackedLayers:
        """The same layers of a copy of the model on the meta device, whose weights have no values either."""
        found = {
            path: replace(each, module=twin.get_submodule(path), weight=each.weight.to("meta"))
            for path, each in self.found.items()
        }
        return PackedLayers(found, self.dtypes)

    @contextmanager
    def with_backwards(self) -> Iterator[None]:
        """Inside, layers whose kernels have no backward, or another one, have that of their unpacked weights: the gradient
        of the model itself does not pass them, so no graph can be compared with it."""

        def forward(path: str, found: Found, x: Tensor) -> Tensor:
            z: Tensor = packed_linear(x, found.weight, found.layer.scheme, self._other_dtype(path, x))
            return z

        without = {path: found for path, found in self.found.items() if not found.layer.has_backward}
        with PackedLayers(without, self.dtypes)._replaced(forward):
            yield

    def _other_dtype(self, path: str, x: Tensor) -> torch.dtype | None:
        """The dtype of a kernel's value, None for that of x."""
        given = self.dtypes.get((path, x.dtype), x.dtype)
        return None if given is x.dtype else given

    @contextmanager
    def _replaced(self, forward: Callable[[str, Found, Tensor], Tensor]) -> Iterator[None]:
        """Inside, and in this thread only, the layers have this forward."""
        thread = threading.get_ident()

        def of(path: str, found: Found) -> Callable[..., Tensor]:
            def replaced(*args: Any, **kwargs: Any) -> Tensor:
                given = (*args, *kwargs.values())
                if threading.get_ident() != thread or len(given) != 1 or not isinstance(given[0], Tensor):
                    return found.layer.forward(found.layer.layer, *args, **kwargs)
                return forward(path, found, given[0])

            dtypes = tuple((given, made) for (layer, given), made in self.dtypes.items() if layer == path)
            setattr(replaced, SAME, (found.layer.scheme, found.layer.rounds, dtypes))
            return replaced

        with ExitStack() as stack:
            for path, found in self.found.items():
                stack.enter_context(with_forward(found.module, of(path, found)))
            yield


def packed_layers(model: nn.Module) -> PackedLayers:
    """The packed layers of a model. A layer whose forward someone replaced is traced like any module, and so is one on the
    meta device. Raises CaptureError for a packed layer that is no linear map, or whose weights cannot be unpacked."""
    found: dict[str, Found] = {}
    for path, module in model.named_modules():
        replaced = "forward" in vars(module) and _HOOKED_FORWARD not in vars(module)
        packed = None if replaced else packed_layer(module, path or "the model")
        if packed is not None and not any(tensor.is_meta for tensor in packed.tensors()):
            found[path] = Found(module, packed, weight_of(packed, _unpacked(packed, path or "the model")))
    return PackedLayers(found)


def _unpacked(packed: PackedLayer, path: str) -> Tensor:
    """The weight, checked. Raises CaptureError for an `unpack` that fails or gives something else."""
    what = f"transform: {path} is a {type(packed.layer).__name__} ({packed.scheme})"
    try:
        found = packed.unpacked()
    except InputError:
        raise
    except Exception as error:  # the code of a package or of the user may raise anything
        raise CaptureError(f"{what}, and its weights could not be unpacked: {type(error).__name__}: {error}") from error
    weight, bias = found if isinstance(found, tuple) and len(found) == 2 else (None, None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point():
        shown = f"{weight.dtype} {list(weight.shape)}" if isinstance(weight, Tensor) else type(found).__name__
        raise CaptureError(
            f"{what}; unpack must give (weight [out, in], bias or None) of a floating-point dtype, not {shown}"
        )
    if bias is not None and (not isinstance(bias, Tensor) or bias.shape != weight.shape[:1]):
        raise CaptureError(
            f"{what}; unpack must give a bias [{len(weight)}] or None beside its weight {list(weight.shape)}"
        )
    return weight


def _checked(path: str, packed: PackedLayer, x: Tensor, z: Tensor) -> float:
    """The difference between the kernel's values z and those of the unpacked weights on the example, relative to the
    kernel's (L2). Raises CaptureError where other weights were unpacked than the kernel multiplies with."""
    with torch.no_grad():
        weight, bias = (None if t is None else t.detach().float() for t in packed.unpacked())
        assert weight is not None
        if weight.shape[1] != x.shape[-1] or z.shape != (*x.shape[:-1], len(weight)):
            _refuse(path, packed, math.inf, ROUNDED)
        found = gradient_difference(z.detach().float(), F.linear(x.detach().float(), weight, bias))
        limit = ROUNDED if packed.rounds else EXACT
        if found > limit:
            _refuse(path, packed, found, limit)
        apart = _apart_on_signs(packed, x, weight, bias)
        limit = SIGNS_ROUNDED if packed.rounds else SIGNS_EXACT
        if apart > limit:
            _refuse(path, packed, apart, limit)
        return found


def _apart_on_signs(packed: PackedLayer, x: Tensor, weight: Tensor, bias: Tensor | None) -> float:
    """The difference for inputs whose values are all of one magnitude, that of the example, with random signs. A kernel
    that rounds its input multiplies them all by one factor, which is left out."""
    random = torch.Generator().manual_seed(0)
    size = x.detach().float().square().mean().sqrt().nan_to_num(1.0, 1.0, 1.0).clamp(min=1e-3)
    signs = (torch.randint(0, 2, x.shape, generator=random) * 2 - 1).to(x.device) * size
    z, own = packed(signs.to(x.dtype)).float(), F.linear(signs.to(x.dtype).float(), weight)
    z = z if bias is None else z - bias
    if packed.rounds:
        own = own * ((z * own).sum() / own.square().sum().clamp(min=1e-30)).clamp(0.5, 2)
    return gradient_difference(z, own)


def _has_backward(packed: PackedLayer, x: Tensor) -> bool:
    """Whether the gradient that the kernel passes to x is that of its unpacked weights. Rounding that is written out has
    the derivative 0."""
    with torch.enable_grad(), running(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of kernels without a backward, which is what is asked
        leaf = x.detach().requires_grad_()
        try:
            z = packed.forward(packed.layer, leaf)
            (found,) = torch.autograd.grad(z, leaf, torch.ones_like(z), allow_unused=True)
        except Exception:  # a backward that fails may raise anything
            return False
    if found is None:
        return False
    own = packed.unpacked()[0].detach().float().sum(0).expand(x.shape)
    return gradient_difference(own, found.float()) <= EXACT


def _refuse(path: str, packed: PackedLayer, apart: float, limit: float) -> NoReturn:
    says = f"it rounds {packed.rounds}" if packed.rounds else "it rounds nothing but its weights"
    raise CaptureError(
        f"transform: the kernel of {path} ({packed.scheme}) gives other values on the example than its unpacked weights: "
        f"off by {apart:.0%} (relative L2; allowed: {limit:.0%}, as {says}). Relevance would pass by weights "
        "that are not those of the model.\n  to go on: register what unpacks them, lxt_fx.register_packed(..., unpack), or "
        "say what else the kernel rounds, rounds=..."
    )
