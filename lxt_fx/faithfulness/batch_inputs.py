"""Inputs of several rows, and what is asked of each row, so that any choice of rows can be run again."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lxt_fx.attribution.embeddings import with_embeddings
from lxt_fx.attribution.readable_tokens import Tokenizer
from lxt_fx.attribution.target import Entry, TargetLike, class_labels, entry_of, logits_of
from lxt_fx.attribution.text_input import TextInput, texts_by_row
from lxt_fx.base.errors import InputError
from lxt_fx.base.torch_internals import pytree
from lxt_fx.compiler.explained import Explained
from lxt_fx.ledger.run_audit import Inputs
from lxt_fx.passes.capture.example import given_example


@dataclass(frozen=True, slots=True, eq=False)
class RowInputs:
    """Inputs of `model` by name. Tensors [rows, ...] belong to the rows, everything else to all of them. `leaf` names the
    one that relevance is read at, `texts` are those of a text model. `fixed` is the batch that a graph holds for alone."""

    model: nn.Module
    named: Mapping[str, Any]
    leaf: str
    texts: tuple[TextInput, ...]
    fixed: int | None

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.values)

    @property
    def values(self) -> Tensor:
        """The leaf, [rows, ...]."""
        leaf: Tensor = self.named[self.leaf]
        return leaf

    @property
    def model_class(self) -> str:
        """The class of the model, also where it is explained."""
        return self.model.record.model_class if isinstance(self.model, Explained) else type(self.model).__name__

    def of(self, rows: Sequence[int], leaf: Tensor) -> dict[str, Any]:
        """The inputs of these rows, in this order, with another leaf [len(rows), ...]."""
        index = torch.tensor(rows, device=leaf.device)

        def taken(value: Any) -> Any:
            own = isinstance(value, Tensor) and value.dim() > 0 and len(value) == self.rows
            return value[index.to(value.device)] if own else value

        return {name: leaf if name == self.leaf else pytree.tree_map(taken, value) for name, value in self.named.items()}

    def batches(self, count: int, most: int) -> Iterator[tuple[list[int], int]]:
        """Numbers below `count` in batches of at most `most`, each with how many of them count: a fixed batch is filled
        up."""
        size = self.fixed or most
        for start in range(0, count, size):
            batch = list(range(start, min(start + size, count)))
            yield batch + batch[-1:] * ((self.fixed or 0) - len(batch)), len(batch)


def row_inputs(model: nn.Module, inputs: Inputs, leaf: str | None, tokenizer: Tokenizer | None) -> RowInputs:
    """The inputs by name, on the way embedded where they are token ids.

    Raises InputError where they do not fit the model or the leaf is not clear.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"perturbation: model must be a torch.nn.Module, got {type(model).__name__}")
    given = dict(inputs) if isinstance(inputs, Mapping) else {}
    positional = () if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple) else (inputs,)
    ids = given.get("input_ids")
    if isinstance(model, Explained):
        accepted = model.record.inputs
        if len(positional) > len(accepted):
            raise InputError(f"perturbation: {len(positional)} inputs, but the module takes {', '.join(accepted)}")
        named = dict(zip(accepted, positional, strict=False)) | with_embeddings(model, given, accepted)
        candidates: Sequence[str] = model.record.leaves
    else:
        taken = tuple(name for name in inspect.signature(model.forward).parameters if name != "input_ids")
        example = given_example(model, positional, with_embeddings(model, given, taken))
        named = example.kwargs | example.constants
        candidates = tuple(named)
    found = _leaf(named, candidates, leaf)
    if named[found].dim() < 2 or not len(named[found]):
        raise InputError(f"perturbation: {found} has shape {list(named[found].shape)}; give a batch of inputs, [rows, ...]")
    named = {name: pytree.tree_map_only(Tensor, Tensor.detach, value) for name, value in named.items()}
    texts = tuple(texts_by_row(ids, named, tokenizer)) if found == "inputs_embeds" else ()
    sizes = model.record.sizes.get(found, (None,)) if isinstance(model, Explained) else (None,)
    return RowInputs(model, named, found, texts, sizes[0])


def _leaf(named: Mapping[str, Any], candidates: Sequence[str], wanted: str | None) -> str:
    floats = [n for n in candidates if isinstance(named.get(n), Tensor) and named[n].is_floating_point()]
    if wanted is not None and wanted not in floats:
        raise InputError(f"perturbation: leaf={wanted!r} is none of the floating-point inputs: {', '.join(floats)}")
    if wanted is None and len(floats) != 1:
        several = f"several floating-point inputs: {', '.join(floats)}; say which one by leaf=..."
        none = "no floating-point tensors among the inputs; where a model takes token ids alone, give transform(model, ...)"
        raise InputError(f"perturbation: there are {several if floats else none}")
    return wanted or floats[0]


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """The number that is explained in each row: an entry of its logits, or what a function of the output gives."""

    entries: tuple[Entry, ...]
    function: Callable[[Any], Tensor] | None
    model_class: str

    @property
    def said(self) -> tuple[str, ...]:
        """What it is, in words, for each row; one sentence for a function."""
        return tuple(entry.said for entry in self.entries) or ("a function of the output",)

    def values(self, output: Any, rows: Sequence[int]) -> Tensor:
        """The numbers [len(rows)] in the output for a batch of these rows.

        Raises InputError for a function that does not give one number for each row of the batch.
        """
        if self.function is None:
            logits = logits_of(output, self.model_class)
            return torch.stack([self.entries[row].of(logits[place]) for place, row in enumerate(rows)])
        value = self.function(output)
        if isinstance(value, Tensor) and list(value.shape) == [len(rows)]:
            return value
        got = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(
            f"perturbation: rows run in batches, so a target function must return one number for each row of the output "
            f"that it gets, here [{len(rows)}]; got {got}. Select one element of each, such as out.logits[:, -1, 17]"
        )


def ask(inputs: RowInputs, target: TargetLike | Sequence[TargetLike], labels: Sequence[str] | None, batch: int) -> Asked:
    """What a target means in each row, decided once, on the inputs as they are.

    Raises InputError as `explain` does, and for a list of another length than there are rows.
    """
    if callable(target):
        return Asked((), target, inputs.model_class)
    given: Sequence[TargetLike] = target if isinstance(target, list) else [target] * inputs.rows  # type: ignore[list-item]
    targets = [each for each in given if not callable(each)]
    if len(given) != inputs.rows:
        raise InputError(f"perturbation: {len(given)} targets for {inputs.rows} rows; give one target, or one for each row")
    if len(targets) != inputs.rows:
        raise InputError("perturbation: a target function is for all rows; give it alone, not in a list")
    names, kind, entries = class_labels(inputs.model, labels), inputs.model_class, []
    positions = inputs.model.record.positions if isinstance(inputs.model, Explained) else None
    with evaluating(inputs.model):
        for rows, count in inputs.batches(inputs.rows, batch):
            output = inputs.model(**inputs.of(rows, inputs.values[rows]))
            for place, row in enumerate(rows[:count]):
                text = inputs.texts[row] if inputs.texts else None
                entries.append(entry_of(targets[row], output, names, text, kind, place, positions))
    return Asked(tuple(entries), None, kind)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No gradients, and every module in evaluation mode; both are as before afterwards."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
