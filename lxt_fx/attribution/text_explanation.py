"""The relevance of every token of one text, and its views: terminal, notebook, HTML page, PNG or PDF figure, JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.base.json_file import write_json
from lxt_fx.views.view import Facts, cells

if TYPE_CHECKING:
    from rich.console import RenderableType


class TokenRelevance(NamedTuple):
    """One token of an explanation."""

    position: int
    token: str
    relevance: float


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Explanation:
    """How much each token of a text moved the explained value up (positive) or down (negative).

    `relevance` [tokens] is `attribution` [tokens, hidden] summed over the embedding; both are on the CPU. `tokens` are
    as a person reads them, with a leading space where a word starts. `explained` says which number `value` is.
    `seconds` is the time of the forward and backward pass, without capture.
    """

    tokens: tuple[str, ...]
    input_ids: tuple[int, ...]
    relevance: Tensor
    attribution: Tensor
    explained: str
    value: float
    table_name: str
    model_class: str
    seconds: float

    def top(self, k: int = 10) -> tuple[TokenRelevance, ...]:
        """The k tokens of largest absolute relevance, strongest first."""
        if k < 1:
            raise InputError(f"Explanation.top: k must be at least 1, got {k}")
        order = self.relevance.abs().argsort(descending=True, stable=True)[:k].tolist()
        return tuple(TokenRelevance(i, self.tokens[i], float(self.relevance[i])) for i in order)

    def facts(self) -> Facts:
        """What every view states beside the tokens."""
        total, largest = float(self.relevance.sum()), float(self.relevance.abs().max())
        return Facts(self.explained, self.value, total, largest, self.table_name, self.model_class, self.seconds)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: everything but `attribution`, which is large."""
        return {
            "explained": self.explained,
            "value": self.value,
            "sum": float(self.relevance.sum()),
            "tokens": list(self.tokens),
            "input_ids": list(self.input_ids),
            "relevance": self.relevance.tolist(),
            "rules": self.table_name,
            "model_class": self.model_class,
            "seconds": self.seconds,
        }

    def to_json(self, path: str | Path) -> None:
        """Writes `to_dict()` as UTF-8 JSON."""
        write_json(self.to_dict(), path)

    def to_html(self, path: str | Path) -> None:
        """Writes a page that stands alone: no scripts, no other files, a light and a dark theme."""
        from lxt_fx.views.page import token_page

        page = token_page(cells(self.tokens, self.relevance), self.facts(), self.top(8))
        Path(path).write_text(page, encoding="utf-8")

    def to_png(self, path: str | Path, *, width: float = 6.5) -> None:
        """Writes a figure `width` inches wide (3.25 fits a column of a paper).

        Tokens of a right-to-left script are drawn from left to right; the page orders them rightly. Raises InputError for
        a text too long for one picture, or a width too small.
        """
        from lxt_fx.views.heatmap import save, token_figure

        save(token_figure(cells(self.tokens, self.relevance), self.facts(), width), path, "png")

    def to_pdf(self, path: str | Path, *, width: float = 6.5) -> None:
        """Writes the figure of `to_png` as vectors, for a paper."""
        from lxt_fx.views.heatmap import save, token_figure

        save(token_figure(cells(self.tokens, self.relevance), self.facts(), width), path, "pdf")

    def __rich__(self) -> RenderableType:
        from lxt_fx.views.terminal import token_view

        return token_view(cells(self.tokens, self.relevance), self.facts(), self.top(5))

    def __str__(self) -> str:
        from lxt_fx.views.terminal import as_text

        return as_text(self)

    def __repr__(self) -> str:
        return f"Explanation({self.explained} = {self.value:.4g}, {len(self.tokens)} tokens, rules {self.table_name})"

    def _repr_html_(self) -> str:
        from lxt_fx.views.page import token_fragment

        return token_fragment(cells(self.tokens, self.relevance), self.facts(), self.top(8))
