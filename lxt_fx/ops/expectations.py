"""Guards of a traced graph: it holds for the values that the model's Python code read, and the data-dependent sizes, on the
example that it was traced with.

An expectation returns nothing and changes nothing. It raises TracedBranchError where the inputs of a call give other values
or sizes, since the model may take another branch then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lxt_fx.base.errors import CallError, TracedBranchError
from lxt_fx.base.torch_internals import OpOverload
from lxt_fx.ops.library import LIBRARY

CLOSE = 1e-4
"""Values read from floats may differ by rounding; relative to the example's."""


def expectation(schema: str) -> Callable[[Callable[..., None]], OpOverload]:
    """Decorator: registers the check for real tensors; for tensors without values (meta, fake) it does nothing."""

    def register(kernel: Callable[..., None]) -> OpOverload:
        name = schema.split("(", 1)[0]
        LIBRARY.define(schema)  # type: ignore[no-untyped-call]
        LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        LIBRARY.impl(name, lambda *args: None, "Meta")  # type: ignore[no-untyped-call]
        overload: OpOverload = getattr(torch.ops.lxt_fx, name).default
        return overload

    return register


@expectation("expect_values(Tensor self, float[] values, str where) -> ()")
def expect_values(self: Tensor, values: list[float], where: str) -> None:
    """Raises TracedBranchError unless the flattened tensor holds these values."""
    found = self.detach().reshape(-1).to("cpu", torch.float64)
    wanted = torch.tensor(values, dtype=torch.float64)
    rounding = CLOSE if self.is_floating_point() else 0.0
    if found.shape == wanted.shape and torch.allclose(found, wanted, rtol=rounding, atol=0.0, equal_nan=True):
        return
    raise TracedBranchError(_said(where, "value", _short(wanted.tolist()), _short(found.tolist())))


@expectation("expect_sizes(Tensor self, int[] sizes, str where) -> ()")
def expect_sizes(self: Tensor, sizes: list[int], where: str) -> None:
    """Raises TracedBranchError unless the tensor has these sizes."""
    if list(self.shape) != list(sizes):
        raise TracedBranchError(_said(where, "sizes", str(list(sizes)), str(list(self.shape))))


@expectation("expect_nonzero(Tensor self, str where) -> ()")
def expect_nonzero(self: Tensor, where: str) -> None:
    """Raises CallError if an element is 0."""
    if bool((self.detach() == 0).any()):
        raise CallError(
            f"{where} is computed from an autograd.Function with a backward of its own, and is 0 somewhere for these "
            "inputs: in explicit form R / z does not say which gradient it gets there; transform with form=\"gradient\""
        )


def _said(where: str, what: str, wanted: str, found: str) -> str:
    place = f" at {where}" if where else ""
    return (
        f"the model's Python code{place} read the {what} {wanted} while its graph was traced, and these inputs give "
        f"{found}, so the model may go another way; transform the model again with these inputs as the example, or once "
        'with dynamic="recapture"'
    )


def _short(values: list[Any]) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:6])
    return shown if len(values) == 1 else f"[{shown}{', ...' if len(values) > 6 else ''}]"


EXPECTATIONS = frozenset({expect_values, expect_sizes, expect_nonzero})
