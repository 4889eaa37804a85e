"""Results that are text and tables: what rich draws in a terminal, drawn in a notebook too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

LONGEST = 200
"""The most lines of a table in a notebook."""


class Listed:
    """A result whose `__rich__` is made of sentences and tables; a notebook shows them as such, in its own theme."""

    __slots__ = ()

    def __rich__(self) -> RenderableType:
        raise NotImplementedError

    def __str__(self) -> str:
        from lxt_fx.views.terminal import plain

        return plain(self.__rich__())

    def _repr_html_(self) -> str:
        return listed_fragment(self.__rich__())


def listed_fragment(view: RenderableType) -> str:
    """One element with its own style."""
    from lxt_fx.views.page import style

    return f'<div class="lxt-fx">\n<style>{style()}</style>\n{"".join(_html(view))}\n</div>'


def _html(view: object) -> Iterator[str]:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from lxt_fx.views.terminal import plain

    if isinstance(view, Group):
        for one in view.renderables:
            yield from _html(one)
    elif isinstance(view, Table):
        yield from _table(view)
    elif isinstance(view, (str, Text)):
        if text := _plain(view).strip():
            bold = isinstance(view, Text) and "bold" in str(view.style)
            yield f'<p class="{"said" if bold else "note"}">{_escaped(text)}</p>\n'
    elif hasattr(view, "__rich__"):
        yield from _html(view.__rich__())
    else:
        yield f"<pre>{_escaped(plain(view))}</pre>\n"  # type: ignore[arg-type]


def _table(table: object) -> Iterator[str]:
    from rich.table import Table

    assert isinstance(table, Table)
    yield '<div class="wide tall" tabindex="0"><table class="listed">\n'
    if table.title:
        yield f"<caption>{_escaped(_plain(table.title))}</caption>\n"
    numbers = [' class="n"' if column.justify == "right" else "" for column in table.columns]
    if table.show_header and any(_plain(column.header) for column in table.columns):
        cells = "".join(
            f"<th{n}>{_escaped(_plain(column.header))}</th>" for n, column in zip(numbers, table.columns, strict=True)
        )
        yield f"<thead><tr>{cells}</tr></thead>\n"
    yield "<tbody>\n"
    rows = list(zip(*(list(column.cells) for column in table.columns), strict=True))
    for row in rows[:LONGEST]:
        cells = "".join(f"<td{n}>{_escaped(_plain(cell))}</td>" for n, cell in zip(numbers, row, strict=True))
        yield f"<tr>{cells}</tr>\n"
    yield "</tbody></table></div>\n"
    if len(rows) > LONGEST:
        yield f'<p class="title">and {len(rows) - LONGEST} more</p>\n'


def _plain(view: object) -> str:
    from rich.text import Text

    return view.plain if isinstance(view, Text) else Text.from_markup(view).plain if isinstance(view, str) else str(view)


def _escaped(text: str) -> str:
    from markupsafe import escape

    return str(escape(text))
