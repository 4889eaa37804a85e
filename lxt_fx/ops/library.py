"""How an `lxt_fx::` op is made.

Each op is a schema with a CompositeImplicitAutograd kernel that calls `autograd.Function`s or differentiable ATen ops.
Such an op stands as one node in a printed or exported graph, makes no copy of its input in eager mode, compiles under
inductor, and is differentiated through its kernel (`torch.library.custom_op` may not return its input, and an op with
alias annotations does not compile).

Under `torch.autocast` an op casts its operands first and then runs without autocast, forward and backward, in one dtype.
`define` says which (`Casts`): that of torch's op for which ours stands. An op without `casts` calls torch's op on its
operands, and torch's autocast sees that. The casts are kernels for the dispatch keys of autocast, which cost nothing
elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

from lxt_fx.base.autocast import DEVICES, autocast_off
from lxt_fx.base.one_capture import is_compiling
from lxt_fx.base.torch_internals import (
    OpOverload,
    any_autocast,
    in_dispatch_mode,
    in_functorch,
    is_legacy_batched,
    not_compiled,
    pytree,
)

LIBRARY = Library("lxt_fx", "DEF")  # type: ignore[no-untyped-call]

Kernel = Callable[..., Tensor | list[Tensor]]


Casts = Callable[[list[Tensor]], torch.dtype]
"""The dtype in which an op runs under autocast, from its floating-point operands, none of which is float64."""


def narrowed(operands: list[Tensor]) -> torch.dtype:
    """The dtype of autocast: products of matrices, convolutions and attention, on every device."""
    return torch.get_autocast_dtype(operands[0].device.type)


def in_float32(operands: list[Tensor]) -> torch.dtype:
    """float32: norms, and the equations of the explicit form."""
    return torch.float32


def in_float32_off_cpu(operands: list[Tensor]) -> torch.dtype:
    """float32, but on a CPU the dtype of the first operand: ops that autocast lists for GPUs only, and whose kernels take
    parameters of another dtype on a CPU only."""
    return operands[0].dtype if operands[0].device.type == "cpu" else torch.float32


def widest(operands: list[Tensor]) -> torch.dtype:
    """The dtype that holds all operands: several elementwise ops in one, whose kernel takes one dtype."""
    found = operands[0].dtype
    for operand in operands[1:]:
        found = torch.promote_types(found, operand.dtype)
    return found


def define(schema: str, *, casts: Casts | None = None) -> Callable[[Kernel], OpOverload]:
    """Decorator: registers the kernel under `lxt_fx::<schema>` and returns the op that graphs call. `casts` says in which
    dtype it runs under autocast."""

    def register(kernel: Kernel) -> OpOverload:
        name = schema.split("(", 1)[0]
        LIBRARY.define(schema)  # type: ignore[no-untyped-call]
        LIBRARY.impl(name, kernel, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
        overload: OpOverload = getattr(torch.ops.lxt_fx, name).default
        if casts is not None:
            under_autocast = _casting(overload, casts)
            for device in DEVICES:
                LIBRARY.impl(name, under_autocast, f"Autocast{device.upper()}")  # type: ignore[no-untyped-call]
        return overload

    return register


def define_opaque(schema: str, shape: Kernel) -> Callable[[Kernel], OpOverload]:
    """Decorator: the same for a kernel that no tracer or compiler looks into, as it calls code of others. It has no
    gradient; an `autograd.Function` calls it. `shape` gives an empty tensor of the shape and dtype of the value, where
    tensors have no values."""

    def register(kernel: Kernel) -> OpOverload:
        name = schema.split("(", 1)[0]
        LIBRARY.define(schema)  # type: ignore[no-untyped-call]
        LIBRARY.impl(name, not_compiled(kernel), "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        LIBRARY.impl(name, shape, "Meta")  # type: ignore[no-untyped-call]
        overload: OpOverload = getattr(torch.ops.lxt_fx, name).default
        return overload

    return register


def _casting(op: OpOverload, casts: Casts) -> Kernel:
    """The op on operands of one dtype, without autocast. As in torch's autocast, float64 stays. What an equation gives as
    `value`, an argument by name, is the value that the op returns, and stays too."""

    def under_autocast(*args: Any, **named: Any) -> Any:
        operands = [t for t in pytree.tree_leaves(args) if isinstance(t, Tensor) and t.is_floating_point()]
        if operands and all(operand.dtype is not torch.float64 for operand in operands):
            dtype = casts(operands)
            args = pytree.tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, args)
        with autocast_off():
            return op(*args, **named)

    return under_autocast


class RuleFunction(torch.autograd.Function):
    """An autograd function whose backward runs without autocast, in the dtype of its forward, wherever it is called."""

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        if "backward" in vars(cls):
            cls.backward = staticmethod(_without_autocast(cls.backward))  # type: ignore[method-assign]


def _without_autocast(backward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(backward)
    def in_its_dtype(ctx: Any, *gradients: Any) -> Any:
        if not any_autocast():
            return backward(ctx, *gradients)
        with autocast_off():
            return backward(ctx, *gradients)

    return in_its_dtype


def is_batched(gradient: Tensor) -> bool:
    """Whether this is a batch of gradients that looks like one, from `is_grads_batched` or `torch.func.vmap`. The former
    runs ops without a batching rule (`addmm`, `mean`, in-place ops) gradient by gradient, so a backward then avoids
    these."""
    if is_compiling():
        return False
    return is_legacy_batched(gradient) or in_functorch()


def overwrites(gradient: Tensor) -> bool:
    """Whether a plain backward runs, which may overwrite its own temporaries."""
    return not (is_compiling() or torch.is_grad_enabled() or is_batched(gradient))


def times(fresh: Tensor, other: Tensor | float) -> Tensor:
    """fresh * other, where nobody else reads `fresh` any more."""
    return fresh.mul_(other) if overwrites(fresh) else fresh * other


def has_values(tensor: Tensor) -> bool:
    """Whether Python may read the tensor: not while tracing or compiling, in a vmap, or in the capture of a CUDA graph."""
    if is_compiling() or type(tensor) is not Tensor or tensor.is_meta:
        return False
    if in_functorch() or in_dispatch_mode():
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
