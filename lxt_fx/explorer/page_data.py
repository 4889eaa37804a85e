"""Any result as data of the page, with the static sheet that a reader without scripts sees."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lxt_fx.base.errors import InputError
from lxt_fx.explorer.circuit_data import circuit_data
from lxt_fx.explorer.explanation_data import explanation_data, places_of
from lxt_fx.explorer.latent_data import UnitLabels, check_belongs, latent_data
from lxt_fx.explorer.plain import FORMAT, Payload
from lxt_fx.explorer.tables_data import (
    certificate_data,
    corpus_data,
    curves_data,
    ledger_data,
    lens_data,
    rule_table_data,
    unit_data,
)
from lxt_fx.faithfulness.removal_curves import PerturbationCurves
from lxt_fx.inside.circuits.scores_result import CircuitScores
from lxt_fx.inside.corpus.result import Corpus
from lxt_fx.inside.corpus.unit_report import UnitReport
from lxt_fx.inside.latent_result import Latent
from lxt_fx.inside.lens.reading import LensReading
from lxt_fx.ledger.ledger import Ledger
from lxt_fx.report.certificates import Certificate
from lxt_fx.results.comparison import Comparison
from lxt_fx.results.explanation import Explanation
from lxt_fx.results.explanations import Explanations
from lxt_fx.results.recursive_answer import RecursiveAnswer
from lxt_fx.rule_table.table import RuleTable
from lxt_fx.version import __version__
from lxt_fx.views.sheet import Sheet

FUNCTION = "explore"

MOST_PLACES = 4000
"""The most coloured places of a static sheet: it is for readers without scripts, and the page has all of them."""

PLAIN: tuple[tuple[type, Callable[[Any], Payload]], ...] = (
    (Certificate, certificate_data),
    (RuleTable, rule_table_data),
    (PerturbationCurves, curves_data),
    (Corpus, corpus_data),
    (UnitReport, unit_data),
    (LensReading, lens_data),
)


@dataclass(frozen=True, slots=True, eq=False)
class PageResult:
    """One result of a page: its data; the explanation that it is, if it is one; and what draws the static sheet, which has
    so many coloured `places`. Of explanations that share a sheet the first has it."""

    data: Payload
    explanation: Explanation | None = None
    sheet: Callable[[], Sheet] | None = None
    places: int = 0


def page_of(results: Sequence[PageResult], live: Payload | None = None) -> Payload:
    """The data of a whole page."""
    listed = [{**shown.data, "id": f"r{at}"} for at, shown in enumerate(results)]
    return {"format": FORMAT, "made_by": f"lxt_fx {__version__}", "results": listed, "live": live}


def shown_results(
    results: Iterable[Any],
    latent: Latent | Sequence[Latent | None] | None = None,
    labels: UnitLabels | None = None,
    patch: int | None = None,
) -> list[PageResult]:
    """Every result of a page, one for each explanation or example of several. `latent` belongs to the first explanation,
    or a list of them to each in turn.

    Raises InputError for what is no result, and for latent values of another text or number.
    """
    found = [one for each in results for one in _shown(each, labels, patch)]
    given = [] if latent is None else [latent] if isinstance(latent, Latent) else list(latent)
    explained = [one for one in found if one.explanation is not None]
    if len(given) > len(explained):
        raise InputError(f"{FUNCTION}: {len(given)} latent results for {len(explained)} explanations; give one for each")
    for one, inside in zip(explained, given, strict=False):
        if inside is not None and one.explanation is not None:
            check_belongs(inside, one.explanation, 0)
            _add_latent(one.data, inside, one.explanation, 0, labels)
    return found


def _shown(given: Any, labels: UnitLabels | None, patch: int | None) -> Iterator[PageResult]:
    if isinstance(given, Explanation):
        yield _explanation(given, None, patch)
    elif isinstance(given, Explanations):
        yield from (_explanation(one, None, patch) for one in given)
    elif isinstance(given, Comparison):
        yield from _comparison(given, patch)
    elif isinstance(given, RecursiveAnswer):
        yield from _recursive(given, patch)
    elif isinstance(given, Latent):
        for example, explanation in enumerate(given.explanations):
            one = _explanation(explanation, None, patch)
            _add_latent(one.data, given, explanation, example, labels)
            yield one
    elif isinstance(given, CircuitScores):
        yield from map(PageResult, circuit_data(given))
    elif isinstance(given, Ledger):
        yield from (PageResult(ledger_data(given.example(index))) for index in range(given.examples))
    else:
        yield PageResult(_plain(given))


def _explanation(given: Explanation, title: str | None, patch: int | None) -> PageResult:
    own = patch if given.has("image") else None
    return PageResult(explanation_data(given, title, own), given, lambda: given.sheet(patch=own), places_of([given]))


def _comparison(given: Comparison, patch: int | None) -> Iterator[PageResult]:
    """Each explanation, then the differences; one sheet has them all on one scale."""
    own = patch if any(one.has("image") for one in given.explanations) else None
    names = [*given.names, *(f"{given.names[0]} minus {name}" for name in given.compared())]
    both = (*given.explanations, *given.differences)
    for at, (one, name) in enumerate(zip(both, names, strict=True)):
        found = _explanation(one, name, own)
        sheet = None if at else lambda: given.sheet(patch=own)
        yield replace(found, sheet=sheet, places=0 if at else places_of(both))


def _recursive(given: RecursiveAnswer, patch: int | None) -> Iterator[PageResult]:
    """What flows through the answer, then the single pass; one sheet has both, each on its own scale."""
    own = patch if given.recursive.has("image") else None
    for at, (one, name) in enumerate(zip(given.explanations, ("through the answer", "one pass"), strict=True)):
        found = _explanation(one, name, own)
        sheet = None if at else lambda: given.sheet(patch=own)
        yield replace(found, sheet=sheet, places=0 if at else places_of(given.explanations))


def _plain(given: Any) -> Payload:
    for kind, data in PLAIN:
        if isinstance(given, kind):
            return data(given)
    several = (Explanation, Explanations, Comparison, RecursiveAnswer, Latent, Ledger, CircuitScores)
    shown = (*several, *(kind for kind, _ in PLAIN))
    kinds = [kind.__name__ for kind in shown]
    raise InputError(f"{FUNCTION}: a {type(given).__name__} is no result that the page shows; it shows {', '.join(kinds)}")


def _add_latent(data: Payload, latent: Latent, explanation: Explanation, example: int, labels: UnitLabels | None) -> None:
    data["latent"], notes = latent_data(latent, explanation, example, labels)
    data["notes"] = [*data["notes"], *notes]


def static_sheet(results: Sequence[PageResult]) -> str:
    """What a reader without scripts sees, as HTML: the sheets of the explanations, and the others as text."""
    sheets = [one.sheet for one in results if one.sheet is not None]
    texts = "".join(_preformatted(one.data) for one in results if one.explanation is None)
    count = sum(one.places for one in results)
    if count > MOST_PLACES:
        return f"<p>This page has the relevance of {count} places. It needs scripts (JavaScript) to draw them.</p>{texts}"
    if not sheets:
        return texts
    from lxt_fx.views.page import fragment

    return fragment([draw() for draw in sheets]) + texts


def _preformatted(data: Payload) -> str:
    return f"<h2>{html.escape(data['title'])}</h2><pre>{html.escape(data['text'])}</pre>"
