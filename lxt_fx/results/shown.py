"""The views of a result: page, figure, notebook, terminal. All show its sheet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from lxt_fx.base.public_door import public
from lxt_fx.results.look import Look

if TYPE_CHECKING:
    from rich.console import RenderableType

    from lxt_fx.views.sheet import Sheet


class Shown:
    """A result with a sheet that is drawn. The keywords of a view, `**look`, are those of `Look`."""

    __slots__ = ()

    def sheet(self, **look: Unpack[Look]) -> Sheet:
        """What every view shows."""
        raise NotImplementedError

    def view(self, **look: Unpack[Look]) -> View:
        """The result as a notebook and `print` show it, with other keywords than the usual ones:
        `explanation.view(scale="max", mute="last")`. Raises InputError as `to_png` does."""
        found = View(self, look)
        found.sheet()
        return found

    def to_html(self, path: str | Path, *, patch: int | None = None) -> None:
        """Writes one self-contained page in which the result is explored (`lxt_fx.explore`). `patch` is as for `to_png`."""
        public("explore")(self, path=path, patch=patch)

    def to_png(self, path: str | Path, *, width: float = 6.5, **look: Unpack[Look]) -> tuple[Path, ...]:
        """Writes a figure `width` inches wide (3.25 fits a column of a paper), wider where several numbers are explained
        for a long text. What does not fit 11 inches goes to further files, `name-2.png` and so on; the paths of all are
        returned.

        Emoji and other scripts are drawn by the fonts of the system; a character that none has stands as its code point.
        Tokens of a right-to-left script are drawn from left to right; `to_html` orders them correctly. Raises InputError
        for a width too small, and for keywords that do not fit the result.
        """
        from lxt_fx.views.files import write_png

        return write_png(self.sheet(**look), path, width)

    def to_pdf(self, path: str | Path, *, width: float = 6.5, **look: Unpack[Look]) -> None:
        """Writes the figure of `to_png` as vectors, for a paper; one file, with as many pages as it needs."""
        from lxt_fx.views.files import write_pdf

        write_pdf(self.sheet(**look), path, width)

    def to_svg(self, path: str | Path, *, width: float = 6.5, **look: Unpack[Look]) -> None:
        """Writes the figure of `to_png` as vectors in one file, as tall as it needs to be, for a web page. Letters are
        written as outlines, so it looks the same everywhere."""
        from lxt_fx.views.files import write_svg

        write_svg(self.sheet(**look), path, width)

    def __rich__(self) -> RenderableType:
        from lxt_fx.views.terminal import sheet_view

        return sheet_view(self.sheet())

    def __str__(self) -> str:
        from lxt_fx.views.terminal import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        from lxt_fx.views.page import fragment

        return fragment([self.sheet()])


class View(Shown):
    """A result with keywords of a view, which all its views have unless they are given others."""

    __slots__ = ("_look", "_shown")

    def __init__(self, shown: Shown, look: Look) -> None:
        self._shown, self._look = shown, look

    def sheet(self, **look: Unpack[Look]) -> Sheet:
        """What every view shows."""
        both: Look = {**self._look, **look}
        return self._shown.sheet(**both)

    def to_html(self, path: str | Path, *, patch: int | None = None) -> None:
        """Writes the page of the result, in which the keywords are chosen."""
        self._shown.to_html(path, patch=self._look.get("patch") if patch is None else patch)

    def __repr__(self) -> str:
        chosen = "".join(f", {name}={value!r}" for name, value in self._look.items())
        return f"View({self._shown!r}{chosen})"
