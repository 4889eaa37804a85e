"""Explanations on their way out: one is shown and written, of many each as soon as it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from lxt_fx.results.explanation import Explanation
from lxt_fx.results.recursive_answer import RecursiveAnswer
from lxt_fx.shell.exits import UsageMistake
from lxt_fx.shell.outputs import Outputs

if TYPE_CHECKING:
    from rich.console import ConsoleRenderable, RichCast

    from lxt_fx.results.look import Look

    View = ConsoleRenderable | RichCast

Explained = Explanation | RecursiveAnswer

Named = tuple[str, Explained]
"""An explanation, and where its input stands."""

Result = TypeVar("Result")


def refuse_pictures_of_many(outputs: Outputs, many: bool) -> None:
    """Raises UsageMistake where one picture was asked for of many explanations."""
    kinds = [kind for kind in ("png", "pdf", "svg") if kind in outputs.paths]
    if many and kinds:
        raise UsageMistake(f"--{kinds[0]} is a picture of one explanation; of many, --html writes one page")


def deliver(found: Iterable[Named], outputs: Outputs, many: bool, look: Look) -> None:
    """Shows and writes them; views look as `look` says."""
    if many:
        from lxt_fx.explorer.explore import explore

        page = deliver_many(found, outputs, lambda one: [one.view(**look)], lambda one: one.to_dict())
        outputs.write("html", lambda path: explore(*page, path=path, patch=look.get("patch")))
        return
    ((_, one),) = found
    view = one.view(**look)
    outputs.show(view)
    outputs.write("html", view.to_html)
    outputs.write("png", view.to_png)
    outputs.write("pdf", view.to_pdf)
    outputs.write("svg", view.to_svg)
    outputs.one_json(one.to_dict(), one.to_json)


def deliver_many(
    found: Iterable[tuple[str, Result]], outputs: Outputs, views: Callable[[Result], Sequence[View]],
    data: Callable[[Result], Mapping[str, Any]],
) -> list[Result]:  # fmt: skip
    """Shows the views of each result and writes its data, as soon as it is there. Returns the results of which `--html`
    makes one page, none without it."""
    page: list[Result] = []
    with outputs.json_lines() as write:
        for where, one in found:
            for view in (f"{where}:", *views(one), ""):
                outputs.show(view)
            write(data(one))
            page += [one] if "html" in outputs.paths else []
    return page
