"""Explanations on their way out: one is shown and written, of many each as soon as it is there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lxt_fx.results.explanation import Explanation
from lxt_fx.results.explanations import Explanations
from lxt_fx.shell.exits import UsageMistake
from lxt_fx.shell.outputs import Outputs

if TYPE_CHECKING:
    from lxt_fx.results.look import Look

Named = tuple[str, Explanation]
"""An explanation, and where its input stands."""


def refuse_pictures_of_many(outputs: Outputs, many: bool) -> None:
    """Raises UsageMistake where one picture was asked for of many explanations."""
    kinds = [kind for kind in ("png", "pdf", "svg") if kind in outputs.paths]
    if many and kinds:
        raise UsageMistake(f"--{kinds[0]} is a picture of one explanation; of many, --html writes one page")


def deliver(found: Iterable[Named], outputs: Outputs, many: bool, look: Look) -> None:
    """Shows and writes them; views look as `look` says."""
    if many:
        _deliver_many(found, outputs, look)
        return
    ((_, one),) = found
    view = one.view(**look)
    outputs.show(view)
    outputs.write("html", view.to_html)
    outputs.write("png", view.to_png)
    outputs.write("pdf", view.to_pdf)
    outputs.write("svg", view.to_svg)
    outputs.one_json(one.to_dict(), one.to_json)


def _deliver_many(found: Iterable[Named], outputs: Outputs, look: Look) -> None:
    page: list[Explanation] = []
    with outputs.json_lines() as write:
        for where, one in found:
            outputs.show(f"{where}:")
            outputs.show(one.view(**look))
            outputs.show("")
            write(one.to_dict())
            page += [one] if "html" in outputs.paths else []

    def to_html(path: Path) -> None:
        Explanations(page).to_html(path, patch=look.get("patch"))

    outputs.write("html", to_html)
