"""Is the relevance faithful? Two tests, for the tables attnlrp and cp_lrp, plain gradients and chance.

    python benchmarks/faithfulness/faithfulness.py     (9 minutes on one core; --quick: one minute)

**Removal.** Wikipedia paragraphs are cut to their first tokens, and the largest logit of the next token is explained. Then
tokens are removed, the most relevant first (MoRF) or the least relevant first (LeRF), in equal steps until none is left:
the embedding of a removed token becomes zero, its position stays (the scheme of the AttnLRP paper, as its author
states it in rachtibat/LRP-eXplains-Transformers#40). A faithful method loses the logit fast under MoRF and late under
LeRF: the area between the two curves of the logit is its score, in units of the logit.

**Capitals.** In "The capital of France is" the answer must rest on the country. How often is a token of the country the
top source of the logit of the capital's first token? The last token tells the model that a name comes next, and the
first is an attention sink, so the table also leaves them out; and it also explains the logit less its mean over all the
capitals, which asks "why this capital" and not "why a capital". Chance is `random`.

Needs the fetched smollm2 and texts: python3 dev.py models smollm2 texts. With --model gemma3, read also --spare 1: its
first token is <bos>, an attention sink without which it says nothing, so its rank alone decides much of the area.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

import lxt_fx

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))
import models  # noqa: E402

TABLES = ("attnlrp", "cp_lrp")
METHODS = (*TABLES, "gradient", "|gradient|", "random")
PROMPT = "The capital of {country} is"
BATCH = 8
"""How many texts go through the model at once in an explanation."""

Modules = dict[str, nn.Module]
Relevances = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured: paragraphs, tokens of each, first tokens that are never removed, removal steps, countries."""

    paragraphs: int
    tokens: int
    steps: int
    countries: int
    spared: int = 0


FULL = Size(paragraphs=40, tokens=48, steps=8, countries=116)
QUICK = Size(paragraphs=8, tokens=32, steps=4, countries=23)


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """What is explained of each row of last logits [batch, vocabulary]: one entry, less the mean of `others` if given."""

    token: Tensor
    others: Tensor | None = None

    def of(self, logits: Tensor) -> Tensor:
        entry = logits.gather(1, self.token[:, None])[:, 0]
        return entry if self.others is None else entry - logits[:, self.others].mean(dim=-1)


def relevances(modules: Modules, ids: Tensor, entries: dict[str, Entry]) -> dict[str, Relevances]:
    """By entry and method, the relevance [batch, tokens] of the texts `ids`."""
    found: dict[str, Relevances] = {name: {} for name in entries}
    for method, module in modules.items():
        embedded = lxt_fx.embed(module, ids)
        logits = module(inputs_embeds=embedded, use_cache=False).logits[:, -1]
        for name, entry in entries.items():
            (gradient,) = torch.autograd.grad(entry.of(logits).sum(), embedded, retain_graph=True)
            found[name][method] = (embedded * gradient).sum(dim=-1).detach()
    for by_method in found.values():
        by_method["|gradient|"] = by_method["gradient"].abs()
        by_method["random"] = torch.rand(ids.shape)
    return found


# Removal


def cut_paragraphs(tokenizer: Any, size: Size) -> Tensor:
    """Ids [paragraphs, tokens]: one paragraph an article, evenly spaced over the articles."""
    articles = dict(reversed(models.wiki_paragraphs()))  # the first paragraph of each
    rows = [tokenizer(text).input_ids[: size.tokens] for text in reversed(articles.values())]
    rows = [ids for ids in rows if len(ids) == size.tokens]
    return torch.tensor([rows[i * len(rows) // size.paragraphs] for i in range(size.paragraphs)])


def removal_curves(
    model: Any, ids: Tensor, target: int, relevance: Relevances, size: Size
) -> dict[str, lxt_fx.PerturbationCurves]:
    """By method, the logit of `target` under MoRF and LeRF for one text `ids` [tokens]."""
    inputs = {"inputs_embeds": lxt_fx.embed(model, ids[None]), "logits_to_keep": 1}
    removal = lxt_fx.Removal(spared=torch.arange(size.tokens) < size.spared, steps=size.steps)
    return {
        method: lxt_fx.perturbation_curves(
            model, inputs, found[None], lambda out: out.logits[:, -1, target], removal=removal
        )
        for method, found in relevance.items()
    }


def explain_paragraphs(model: Any, modules: Modules, paragraphs: Tensor, progress: Progress) -> tuple[Tensor, Relevances]:
    """The most likely next token of each paragraph [paragraphs], and the relevance for its logit [paragraphs, tokens]."""
    targets, found = [], defaultdict(list)
    for ids in progress.track(paragraphs.split(BATCH), description="explaining"):
        with torch.no_grad():
            best = model(input_ids=ids, logits_to_keep=1, use_cache=False).logits[:, -1].argmax(dim=-1)
        for method, relevance in relevances(modules, ids, {"logit": Entry(best)})["logit"].items():
            found[method].append(relevance)
        targets.append(best)
    return torch.cat(targets), {method: torch.cat(parts) for method, parts in found.items()}


def measure_removal(
    model: Any, tokenizer: Any, modules: Modules, size: Size, progress: Progress
) -> dict[str, list[lxt_fx.PerturbationCurves]]:
    """By method, one pair of curves a paragraph."""
    paragraphs = cut_paragraphs(tokenizer, size)
    targets, relevance = explain_paragraphs(model, modules, paragraphs, progress)
    curves: dict[str, list[lxt_fx.PerturbationCurves]] = defaultdict(list)
    for row, ids in enumerate(progress.track(paragraphs, description="removing tokens")):
        of_this = {method: found[row] for method, found in relevance.items()}
        for method, curve in removal_curves(model, ids, int(targets[row]), of_this, size).items():
            curves[method].append(curve)
    return curves


# Capitals


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, the positions of its country's tokens, and the first token of its capital."""

    ids: list[int]
    country: frozenset[int]
    capital: int


def prompts(tokenizer: Any, countries: int) -> list[Prompt]:
    """The prompts of the best known countries."""
    start = PROMPT.index("{")
    found = []
    for country, capital in models.country_capitals()[:countries]:
        read = tokenizer(PROMPT.format(country=country), return_offsets_mapping=True)
        inside = [i for i, (a, b) in enumerate(read.offset_mapping) if b > start and a < start + len(country)]
        first = tokenizer(f" {capital}", add_special_tokens=False).input_ids[0]
        found.append(Prompt(read.input_ids, frozenset(inside), first))
    return found


def same_length(all_prompts: Sequence[Prompt], most: int = 2 * BATCH) -> Iterator[list[Prompt]]:
    """Batches of prompts with equally many tokens."""
    by_length: dict[int, list[Prompt]] = defaultdict(list)
    for prompt in all_prompts:
        by_length[len(prompt.ids)].append(prompt)
    for batch in by_length.values():
        yield from (batch[i : i + most] for i in range(0, len(batch), most))


COUNTED = {"any token": slice(None), "not the first": slice(1, None), "neither first nor last": slice(1, -1)}


def measure_capitals(model: Any, tokenizer: Any, modules: Modules, size: Size, progress: Progress) -> dict[str, Any]:
    """By explained value, method and counted tokens, one True or False a prompt: is the top source in the country?"""
    all_prompts = prompts(tokenizer, size.countries)
    capitals = torch.tensor(sorted({prompt.capital for prompt in all_prompts}))
    hits: dict[str, dict[str, dict[str, list[bool]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    right = 0
    for batch in progress.track(list(same_length(all_prompts)), description="capitals"):
        ids = torch.tensor([prompt.ids for prompt in batch])
        answers = torch.tensor([prompt.capital for prompt in batch])
        with torch.no_grad():
            right += int((model(input_ids=ids).logits[:, -1].argmax(-1) == answers).sum())
        entries = {"logit": Entry(answers), "logit less mean": Entry(answers, capitals)}
        for name, by_method in relevances(modules, ids, entries).items():
            for method, relevance in by_method.items():
                for prompt, row in zip(batch, relevance, strict=True):
                    for counted, positions in COUNTED.items():
                        top = range(len(row))[positions][int(row[positions].argmax())]
                        hits[name][method][counted].append(top in prompt.country)
    return {"prompts": len(all_prompts), "answered": right, "hits": hits}


# Report


def mean_error(numbers: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error."""
    return statistics.fmean(numbers), statistics.stdev(numbers) / len(numbers) ** 0.5


def removal_summary(curves: dict[str, list[lxt_fx.PerturbationCurves]]) -> dict[str, Any]:
    areas = {method: [float(curve.area) for curve in curves[method]] for method in METHODS}
    return {
        method: {
            "area": mean_error(areas[method]),
            "attnlrp_leads_by": mean_error([a - b for a, b in zip(areas["attnlrp"], areas[method], strict=True)]),
            "attnlrp_leads_in": sum(a > b for a, b in zip(areas["attnlrp"], areas[method], strict=True)),
            "curves": {
                "morf": torch.cat([curve.morf for curve in curves[method]]).mean(0).tolist(),
                "lerf": torch.cat([curve.lerf for curve in curves[method]]).mean(0).tolist(),
            },
            "areas": areas[method],
        }
        for method in METHODS
    }


def capitals_summary(measured: dict[str, Any]) -> dict[str, Any]:
    shares = {
        value: {m: {c: statistics.fmean(hits) for c, hits in by.items()} for m, by in by_method.items()}
        for value, by_method in measured["hits"].items()
    }
    return {"prompt": PROMPT, "prompts": measured["prompts"], "answered": measured["answered"], "share": shares}


def removal_table(summary: dict[str, Any], size: Size) -> Table:
    table = Table(title=f"area LeRF - MoRF of the logit, {size.paragraphs} paragraphs of {size.tokens} tokens")
    table.add_column("method")
    for heading in ("area ± standard error", "attnlrp leads by ± standard error", "attnlrp leads in"):
        table.add_column(heading, justify="right")
    for method, row in summary.items():
        lead = ("{:.2f} ± {:.2f}".format(*row["attnlrp_leads_by"]), f"{row['attnlrp_leads_in']} of {size.paragraphs}")
        table.add_row(method, "{:.2f} ± {:.2f}".format(*row["area"]), *(lead if method != "attnlrp" else ()))
    return table


def capitals_table(summary: dict[str, Any]) -> Table:
    title = f"{summary['prompt']}: the country is the top source (percent of {summary['prompts']} prompts; the model "
    table = Table(title=f"{title}answers {summary['answered']} of them right)")
    table.add_column("explained")
    table.add_column("method")
    for counted in COUNTED:
        table.add_column(counted, justify="right")
    for value, by_method in summary["share"].items():
        for method in METHODS:
            shown = value if method == METHODS[0] else ""
            table.add_row(shown, method, *(f"{100 * by_method[method][counted]:.0f}" for counted in COUNTED))
        table.add_section()
    return table


def draw(summary: dict[str, Any], size: Size, path: Path) -> None:
    """Each method's two mean curves, and the area between them."""
    figure = Figure(figsize=(2.3 * len(METHODS), 2.6), layout="constrained")
    panels = figure.subplots(1, len(METHODS), sharey=True)
    removed = [100 * step / size.steps for step in range(size.steps + 1)]
    for panel, (method, row) in zip(panels, summary.items(), strict=True):
        most, least = row["curves"]["morf"], row["curves"]["lerf"]
        panel.fill_between(removed, most, least, color="#d9dde3", linewidth=0)
        panel.plot(removed, least, color="#1762b6", label="least relevant first")
        panel.plot(removed, most, color="#b71824", label="most relevant first")
        panel.set_title("{}: {:.1f} ± {:.1f}".format(method, *row["area"]), fontsize=10)
        panel.set_xlabel("tokens removed, %")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("explained logit")
    panels[-1].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=160)


def main(
    out: Annotated[Path, typer.Option(help="The folder for faithfulness.json and faithfulness.png.")] = Path("out"),
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and shorter texts.")] = False,
    name: Annotated[str, typer.Option("--model", help="smollm2 or gemma3.")] = "smollm2",
    spare: Annotated[int, typer.Option(help="How many of the first tokens are never removed.")] = 0,
) -> None:
    """Measure how faithful the relevance of each rule table is."""
    size = replace(QUICK if quick else FULL, spared=spare)
    start = time.perf_counter()
    torch.manual_seed(0)
    console = Console()
    model, tokenizer = models.load(name)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        modules: Modules = {"gradient": model}  # what the model itself computes, with no rule
        for table in progress.track(TABLES, description="transform"):
            modules[table] = lxt_fx.transform(model, rules=table)
        removal = removal_summary(measure_removal(model, tokenizer, modules, size, progress))
        capitals = capitals_summary(measure_capitals(model, tokenizer, modules, size, progress))
    seconds = time.perf_counter() - start
    console.print(
        removal_table(removal, size), capitals_table(capitals), f"{seconds:.0f} s, {torch.get_num_threads()} threads"
    )
    out.mkdir(parents=True, exist_ok=True)
    draw(removal, size, out / "faithfulness.png")
    result = {"model": name, "size": asdict(size), "removal": removal, "capitals": capitals, "seconds": seconds}
    Path(out, "faithfulness.json").write_text(json.dumps(result, indent=1))
    console.print(f"wrote {out / 'faithfulness.json'} and {out / 'faithfulness.png'}")


if __name__ == "__main__":
    typer.run(main)
