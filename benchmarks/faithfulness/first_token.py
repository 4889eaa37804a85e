"""Why does the first token get so much relevance, and by which path?

    python benchmarks/faithfulness/first_token.py --out out/first_token.json     (--quick: fewer texts)

Relevance comes to the first token of a decoder only through the attention of later tokens: by its value, or by its key
(through the softmax). A ledger says how much, layer by layer; what the first token's attention gave to itself is taken out.
Once there, relevance stays: the first token reads no other. All amounts are in units of the logit. Measured on facts that
the model answers right, and on the first tokens of Wikipedia paragraphs. What helps: `remedies.py`.

Needs the fetched smollm2, gemma3, minilm and texts: python3 dev.py models smollm2 gemma3 minilm texts.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from known_facts import Fact, known_facts, mean_error, means_table, over_texts
from rich import box
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

import lxt_fx
from lxt_fx.referee.subjects import subject
from lxt_fx.referee.tasks.text_task import NextToken
from lxt_fx.rule_table import basic_rules as basic

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))
import models  # noqa: E402
from explain_minilm import OTHERS, SENTENCE  # noqa: E402
from similarity import encode, similarity_to  # noqa: E402

TABLES = ("attnlrp", "cp_lrp", "gradient")
LAYERS_SHOWN = 6
SINK_TEXTS = (SENTENCE, *OTHERS, "The bees flew back to the hive with their honey.", "Rain fell on the harbour all night.")


@dataclass(frozen=True, slots=True)
class Arrivals:
    """One text: the explained number, the first token's share of all absolute relevance at the input and its relevance
    there, and what other tokens gave to its value and key, by layer, the first layer first."""

    value: float
    share: float
    at_input: float
    by_value: tuple[float, ...]
    by_key: tuple[float, ...]

    def summary(self) -> dict[str, float]:
        """What is averaged over texts."""
        absolute = [sum(map(abs, found)) for found in (self.by_value, self.by_key)]
        total = sum(absolute)
        return {
            "explained": self.value,
            "share, %": 100 * self.share,
            "at the input": self.at_input,
            "by value": sum(self.by_value),
            "by key": sum(self.by_key),
            "keys, %": 100 * absolute[1] / total if total else 0.0,
            "last layer: value": self.by_value[-1],
            "key": self.by_key[-1],
        }

    def largest(self) -> tuple[str, int]:
        """The path and the layer of the largest arrival."""
        found = [(abs(amount), "value", layer) for layer, amount in enumerate(self.by_value)]
        found += [(abs(amount), "key", layer) for layer, amount in enumerate(self.by_key)]
        _, path, layer = max(found)
        return path, layer


@dataclass(frozen=True, slots=True, eq=False)
class Text:
    """A text as ids [1, tokens], and what is explained of it, by name."""

    ids: Tensor
    targets: Mapping[str, NextToken]


def arrivals(explained: lxt_fx.Explained, ids: Tensor, target: NextToken) -> Arrivals:
    """By which paths relevance came to the first token of a decoder's text."""
    ledger = lxt_fx.audit(explained, {"input_ids": ids}, target)
    ledger.check()
    found = ledger.landing(0)
    own = given_to_itself(explained, ledger, ids, target)
    layers = found.arrivals[::-1]
    by_value = tuple(layer.by_value - own[layer.layer] for layer in layers)
    return Arrivals(float(ledger.value), found.share, found.at_input, by_value, tuple(layer.by_key for layer in layers))


def given_to_itself(explained: lxt_fx.Explained, ledger: lxt_fx.Ledger, ids: Tensor, number: NextToken) -> dict[str, float]:
    """What the first token's attention gave to its own value, by layer. It sees itself only, with a weight of 1: that is
    all that reaches its output where the weights are constant or native, and half of it under AttnLRP's attention row."""
    nodes = [node for node, part in ledger.positions if part == "value"]
    with lxt_fx.watch(explained, *(f"%{node}" for node in nodes)) as inside:
        number(explained(inputs_embeds=lxt_fx.embed(explained, ids))).sum().backward()
    own = {}
    for node in nodes:
        place, reached = ledger.places[node], float(inside[f"%{node}"].relevance[:, :, 0].double().sum())
        own[place.layer] = reached / 2 if place.rule == basic.ATTENTION.name else reached
    return own


def last_key(explained: lxt_fx.Explained, text: Text) -> dict[str, float]:
    """Why the first token's key in the last layer gets what it gets from the last token. By attnlrp's row it gets
    x (R - s sum_j R_j) / 4 of each head, where x is its score, s its attention weight, and R_j = s_j <g, v_j>. Given are
    the whole, the part -x s sum_j R_j / 4, the mean of s, where x is positive, and the first token's share of all |R_j|."""
    node = [node for node in explained.graph.nodes if node.target in basic.ATTENTION.ops.values()][-1]
    query, key, value = (f"%{operand.name}" for operand in node.args[:3])
    with lxt_fx.watch(explained, query, key, value, f"%{node.name}") as inside:
        output = explained(inputs_embeds=lxt_fx.embed(explained, text.ids))
        text.targets["logit"](output).sum().backward()
    q, k, v = (inside[name].value[0].detach().double() for name in (query, key, value))
    k, v = (found.repeat_interleave(len(q) // len(found), 0) for found in (k, v))
    gradient = inside[f"%{node.name}"].value.grad
    assert gradient is not None
    scores = (q[:, -1:] @ k.mT)[:, 0] * node.kwargs["scale"]
    weights = scores.softmax(-1)
    relevance = weights * (gradient[0, :, -1:].double() @ v.mT)[:, 0]
    sink = -scores[:, 0] * weights[:, 0] * relevance.sum(-1)
    return {
        "key": float((scores[:, 0] * relevance[:, 0] + sink).sum() / 4),
        "-x s sum R": float(sink.sum() / 4),
        "weight s": float(weights[:, 0].mean()),
        "x > 0, %": 100 * float((scores[:, 0] > 0).double().mean()),
        "its part of |R|, %": 100 * float(relevance[:, 0].abs().sum() / relevance.abs().sum()),
    }


def fact_texts(known: Sequence[Fact]) -> list[Text]:
    """The logit of each answer, and that less the mean of the relation's other answers."""
    return [Text(fact.ids, fact.values) for fact in known]


@torch.no_grad()
def paragraph_texts(model: Any, tokenizer: Any, count: int, tokens: int = 48) -> list[Text]:
    """The first tokens of a paragraph of each of so many articles: the top next token, and that less the runner-up."""
    articles = dict(reversed(models.wiki_paragraphs()))  # the first paragraph of each
    rows = [ids for text in reversed(articles.values()) if len(ids := tokenizer(text).input_ids[:tokens]) == tokens]
    found = []
    for row in range(count):
        ids = torch.tensor([rows[row * len(rows) // count]])
        best, second = model(input_ids=ids, logits_to_keep=1, use_cache=False).logits[0, -1].topk(2).indices.tolist()
        found.append(Text(ids, {"logit": NextToken((best,)), "logit less runner-up": NextToken((best,), (second,))}))
    return found


Paths = dict[str, dict[str, list[Arrivals]]]
"""By table, by what is explained: one for each text."""


def measure_paths(modules: dict[str, lxt_fx.Explained], texts: Sequence[Text], track: Any) -> Paths:
    paths: Paths = {}
    for text in track(texts):
        # What a contrast does under the other tables, remedies.py says.
        cases = [(table, "logit") for table in TABLES] + [("attnlrp", name) for name in text.targets if name != "logit"]
        for table, name in cases:
            found = arrivals(modules[table], text.ids, text.targets[name])
            paths.setdefault(table, {}).setdefault(name, []).append(found)
    return paths


def measure_cls(track: Any) -> dict[str, list[dict[str, float]]]:
    """MiniLM: what [CLS] got, by table, for each ordered pair of texts. Here each token reads all, itself too."""
    model, tokenizer = models.load("minilm")
    found: dict[str, list[dict[str, float]]] = {}
    pairs = [(a, b) for a in SINK_TEXTS for b in SINK_TEXTS if a != b]
    for table in TABLES:
        explained = lxt_fx.transform(model, rules=table)
        for text, other in track(pairs):
            target = similarity_to(encode(model, tokenizer, other))
            ledger = lxt_fx.audit(explained, tokenizer(text, return_tensors="pt"), target, tokenizer=tokenizer)
            ledger.check()
            landing = ledger.landing(0)
            sums = {part: sum(getattr(a, f"by_{part}") for a in landing.arrivals) for part in ("value", "key", "query")}
            found.setdefault(table, []).append(
                {"explained": float(ledger.value), "share, %": 100 * landing.share, "at the input": landing.at_input}
                | {"even share, %": 100 / ledger.sources[0].relevance.shape[1]}
                | {f"by {part}": amount for part, amount in sums.items()}
            )
    return found


# Report


def paths_summary(paths: Paths) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for table, by_target in paths.items():
        for name, found in by_target.items():
            layers = range(len(found[0].by_value))
            largest = [one.largest() for one in found]
            summary[f"{table}, {name}"] = {
                "texts": len(found),
                "mean": over_texts(one.summary() for one in found),
                "largest is a key": sum(path == "key" for path, _ in largest),
                "largest is a key of the last layer": largest.count(("key", layers[-1])),
                "by value": [mean_error([one.by_value[layer] for one in found]) for layer in layers],
                "by key": [mean_error([one.by_key[layer] for one in found]) for layer in layers],
                "each": [asdict(one) for one in found],
            }
    return summary


def layers_table(title: str, summary: dict[str, Any]) -> Table:
    """The layers that gave most to the first token, by the mean over texts."""
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for heading in ("layer", "by value", "by key"):
        table.add_column(heading, justify="right")
    layers = range(len(summary["by value"]))
    order = sorted(layers, key=lambda i: -max(abs(summary["by value"][i][0]), abs(summary["by key"][i][0])))
    for layer in order[:LAYERS_SHOWN]:
        table.add_row(str(layer), *("{:.2f} ± {:.2f}".format(*summary[path][layer]) for path in ("by value", "by key")))
    return table


def report_paths(console: Console, title: str, paths: Paths) -> dict[str, Any]:
    summary = paths_summary(paths)
    console.print(means_table(title, {case: found["mean"] for case, found in summary.items()}))
    first = next(iter(summary.values()))
    console.print(
        f"attnlrp, logit: the largest arrival came by a key in {first['largest is a key']} of {first['texts']} texts, by a "
        f"key of the last layer in {first['largest is a key of the last layer']}",
        layers_table("attnlrp, logit: largest layers", first),
    )
    return summary


def main(
    out: Annotated[Path | None, typer.Option(help="The file for all numbers, as JSON.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer texts.")] = False,
) -> None:
    """Measure how relevance comes to the first token."""
    facts, few, others = (12, 4, 3) if quick else (60, 20, 20)
    console, start, result = Console(width=160), time.perf_counter(), dict[str, Any]()
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn(), console=console) as progress:

        def tracking(description: str) -> Any:
            return lambda items: progress.track(items, description=description)

        asked = subject(models.fetch("smollm2"), name="smollm2")
        modules = {table: lxt_fx.transform(asked.model, rules=table) for table in TABLES}
        texts = fact_texts(known_facts(asked, facts))
        found = measure_paths(modules, texts, tracking("smollm2, facts"))
        result["smollm2 facts"] = report_paths(console, "SmolLM2, facts: the first token", found)
        keys = over_texts(last_key(modules["attnlrp"], text) for text in texts)
        console.print(means_table("SmolLM2, facts: the first token's key in the last layer", {"attnlrp": keys}))
        result["smollm2 last key"] = keys
        texts = paragraph_texts(asked.model, asked.processor, few)
        found = measure_paths(modules, texts, tracking("smollm2, paragraphs"))
        result["smollm2 paragraphs"] = report_paths(console, "SmolLM2, paragraphs: the first token", found)

        asked = subject(models.fetch("gemma3"), name="gemma3")
        modules = {table: lxt_fx.transform(asked.model, rules=table) for table in TABLES}
        texts = fact_texts(known_facts(asked, others))
        found = measure_paths(modules, texts, tracking("gemma3, facts"))
        result["gemma3 facts"] = report_paths(console, "Gemma 3, facts: <bos>", found)

        cls = measure_cls(tracking("minilm"))
        result["minilm"] = {table: over_texts(found) for table, found in cls.items()}
        console.print(means_table("MiniLM: [CLS], similarity of two sentences", result["minilm"], digits=4))
    console.print(f"{time.perf_counter() - start:.0f} s, {torch.get_num_threads()} threads")
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        console.print(f"wrote {out}")


if __name__ == "__main__":
    typer.run(main)
