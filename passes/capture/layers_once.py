"""Capture: of layers that are twins, the first and the last are traced, and each other one is a single node."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.library import Library, register_fake

from lxt_fx.base.module_facts import PLAIN, Constant, TooManyFacts, facts_of
from lxt_fx.base.remembered_facts import remembered
from lxt_fx.base.torch_internals import known_values, pytree
from lxt_fx.passes.capture.layer_kinds import Kind, ReadError
from lxt_fx.passes.capture.with_forward import with_forward

_LIBRARY = Library("lxt_fx_layers", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("begins(Tensor[] tensors, int call) -> ()")  # type: ignore[no-untyped-call]
_LIBRARY.define("ends(Tensor[] tensors, int call) -> ()")  # type: ignore[no-untyped-call]
_LIBRARY.define("another(Tensor[] tensors, int call) -> Tensor[]")  # type: ignore[no-untyped-call]

BEGINS, ENDS, ANOTHER = (getattr(torch.ops.lxt_fx_layers, name).default for name in ("begins", "ends", "another"))
"""Ops that stand in a graph while it is captured: the marks around a layer that is traced, with its inputs and its
outputs, and the call of a layer that is not."""

MOST_FACTS, MOST_OF_A_MODULE = 20_000, 50
"""The most facts of a layer: so many, and so many more for each of its modules. They are collected up to four times in a
capture, a tenth of a second each. Layers of transformers have about 1,000; one of NLLB-MoE, with its 128 experts, has 4,300
and 655 modules."""

SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)
"""Numbers that tracing leaves free."""


@dataclass(eq=False, slots=True)
class Template:
    """The traced call of a layer: its number, the layer's path, what another call must share with it (`_signature`), and
    its outputs flat: a tensor as torch's tracing has it, the place of an input that is passed on, or a plain value."""

    kind: Kind
    call: int
    path: str
    signature: tuple[Any, ...]
    outputs: tuple[Any, ...]
    out_spec: pytree.TreeSpec

    def tensors(self) -> list[Tensor]:
        """The outputs that the layer computes."""
        return [output for output in self.outputs if isinstance(output, Tensor)]


@dataclass(frozen=True, slots=True)
class Passed:
    """An output of a layer that is one of its inputs: the place among those."""

    place: int


@dataclass(eq=False, slots=True)
class LayersOnce:
    """What happened to the twins in one capture. `templates` are the traced calls that others may be made like, `alike` the
    calls that were not traced, with the template of each, `proofs` the calls of the last twins, which were traced too, with
    the template that they must be equal to, and `marked` all traced calls."""

    kinds: Sequence[Kind]
    templates: list[Template] = field(default_factory=list)
    alike: dict[int, tuple[str, Template]] = field(default_factory=dict)
    proofs: dict[int, tuple[str, Template]] = field(default_factory=dict)
    marked: dict[int, Kind] = field(default_factory=dict)
    called: set[int] = field(default_factory=set)
    states: dict[int, Any] = field(default_factory=dict)
    count: int = 0

    @contextmanager
    def traced(self) -> Iterator[None]:
        """Inside the block, and in this thread only, calls of twins are captured like this. The layers are restored at the
        end."""
        thread, outer = threading.get_ident(), _CURRENT[:]
        with ExitStack() as stack:
            stack.callback(_CURRENT.__setitem__, slice(None), outer)
            _CURRENT[:] = [self]
            for kind in self.kinds:
                for path, layer in kind.layers:
                    stack.enter_context(with_forward(layer, self._forward(kind, path, layer, thread)))
            for kind in self.kinds:
                with suppress(ReadError):  # the others are looked at too, so that they are traced once more only
                    self.states |= {id(layer): state_around(kind, layer) for _, layer in kind.layers}
            for kind in self.kinds:
                if kind.why_not:
                    raise ReadError(kind.why_not)
            yield

    def _forward(self, kind: Kind, path: str, layer: nn.Module, thread: int) -> Callable[..., Any]:
        own = layer.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread or id(layer) in self.called:
                return own(*args, **kwargs)
            self.called.add(id(layer))
            flat, spec = pytree.tree_flatten((args, kwargs))
            signature = _signature(flat, spec)
            if signature is None:
                return own(*args, **kwargs)
            before = state_around(kind, layer)
            if self.states[id(layer)] != before:
                kind.why_not = "what their code reads beside its arguments changes between the calls"
            template = self._template(kind, signature)
            if template is not None and layer is not kind.last:
                return self._another(path, template, flat)
            call, tensors = self._next(), _tensors(flat)
            self.marked[call] = kind
            BEGINS(tensors, call)
            stands = template is None and layer is not kind.last
            with kind.standing_in(layer) if stands else nullcontext():
                output = own(*args, **kwargs)
            self._check_untouched(kind, before, layer, (flat, spec), (args, kwargs))
            leaves, out_spec = pytree.tree_flatten(output)
            outputs = tuple(_output(leaf, tensors, kind) for leaf in leaves)
            made = Template(kind, call, path, signature, outputs, out_spec)
            ENDS(made.tensors(), call)
            if template is not None:
                self.proofs[call] = path, template
            else:
                self.templates.append(made)
            return output

        return forward

    def _template(self, kind: Kind, signature: tuple[Any, ...]) -> Template | None:
        """The traced call that a call with this signature would repeat. Symbols are compared as they are now: what was
        traced since may have shown that two are one."""
        now = _as_now(signature)
        return next((t for t in self.templates if t.kind is kind and _as_now(t.signature) == now), None)

    def _check_untouched(self, kind: Kind, before: Any, layer: nn.Module, given: Any, now: Any) -> None:
        """Says why they are no twins if the call of a layer changed its arguments, or what others read."""
        flat, spec = pytree.tree_flatten(now)
        if spec != given[1] or any(a is not b for a, b in zip(flat, given[0], strict=True)):
            kind.why_not = "they change an argument"
        elif before != state_around(kind, layer):
            kind.why_not = "they store something outside of themselves"

    def _next(self) -> int:
        self.count += 1
        return self.count

    def _another(self, path: str, template: Template, flat: Sequence[Any]) -> Any:
        """One node in the place of the layer."""
        call, tensors = self._next(), _tensors(flat)
        self.alike[call] = path, template
        computed = iter(ANOTHER(tensors, call))
        leaves = []
        for output in template.outputs:
            leaves.append(next(computed) if isinstance(output, Tensor) else output)
            if isinstance(output, Passed):
                leaves[-1] = tensors[output.place]
        return pytree.tree_unflatten(leaves, template.out_spec)


_CURRENT: list[LayersOnce] = []
"""The capture that runs, for the shapes of `ANOTHER`. Captures run one at a time."""


def _shapes(tensors: list[Tensor], call: int) -> list[Tensor]:
    """Outputs of the sizes that the template has. They are of the same symbols, since the inputs are."""
    _, template = _CURRENT[0].alike[call]
    return [
        torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device) for like in template.tensors()
    ]


def _nothing(tensors: list[Tensor], call: int) -> None:
    return None


for _name in ("begins", "ends"):
    _LIBRARY.impl(_name, _nothing, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    register_fake(f"lxt_fx_layers::{_name}", _nothing, lib=_LIBRARY)
_LIBRARY.impl("another", _shapes, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
register_fake("lxt_fx_layers::another", _shapes, lib=_LIBRARY)
for _op in (BEGINS, ENDS):
    torch.fx.node.has_side_effect(_op)


_OF_TRACING = (".__call__", ".__getattr__")
"""Functions of every module that torch replaces while it traces."""


def state_around(kind: Kind, layer: nn.Module) -> Any:
    """All that the code of a layer can read beside its arguments and weights, as it is now, to be compared. An object that
    cannot be compared is another each time. Raises ReadError where there is too much to be compared."""
    try:
        every = facts_of(layer, MOST_FACTS, MOST_OF_A_MODULE)
        found = [(path, fact) for path, fact in every if not isinstance(fact, Tensor)]
        facts = [(path, fact) for path, fact in found if not isinstance(fact, Constant)]
        held = [(path, id(fact.tensor)) for path, fact in found if isinstance(fact, Constant)]
        tokens = [(path, token) for path, token in remembered(facts).tokens.items() if not path.endswith(_OF_TRACING)]
        return tokens, held
    except TooManyFacts as why:
        kind.why_not = "their code reads too many objects to be compared"
        raise ReadError(kind.why_not) from why
    except Exception:  # a fact of a kind that is not known
        return object()


def _tensors(flat: Sequence[Any]) -> list[Tensor]:
    return [leaf for leaf in flat if isinstance(leaf, Tensor)]


def _output(leaf: Any, inputs: Sequence[Tensor], kind: Kind) -> Any:
    """An output as a template has it. What is neither a tensor nor a plain value is a reason against the kind."""
    for place, tensor in enumerate(inputs):
        if leaf is tensor:
            return Passed(place)
    if not isinstance(leaf, (Tensor, *PLAIN)):
        kind.why_not = f"they return a {type(leaf).__name__}"
    return leaf


def _signature(flat: Sequence[Any], spec: pytree.TreeSpec) -> tuple[Any, ...] | None:
    """What a call of a twin must share with another: the structure of the arguments, what is known of each tensor and which
    of them are one, sizes and plain values. None for arguments that could hold anything."""
    seen: dict[int, int] = {}
    facts: list[Any] = [str(spec)]
    for leaf in flat:
        if isinstance(leaf, Tensor):
            place = seen.setdefault(id(leaf), len(seen))
            sizes = (*leaf.shape, *leaf.stride())
            facts.append((type(leaf), place, sizes, leaf.dtype, leaf.device, leaf.requires_grad, known_values(leaf)))
        elif isinstance(leaf, SYMBOLS):
            facts.append((type(leaf), leaf))
        elif isinstance(leaf, PLAIN):
            facts.append((type(leaf), repr(leaf)))
        else:
            return None
    return tuple(facts)


def _as_now(signature: tuple[Any, ...]) -> tuple[Any, ...]:
    """The signature with an expression for each symbol."""
    return tuple(
        _as_now(fact) if isinstance(fact, tuple) else fact.node.expr if isinstance(fact, SYMBOLS) else fact
        for fact in signature
    )


__all__ = ["ANOTHER", "BEGINS", "ENDS", "SYMBOLS", "LayersOnce", "Passed", "Template"]
