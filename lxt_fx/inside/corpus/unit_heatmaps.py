"""The heatmap of one unit for samples that it is large in: the relevance of the inputs that runs through it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from lxt_fx.attribution.target import TargetLike
from lxt_fx.base.errors import InputError
from lxt_fx.compiler.explained import Explained
from lxt_fx.inside.conditional import conditional
from lxt_fx.inside.corpus.fingerprint import said_target
from lxt_fx.inside.corpus.kept_samples import value_of
from lxt_fx.inside.corpus.unit_facts import TopSample
from lxt_fx.inside.units import Only
from lxt_fx.results.explanation import Explanation
from lxt_fx.results.readings import ImageReading
from lxt_fx.views.view import summed


def unit_heatmaps(
    model: nn.Module,
    processor: Any,
    header: Mapping[str, Any],
    place: str,
    unit: int,
    tops: Sequence[TopSample],
    target: TargetLike,
    labels: Sequence[str] | None,
) -> Iterator[TopSample]:
    """The samples with a heatmap: what runs through the unit at the position of its largest value (Achtibat et al.
    2023)."""
    if header["target"] != said_target(target):
        raise InputError(
            f"Corpus.heatmaps: the corpus was read for {header['target']}, not for {said_target(target)}; give the "
            "same target"
        )
    for top in tops:
        value = value_of(top.sample.source)
        if value is None:
            raise InputError(
                f"Corpus.heatmaps: {top.sample.key!r} was a picture or a sound in memory, and is no longer there; "
                "lxt_fx.conditional takes it again"
            )
        only = Only(unit, top.position if top.reads.leaf else None)
        rules = None if isinstance(model, Explained) else header["table"]
        made = conditional(model, value, {place: only}, target, processor=processor, labels=labels, rules=rules)
        assert isinstance(made, Explanation), "one sample has one explanation"
        yield replace(top, heatmap=_heatmap(made, top))


def _heatmap(made: Explanation, top: TopSample) -> Tensor:
    """The relevance of each token of the text that the position is in, or of each patch; of the first input if the position
    is in none."""
    kind = "image" if top.sample.picture is not None and not top.sample.texts else "text"
    parts, leaves = [part for part in made.parts if part.kind == kind], list(top.sample.texts)
    if kind == "text" and top.reads.leaf in leaves and len(parts) == len(leaves):
        parts = [parts[leaves.index(top.reads.leaf)]]  # the parts are in the order of the inputs, as the texts are
    elif kind == "text":
        parts = [part for part in parts if part.values.shape[-1] == len(top.tokens)] or parts
    part = (parts or list(made.parts))[0]
    if isinstance(part.reading, ImageReading) and part.reading.patch > part.reading.side:
        size = part.reading.patch // part.reading.side
        return summed(part.values.double(), size, size)
    return part.values.double()
