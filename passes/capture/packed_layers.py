"""Capture of packed layers: each becomes one node that calls the layer's own kernel."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lxt_fx.base.errors import CaptureError
from lxt_fx.base.torch_internals import contents_of
from lxt_fx.ops.packed import PackedLayer, PackedWeight, packed_linear
from lxt_fx.packed.known import packed_layer
from lxt_fx.passes.verify import gradient_difference

EXACT, ROUNDED = 0.05, 0.5
"""The largest difference between the values of a kernel and of the unpacked weights (relative L2) of a layer that says that
it rounds nothing but its weights, and of one that rounds its input: beyond it, other weights are unpacked than the kernel
multiplies with."""

_NAME = "packed_weight"
_HOOKED_FORWARD = "_old_forward"
"""Where accelerate, which puts a forward of its own on a module, stores that of the class."""


@dataclass(frozen=True, slots=True)
class PackedLayers:
    """The packed layers of a model by path, each with its weight as a graph holds it. `dtypes` are those that a kernel gave
    for an input of another one."""

    found: Mapping[str, tuple[nn.Module, PackedWeight]]
    dtypes: dict[tuple[str, torch.dtype], torch.dtype] = field(default_factory=dict)

    @contextmanager
    def compared(self) -> Iterator[None]:
        """While the model runs inside, its kernels are compared with the unpacked weights. Raises CaptureError where they
        differ by more than the layer says that it rounds."""

        def forward(path: str, weight: PackedWeight, x: Tensor) -> Tensor:
            z = weight.packed(x)
            self.dtypes[path, x.dtype] = z.dtype
            if math.isnan(weight.packed.difference) and x.numel():
                weight.packed.difference = _difference(weight.packed, x, z)
                _check(path, weight.packed)
            return z

        with self._replaced(forward):
            yield

    @contextmanager
    def as_ops(self) -> Iterator[None]:
        """Inside, a call of a packed layer is one op, `lxt_fx::packed_linear`, which capture does not look into. The model
        is restored at the end, also where capture fails."""

        def forward(path: str, weight: PackedWeight, x: Tensor) -> Tensor:
            given = self.dtypes.get((path, x.dtype), x.dtype)
            found: Tensor = packed_linear(
                x, getattr(self.found[path][0], _NAME), weight.packed.scheme, None if given is x.dtype else given
            )
            return found

        for module, weight in self.found.values():
            contents_of(module)[1][_NAME] = weight
        try:
            with self._replaced(forward):
                yield
        finally:
            for module, _ in self.found.values():
                contents_of(module)[1].pop(_NAME, None)

    @contextmanager
    def _replaced(self, forward: Callable[[str, PackedWeight, Tensor], Tensor]) -> Iterator[None]:
        """Inside, and in this thread only, the layers have this forward."""
        thread = threading.get_ident()
        before = {path: vars(module).get("forward") for path, (module, _) in self.found.items()}

        def of(path: str, weight: PackedWeight) -> Callable[..., Tensor]:
            def replaced(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
                packed = weight.packed
                if threading.get_ident() != thread or args or kwargs or not isinstance(x, Tensor):
                    return packed.forward(packed.layer, x, *args, **kwargs)
                return forward(path, weight, x)

            return replaced

        try:
            for path, (module, weight) in self.found.items():
                vars(module)["forward"] = of(path, weight)
            yield
        finally:
            for path, (module, _) in self.found.items():
                if (own := before[path]) is None:
                    vars(module).pop("forward", None)
                else:
                    vars(module)["forward"] = own


def packed_layers(model: nn.Module) -> PackedLayers:
    """The packed layers of a model. A layer whose forward someone replaced is traced like any module, and so is one on the
    meta device. Raises CaptureError for a packed layer that is no linear map, or whose weights cannot be unpacked."""
    found: dict[str, tuple[nn.Module, PackedWeight]] = {}
    for path, module in model.named_modules():
        replaced = "forward" in vars(module) and _HOOKED_FORWARD not in vars(module)
        packed = None if replaced else packed_layer(module, path or "the model")
        if packed is not None and not any(tensor.is_meta for tensor in packed.tensors()):
            found[path] = module, PackedWeight.of(packed, _unpacked(packed, path or "the model"))
    return PackedLayers(found)


def _unpacked(packed: PackedLayer, path: str) -> Tensor:
    """The weight, checked. Raises CaptureError for an `unpack` that fails or gives something else."""
    what = f"transform: {path} is a {type(packed.layer).__name__} ({packed.scheme})"
    try:
        found = packed.unpacked()
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


def _difference(packed: PackedLayer, x: Tensor, z: Tensor) -> float:
    """Between the kernel's values and those of the unpacked weights, relative to the kernel's (L2); infinite where the
    shapes differ."""
    with torch.no_grad():
        weight, bias = (None if t is None else t.detach().float() for t in packed.unpacked())
        assert weight is not None
        if weight.shape[1] != x.shape[-1] or z.shape != (*x.shape[:-1], len(weight)):
            return math.inf
        own = F.linear(x.detach().float(), weight, bias)
        return gradient_difference(z.detach().float(), own)


def _check(path: str, packed: PackedLayer) -> None:
    limit = ROUNDED if packed.rounds else EXACT
    if packed.difference <= limit or math.isnan(packed.difference):
        return
    says = f"it rounds {packed.rounds}" if packed.rounds else "it rounds nothing but its weights"
    raise CaptureError(
        f"transform: the kernel of {path} ({packed.scheme}) gives other values on the example than its unpacked weights: "
        f"off by {packed.difference:.0%} (relative L2; allowed: {limit:.0%}, as {says}). Relevance would pass by weights "
        "that are not those of the model.\n  to go on: register what unpacks them, lxt_fx.register_packed(..., unpack), or "
        "say what else the kernel rounds, rounds=..."
    )
