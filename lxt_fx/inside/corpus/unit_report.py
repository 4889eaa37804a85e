"""What is known of one unit, as it is shown: in the terminal and as HTML."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lxt_fx.inside.corpus.unit_facts import UnitFacts

if TYPE_CHECKING:
    from rich.console import RenderableType


class UnitReport(UnitFacts):
    """What is known of a unit; `print` shows it, and so does a notebook."""

    __slots__ = ()

    def __rich__(self) -> RenderableType:
        from lxt_fx.inside.corpus.unit_view import unit_view

        return unit_view(self)

    def __str__(self) -> str:
        from lxt_fx.views.terminal import as_text

        return as_text(self)

    def __repr__(self) -> str:
        label = "" if self.label is None else f", {self.label!r}"
        return f"UnitReport({self.place} {self.unit}{label}, {len(self.by_activation)} samples)"

    def _repr_html_(self) -> str:
        from lxt_fx.inside.corpus.unit_page import unit_fragment

        return unit_fragment(self)
