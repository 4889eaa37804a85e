"""The books of one explanation: what each source received and what each node absorbed, and why. They add up to its
value."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError, LedgerError
from lxt_fx.ledger.causes import Cause
from lxt_fx.ledger.meter import Edge

K = TypeVar("K", bound=Hashable)

TOLERANCES = {"float64": 1e-9, "complex128": 1e-9, "float32": 1e-4, "complex64": 1e-4}
"""Allowed rounding error by dtype, relative to the largest relevance that reached any node; 0.1 for other dtypes."""

CONSTANTS = (Cause.BIAS, Cause.CONSTANT, Cause.POSITION, Cause.INTERCEPT)
"""Causes that are shares of constants: parameters and numbers of the model."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node stands: its name and op as printed, its rule, the module that made it, its layer, the line of the
    model's code, and the least precise dtype among its value and operands."""

    node: str
    op: str
    rule: str
    module: str
    layer: str
    line: str
    dtype: str


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """What one node absorbed for one cause, `amount` [examples] in float64. `name` says which constant it was."""

    place: Place
    cause: Cause
    name: str
    amount: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """The relevance of one input. `relevance` [examples, ...] is leaf * gradient in float64 (embeddings [examples, tokens,
    hidden], pixels [examples, channels, height, width]). `elsewhere` [examples] is the relevance that the target of an
    example gave to other examples: 0 where the examples of a batch are independent. `tokens` are the tokens of each
    example, where they are known. `looked_up_by` are the inputs of the model that a leaf is computed from (`input_ids` of
    `inputs_embeds`), where the module has it as a lookup."""

    name: str
    relevance: Tensor
    elsewhere: Tensor
    tokens: tuple[tuple[str, ...], ...]
    looked_up_by: tuple[str, ...] = ()

    @property
    def amount(self) -> Tensor:
        """All that the input received, [examples]."""
        return self.relevance.reshape(len(self.relevance), -1).sum(1) + self.elsewhere

    def example(self, one: slice) -> Source:
        """The part of one example."""
        return replace(self, relevance=self.relevance[one], elsewhere=self.elsewhere[one], tokens=self.tokens[one])

    def by_token(self) -> Tensor:
        """[examples, tokens], summed over the hidden dimension. Raises InputError for an input that is not embeddings."""
        if not self.is_tokens:
            raise InputError(f"ledger: {self.name} {list(self.relevance.shape[1:])} is not a sequence of token embeddings")
        return self.relevance.sum(-1)

    @property
    def is_tokens(self) -> bool:
        """Whether it holds embeddings [examples, tokens, hidden]."""
        return self.relevance.dim() == 3 and self.name.endswith("embeds")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Books:
    """Double-entry bookkeeping of one audit. Every amount is [examples] in float64: one for each explained number.

    `value` = sum of `sources` + sum of `entries` + `residual`. `reaching` is <output, gradient> of each node, `passing` is
    <operand, gradient> of each edge. `heads` splits attentions by head, `positions` splits their query, key and value by
    token, `profile` splits the output of each layer by token. `inside` has the nodes of standard places and of modules,
    by name.
    """

    explained: tuple[str, ...]
    value: Tensor
    sources: tuple[Source, ...]
    entries: tuple[Entry, ...]
    places: Mapping[str, Place]
    reaching: Mapping[str, Tensor]
    passing: Mapping[Edge, Tensor]
    heads: Mapping[Edge | str, Tensor]
    positions: Mapping[tuple[str, str], Tensor]
    profile: Mapping[str, Tensor]
    model_class: str
    table_name: str
    dtype: str
    rotates: bool
    inside: Mapping[str, str]

    @property
    def examples(self) -> int:
        """How many numbers were explained."""
        return len(self.value)

    @property
    def residual(self) -> Tensor:
        """[examples]: the explained value less all sources and leaks. Rounding, unless an edge was missed."""
        return self.value - self.relevance - self.leaks

    @property
    def relevance(self) -> Tensor:
        """[examples]: what all sources received."""
        return self._sum(source.amount for source in self.sources)

    @property
    def leaks(self) -> Tensor:
        """[examples]: what all nodes absorbed."""
        return self._sum(entry.amount for entry in self.entries)

    def _sum(self, amounts: Any) -> Tensor:
        return sum(amounts, torch.zeros_like(self.value))

    def _by(self, key: Callable[[Entry], K], entries: Sequence[Entry] | None = None) -> dict[K, Tensor]:
        found: dict[K, Tensor] = {}
        for entry in self.entries if entries is None else entries:
            found[key(entry)] = found.get(key(entry), torch.zeros_like(self.value)) + entry.amount
        return found

    def by_cause(self) -> dict[Cause, Tensor]:
        """Leaks [examples] by cause."""
        return self._by(lambda entry: entry.cause)

    def by_rule(self) -> dict[str, Tensor]:
        """Leaks [examples] by rule."""
        return self._by(lambda entry: entry.place.rule)

    def by_module(self) -> dict[str, Tensor]:
        """Leaks [examples] by the innermost module that made the node."""
        return self._by(lambda entry: entry.place.module)

    def by_layer(self) -> dict[str, Tensor]:
        """Leaks [examples] by layer (`model.layers.3`), starting at the output."""
        return self._by(lambda entry: entry.place.layer)

    def constants(self) -> dict[str, Tensor]:
        """What biases, position and token-type embeddings, CLS and other constants received, [examples] by their names."""
        return self._by(lambda entry: entry.name, [entry for entry in self.entries if entry.cause in CONSTANTS])

    def largest(self, k: int = 10) -> tuple[Entry, ...]:
        """The k largest leaks by absolute amount, summed over examples."""
        order = sorted(self.entries, key=lambda entry: -float(entry.amount.abs().sum()))
        return tuple(order[:k])

    def example(self, index: int) -> Self:
        """The ledger of one example.

        Raises InputError for an example that does not exist.
        """
        if not -self.examples <= index < self.examples:
            last = self.examples - 1
            raise InputError(f"ledger: there is no example {index}; the ledger has {self.examples} (0 to {last})")
        index %= self.examples
        one = slice(index, index + 1)
        return replace(
            self,
            explained=self.explained[one],
            value=self.value[one],
            sources=tuple(source.example(one) for source in self.sources),
            entries=tuple(replace(entry, amount=entry.amount[one]) for entry in self.entries),
            reaching=_of_examples(self.reaching, one),
            passing=_of_examples(self.passing, one),
            heads=_of_examples(self.heads, one),
            positions=_of_examples(self.positions, one),
            profile=_of_examples(self.profile, one),
        )

    def scale(self) -> Tensor:
        """[examples]: the largest absolute relevance that reached any node. Rounding is measured against it."""
        return torch.stack([self.value.abs(), *(amount.abs() for amount in self.reaching.values())]).amax(0)

    def faults(self, tolerance: float | None = None) -> tuple[Entry, ...]:
        """Leaks beyond rounding that no rule accounts for, largest first. `tolerance` is relative to `scale()`; None takes
        1e-9 where the node computes in float64, 1e-4 in float32, 0.1 in half precision."""
        scale = self.scale()

        def is_fault(entry: Entry) -> bool:
            limit = scale * (_tolerance(entry.place.dtype) if tolerance is None else tolerance)
            return entry.cause is Cause.UNACCOUNTED and bool((entry.amount.abs() > limit).any())

        return tuple(sorted(filter(is_fault, self.entries), key=lambda entry: -float(entry.amount.abs().sum())))

    def is_rounding(self, amount: Tensor) -> bool:
        """Whether an amount [examples] is mere rounding: at most a hundredth of what `faults` tolerates."""
        return bool((amount.abs() <= 0.01 * _tolerance(self.dtype) * self.scale()).all())

    def check(self, tolerance: float | None = None) -> None:
        """Raises LedgerError where a node absorbed what its rule claims to conserve, or the ledger does not close.
        `tolerance` as for `faults`."""
        faults = self.faults(tolerance)
        if faults:
            worst, place = faults[0], faults[0].place
            raise LedgerError(
                f"ledger: %{place.node} = {place.op} ({place.module}, {place.line}) absorbed {_numbers(worst.amount)} of "
                f"the {_numbers(self.reaching[place.node])} that it received, but its rule {place.rule!r} claims to "
                f"conserve it ({len(faults)} such nodes); fix the op of the rule, or let the rule claim less (`conserves`)"
            )
        limit = self.scale() * (_tolerance(self.dtype) if tolerance is None else tolerance)
        if bool((self.residual.abs() > limit).any()):
            raise LedgerError(
                f"ledger: {_numbers(self.residual)} of {_numbers(self.value)} is found neither at a source nor in a leak, "
                "so relevance took a path without a tap; this is a bug of lxt_fx, please report the model"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; amounts are lists with one number for each example. Leaks of 0 are left out."""
        entries = [entry for entry in self.entries if bool(entry.amount.any())]
        return {
            "model_class": self.model_class,
            "rules": self.table_name,
            "dtype": self.dtype,
            "explained": list(self.explained),
            "value": self.value.tolist(),
            "residual": self.residual.tolist(),
            "sources": [_source_dict(source) for source in self.sources],
            "constants": {name: amount.tolist() for name, amount in self.constants().items()},
            "causes": {cause.value: amount.tolist() for cause, amount in self.by_cause().items()},
            "layers": {layer: amount.tolist() for layer, amount in self.by_layer().items()},
            "leaks": [entry_dict(entry) | {"amount": entry.amount.tolist()} for entry in entries],
        }


def _of_examples(amounts: Mapping[K, Tensor], examples: slice) -> dict[K, Tensor]:
    return {key: amount[examples] for key, amount in amounts.items()}


def _tolerance(dtype: str) -> float:
    return TOLERANCES.get(dtype, 0.1)


def _numbers(amount: Tensor) -> str:
    return ", ".join(f"{number:.4g}" for number in amount.tolist())


def _source_dict(source: Source) -> dict[str, Any]:
    found: dict[str, Any] = {"name": source.name, "amount": source.amount.tolist()}
    if source.looked_up_by:
        found["looked_up_by"] = list(source.looked_up_by)
    if source.tokens:
        found["tokens"] = [list(tokens) for tokens in source.tokens]
        found["relevance"] = source.by_token().tolist()
    return found


def entry_dict(entry: Entry) -> dict[str, Any]:
    """The cause and the place of a leak as plain values."""
    place = entry.place
    return {
        "cause": entry.cause.value,
        "name": entry.name,
        "node": place.node,
        "op": place.op,
        "rule": place.rule,
        "layer": place.layer,
        "module": place.module,
        "line": place.line,
    }
