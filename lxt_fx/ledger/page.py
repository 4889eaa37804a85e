"""The printed page of a ledger: what was explained, where it went, layer by layer, and the largest single leaks."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

from lxt_fx.ledger.books import Books
from lxt_fx.ledger.causes import Cause
from lxt_fx.views.view import safe

TOKENS, LEAKS, NAMES = 10, 8, 6
"""How many tokens, single leaks and constants are listed."""

ROTATION = (
    "Positions enter by rotation (RoPE): queries and keys are multiplied by constant tables. A product with a constant "
    "absorbs nothing, so the position has no share to report; it acts through which keys a query attends to."
)


def ledger_view(ledger: Books) -> RenderableType:
    """One example in full; of several examples only the sums, side by side."""
    heading = Text(f"Ledger of {ledger.model_class}, rules {ledger.table_name}, {ledger.dtype}", style="bold")
    alone = ledger.examples == 1
    said = [f"{'' if alone else f'example {number}: '}{text}" for number, text in enumerate(ledger.explained)]
    head: list[RenderableType] = [heading, *dict.fromkeys(said), ""]
    if ledger.examples > 1:
        return Group(*head, _balance(ledger), "ledger.example(0) prints one example in full")
    notes = [*_meanings(ledger), _verdict(ledger)] + ([ROTATION] if ledger.rotates else [])
    return Group(*head, _balance(ledger), *_tokens(ledger), *_layers(ledger), *_leaks(ledger), "", *notes)


def _balance(ledger: Books) -> Table:
    """Sources + constants + leaks + residual = explained value."""
    several = [f"example {number}" for number in range(ledger.examples)]
    table = _table("", *(["amount", "share"] if ledger.examples == 1 else several))
    for source in ledger.sources:
        _line(table, ledger, source.name, source.amount)
    causes = ledger.by_cause()
    shown = shown_causes(ledger)
    for cause in shown:
        _line(table, ledger, cause.value, causes[cause])
        _names(table, ledger, cause)
    faults = sum((fault.amount for fault in ledger.faults()), 0 * ledger.value)
    if bool(faults.any()):
        _line(table, ledger, Cause.UNACCOUNTED.value, faults)
    rest = sum((amount for cause, amount in causes.items() if cause not in shown), 0 * ledger.value)
    _line(table, ledger, "rounding of the nodes", rest - faults)
    _line(table, ledger, "residual", ledger.residual)
    table.add_section()
    _line(table, ledger, "explained value", ledger.value)
    return table


def _names(table: Table, ledger: Books, cause: Cause) -> None:
    """The constants of one cause by name, largest first, where a name says more than the cause."""
    named: dict[str, Tensor] = {}
    for entry in ledger.entries:
        if entry.cause is cause and entry.name:
            named[entry.name] = named.get(entry.name, 0 * ledger.value) + entry.amount
    if cause in (Cause.OFFSET, Cause.EPSILON) or not named:
        return
    ordered = sorted(named, key=lambda name: -float(named[name].abs().sum()))
    shown = ordered if len(ordered) <= NAMES else ordered[: NAMES - 1]
    for name in shown:
        _line(table, ledger, f"  {name}", named[name], style="dim")
    if len(shown) < len(ordered):
        rest = sum((named[name] for name in ordered[len(shown) :]), 0 * ledger.value)
        _line(table, ledger, f"  {len(ordered) - len(shown)} more", rest, style="dim")


def _line(table: Table, ledger: Books, name: str, amount: Tensor, style: str = "") -> None:
    numbers = [_number(float(a), float(v)) for a, v in zip(amount, ledger.value, strict=True)]
    if ledger.examples == 1:
        value = float(ledger.value)
        numbers.append(f"{float(amount) / value:.1%}" if value and abs(float(amount) / value) >= 5e-5 else "")
    table.add_row(name, *numbers, style=style)


def _tokens(ledger: Books) -> list[RenderableType]:
    """The tokens of largest absolute relevance."""
    found: list[RenderableType] = []
    for source in ledger.sources:
        if not source.is_tokens:
            continue
        relevance = source.by_token()[0]
        names = source.tokens[0] if source.tokens else [str(position) for position in range(len(relevance))]
        table = _table(f"tokens of {source.name}, largest first", "position", "amount", "share")
        for position in relevance.abs().argsort(descending=True, stable=True)[:TOKENS].tolist():
            amount = float(relevance[position])
            share = f"{amount / float(ledger.value):.1%}" if ledger.value else ""
            name = Text(safe(names[position]).strip(" ") or "␣")
            table.add_row(name, str(position), _number(amount, float(ledger.value)), share)
        found += ["", table]
    return found


def _layers(ledger: Books) -> list[RenderableType]:
    """From the output down: what reaches each layer, what it absorbs by cause, what goes on below it."""
    causes = shown_causes(ledger)
    table = _table("from the output down", "reaches it", *(cause.value for cause in causes), "goes on")
    left, value = float(ledger.value), float(ledger.value)
    for layer in dict.fromkeys(entry.place.layer for entry in ledger.entries):
        own = [entry for entry in ledger.entries if entry.place.layer == layer]
        absorbed = [sum(float(entry.amount) for entry in own if entry.cause is cause) for cause in causes]
        after = left - sum(float(entry.amount) for entry in own)
        if any(absorbed):
            numbers = [_number(amount, value) if amount else "" for amount in absorbed]
            table.add_row(layer or "(model)", _number(left, value), *numbers, _number(after, value))
        left = after
    return ["", table] if table.row_count else []


def _leaks(ledger: Books) -> list[RenderableType]:
    table = _table("largest leaks", "amount", "cause", "rule", "module", "line", left=("cause", "rule", "module", "line"))
    faults = ledger.faults()
    ordered = [entry for entry in ledger.largest(len(ledger.entries)) if not ledger.is_rounding(entry.amount)]
    for entry in [entry for entry in ordered if entry.cause is not Cause.UNACCOUNTED or entry in faults][:LEAKS]:
        place = entry.place
        amount = _number(float(entry.amount), float(ledger.value))
        table.add_row(f"%{place.node}", amount, entry.cause.value, place.rule, place.module, place.line)
    return ["", table] if table.row_count else []


def _meanings(ledger: Books) -> list[str]:
    """What the leaves and the causes on this page mean."""
    leaves = [f"{x.name}: what {', '.join(x.looked_up_by)} is looked up as." for x in ledger.sources if x.looked_up_by]
    return leaves + [f"{cause.value}: {cause.meaning}." for cause in shown_causes(ledger)]


def shown_causes(ledger: Books) -> list[Cause]:
    """The causes with more than rounding at some node."""
    found = {e.cause for e in ledger.entries if e.cause is not Cause.UNACCOUNTED and not ledger.is_rounding(e.amount)}
    return [cause for cause in Cause if cause in found]


def _verdict(ledger: Books) -> str:
    faults = ledger.faults()
    relative = float((ledger.residual / ledger.scale()).abs().max())
    if not faults:
        return f"The ledger closes: residual {relative:.1g} of the largest relevance, each leak accounted for by its rule."
    places = ", ".join(f"%{fault.place.node} ({fault.place.rule})" for fault in faults[:3])
    return f"NOT ACCOUNTED FOR: {len(faults)} nodes absorb what their rule claims to conserve, first {places}."


def _table(title: str, *columns: str, left: Sequence[str] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(title, overflow="fold")
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", overflow="fold")
    return table


def _number(amount: float, value: float) -> str:
    """Four digits after the point; smaller amounts in scientific notation."""
    if abs(amount) <= 1e-14 * abs(value):
        return "0"
    return f"{amount:.4f}" if abs(amount) >= 5e-4 * min(1.0, abs(value) or 1.0) else f"{amount:.1e}"
