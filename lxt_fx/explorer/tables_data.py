"""Results that are no explanation, as the page has them: ledgers, certificates, rule tables, removal curves, corpora."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from lxt_fx.explorer.explanation_data import account_data, shortened
from lxt_fx.explorer.latent_data import sample_text
from lxt_fx.explorer.part_data import part_data
from lxt_fx.explorer.plain import Payload, result, table
from lxt_fx.faithfulness.removal_curves import PerturbationCurves, standard_error
from lxt_fx.inside.corpus.result import Corpus
from lxt_fx.inside.corpus.unit_report import UnitReport
from lxt_fx.inside.lens.reading import LensReading
from lxt_fx.ledger.books import Source
from lxt_fx.ledger.causes import Cause
from lxt_fx.ledger.ledger import Ledger
from lxt_fx.report.certificates import Certificate
from lxt_fx.results.account import Account
from lxt_fx.results.gap import account_sentences
from lxt_fx.results.part import Part
from lxt_fx.results.readings import TextReading
from lxt_fx.rule_table.table import RuleTable, label_text, ops_text

LEAKS, UNITS, SAMPLES = 40, 20, 5
"""The most leaks of a ledger, units of a place of a corpus, and samples of a unit that are listed."""


def ledger_data(ledger: Ledger) -> Payload:
    """The ledger of one example: its tokens, the account in numbers and words, the waterfall, the largest leaks."""
    account = _account(ledger)
    parts = [_tokens(source) for source in ledger.sources if source.is_tokens]
    names = {source.name: "the tokens" if source.is_tokens else f"the input {source.name}" for source in ledger.sources}
    total = sum(account.reached.values())
    number = {
        "said": ledger.explained[0], "label": ledger.explained[0], "value": account.value, "sum": total,
        "sentences": list(account_sentences(account, names)),
    }  # fmt: skip
    return result(
        "ledger", shortened(ledger.explained[0]), model_class=ledger.model_class, rules=ledger.table_name, numbers=[number],
        parts=[part_data(part) for part in parts], account=account_data(account, names), text=str(ledger),
        tables=[_balance(ledger, account), _waterfall(ledger), _leaks(ledger)],
    )  # fmt: skip


def _account(ledger: Ledger) -> Account:
    reached = {source.name: float(source.amount) for source in ledger.sources}
    took = {cause.value: float(amount) for cause, amount in ledger.by_cause().items() if bool(amount.any())}
    return Account(float(ledger.value), reached, took, float(ledger.residual))


def _tokens(source: Source) -> Part:
    relevance = source.by_token()[0]
    count = len(relevance)
    tokens = source.tokens[0] if source.tokens else tuple(str(position) for position in range(count))
    return Part(source.name, ("position",), relevance.cpu(), TextReading(tokens, None, (False,) * count, (0,) * count))


def _balance(ledger: Ledger, account: Account) -> Payload:
    """Every amount with what it means; they sum to the value."""
    rows = [(name, amount, "input") for name, amount in account.reached.items()]
    rows += [(name, amount, Cause(name).meaning) for name, amount in account.took.items()]
    rows += [("residual", account.residual, "rounding"), ("explained value", account.value, "the sum of all above")]
    return table("where the value went", ("name", "amount", "meaning"), rows)


def _waterfall(ledger: Ledger) -> Payload:
    from lxt_fx.ledger.waterfall import bars  # which loads matplotlib

    rows = [(bar.name, label, start, end) for bar in bars(ledger) for label, _, start, end in bar.segments]
    return table("from the output down", ("place", "what", "from", "to"), rows)


def _leaks(ledger: Ledger) -> Payload:
    largest = [entry for entry in ledger.largest(LEAKS) if not ledger.is_rounding(entry.amount)]
    rows = [
        (f"%{e.place.node}", float(e.amount), e.cause.value, e.place.rule, e.place.module, e.place.line) for e in largest
    ]
    return table("largest leaks", ("node", "amount", "cause", "rule", "module", "line"), rows)


def certificate_data(found: Certificate) -> Payload:
    """The rules with their counts, what is not proven, and the whole text."""
    rules = [(r.name, n, r.formula, r.source, r.conserves.value) for r, n in found.counts.items()]
    open_points = [(point.node, point.why) for point in found.not_proven]
    tables = [table("rules on the relevance path", ("rule", "ops", "formula", "source", "conserves"), rules)]
    if open_points:
        tables.append(table("not proven", ("node", "why"), open_points))
    return result(
        "certificate", f"certificate of {found.model_class}", model_class=found.model_class, rules=found.table,
        versions=dict(found.versions), text=str(found), tables=tables,
    )  # fmt: skip


def rule_table_data(found: RuleTable) -> Payload:
    """The rules in the order in which they are tried."""
    rows = [(label_text(r), ops_text(r), r.formula, r.source, r.conserves.value) for r in found.rules]
    about = "\n".join(text for text in (found.summary, found.paper) if text)
    columns = ("rule", "ops", "formula", "source", "conserves")
    return result("table", f"rule table {found.name}", rules=found.name, text=about, tables=[table("rules", columns, rows)])


def curves_data(found: PerturbationCurves) -> Payload:
    """Mean and standard error of the explained number after each step, for both orders."""
    steps = found.morf.shape[1] - 1
    rows = []
    for step in range(steps + 1):
        each = (found.morf[:, step], found.lerf[:, step])
        rows.append((100 * step / max(steps, 1), *(x for one in each for x in (float(one.mean()), standard_error(one)))))
    columns = ("% removed", "most relevant first", "± standard error", "least relevant first", "± standard error ")
    title = f"{found.units} removed, {len(found.morf)} examples"
    return result("curves", title, text=str(found), tables=[table("explained number", columns, rows)])


def corpus_data(found: Corpus) -> Payload:
    """The units of each place with the largest mean absolute relevance, and their largest samples."""
    header = found.header
    tables = [table(place, ("unit", "label", "activation", "sample"), list(_units(found, place))) for place in found]
    return result(
        "corpus", f"corpus of {found.samples} samples", model_class=header["model_class"], rules=header["table"],
        text=repr(found), tables=tables,
    )  # fmt: skip


def _units(found: Corpus, place: str) -> Iterator[Sequence[object]]:
    absolute = torch.as_tensor(found.statistics(place)["absolute"])
    for row in absolute.argsort(descending=True, stable=True)[:UNITS].tolist():
        unit = found[place][row]
        report = found.unit(place, unit)
        for top in report.by_activation[:SAMPLES]:
            yield unit, report.label or "", top.value, sample_text(top.tokens, top.position, top.token)


def lens_data(found: LensReading) -> Payload:
    """What each place says at each position, and all of its tokens with their shares."""
    columns = ("place", *(f"{at}: {token}" for at, token in enumerate(found.tokens)))
    best = table("the likeliest next token", columns, found.rows(range(len(found.tokens))))
    frame = found.to_lines()
    every = table("the likeliest tokens", list(frame), list(zip(*frame.values(), strict=True)))
    title = f"lens: {shortened(''.join(found.tokens))}"
    return result("lens", title, rules=found.table_name, text=repr(found), tables=[best, every])


def unit_data(found: UnitReport) -> Payload:
    """One unit of a corpus: its statistics and its largest samples."""
    title = f"{found.place} {found.unit}" + ("" if found.label is None else f": {found.label}")
    named = (("largest activation", found.by_activation), ("largest relevance", found.by_relevance))
    tables = [
        table(name, ("value", "sample"), [(top.value, sample_text(top.tokens, top.position, top.token)) for top in tops])
        for name, tops in named
    ]
    facts = {"model_class": found.model_class, "rules": found.table_name}
    return result("corpus", title, text="\n".join(found.sentences()), tables=tables, **facts)
