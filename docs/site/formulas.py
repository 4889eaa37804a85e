"""The page "Papers and formulas": every table with its paper, and every rule beside the equation that it is, read from the
rules themselves."""

from __future__ import annotations

import re

import lxt_fx

HEAD = """# Papers and formulas

R is relevance, g the gradient that the rewritten graph passes; relevance is value * g. This page is read from the rules
themselves. [Rules, and the choices behind them](rules.md) says why each is as it is, and [Every rule, five
ways](rule_forms.md) measures it against a slow loop of its equation, zennit and LXT.

## Tables

| table | what it does | paper |
|---|---|---|
"""


def page() -> str:
    """Markdown: a table of the rule tables, then for each source the rules that it has."""
    tables = "\n".join(f"| `{name}` | {one.summary} | {one.paper} |" for name, one in lxt_fx.TABLES.items())
    return HEAD + tables + "\n" + "".join(section(source, rules) for source, rules in by_source().items())


def by_source() -> dict[str, dict[tuple[str, str, str], list[str]]]:
    """Paper -> (rule, equation, formula) -> the tables that have it, in the order of the tables."""
    found: dict[str, dict[tuple[str, str, str], list[str]]] = {}
    for name, table in lxt_fx.TABLES.items():
        for rule in table.rules:
            paper, where = parted(rule.source)
            tables = found.setdefault(paper, {}).setdefault((rule.name, where, rule.formula), [])
            if name not in tables:
                tables.append(name)
    return dict(sorted(found.items(), key=lambda item: not item[0].startswith("AttnLRP")))


def parted(source: str) -> tuple[str, str]:
    """`AttnLRP (Achtibat et al. 2024) prop. 3.4` as the paper and the place in it."""
    match = re.search(r"^(.*?\d{4})\)?,? ((?:sec|eq|prop)\.[^,)]*)\)?(.*)$", source)
    if match is None:
        return source, ""
    return match[1] + (")" if "(" in match[1] else ""), match[2] + match[3]


def section(paper: str, rules: dict[tuple[str, str, str], list[str]]) -> str:
    """The rules of one paper."""
    lines = [f"\n## {paper[0].upper()}{paper[1:]}\n", "| equation | rule | formula | tables |", "|---|---|---|---|"]
    for (name, where, formula), tables in sorted(rules.items(), key=lambda rule: rule[0][1]):
        shown = ", ".join(f"`{table}`" for table in tables) if len(tables) < len(lxt_fx.TABLES) else "all"
        lines.append(f"| {where} | {name} | {formula.replace('|', chr(92) + '|')} | {shown} |")
    return "\n".join(lines) + "\n"
