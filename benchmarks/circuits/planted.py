"""Does relevance put the known heads and edges of planted models on top?

    python benchmarks/circuits/planted.py     (two minutes on one core; needs no fetched model)

**Models.** Two Llamas of two layers with four heads each are trained here: on repeated random texts (`... A B ... A`,
then B; some texts ask for their first token instead, which is other heads' work), and, with the latter, on texts with
two marked tokens, of which the question at the end asks for one, and the other distracts.

**Known heads** are found without relevance: the attention of a head goes where the job needs it (previous token, or the
token to copy), and the accuracy falls when the head writes its mean. **Known edges** are those without which, corrupted
each alone, the number loses 10 % or more of what it loses in the corrupted run.

**Asked.** Of as many heads, and as many edges, as are known, how many of those with the largest scores are known, pair
by pair, with 95 % intervals over pairs; and in the order of the mean scores. Pairs: of the repeated text the earlier A
is replaced, so B follows nothing that was seen; of the marked text the marked token, or its marker. By `attnlrp`, EAP,
EAP-IG, `relp`, `gim`, and chance.

**Queries and keys.** Of the head that looks there: is the pair of the embedding at the query and the known head of the
first layer at the key the one with the largest relevance of all pairs of writers (`qk_attribution`)?

**Tokens.** In the marked text: how often is the marked token the most relevant one for its own logit, how often is it
above the one that distracts, and how much relevance has each?
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import networkx as nx
import torch
import typer
from rich.console import Console
from torch import Tensor

import lxt_fx
from lxt_fx.referee.statistics import interval

sys.path.insert(0, str(Path(__file__).resolve().parent))
from planted_pairs import Planted, copying, induction  # noqa: E402

METHODS: dict[str, tuple[str, Any]] = {
    "attnlrp": ("attnlrp", "clean"),
    "EAP": ("gradient", "clean"),
    "EAP-IG": ("gradient", 5),
    "relp": ("relp", "clean"),
    "gim": ("gim", "clean"),
    "attnlrp, 5 steps": ("attnlrp", 5),
    "attnlrp, corrupted": ("attnlrp", "corrupted"),
    "EAP, corrupted": ("gradient", "corrupted"),
}
"""Table and place of the gradient, by name."""

TOKENS = ("first of all", "first of the text", "above the other", "its share", "share of the other")

QK_TABLES = ("attnlrp", "gradient")
"""Those under which the scores of a head have relevance."""

LEAST = 0.1
"""An edge is known if the number loses so much without it, of what it loses in the corrupted run."""


def edge_effects(explained: Any, planted: Planted, scores: lxt_fx.CircuitScores) -> Tensor:
    """How much the mean number loses when one edge alone carries what was written in the corrupted run, as a share of what
    it loses in the corrupted run, [writers, readers]. Measured, not estimated."""
    edges = [(writer, reader) for writer, reader in scores.is_edge.nonzero().tolist()]
    without = dict[float, nx.DiGraph]()
    for place, (writer, reader) in enumerate(edges):
        name = place / len(edges)  # circuits go by shares of edges, and these stand for the places of edges
        without[name] = scores.circuit(1.0)
        without[name].remove_edge(scores.writers[writer], scores.readers[reader])
    curve = lxt_fx.circuit_faithfulness(explained, *planted.given, without)
    found = torch.zeros(scores.is_edge.shape)
    found[scores.is_edge] = 1 - curve.faithfulness
    return found


def on_top(scores: Tensor, known: Tensor) -> Tensor:
    """Of as many units as are known, the share of those with the largest scores [..., units] that are known, [...]."""
    best = scores.abs().topk(int(known.sum()), -1).indices
    return known[best].double().mean(-1)


def said(values: Tensor) -> list[float]:
    """A mean over pairs and its 95 % interval."""
    found = interval(values)
    return [found.mean, found.low, found.high]


def measured(planted: Planted) -> dict[str, Any]:
    """By method, how many of the known heads and edges are on top; and which these are."""
    explained = {rules: lxt_fx.transform(planted.model, rules=rules) for rules in {table for table, _ in METHODS.values()}}
    scores = {name: lxt_fx.circuit_scores(explained[rules], *planted.given, at=at) for name, (rules, at) in METHODS.items()}
    first = scores["attnlrp"]
    heads = [at for at, name in enumerate(first.writers) if ".heads:" in name]
    known_heads = torch.tensor([first.writers[at] in planted.known for at in heads])
    effects = edge_effects(explained["attnlrp"], planted, first)[first.is_edge]
    known_edges = effects >= LEAST
    chance = torch.Generator().manual_seed(0)
    found = {}
    for name, each in scores.items():
        found[name] = compared(each.nodes[:, heads], each.edges[:, each.is_edge], known_heads, known_edges, effects)
    drawn = (torch.randn(len(first.nodes), count, generator=chance) for count in (len(heads), len(effects)))
    found["random"] = compared(*drawn, known_heads, known_edges, effects)
    names = [(first.writers[writer], first.readers[reader]) for writer, reader in first.is_edge.nonzero().tolist()]
    order = effects.argsort(descending=True)[: int(known_edges.sum())].tolist()
    return {
        "accuracy": planted.accuracy,
        "pairs": len(planted.clean),
        "numbers": [float(first.clean.mean()), float(first.corrupted.mean())],
        "heads": planted.heads,
        "edges": [[*names[at], float(effects[at])] for at in order],
        "of": [len(heads), len(names)],
        "methods": found,
        "top edges": {name: each.top(len(order)) for name, each in scores.items()},
        "top heads": {name: ranked(each, heads) for name, each in scores.items()},
    }


def ranked(scores: lxt_fx.CircuitScores, heads: Sequence[int]) -> list[tuple[str, float]]:
    """The heads by their mean score."""
    mean = scores.nodes[:, heads].mean(0)
    return [(scores.writers[heads[at]], float(mean[at])) for at in mean.abs().argsort(descending=True).tolist()]


def compared(nodes: Tensor, edges: Tensor, known_heads: Tensor, known_edges: Tensor, effects: Tensor) -> dict[str, Any]:
    """What a method gets right, of scores [pairs, heads] and [pairs, edges]."""
    mean = edges.mean(0)
    return {
        "heads": said(on_top(nodes, known_heads)),
        "heads by the mean": float(on_top(nodes.mean(0), known_heads)),
        "edges": said(on_top(edges, known_edges)),
        "edges by the mean": float(on_top(mean, known_edges)),
        "correlation": float(torch.corrcoef(torch.stack([mean.double(), effects.double()]))[0, 1]),
    }


def query_key(planted: Planted, rules: str) -> dict[str, Any]:
    """Why a head of the second layer looks where it looks, by `qk_attribution`: how often the pair of the embedding at the
    query and a known head of the first layer at the key has the largest relevance of all pairs of writers, and its place by
    the mean over pairs of texts."""
    explained = lxt_fx.transform(planted.model, rules=rules)
    found = {}
    for head in sorted(name for name in planted.known if name.startswith("attention.1.")):
        hits, mean = list[float](), 0.0
        for ids, target, key in zip(planted.clean, planted.targets, planted.keys.tolist(), strict=True):
            one = lxt_fx.qk_attribution(explained, {"input_ids": ids[None]}, target, head=head, query=-1, key=key)
            ((query_writer, key_writer, _),) = one.top(1)
            hits.append(float(query_writer == "embedding" and key_writer in planted.known))
            mean = mean + one.relevance
        best = int(mean.abs().argmax())
        first = (one.query_writers[best // len(one.key_writers)], one.key_writers[best % len(one.key_writers)])
        found[head] = {"on top": said(torch.tensor(hits, dtype=torch.float64)), "by the mean": first, "of": mean.numel()}
    return found


def tokens(planted: Planted, rules: str) -> dict[str, Any]:
    """Of relevance for the logit of the marked token: whether it is the most relevant of all tokens, and of those before
    the question; whether it is above the one that distracts; and the share of absolute relevance of both."""
    assert planted.marked is not None, "asked for texts without marked tokens"
    explained = lxt_fx.transform(planted.model, rules=rules)
    found: dict[str, list[float]] = {name: [] for name in TOKENS}
    for ids, (answer, _), own, other in zip(planted.clean, planted.targets, *planted.marked, strict=True):
        relevance = lxt_fx.explain(explained, None, {"input_ids": ids[None]}, answer).relevance.double().flatten()
        share = relevance / relevance.abs().sum()
        values = (
            relevance.argmax() == own,
            relevance[:-1].argmax() == own,
            relevance[own] > relevance[other],
            share[own],
            share[other],
        )
        for name, value in zip(TOKENS, values, strict=True):
            found[name].append(float(value))
    return {name: said(torch.tensor(values, dtype=torch.float64)) for name, values in found.items()}


def shown(found: Mapping[str, Any]) -> list[str]:
    """The results as Markdown."""
    lines = []
    for name, each in found.items():
        heads = "; ".join(f"{job}: {', '.join(names)}" for job, names in each["heads"].items())
        clean, corrupted = each["numbers"]
        lines += [
            "",
            f"**{name}**: accuracy {each['accuracy']:.1%}, {each['pairs']} pairs, number {clean:.2f} clean and "
            f"{corrupted:.2f} corrupted. Known heads, of {each['of'][0]}: {heads}. Known edges, of {each['of'][1]}: "
            + ", ".join(f"{writer} -> {reader} ({effect:.0%})" for writer, reader, effect in each["edges"]),
            "",
            "| method | heads on top, by pair | by the mean | edges on top, by pair | by the mean | correlation |",
            "|---|---|---|---|---|---|",
        ]
        for method, own in each["methods"].items():
            lines.append(
                f"| {method} | {percent(own['heads'])} | {own['heads by the mean']:.0%} | {percent(own['edges'])} | "
                f"{own['edges by the mean']:.0%} | {own['correlation']:.2f} |"
            )
        for method, own in each.get("queries and keys", {}).items():
            for head, pair in own.items():
                lines += [
                    "",
                    f"Pairs at {head}, {method}: embedding with a known head on top in {percent(pair['on top'])}; by the "
                    f"mean {' with '.join(pair['by the mean'])}, of {pair['of']}",
                ]
        if "tokens" in each:
            lines += ["", f"| relevance of tokens | {' | '.join(TOKENS)} |", f"|---|{'---|' * len(TOKENS)}"]
            for method, own in each["tokens"].items():
                lines.append(f"| {method} | {' | '.join(percent(own[name]) for name in TOKENS)} |")
    return lines


def percent(found: Sequence[float]) -> str:
    """A share with its interval."""
    return f"{found[0]:.1%} ({found[1]:.1%} to {found[2]:.1%})"


def main(
    out: Annotated[Path, typer.Option(help="The file that results are written to.")] = Path("planted.json"),
    pairs: Annotated[int, typer.Option(help="Pairs of each model.")] = 200,
    steps: Annotated[int, typer.Option(help="Steps of training.")] = 1500,
    seed: Annotated[int, typer.Option(help="Of the weights and of all texts.")] = 0,
) -> None:
    """Train the planted models, and compare what relevance says of them with what is known."""
    torch.set_num_threads(1)
    found, console = dict[str, Any](), Console()
    for make in (induction, copying):
        for planted in make(steps, pairs, seed):
            found[planted.name] = measured(planted)
            if len(planted.heads) > 1:
                found[planted.name]["queries and keys"] = {rules: query_key(planted, rules) for rules in QK_TABLES}
            if planted.marked is not None:
                found[planted.name]["tokens"] = {rules: tokens(planted, rules) for rules in ("attnlrp", "gradient")}
            out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    console.print("\n".join(shown(found)), soft_wrap=True, markup=False)


if __name__ == "__main__":
    typer.run(main)
