"""The views of a result: page, figure, notebook, terminal. All show its sheet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lxt_fx.base.public_door import public

if TYPE_CHECKING:
    from rich.console import RenderableType

    from lxt_fx.views.sheet import Sheet


class Shown:
    """A result with a sheet that is drawn."""

    __slots__ = ()

    def sheet(self, *, patch: int | None = None) -> Sheet:
        """What every view shows, with pictures in squares of `patch` pixels (None: the model's patches)."""
        raise NotImplementedError

    def to_html(self, path: str | Path, *, patch: int | None = None) -> None:
        """Writes one self-contained page in which the result is explored (`lxt_fx.explore`). `patch` is as for `to_png`."""
        public("explore")(self, path=path, patch=patch)

    def to_png(self, path: str | Path, *, width: float = 6.5, patch: int | None = None) -> None:
        """Writes a figure `width` inches wide (3.25 fits a column of a paper), wider where several numbers are explained
        for a long text. Relevance of a picture is summed over squares of `patch` x `patch` pixels, by default the model's
        patches: single pixels within a patch are noisy.

        Tokens of a right-to-left script are drawn from left to right; `to_html` orders them correctly. Raises InputError
        for a text too long for one picture, or a width too small.
        """
        from lxt_fx.views.heatmap import save, sheet_figure

        save(sheet_figure(self.sheet(patch=patch), width), path, "png")

    def to_pdf(self, path: str | Path, *, width: float = 6.5, patch: int | None = None) -> None:
        """Writes the figure of `to_png` as vectors, for a paper."""
        from lxt_fx.views.heatmap import save, sheet_figure

        save(sheet_figure(self.sheet(patch=patch), width), path, "pdf")

    def __rich__(self) -> RenderableType:
        from lxt_fx.views.terminal import sheet_view

        return sheet_view(self.sheet())

    def __str__(self) -> str:
        from lxt_fx.views.terminal import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        from lxt_fx.views.page import fragment

        return fragment([self.sheet()])
