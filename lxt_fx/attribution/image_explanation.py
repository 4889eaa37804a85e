"""The relevance of every pixel of one image, and its views: terminal, notebook, HTML page, PNG or PDF figure, JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.views.panels import Panel, panels
from lxt_fx.views.view import Facts, summed

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ImageExplanation:
    """How much each pixel of an image moved the explained value up (positive) or down (negative).

    `relevance` [height, width] is `attribution` [channels, height, width] summed over channels; both, and
    `pixel_values` [channels, height, width], are on the CPU. `explained` says which number `value` is. `seconds` is
    the time of the forward and backward pass, without capture.
    """

    pixel_values: Tensor
    relevance: Tensor
    attribution: Tensor
    explained: str
    value: float
    table_name: str
    model_class: str
    seconds: float

    def facts(self) -> Facts:
        """What every view states beside the image."""
        total, largest = float(self.relevance.sum()), float(self.relevance.abs().max())
        return Facts(self.explained, self.value, total, largest, self.table_name, self.model_class, self.seconds)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: everything but `pixel_values` and `attribution`, which are large."""
        return {
            "explained": self.explained,
            "value": self.value,
            "sum": float(self.relevance.sum()),
            "relevance": self.relevance.tolist(),
            "rules": self.table_name,
            "model_class": self.model_class,
            "seconds": self.seconds,
        }

    def to_json(self, path: str | Path) -> None:
        """Writes `to_dict()` as UTF-8 JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), ensure_ascii=False) + "\n", encoding="utf-8")

    def to_html(self, path: str | Path, *, patch: int = 1) -> None:
        """Writes a page that stands alone: no scripts, no other files, a light and a dark theme. `patch` is as for
        `to_png`."""
        from lxt_fx.views.page import image_page

        shown = self._in_patches(patch)
        Path(path).write_text(image_page(shown._panels(patch), shown.facts()), encoding="utf-8")

    def to_png(self, path: str | Path, *, width: float = 6.5, patch: int = 1) -> None:
        """Writes a figure `width` inches wide, with relevance summed over squares of `patch` pixels. At a vision
        transformer's own patch size the heatmap is calmer: within a patch, single pixels say little."""
        from lxt_fx.views.heatmap import image_figure, save

        shown = self._in_patches(patch)
        save(image_figure(shown._panels(patch), shown.facts(), width), path, "png")

    def to_pdf(self, path: str | Path, *, width: float = 6.5, patch: int = 1) -> None:
        """Writes the figure of `to_png` for a paper."""
        from lxt_fx.views.heatmap import image_figure, save

        shown = self._in_patches(patch)
        save(image_figure(shown._panels(patch), shown.facts(), width), path, "pdf")

    def _in_patches(self, patch: int) -> ImageExplanation:
        if patch < 1:
            raise InputError(f"ImageExplanation: patch must be at least 1 pixel, got {patch}")
        return replace(self, relevance=summed(self.relevance, patch, patch)) if patch > 1 else self

    def _panels(self, patch: int) -> tuple[Panel, ...]:
        return panels(self.pixel_values, self.relevance, patch)

    def __rich__(self) -> RenderableType:
        from lxt_fx.views.terminal import image_view

        return image_view(self.relevance, self.facts())

    def __str__(self) -> str:
        from lxt_fx.views.terminal import as_text

        return as_text(self)

    def __repr__(self) -> str:
        height, width = self.relevance.shape
        return f"ImageExplanation({self.explained} = {self.value:.4g}, {height} x {width}, rules {self.table_name})"

    def _repr_html_(self) -> str:
        from lxt_fx.views.page import image_fragment

        return image_fragment(self._panels(1), self.facts())
