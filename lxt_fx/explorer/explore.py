"""`lxt_fx.explore`: any results as one page that a person can click through."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lxt_fx.base.errors import InputError
from lxt_fx.explorer.latent_data import UnitLabels
from lxt_fx.explorer.page_data import page_of, shown_results, static_sheet
from lxt_fx.explorer.page_file import file_page, template
from lxt_fx.inside.latent_result import Latent


def explore(
    *results: Any,
    path: str | Path,
    latent: Latent | Sequence[Latent | None] | None = None,
    labels: UnitLabels | None = None,
    patch: int | None = None,
) -> None:
    """Writes one self-contained page in which results are explored: it opens by a double click and asks no other address
    for anything. A file that is there is overwritten.

        lxt_fx.explore(explanation, path="why.html")
        lxt_fx.explore(explanation, latent=found, labels=lxt_fx.labels("neurons"), path="why.html")
        lxt_fx.explore(attnlrp, cp_lrp, path="both.html")           # side by side on one scale

    `results` are what lxt_fx returns: explanations and several of them, answers by token and through themselves,
    comparisons, latent results, circuits, ledgers, certificates, rule tables, removal curves, a corpus or one of its
    units. With `latent`, what `lxt_fx.latent` found for the same text and target, a place of the first explanation shows
    its layers, heads and strongest units; a list has one for each explanation. `labels` name units: `lxt_fx.labels(path)`,
    or a `Corpus`, whose samples are shown too. Relevance of pictures is summed over squares of `patch` x `patch` pixels, by
    default the model's patches.

    A reader without scripts sees the static sheet of the results. Raises InputError for what is no result, for no result,
    for latent results of another text or target, and for a folder that does not exist.
    """
    if not Path(path).absolute().parent.is_dir():
        raise InputError(f"explore: there is no folder {Path(path).absolute().parent}; give a path in a folder that exists")
    if not results:
        raise InputError("explore: there is no result; give what lxt_fx.explain or another function returned")
    shown = shown_results(results, latent, labels, patch)
    if patch is not None and not any(one.explanation is not None and one.explanation.has("image") for one in shown):
        raise InputError(f"explore: patch={patch} is for pictures, and no result has one; leave it out")
    if not shown:
        raise InputError("explore: the results hold no explanation")
    page = file_page(template(), page_of(shown), static_sheet(shown))
    Path(path).write_bytes(page.encode("utf-8"))
