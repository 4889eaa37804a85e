"""Where a NaN or infinity came from: the first node that gave one, the values it read, its rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.fx import Node

from lxt_fx.base.errors import NonFiniteError
from lxt_fx.base.node_text import dtype_name, op_name
from lxt_fx.base.nodes import module_path, operands, source_line
from lxt_fx.base.torch_internals import pytree
from lxt_fx.compiler.explained import Explained
from lxt_fx.ops.aten_kinds import MOVES, SELECTIONS, SUMS
from lxt_fx.passes.fuse.dtypes import DtypesMatched

_MAY_ADD_INFINITY = MOVES | SELECTIONS | SUMS
"""Ops that masks are written with: an infinity from one of these is intended."""


def is_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether no element is NaN or infinite."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def raise_non_finite(
    explained: Explained, bound: Mapping[str, Any], value_of: Callable[[Any], Tensor], what: str
) -> NoReturn:
    """Runs forward and backward again, node by node, and raises NonFiniteError. The message names the first node that
    turned finite values or gradients into one that is not: its op, its place in the model, its rule, and the ranges of what
    it read.

    `bound` are the inputs of the module by name; its leaves require a gradient. `value_of` computes the explained number
    from the model's output, and `what` is what the message calls that number.
    """
    leaves = {name: t for name, t in bound.items() if isinstance(t, Tensor) and t.requires_grad}
    broken = [f"{name} {_range(leaf)}" for name, leaf in leaves.items() if not is_finite([leaf.detach()])]
    if broken:
        raise NonFiniteError(f"{what} is not finite: the input itself is not, {'; '.join(broken)}; correct the input")
    finder = _Finder(explained)
    value = value_of(explained._run_by(finder, bound))
    if not finder.found:
        torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    where = finder.found[0] if finder.found else "every node is finite, so the target's own arithmetic is not"
    dtypes = sorted({dtype_name(leaf.dtype) for leaf in leaves.values()})
    advice = "" if dtypes == ["f64"] else f"; the model runs in {', '.join(dtypes)}: try a wider dtype (model.float())"
    raise NonFiniteError(f"{what} is not finite, so nothing can be read from it; {where}{advice}")


class _Finder(DtypesMatched):
    """Runs the graph node by node with a hook on the gradient of every operand, and records the first node that breaks."""

    def __init__(self, explained: Explained) -> None:
        super().__init__(explained)
        self.rules = explained.record.stages["lowered"].rules
        self.reached: dict[Node, Tensor] = {}
        self.found: list[str] = []

    def run_node(self, n: Node) -> Any:
        if n.op not in ("call_function", "output") or self.found:
            return super().run_node(n)
        read = {operand.node: self.env[operand.node] for operand in operands(n)}

        def tapped(node: Node) -> Any:
            return pytree.tree_map_only(Tensor, lambda tensor: self._tap(tensor, n, node, read), self.env[node])

        args, kwargs = torch.fx.map_arg(n.args, tapped), torch.fx.map_arg(n.kwargs, tapped)
        if n.op == "output":
            return args[0]
        result = super().call_function(n.target, args, kwargs)
        if isinstance(result, Tensor) and result.requires_grad:
            if self._breaks(n, result.detach(), [t.detach() for t in read.values() if isinstance(t, Tensor)]):
                self.found.append(f"the first is {self._described(n, read)}: its value is {_range(result.detach())}")
            result.register_hook(lambda gradient: self.reached.update({n: gradient}) if gradient is not None else None)  # type: ignore[no-untyped-call]
        return result

    def _tap(self, tensor: Tensor, reader: Node, node: Node, read: Mapping[Node, Any]) -> Tensor:
        if not tensor.requires_grad or node.op == "get_attr":
            return tensor

        def check(gradient: Tensor | None) -> None:
            if gradient is None or self.found or is_finite([gradient]):
                return
            if reader.op == "output":
                given = f"the gradient that it gives %{node.name} is {_range(gradient)}"
                self.found.append(f"the first is the target itself: {given}")
                return
            reached = f"the gradient that reached it is {_range(self.reached[reader])}, " if reader in self.reached else ""
            passed = f"{reached}the one it passed to %{node.name} {_range(gradient)}"
            self.found.append(f"the first is {self._described(reader, read)}: in the backward {passed}")

        tap = tensor.view_as(tensor)
        tap.register_hook(check)  # type: ignore[no-untyped-call]
        return tap

    def _breaks(self, node: Node, value: Tensor, read: list[Tensor]) -> bool:
        """Whether the value has a NaN, or an infinity that is neither in the node's operands nor part of a mask."""
        if not value.is_floating_point() or is_finite([value]):
            return False
        if bool(value.isnan().any()):
            return True
        known = any(bool(t.isinf().any()) for t in read if t.is_floating_point())
        return node.target not in _MAY_ADD_INFINITY and not known

    def _described(self, node: Node, read: Mapping[Node, Any]) -> str:
        place = ", ".join(str(part) for part in (module_path(node), source_line(node)) if part)
        rule = self.rules.get(node.name)
        under = f"rule {rule.name!r}" if rule else "no rule"
        values = [f"%{key.name} {_range(value)}" for key, value in read.items() if isinstance(value, Tensor)]
        return f"%{node.name} = {op_name(node)} ({place}; {under}), which reads {'; '.join(values)}"


def _range(value: Tensor) -> str:
    """`f16[1, 5, 32] from -65504 to 12.1, 3 NaN, 1 inf`."""
    value = value.detach()
    kind = f"{dtype_name(value.dtype)}{list(value.shape)}"
    if not value.is_floating_point():
        return kind
    finite = value[value.isfinite()]
    span = [f"from {float(finite.min()):.4g} to {float(finite.max()):.4g}"] if len(finite) else []
    counts = (("NaN", int(value.isnan().sum())), ("inf", int(value.isinf().sum())))
    return f"{kind} {', '.join([*span, *(f'{count} {name}' for name, count in counts if count)])}"
