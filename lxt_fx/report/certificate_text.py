"""A certificate as text: a summary that fits a paper's appendix, and the full list by module."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from lxt_fx.report.packed_maps import PackedMap
from lxt_fx.report.relevance_path import Held, ListedRule, NotFollowed, NotProven, PathEntry
from lxt_fx.rule_table.rule import Conserves

_CITATION = re.compile(r"^(.*?) \(.*?\d{4}\)")
_LAYER = re.compile(r"(?<=\.)\d+(?=[. ]|$)")
_NAMES = 4


def labelled(label: str, lines: Sequence[str]) -> list[str]:
    """The lines, the first of them after its label."""
    return [f"{label if index == 0 else '':<14}{line}" for index, line in enumerate(lines)]


def merged_text(batch_norms: Sequence[str]) -> list[str]:
    """How many batch norms became part of the layers before them, and where; no line if none did."""
    return [f"{len(batch_norms)} x batch norm into the layer before it{_places(batch_norms)}"] if batch_norms else []


def graph_text(method: str, ops: int, copied: int) -> str:
    """How the graph was captured, and how many of its layers were copied from a traced one."""
    copies = f"; {copied} layers are copies of a traced one, with their own weights" if copied else ""
    return f"captured by {method}, {ops} ops{copies}"


def packed_text(layers: Iterable[PackedMap]) -> list[str]:
    """A line for each scheme: how many layers it packs, where, and how far their kernels are from the unpacked weights."""
    groups: dict[tuple[str, str], list[PackedMap]] = {}
    for layer in layers:
        groups.setdefault((layer.scheme, layer.rounds), []).append(layer)
    return [_packed_line(scheme, rounds, found) for (scheme, rounds), found in groups.items()]


def _packed_line(scheme: str, rounds: str, layers: Sequence[PackedMap]) -> str:
    apart = [layer.difference for layer in layers if not math.isnan(layer.difference)]
    kernel = f"the kernel rounds {rounds}" if rounds else "the kernel rounds nothing but the weights"
    seen = f"within {max(apart):.1e} of the unpacked weights on the example (relative L2)" if apart else "not compared"
    return f"{len(layers)} x {scheme}{_places([layer.module for layer in layers])}; {kernel}: {seen}"


def no_tokens_text(names: Sequence[str]) -> list[str]:
    """Which inputs of whole numbers look up constants; no line if none does."""
    return [f"{', '.join(names)}: by its name no token, so what it looks up is a constant"] if names else []


def written_out_text(sentences: Sequence[str]) -> list[str]:
    """The nodes whose op has no rule and became the ops it is written out in; no line if there are none."""
    more = [f"and {len(sentences) - _NAMES} more"] if len(sentences) > _NAMES else []
    return [*sentences[:_NAMES], *more]


def gradient_text(difference: float) -> str:
    """How near the graph's gradient, before any rule, is to the model's own."""
    if math.isnan(difference):
        return "not compared; see below"
    if difference == 0:
        return "bit-equal to the model's own, before any rule, on the example"
    return f"within {difference:.1e} of the model's own, before any rule, on the example (relative L2)"


def rules_text(counts: Mapping[ListedRule, int]) -> list[str]:
    """A line for each rule: count, name, what it conserves, source, formula. Citations are short; `citations` has them in
    full."""
    cells = [
        (f"{count:>5} x", rule.name, conserves_text(rule.conserves), _CITATION.sub(r"\1", rule.source), rule.formula)
        for rule, count in sorted(counts.items(), key=lambda item: -item[1])
    ]
    lines = [("  count", "rule", "conserves", "source", "formula"), *cells]
    widths = [max(len(line[index]) for line in lines) for index in range(4)]
    padded = [[f"{text:<{width}}" for text, width in zip(line[:4], widths, strict=True)] for line in lines]
    return ["  ".join([*first, line[4]]) for first, line in zip(padded, lines, strict=True)]


def citations(rules: Iterable[ListedRule]) -> list[str]:
    """The papers that the rules cite, each once."""
    return list(dict.fromkeys(found.group() for rule in rules if (found := _CITATION.match(rule.source))))


def conserves_text(conserves: Conserves) -> str:
    """What a rule conserves, in few words: `all but constants`."""
    return "nothing claimed" if conserves is Conserves.NATIVE else conserves.name.lower().replace("_", " ")


def held_text(held: Iterable[Held]) -> list[str]:
    """A line for each cause: how many values it detaches, and where these are read."""
    groups: dict[str, list[Held]] = {}
    for item in held:
        groups.setdefault(item.by, []).append(item)
    return [f"{len(items)} x {by}: {_where(items)}" for by, items in groups.items()] or ["nothing"]


def _where(held: Iterable[Held]) -> str:
    """The operands that read held values on the relevance path: `query, key of lxt_fx.sdpa in model.layers.0-29`."""
    ends = [end for item in held for end in item.ends]
    operands: dict[str, list[str]] = {}
    for end in ends:
        operands.setdefault(end.op, []).append(end.operand)
    ops = _some([f"{', '.join(dict.fromkeys(names))} of {op}" for op, names in operands.items()])
    return ops + _places([end.module for end in ends])


def _places(modules: Iterable[str]) -> str:
    """The modules, with layer numbers joined into ranges."""
    found: dict[str, list[str]] = {}
    for module in dict.fromkeys(modules):
        found.setdefault(_LAYER.sub("#", module, count=1), []).append(module)
    named = [_joined(group) for pattern, group in found.items() if pattern]
    return f" in {_some(named, 2)}" if named else ""


def not_followed_text(items: Iterable[NotFollowed]) -> list[str]:
    """A line for each op."""
    groups: dict[str, list[NotFollowed]] = {}
    for item in items:
        groups.setdefault(item.op, []).append(item)
    return [
        f"{len(found)} x into {op}, which has no gradient,{_places(item.module for item in found)}".rstrip(",")
        for op, found in groups.items()
    ] or ["nothing"]


def not_proven_text(items: Iterable[NotProven]) -> list[str]:
    """A line for each reason, with the first nodes that it concerns."""
    groups: dict[str, list[NotProven]] = {}
    for item in items:
        groups.setdefault(item.why, []).append(item)
    return [_reason(why, found) for why, found in groups.items()] or ["nothing"]


def _reason(why: str, items: Sequence[NotProven]) -> str:
    if not items[0].node:
        return why
    return f"{len(items)} x {why}, at {_some([f'%{item.node}' for item in items], _NAMES - 1)}"


def entries_text(entries: Iterable[PathEntry]) -> list[str]:
    """Every node by module. Modules that differ only in their layer number are listed once (`model.layers.0-29.mlp`), and
    so are the nodes of a module that have the same op, rule and reasons."""
    blocks: dict[str, list[PathEntry]] = {}
    for entry in entries:
        blocks.setdefault(entry.block, []).append(entry)
    equal: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for heading, found in blocks.items():
        equal.setdefault((_LAYER.sub("#", heading, count=1), tuple(_described(found, names=False))), []).append(heading)
    lines = ["", "every node by module (names are those of the first of equal modules)"]
    for headings in equal.values():
        first = blocks[headings[0]]
        number = f"{len(headings)} x " if len(headings) > 1 else ""
        number += "1 node" if len(first) == 1 else f"{len(first)} nodes"
        lines += ["", f"{_joined(headings)}   {number}", *_described(first, names=True)]
    return lines


def _described(entries: Iterable[PathEntry], *, names: bool) -> list[str]:
    """The lines for these nodes. Nodes that differ only in their names share a paragraph."""
    kinds: dict[tuple[object, ...], list[PathEntry]] = {}
    for entry in entries:
        key = (entry.op, entry.original, entry.rule, entry.carrying, entry.held, entry.why, entry.refusals)
        kinds.setdefault(key, []).append(entry)
    return [line for found in kinds.values() for line in _paragraph(found, names=names)]


def _paragraph(entries: Sequence[PathEntry], *, names: bool) -> list[str]:
    first = entries[0]
    was = f" for {first.original}" if first.original not in (first.op, first.op.split("[")[0], "getitem") else ""
    nodes = _some([f"%{entry.node}" for entry in entries]) if names else str(len(entries))
    to = ", ".join(dict.fromkeys(first.carrying)) or "none"
    held = f", holds {', '.join(first.held)}" if first.held else ""
    conserves = first.rule.conserves
    claim = "claims nothing" if conserves is Conserves.NATIVE else f"conserves {conserves_text(conserves)}"
    lines = [
        f"  {first.op}{was}: {nodes}   {_lines(entries)}".rstrip(),
        f"    {first.rule.name}, to {to}{held}, {claim}. {first.why}",
    ]
    return lines + [f"    not {rule}: {reason}" for rule, reason in first.refusals]


def _lines(entries: Iterable[PathEntry]) -> str:
    """`modeling_llama.py:243, 244`."""
    numbers: dict[str, list[str]] = {}
    for line in dict.fromkeys(entry.line for entry in entries if entry.line):
        file, _, number = line.partition(":")
        numbers.setdefault(file, []).append(number)
    return ", ".join(f"{file}:{_some(found)}" for file, found in numbers.items())


def _joined(headings: Sequence[str]) -> str:
    """`model.layers.0-29.mlp (LlamaMLP)` for those of 30 layers."""
    if len(headings) == 1:
        return headings[0]
    numbers = [int(found.group()) for heading in headings if (found := _LAYER.search(heading))]
    return _LAYER.sub(_ranges(numbers), headings[0], count=1)


def _ranges(numbers: Sequence[int]) -> str:
    """0-4,6 for 0, 1, 2, 3, 4, 6."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _some(names: Sequence[str], limit: int = _NAMES) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
