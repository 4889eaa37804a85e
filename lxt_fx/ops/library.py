"""How an `lxt_fx::` op is made.

Each op is a schema with a CompositeImplicitAutograd kernel that calls `autograd.Function`s or differentiable ATen ops.
Such an op stands as one node in a printed or exported graph, makes no copy of its input in eager mode, compiles under
inductor, and is differentiated through its kernel (`torch.library.custom_op` may not return its input, and an op with
alias annotations does not compile).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.library import Library

from lxt_fx.base.one_capture import is_compiling
from lxt_fx.base.torch_internals import OpOverload, in_dispatch_mode, in_functorch, is_legacy_batched

LIBRARY = Library("lxt_fx", "DEF")  # type: ignore[no-untyped-call]

Kernel = Callable[..., Tensor | list[Tensor]]


def define(schema: str) -> Callable[[Kernel], OpOverload]:
    """Decorator: registers the kernel under `lxt_fx::<schema>` and returns the op that graphs call."""

    def register(kernel: Kernel) -> OpOverload:
        name = schema.split("(", 1)[0]
        LIBRARY.define(schema)  # type: ignore[no-untyped-call]
        LIBRARY.impl(name, kernel, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
        overload: OpOverload = getattr(torch.ops.lxt_fx, name).default
        return overload

    return register


def is_batched(gradient: Tensor) -> bool:
    """Whether this is a batch of gradients that looks like one, from `is_grads_batched` or `torch.func.vmap`. The former
    runs ops without a batching rule (`addmm`, `mean`, in-place ops) gradient by gradient, so a backward then avoids
    these."""
    if is_compiling():
        return False
    return is_legacy_batched(gradient) or in_functorch()


def has_values(tensor: Tensor) -> bool:
    """Whether Python may read the tensor: not while tracing or compiling, in a vmap, or in the capture of a CUDA graph."""
    if is_compiling() or type(tensor) is not Tensor or tensor.is_meta:
        return False
    if in_functorch() or in_dispatch_mode():
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
