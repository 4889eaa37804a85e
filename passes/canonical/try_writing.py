"""Analysis: is an op the same as the ops that it is written out in?"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from lxt_fx.base.torch_internals import pytree, size_at, sizes_tried

LARGEST = 2**24
"""Elements of an operand up to which an op is tried; what is larger is compared in the forward of the whole model only."""

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}
"""Largest difference of a value or a gradient, relative to the largest, by the coarsest dtype that takes part."""


class Call:
    """A call of an op. `nodes` are the nodes that it reads, each once, `given` their values, as fake tensors, and `asks`
    says which of them carry relevance."""

    def __init__(self, node: Node, given: Sequence[Any], carrying: Collection[Node]) -> None:
        self.flat, self.spec = pytree.tree_flatten((node.args, dict(node.kwargs)))
        self.op: Any = node.target
        self.nodes, self.given = node.all_input_nodes, list(given)
        self.asks = [node in carrying for node in self.nodes]

    def by(self, function: Callable[..., Any], given: Sequence[Any]) -> Any:
        """What the function gives for the arguments of the call, with these values for the nodes."""
        values = dict(zip(self.nodes, given, strict=True))
        flat = [values[item] if isinstance(item, Node) else item for item in self.flat]
        args, kwargs = pytree.tree_unflatten(flat, self.spec)
        return function(*args, **kwargs)


def difference_of_writing(call: Call, written: GraphModule, conditions: Sequence[Any] = ()) -> str:
    """Analysis: runs both on random numbers, at the sizes of the example and at others that the op takes, and compares
    values and gradients. Returns what differs; empty if nothing does. Sizes that break one of the conditions, under which
    it was written out, are left out."""
    if any(isinstance(item, Tensor) and item.device.type == "meta" for item in call.given):
        return ""
    every = [size for item in call.given for size in (item.shape if isinstance(item, Tensor) else [item])]
    for index, numbers in enumerate(sizes_tried(every, conditions)):
        for positive in (False, True):
            given = [_at_random(item, numbers, positive, seed) for seed, item in enumerate(call.given)]
            if any(isinstance(item, Tensor) and item.numel() > LARGEST for item in given):
                continue
            reason = _compared(call, written, given, may_be_undefined=index > 0)
            if reason:
                sizes = [tuple(item.shape) for item in given if isinstance(item, Tensor)]
                return f"{reason} at sizes {', '.join(map(str, sizes))}"
    return ""


def _at_random(item: Any, numbers: dict[Any, int], positive: bool, seed: int) -> Any:
    if not isinstance(item, Tensor):
        return size_at(item, numbers) if isinstance(item, torch.SymInt) else item
    shape = [size_at(size, numbers) for size in item.shape]
    generator = torch.Generator().manual_seed(seed)  # operands of one shape must differ
    if not (item.is_floating_point() or item.is_complex()):
        return torch.zeros(shape, dtype=item.dtype, device=item.device)
    wide = torch.complex128 if item.is_complex() else torch.float64
    made = torch.randn(shape, generator=generator, dtype=wide)
    made = made.abs() * 0.3 + 0.1 if positive and not item.is_complex() else made
    return made.to(item.device, item.dtype)


def _compared(call: Call, written: GraphModule, given: list[Any], *, may_be_undefined: bool) -> str:
    """What differs. Where the writing gives no number at all, as a deviation of one value does, the op is not asked: torch
    would warn."""
    found: tuple[list[Tensor], list[Tensor]] | str
    try:
        found = _value_and_gradients(written, given, call.asks)
        if may_be_undefined and all(x.isnan().all() for x in found[0]):
            return ""
    except Exception as error:  # a writing that was made for other sizes, or sizes that the op does not take either
        found = f"its writing fails ({type(error).__name__}: {str(error).splitlines()[0][:100]})"
    try:
        expected = _value_and_gradients(lambda *own: call.by(call.op, own), given, call.asks)
    except Exception:  # the op itself does not take these sizes or numbers
        return ""
    if isinstance(found, str):
        return found
    for what, own, new in (("value", expected[0], found[0]), ("gradient", expected[1], found[1])):
        if any(not _close(a, b) for a, b in zip(own, new, strict=False)):
            return f"its writing has another {what}"
    return ""


def _value_and_gradients(function: Any, given: list[Any], asks: list[bool]) -> tuple[list[Tensor], list[Tensor]]:
    leaves = [
        item.clone().requires_grad_(ask) if isinstance(item, Tensor) else item
        for item, ask in zip(given, asks, strict=True)
    ]
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        outputs = [x for x in pytree.tree_leaves(function(*leaves)) if isinstance(x, Tensor)]
        passing = [x for x in outputs if x.requires_grad]
        asking = [x for x in leaves if isinstance(x, Tensor) and x.requires_grad]
        if not passing:
            return outputs, []
        seeds = [torch.linspace(-1, 2, x.numel(), device=x.device).reshape(x.shape).to(x.dtype) for x in passing]
        return outputs, list(torch.autograd.grad(passing, asking, seeds, materialize_grads=True))


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    a, b = a.detach(), b.detach()
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    if a.is_complex():
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    tolerance = TOLERANCES.get(a.dtype, 1e-2)
    finite = a.isfinite()
    if not torch.equal(finite, b.isfinite()):
        return False
    a, b = a[finite].double(), b[finite].double()
    return a.numel() == 0 or float((a - b).abs().max()) <= tolerance * float(a.abs().max().clamp(min=1e-30))
