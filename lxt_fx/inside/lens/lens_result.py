"""What `lens` returns: the matrices of a model, which read a text or lie in a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lxt_fx.base.autocast import autocast_off
from lxt_fx.base.errors import InputError
from lxt_fx.base.one_line import one_line
from lxt_fx.base.saved_json import read_json
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.weights_hash import weights_hash
from lxt_fx.inside.lens.read_out import logits_by_layer, top_of
from lxt_fx.inside.lens.reading import LensReading, reading_of
from lxt_fx.inside.lens.residuals import text_call
from lxt_fx.tasks.reading import opened_with
from lxt_fx.views.listed import Listed

if TYPE_CHECKING:
    from rich.table import Table

FORMAT, KEY, MATRICES = 1, "lxt_fx_lens", "matrices"
WHERE = "Lens"


@dataclass(frozen=True, slots=True)
class LensFacts:
    """Where a lens comes from: the class of the model, its checkpoint ("" if it has none), a hash of its weights, the rule
    table, the places of the residual stream, of which the last has no matrix; how many `prompts` and `positions` in all."""

    model_class: str
    checkpoint: str
    weights: str
    table_name: str
    places: tuple[str, ...]
    prompts: int = 0
    positions: int = 0

    @classmethod
    def of(cls, explained: Explained, weights: str, places: tuple[str, ...]) -> LensFacts:
        """The facts of a module."""
        record, checkpoint = explained.record, str(getattr(explained.config, "name_or_path", "") or "")
        return cls(record.model_class, checkpoint, weights, record.table_name, places)

    def counted(self, prompts: int, positions: int) -> LensFacts:
        """With how many prompts and positions were averaged over."""
        return replace(self, prompts=prompts, positions=positions)


class Lens(Listed):
    """Averaged Jacobians of a model. `matrices` [layers, hidden, hidden], at least float32 on the CPU: matrix l maps the
    residual stream before layer l to that behind the last layer. `facts` say where they come from."""

    def __init__(self, matrices: Tensor, facts: LensFacts, model: nn.Module | None = None, processor: Any = None) -> None:
        self.matrices, self.facts = matrices, facts
        self._model, self._processor = model, processor

    @property
    def layers(self) -> int:
        """How many layers have a matrix."""
        return len(self.matrices)

    @property
    def table_name(self) -> str:
        """The name of the rule table."""
        return self.facts.table_name

    def read(
        self, inputs: Any, *, k: int = 5, model: nn.Module | Any = None, processor: Any = None
    ) -> LensReading | tuple[LensReading, ...]:
        """What each layer says at each position of a text: the k tokens with the largest logits W_U norm(J_l h_l), by the
        model's own last norm and head. Behind the last layer these are the model's logits. Of a list of texts, a tuple.

        `model` and `processor` are those that the lens was made with, or loaded for, unless others are given. Raises
        InputError for a model with other weights, for texts that do not fit, for a k that is not from 1 to the vocabulary,
        and where no model is known; NonFiniteError for logits that are NaN or infinite.
        """
        model, processor = (self._model if model is None else model), (self._processor if processor is None else processor)
        if model is None:
            raise InputError(f"{WHERE}.read: a loaded lens needs the model: read(text, model=..., processor=...)")
        module, processor = opened_with(model, processor, f"{WHERE}.read")
        with torch.no_grad(), autocast_off():
            call = text_call(module, processor, inputs, f"{WHERE}.read", None)
            self._check(call.explained, tuple(call.places))
            top = [top_of(logits, k, f"{WHERE}.read") for logits in logits_by_layer(call, self.matrices)]
        names, table = tuple(call.places), self.facts.table_name
        found = tuple(reading_of(text, row, top, names, table) for row, text in enumerate(call.texts))
        return found if call.batched else found[0]

    def _check(self, explained: Explained, places: tuple[str, ...]) -> None:
        """Raises InputError for a model that the lens was not made of, or whose weights have changed since."""
        if places != self.facts.places or weights_hash(explained) != self.facts.weights:
            raise InputError(
                f"{WHERE}.read: this lens was made of a {self.facts.model_class} with other weights or layers; make one of "
                "this model (lxt_fx.lens)"
            )

    # files

    def save(self, path: str | Path) -> None:
        """Writes one file of safetensors, with the facts in its header."""
        from safetensors.torch import save_file

        header = json.dumps({"format": FORMAT, **asdict(self.facts)}, ensure_ascii=False)
        save_file({MATRICES: self.matrices.contiguous()}, path, metadata={KEY: header})

    @classmethod
    def load(cls, path: str | Path, model: nn.Module | Any = None, *, processor: Any = None) -> Lens:
        """What `save` wrote, for reading texts with this model. Raises InputError for a file of another kind, or a value
        that cannot be used."""
        from safetensors import SafetensorError, safe_open

        where = f"{WHERE}.load: {Path(path).name}"
        try:
            with safe_open(path, framework="pt") as file:
                header = (file.metadata() or {}).get(KEY)
                matrices = file.get_tensor(MATRICES) if header is not None else None
        except (SafetensorError, OSError) as error:
            raise InputError(f"{where} cannot be read: {error}") from error
        if header is None or matrices is None:
            raise InputError(f"{where} holds no lens; lxt_fx.lens makes one")
        facts = _read_facts(header, where)
        if matrices.dim() != 3 or len(matrices) != len(facts.places) - 1 or matrices.shape[1] != matrices.shape[2]:
            raise InputError(f"{where} has matrices {list(matrices.shape)} for {len(facts.places)} places")
        return cls(matrices, facts, model, processor)

    # views

    def __rich__(self) -> Table:
        from rich.table import Table

        facts = self.facts
        title = (
            f"lens of {facts.model_class}, rules {facts.table_name}: {facts.prompts} prompts, {facts.positions} positions"
        )
        table = Table("place", "norm of the matrix", "of it less the identity", title=title, title_justify="left")
        for name, whole, rest in self._norms():
            table.add_row(name, f"{whole:.4g}", f"{rest:.4g}")
        return table

    def _norms(self) -> Iterator[tuple[str, float, float]]:
        """The root of the mean squared factor by which a matrix lengthens a direction, and that of what it adds to it."""
        identity, size = torch.eye(self.matrices.shape[-1], dtype=self.matrices.dtype), self.matrices.shape[-1] ** 0.5
        for name, matrix in zip(self.facts.places, self.matrices, strict=False):
            yield name, float(matrix.norm()) / size, float((matrix - identity).norm()) / size

    def __repr__(self) -> str:
        facts = self.facts
        shape, rules = " x ".join(map(str, self.matrices.shape)), one_line(facts.table_name, 40)
        return f"Lens({one_line(facts.model_class, 60)}, {shape}, rules {rules}, {facts.prompts} prompts)"


def _read_facts(header: str, where: str) -> LensFacts:
    saved = read_json(header, where)
    if (version := saved.item("format").whole()) != FORMAT:
        saved.fail(f"has format {version}, and this version of lxt_fx reads {FORMAT}; make the lens again")
    made = [saved.item(name).text() for name in ("model_class", "checkpoint", "weights", "table_name")]
    places = saved.item("places").texts()
    if len(places) < 2 or not _numbered(places):
        saved.item("places").fail("are not those of a residual stream, from residual.0 on")
    counts = [saved.item(name).whole(1) for name in ("prompts", "positions")]
    return LensFacts(made[0], made[1], made[2], made[3], places, counts[0], counts[1])


def _numbered(places: Sequence[str]) -> bool:
    numbers = [int(name.removeprefix("residual.")) for name in places if name.removeprefix("residual.").isdecimal()]
    return len(numbers) == len(places) and numbers[0] == 0 and all(b == a + 1 for a, b in pairwise(numbers))
