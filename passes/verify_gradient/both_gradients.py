"""The gradient of a model and that of its graph at the same leaves, for the same cotangents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from lxt_fx.base.as_it_was import put_back_behind
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.base.torch_internals import pytree
from lxt_fx.passes.capture.called_by_leaf import leaf_names
from lxt_fx.passes.capture.capture import torch_state_restored
from lxt_fx.passes.capture.example import SEED, Example
from lxt_fx.passes.verify import TOLERANCES, forward_difference, tolerance_of

_SAME_VALUE = 8
"""Roundings within which a value of the model counts as that of a leaf."""


Reads = Mapping[str, tuple[str, ...]]
"""The inputs that a leaf is computed from, by the name of the leaf."""
NO_READS: Reads = {}


class NotComparable(Exception):
    """There is no gradient of the model to compare with. The message is a sentence for the certificate; it is caught
    here."""


def cotangents(expected: Any) -> list[Tensor | None]:
    """A fixed random cotangent for each tensor of the output, None for integers. Each output counts alike, whatever its
    scale; what is masked (-inf) asks for nothing."""
    generator = torch.Generator().manual_seed(SEED)
    found: list[Tensor | None] = []
    for output in _tensors(expected):
        if not (output.is_floating_point() or output.is_complex()):
            found.append(None)
            continue
        dtype = torch.complex64 if output.is_complex() else torch.float32
        drawn = torch.randn(output.shape, generator=generator, dtype=dtype)
        finite = torch.isfinite(output)
        sizes = output.detach()[finite & (output != 0)].abs().float()
        scale = float(sizes.median()) if sizes.numel() else 1.0
        seed = (drawn / min(max(scale, 1e-6), 1e6)).to(output.device)
        found.append(torch.where(finite, seed, 0).to(output.dtype))
    return found


def _tensors(output: Any) -> list[Tensor]:
    return [tensor for tensor in pytree.tree_leaves(output) if isinstance(tensor, Tensor)]


def gradients_of_graph(
    gm: GraphModule,
    inputs: Mapping[str, Any],
    leaves: Mapping[str, Tensor],
    seeds: Sequence[Tensor | None],
    expected: Any = None,
) -> dict[str, Tensor]:
    """The graph's gradient at its leaves. Raises NotComparable if its forward is not the model's (which `check_forward`
    will say) or its own ops have no backward."""
    with torch_state_restored(), gradients_on():
        asking = asking_for_gradient(leaves)
        torch.manual_seed(SEED)
        output = run_from(Interpreter(gm), inputs, asking)
        if expected is not None:
            _require_same(output, expected, "the graph's output differs from the model's")
        try:
            return gradients_at(output, asking, seeds)
        except Exception as error:  # whatever an op without a backward raises
            raise NotComparable(f"the ops of the graph have no backward of their own: {_said(error)}") from error


def run_from(interpreter: Interpreter, inputs: Mapping[str, Any], leaves: Mapping[str, Tensor]) -> Any:
    """The flat output of a graph that runs node by node on the inputs, with the leaves in the place of those of their
    name."""
    placeholders = [str(node.target) for node in interpreter.graph.nodes if node.op == "placeholder"]
    flat = pytree.tree_leaves(dict(inputs))
    given = [leaves[name].clone() if name in leaves else _own(x) for name, x in zip(placeholders, flat, strict=True)]
    return interpreter.run(*given, enable_io_processing=False)


def gradients_of_model(
    model: nn.Module,
    example: Example,
    leaves: Mapping[str, Tensor],
    seeds: Sequence[Tensor | None],
    expected: Any = None,
    reads: Reads = NO_READS,
) -> dict[str, Tensor]:
    """The model's own gradient at leaves given by name and value: inputs of the example, or values that the model computes,
    such as embeddings; `reads` are the inputs that these are computed from, where that is known.
    Raises NotComparable if the model cannot be started from them or has no backward of its own."""
    with torch_state_restored(), gradients_on(), put_back_behind(model):
        asking = asking_for_gradient(leaves)
        try:
            output = run_model_from(model, example, asking, reads)
            if expected is not None:
                _require_same(output, expected, "with inputs that ask for a gradient the model gives another output")
            return gradients_at(output, asking, seeds)
        except NotComparable:
            raise
        except Exception as error:  # whatever the model or a kernel without a backward raises
            raise NotComparable(f"the model's own gradient cannot be computed: {_said(error)}") from error


def run_model_from(model: nn.Module, example: Example, leaves: Mapping[str, Tensor], reads: Reads = NO_READS) -> Any:
    """The model's output on the example with the leaves in the place of the inputs, or of the values, that they stand for.
    Raises NotComparable if a value never occurs."""
    flat, spec = pytree.tree_flatten(dict(example.kwargs))
    names = leaf_names(example.kwargs)
    given = [leaves[name].clone() if name in leaves else _own(x) for name, x in zip(names, flat, strict=True)]
    called = replace(example, kwargs=pytree.tree_unflatten(given, spec))
    computed = {name: leaf for name, leaf in leaves.items() if name not in names}
    if not computed:
        return called.call(model)
    if zeros := [name for name, leaf in computed.items() if not leaf.any()]:
        raise NotComparable(f"the value of {zeros[0]} is 0 everywhere on the example, so it cannot be told from others")
    inputs = {name: x for name, x in zip(names, given, strict=True) if isinstance(x, Tensor)}
    with _StartsFrom(computed, inputs, reads) as starts:
        output = called.call(model)
    if starts.pending:
        raise NotComparable(
            f"no function call of the model's code returns the value of {', '.join(starts.pending)} (scripted code, or "
            "code in C++), so the model cannot be started from it"
        )
    return output


class _StartsFrom(TorchFunctionMode):
    """Puts each leaf in the place of the first value of the model that equals it, and of equal values that are computed
    anew. A leaf [batch, tokens, ...] also equals the same value as [tokens, batch, ...]. A value that was computed from a
    leaf is never replaced: `x.detach()` equals x and has another gradient. Nor is a value that is computed from other
    inputs only than those that the leaf `reads`: types of tokens may be looked up in the table of the tokens."""

    def __init__(self, leaves: Mapping[str, Tensor], inputs: Mapping[str, Tensor], reads: Reads) -> None:
        super().__init__()
        self.pending, self.used, self.reads = dict(leaves), dict[str, Tensor](), reads
        self.derived = WeakTensorKeyDictionary()
        self.made_of = WeakTensorKeyDictionary()  # whole numbers, by the names of the inputs that they are computed from
        for name, value in inputs.items():
            self.made_of[value] = {name}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = _tensors((args, kwargs))
        made_of = set[str]().union(*(self.made_of[tensor] for tensor in given if tensor in self.made_of))
        if self.used and any(tensor in self.derived for tensor in given):
            self._mark(result)
        elif isinstance(result, Tensor) and (leaf := self._leaf(result, made_of)) is not None:
            with torch.enable_grad():  # a frozen table may be read under no_grad; what reads the leaf is behind that
                result = leaf.clone()
            self._mark(result)
        for tensor in _tensors(result) if made_of else ():
            if not tensor.is_floating_point():
                self.made_of[tensor] = made_of
        return result

    def _mark(self, result: Any) -> None:
        for tensor in _tensors(result):
            self.derived[tensor] = True

    def _leaf(self, result: Tensor, made_of: Set[str]) -> Tensor | None:
        for name, leaf in (*self.pending.items(), *self.used.items()):
            if name in self.reads and made_of and made_of.isdisjoint(self.reads[name]):
                continue
            for value in (leaf, leaf.transpose(0, 1)) if leaf.dim() > 2 else (leaf,):
                if _equal(value, result):
                    self.pending.pop(name, None)
                    self.used[name] = leaf
                    return value
        return None


def _equal(leaf: Tensor, result: Tensor) -> bool:
    if (result.shape, result.dtype, result.device) != (leaf.shape, leaf.dtype, leaf.device):
        return False
    return forward_difference(leaf, result) <= _SAME_VALUE * torch.finfo(leaf.dtype).eps


def rounded_otherwise(leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The leaves with each element rounded up or down."""
    generator = torch.Generator().manual_seed(SEED)
    signs = {name: torch.randint(2, x.shape, generator=generator).to(x.device) * 2 - 1 for name, x in leaves.items()}
    return {name: (x * (1 + 2 * torch.finfo(x.dtype).eps * signs[name])).to(x.dtype) for name, x in leaves.items()}


def asking_for_gradient(leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: leaf.detach().clone().requires_grad_() for name, leaf in leaves.items()}


def _own(value: Any) -> Any:
    """A copy: the model may write into its inputs, and a tensor made under inference mode cannot be saved for backward."""
    return value.clone() if isinstance(value, Tensor) else value


def gradients_at(
    output: Any, leaves: Mapping[str, Tensor], seeds: Sequence[Tensor | None], *, again: bool = False
) -> dict[str, Tensor]:
    """The gradient at each leaf, 0 where no path leads to it. `again` says whether more gradients will be asked for."""
    pairs = [(x, seed) for x, seed in zip(_tensors(output), seeds, strict=True) if seed is not None and x.requires_grad]
    if not pairs:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    outputs, asked = [x for x, _ in pairs], [seed for _, seed in pairs]
    found = torch.autograd.grad(outputs, list(leaves.values()), asked, again, allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def _require_same(output: Any, expected: Any, otherwise: str) -> None:
    if not forward_difference(expected, output) <= max(tolerance_of(expected), TOLERANCES[torch.float32]):
        raise NotComparable(otherwise)


def _said(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
