"""One input of a task with the number that is explained, and the model that is asked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lxt_fx.attribution.embeddings import embed
from lxt_fx.base.as_it_was import answer_of
from lxt_fx.base.errors import InputError, NonFiniteError
from lxt_fx.faithfulness.removed_units import Unit, units_scores


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One input of a task.

    `key` names it within its task: the same seed gives the same key and the same input. `inputs` are those of the model by
    name, one example: `input_ids` [1, tokens] or `pixel_values` [1, channels, height, width], and masks. `value` takes the
    output of the model for n examples and gives the explained number of each, [n]; `said` says it in words. `labels` are
    the texts of the units (tokens, or patches row by row). `spared` [units] marks units that are never removed or ranked
    (special tokens). `gold` [units] marks the units on which the answer must rest, None where nobody can say. Cases of one
    task that share what they ask about (a subject, a passage, a picture) have one `group`, since they are not independent;
    it is empty for a case alone.
    """

    key: str
    inputs: Mapping[str, Tensor]
    value: Callable[[Any], Tensor]
    said: str
    labels: tuple[str, ...]
    spared: Tensor
    gold: Tensor | None = None
    group: str = ""

    def __post_init__(self) -> None:
        units = len(self.labels)
        for name, marked in (("spared", self.spared), ("gold", self.gold)):
            if marked is not None and (marked.dtype != torch.bool or list(marked.shape) != [units]):
                raise InputError(
                    f"case {self.key}: {name} must be [{units}] bools, one for each unit; got {marked.dtype} "
                    f"{list(marked.shape)}"
                )
        if bool(self.spared.all()):
            raise InputError(f"case {self.key}: every unit is spared, so that none can be removed or ranked")


Kind = Literal["language", "similarity", "image"]
"""What a model is for: it predicts the next token, embeds a text, or answers about a picture."""


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A model that is asked. `processor` is its tokenizer or image processor; `unit` is what relevance is summed over and
    what is removed at once: a token, or the side of a square patch in pixels. `constants` are arguments that save work in
    every call and change no explained number (`logits_to_keep=1`)."""

    name: str
    model: nn.Module
    kind: Kind = "language"
    processor: Any | None = None
    unit: Unit = "token"
    constants: Mapping[str, Any] = field(default_factory=dict)

    def leaf_name(self, case: Case) -> str:
        """The input at which relevance is read: what token ids are looked up as, or the picture."""
        if "input_ids" in case.inputs:
            return "inputs_embeds"
        found = [name for name, value in case.inputs.items() if value.is_floating_point()]
        if len(found) != 1:
            raise InputError(
                f"case {case.key}: give input_ids or exactly one floating-point input; got {list(case.inputs)}"
            )
        return found[0]

    def leaf(self, case: Case) -> Tensor:
        """The leaf of a case, detached: [1, tokens, hidden] or [1, channels, height, width]."""
        ids = case.inputs.get("input_ids")
        return (case.inputs[self.leaf_name(case)] if ids is None else embed(self.model, ids)).detach()

    def inputs(self, case: Case, leaf: Tensor) -> dict[str, Tensor]:
        """The inputs of the model by name for n variants of the leaf [n, ...]; all else is repeated."""
        others = {name: value for name, value in case.inputs.items() if name != "input_ids"}
        repeated = {name: value.expand(len(leaf), *value.shape[1:]) for name, value in others.items()}
        return repeated | {self.leaf_name(case): leaf}

    def called(self, case: Case, leaf: Tensor) -> dict[str, Any]:
        """All arguments of a call for n variants of the leaf: `inputs`, and the `constants`."""
        return self.inputs(case, leaf) | dict(self.constants)

    def numbers(self, case: Case, leaf: Tensor, model: nn.Module | None = None, *, saving: bool = True) -> Tensor:
        """The explained number [n] of n variants of the leaf [n, ...], with a graph where gradients are on. `model` is
        another module with the same arguments, such as one that `transform` made; without `saving` it is called without the
        `constants`."""
        asked = self.model if model is None else model
        given = self.called(case, leaf) if saving else self.inputs(case, leaf)
        value = case.value(answer_of(asked, lambda: asked(**given)))
        if list(value.shape) != [len(leaf)]:
            raise InputError(
                f"case {case.key}: value must give one number for each example, [{len(leaf)}]; got {list(value.shape)}"
            )
        return value

    def by_unit(self, case: Case, relevance: Tensor) -> Tensor:
        """Relevance by unit [units], float64 on the CPU, of relevance that has the shape of the leaf, or already one number
        a unit.

        Raises InputError for another shape, NonFiniteError for NaN or infinity.
        """
        if not bool(relevance.isfinite().all()):
            raise NonFiniteError(f"case {case.key}: relevance has NaN or infinity, which cannot be ranked")
        if list(relevance.shape) in ([len(case.labels)], [1, len(case.labels)]):
            return relevance.detach().double().cpu().flatten()
        return units_scores(self.unit, self.leaf(case), relevance, f"case {case.key}")[0]


def seed_of(text: str) -> int:
    """A seed that is the same in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
