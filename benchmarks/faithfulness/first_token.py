"""Why does the first token get so much relevance, by which path, and what do the remedies do and cost?

    python benchmarks/faithfulness/first_token.py --out out/first_token.json     (30 minutes on one core; --quick: 7)

**Paths.** Relevance comes to the first token of a decoder only through the attention of later tokens: by its value, or by
its key (through the softmax). A ledger says how much, layer by layer; what the first token's attention gave to itself is
taken out. Once there, relevance stays: the first token reads no other. All amounts are in units of the logit.

**Remedies.** Tables that hold attention weights constant (everywhere, or in the last layers), explaining a contrast (the
logit less its mean over all capitals, or less the runner-up), leaving the first token out, and a special token in front.
What they cost: in "The capital of France is", how often the country holds the top source, as in `faithfulness.py`; and on
paragraphs, the area between the curves when tokens are removed, also from there, with the difference paired by text.

Needs the fetched smollm2, gemma3, minilm and texts: python3 dev.py models smollm2 gemma3 minilm texts.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import faithfulness
import torch
import typer
from faithfulness import Entry, Prompt, Size, mean_error
from rich import box
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

import lxt_fx
from lxt_fx.rule_table import basic_rules as basic

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))
import models  # noqa: E402
from explain_minilm import OTHERS, SENTENCE  # noqa: E402
from similarity import encode, similarity_to  # noqa: E402

Target = Callable[[Tensor], Tensor]
"""From last logits [1, vocabulary] to the explained numbers [1]."""

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
    targets: dict[str, Target]


def arrivals(explained: lxt_fx.Explained, ids: Tensor, target: Target) -> Arrivals:
    """By which paths relevance came to the first token of a decoder's text."""

    def number(output: Any) -> Tensor:
        return target(output.logits[:, -1])

    ledger = lxt_fx.audit(explained, {"input_ids": ids}, number)
    ledger.check()
    found = ledger.landing(0)
    own = given_to_itself(explained, ledger, ids, number)
    layers = found.arrivals[::-1]
    by_value = tuple(layer.by_value - own[layer.layer] for layer in layers)
    return Arrivals(float(ledger.value), found.share, found.at_input, by_value, tuple(layer.by_key for layer in layers))


def given_to_itself(explained: lxt_fx.Explained, ledger: lxt_fx.Ledger, ids: Tensor, number: Target) -> dict[str, float]:
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
        text.targets["logit"](output.logits[:, -1]).sum().backward()
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


def capital_texts(all_prompts: Sequence[Prompt]) -> list[Text]:
    """The capital's logit, and that less the mean of all capitals'."""
    capitals = torch.tensor(sorted({prompt.capital for prompt in all_prompts}))
    found = []
    for prompt in all_prompts:
        answer = torch.tensor([prompt.capital])
        targets = {"logit": Entry(answer).of, "logit less mean": Entry(answer, capitals).of}
        found.append(Text(torch.tensor([prompt.ids]), targets))
    return found


@torch.no_grad()
def paragraph_texts(model: Any, paragraphs: Tensor) -> list[Text]:
    """The top next token of each, and that less the runner-up."""
    found = []
    for ids in paragraphs.split(1):
        best = model(input_ids=ids, logits_to_keep=1, use_cache=False).logits[:, -1].topk(2).indices
        targets = {"logit": Entry(best[:, 0]).of, "logit less runner-up": Entry(best[:, 0], best[0, 1:]).of}
        found.append(Text(ids, targets))
    return found


Paths = dict[str, dict[str, list[Arrivals]]]
"""By table, by what is explained: one for each text."""


def measure_paths(modules: dict[str, lxt_fx.Explained], texts: Sequence[Text], track: Any) -> Paths:
    paths: Paths = {}
    for text in track(texts):
        # What a contrast does under the other tables, measure_remedies says.
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


# Remedies


def remedy_tables(layers: int) -> dict[str, lxt_fx.RuleTable]:
    """The tables, and attnlrp with the attention weights held constant in the last layers."""

    def held(last: int) -> lxt_fx.RuleTable:
        table = lxt_fx.TABLES["attnlrp"]
        for layer in range(layers - last, layers):
            table = table.override(f"model.layers.{layer}.self_attn", basic.ATTENTION_HELD)
        return table

    return {
        **{name: lxt_fx.TABLES[name] for name in TABLES},
        "attnlrp, held in the last layer": held(1),
        "attnlrp, held in the last third": held(layers // 3),
        "attnlrp, held everywhere": held(layers),
    }


Remedies = dict[str, dict[str, dict[str, list[float]]]]
"""By what is explained, by table: one number a prompt for the first token's share and for each way to count."""


def measure_remedies(modules: dict[str, lxt_fx.Explained], all_prompts: Sequence[Prompt], track: Any) -> Remedies:
    """Does the country hold the top source, and what share of the absolute relevance is on the first token?"""
    capitals = torch.tensor(sorted({prompt.capital for prompt in all_prompts}))
    found: Remedies = {}
    for batch in track(list(faithfulness.same_length(all_prompts))):
        ids = torch.tensor([prompt.ids for prompt in batch])
        answers = torch.tensor([prompt.capital for prompt in batch])
        for table, module in modules.items():
            embedded = lxt_fx.embed(module, ids)
            logits = module(inputs_embeds=embedded, use_cache=False).logits[:, -1]
            for name, entry in {"logit": Entry(answers), "logit less mean": Entry(answers, capitals)}.items():
                (gradient,) = torch.autograd.grad(entry.of(logits).sum(), embedded, retain_graph=True)
                relevance = (embedded * gradient).sum(dim=-1).detach()
                numbers = found.setdefault(name, {}).setdefault(table, {})
                share = 100 * relevance[:, 0].abs() / relevance.abs().sum(1)
                numbers.setdefault("first token, %", []).extend(share.tolist())
                for counted, positions in faithfulness.COUNTED.items():
                    hits = (top_is_in(row, prompt, positions) for prompt, row in zip(batch, relevance, strict=True))
                    numbers.setdefault(counted, []).extend(hits)
    return found


def top_is_in(relevance: Tensor, prompt: Prompt, positions: slice) -> float:
    """100 where a token of the country has the largest relevance of those that count, else 0."""
    top = range(len(relevance))[positions][int(relevance[positions].argmax())]
    return 100.0 * (top in prompt.country)


def in_front(token: int, all_prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts with one more token before their first."""
    return [
        Prompt([token, *prompt.ids], frozenset(position + 1 for position in prompt.country), prompt.capital)
        for prompt in all_prompts
    ]


@torch.no_grad()
def about(model: Any, all_prompts: Sequence[Prompt]) -> str:
    """How many prompts, in how many the capital is the top next token, and the share of one token of many."""
    right = 0
    for batch in faithfulness.same_length(all_prompts):
        logits = model(input_ids=torch.tensor([prompt.ids for prompt in batch])).logits[:, -1]
        right += int((logits.argmax(-1) == torch.tensor([prompt.capital for prompt in batch])).sum())
    even = 100 * sum(1 / len(prompt.ids) for prompt in all_prompts) / len(all_prompts)
    return f"{len(all_prompts)} capitals, {right} answered right; an even share is {even:.1f} %"


def measure_areas(
    model: Any, modules: dict[str, lxt_fx.Explained], texts: Sequence[Text], size: Size, track: Any
) -> dict[str, list[float]]:
    """By table, the area between the removal curves of each text's top logit."""
    areas: dict[str, list[float]] = {}
    for text in track(texts):

        def each_logit(output: Any, text: Text = text) -> Tensor:
            return torch.cat([text.targets["logit"](row[None]) for row in output.logits[:, -1]])

        inputs = {"inputs_embeds": lxt_fx.embed(model, text.ids), "logits_to_keep": 1}
        removal = lxt_fx.Removal(spared=torch.arange(text.ids.shape[1]) < size.spared, steps=size.steps)
        for table, module in modules.items():
            embedded = lxt_fx.embed(module, text.ids)
            value = text.targets["logit"](module(inputs_embeds=embedded, use_cache=False).logits[:, -1])
            (gradient,) = torch.autograd.grad(value.sum(), embedded)
            relevance = (embedded * gradient).sum(-1).detach()
            found = lxt_fx.perturbation_curves(model, inputs, relevance, each_logit, removal=removal)
            areas.setdefault(table, []).append(float(found.area))
    return areas


# Report


def over_texts(each: Iterable[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """Mean and standard error of each number."""
    listed = list(each)
    return {name: mean_error([numbers[name] for numbers in listed]) for name in listed[0]}


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


def means_table(title: str, means: dict[str, dict[str, tuple[float, float]]], digits: int = 2) -> Table:
    """One line for each case, mean ± standard error."""
    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column("")
    for heading in next(iter(means.values())):
        table.add_column(heading, justify="right")
    for case, numbers in means.items():
        table.add_row(case, *(f"{mean:.{digits}f} ± {error:.{digits}f}" for mean, error in numbers.values()))
    return table


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


def report_remedies(console: Console, title: str, remedies: Remedies) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for name, by_table in remedies.items():
        for table, numbers in by_table.items():
            summary[f"{table}, {name}"] = {key: mean_error(found) for key, found in numbers.items()}
    console.print(means_table(title, summary))
    return summary


def report_areas(console: Console, areas: dict[str, list[float]]) -> dict[str, Any]:
    base = areas["attnlrp"]
    summary = {
        table: {"area": mean_error(found), "less attnlrp": mean_error([a - b for a, b in zip(found, base, strict=True)])}
        for table, found in areas.items()
    }
    console.print(means_table(f"SmolLM2: area when tokens are removed, {len(base)} paragraphs", summary))
    return summary | {"each": areas}


def main(
    out: Annotated[Path | None, typer.Option(help="The file for all numbers, as JSON.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer texts.")] = False,
) -> None:
    """Measure how relevance comes to the first token, and what remedies do."""
    few, some, all_of, others = (4, 12, 24, 3) if quick else (20, 60, 116, 20)
    size = Size(paragraphs=few, tokens=48, steps=8, countries=all_of)
    console, start, result = Console(width=160), time.perf_counter(), dict[str, Any]()
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn(), console=console) as progress:

        def tracking(description: str) -> Any:
            return lambda items: progress.track(items, description=description)

        model, tokenizer = models.load("smollm2")
        tables = remedy_tables(model.config.num_hidden_layers)
        modules = {n: lxt_fx.transform(model, rules=t) for n, t in tracking("transform")(list(tables.items()))}
        capitals = faithfulness.prompts(tokenizer, all_of)
        paragraphs = paragraph_texts(model, faithfulness.cut_paragraphs(tokenizer, size))
        found = measure_paths(modules, capital_texts(capitals)[:some], tracking("smollm2, capitals"))
        result["smollm2 capitals"] = report_paths(console, "SmolLM2, capitals: the first token", found)
        keys = over_texts(last_key(modules["attnlrp"], text) for text in capital_texts(capitals)[:some])
        console.print(means_table("SmolLM2, capitals: the first token's key in the last layer", {"attnlrp": keys}))
        result["smollm2 last key"] = keys
        found = measure_paths(modules, paragraphs, tracking("smollm2, paragraphs"))
        result["smollm2 paragraphs"] = report_paths(console, "SmolLM2, paragraphs: the first token", found)
        fronted = {"no token in front": capitals}
        for token in ("<|endoftext|>", "<|im_start|>"):
            fronted[f"{token} in front"] = in_front(tokenizer.convert_tokens_to_ids(token), capitals)
        for name, given in fronted.items():
            remedies = measure_remedies(modules, given, tracking(f"smollm2, {name}"))
            title = f"SmolLM2, {name}: {about(model, given)}"
            result[f"smollm2 remedies, {name}"] = report_remedies(console, title, remedies)
        areas = measure_areas(model, modules, paragraphs, size, tracking("smollm2, removing tokens"))
        result["smollm2 areas"] = report_areas(console, areas)

        model, tokenizer = models.load("gemma3")
        tables = remedy_tables(model.config.num_hidden_layers)
        modules = {n: lxt_fx.transform(model, rules=t) for n, t in tracking("transform")(list(tables.items()))}
        capitals = faithfulness.prompts(tokenizer, max(others, 23))
        texts = capital_texts(capitals)[:others]
        result["gemma3 capitals"] = report_paths(
            console, "Gemma 3, capitals: <bos>", measure_paths(modules, texts, tracking("gemma3, capitals"))
        )
        without = [Prompt(p.ids[1:], frozenset(i - 1 for i in p.country), p.capital) for p in capitals]
        for name, given in (("with <bos>", capitals), ("without <bos>", without)):
            remedies = measure_remedies(modules, given, tracking(f"gemma3, {name}"))
            title = f"Gemma 3, {name}: {about(model, given)}"
            result[f"gemma3 remedies, {name}"] = report_remedies(console, title, remedies)

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
