"""LXT's heatmap of one's own words and numbers. docs/coming_from.md has the rest of LXT beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.results.explanation import Explanation
from lxt_fx.results.origin import ExplainedNumber, Origin
from lxt_fx.results.part import Part
from lxt_fx.results.readings import TextReading


def explanation_of_words(
    words: Sequence[str], relevance: Tensor | Sequence[float], value: float | None = None, said: str = "given by hand"
) -> Explanation:
    """An explanation of words and numbers [words] that were computed elsewhere, with every view of ours (`to_html`,
    `to_pdf`, `print`, `[1:]` without the first word). `value` is the explained number, the sum by default; `said` says what
    it is. Raises InputError where they are not as many."""
    values = torch.as_tensor(relevance).detach().cpu()
    values = values if values.dtype in (torch.float32, torch.float64) else values.float()
    if values.dim() != 1 or len(values) != len(words) or not len(words):
        raise InputError(f"explanation_of_words: {len(words)} words and relevance of shape {list(values.shape)}")
    if not bool(values.isfinite().all()):
        raise InputError("explanation_of_words: relevance is NaN or infinite")
    nothing = (False,) * len(words)
    reading = TextReading(tuple(words), None, nothing, (0,) * len(words))
    number = ExplainedNumber(said, float(values.sum()) if value is None else value, said)
    return Explanation((Part("text", ("position",), values, reading),), (number,), Origin("given by hand", "no model"))


def pdf_heatmap(words: Sequence[str], relevances: Tensor | Sequence[float], path: str | Path = "heatmap.pdf") -> None:
    """LXT's `pdf_heatmap`, without LaTeX and on our scale: words coloured by numbers of any size. Words are written as they
    are; `Explanation.tokens` are readable already, so nothing like `clean_tokens` is needed."""
    explanation_of_words(words, relevances).to_pdf(path)


__all__ = ["explanation_of_words", "pdf_heatmap"]
