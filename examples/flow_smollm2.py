"""Which heads and MLPs carried the answer of SmolLM2? And does it lose the answer without them?

python examples/models.py fetch smollm2 texts
python examples/flow_smollm2.py --out out

Heads are ranked by the relevance that reached their output. To see whether that rank means something, the ten strongest
are taken out of the model in prompts about facts of many relations that it answers right (each head's output becomes its
mean over paragraphs of Wikipedia; the first token, which sees only itself, is spared), and beside them ten drawn from all
heads, and ten drawn from the same layers.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

import lxt_fx
import models
from lxt_fx.referee.case import Case, Subject
from lxt_fx.referee.subjects import subject
from lxt_fx.referee.tasks import TASKS

TEXT = "The capital of France is"
TAKEN, DRAWS, PARAGRAPHS, TOKENS, SHOWN = 10, 10, 16, 32, 10
"""Heads taken out, random draws, the texts of the means and the tokens of each, lines of a table."""

Head = tuple[int, int]
"""Layer and number."""


def main(
    text: Annotated[str, typer.Option(help="The text whose flow is printed and drawn.")] = TEXT,
    prompts: Annotated[int, typer.Option(help="How many prompts heads are taken out of.")] = 16,
    rules: Annotated[str, typer.Option(help="The rule table.")] = "attnlrp",
    graph: Annotated[Path | None, typer.Option(help="A .graphml or .json file for the graph by head.")] = None,
    out: Annotated[Path, typer.Option(help="The folder for the heat map.")] = Path("out"),
) -> dict[str, list[float]]:
    """Print and draw what carried the answer, and take heads out.

    Returns, for each choice of heads, how much the answer's logit fell in each prompt.
    """
    asked = subject(models.fetch("smollm2"), name="smollm2")
    model, tokenizer = asked.model, asked.processor
    explained = lxt_fx.transform(model, rules=rules)
    ledger = lxt_fx.audit(explained, tokenizer(text, return_tensors="pt"), tokenizer=tokenizer)
    heads, mlps = by_head(ledger), by_mlp(ledger)
    print(f"{text}: {ledger.explained[0]} = {float(ledger.value):.4f}\n")
    Console(width=100).print(strongest(heads, mlps))
    out.mkdir(parents=True, exist_ok=True)
    draw(heads, mlps, f"{text}: {ledger.explained[0]} = {float(ledger.value):.2f}", out / "flow_smollm2.png")
    print(f"wrote {out / 'flow_smollm2.png'}")
    if graph:
        lxt_fx.flow.write_graph(lxt_fx.flow.by_head(ledger.flow_graph()), graph)
        print(f"wrote {graph}")
    losses = take_out(asked, explained, prompts)
    Console(width=100).print(losses_table(losses))
    return losses


def by_head(ledger: lxt_fx.Ledger) -> Tensor:
    """The relevance that reached the output of each head, [layers, heads]."""
    graph = lxt_fx.flow.by_head(ledger.flow_graph())
    found = [(layer_number(f["layer"]), f["head"], f["relevance"]) for _, f in graph.nodes(data=True) if "head" in f]
    layers, heads = (1 + max(each) for each in zip(*((layer, head) for layer, head, _ in found), strict=True))
    relevance = torch.zeros(layers, heads)
    for layer, head, amount in found:
        relevance[layer, head] = amount
    return relevance


def by_mlp(ledger: lxt_fx.Ledger) -> Tensor:
    """The relevance that reached the output of each MLP, [layers]."""
    graph = lxt_fx.flow.by_module(ledger.flow_graph(), "model.layers.*.mlp")
    found = {layer_number(name): facts["relevance"] for name, facts in graph.nodes(data=True) if name.endswith(".mlp")}
    return torch.tensor([found[layer] for layer in sorted(found)])


def layer_number(path: str) -> int:
    """3 of `model.layers.3.mlp`."""
    return int(path.split(".")[2])


def strongest(heads: Tensor, mlps: Tensor) -> Table:
    """The heads and the MLPs of largest relevance, side by side."""
    table = Table("head", "relevance", "MLP", "relevance", box=box.SIMPLE_HEAD)
    order = heads.flatten().argsort(descending=True)[:SHOWN].tolist()
    for index, layer in zip(order, mlps.argsort(descending=True)[:SHOWN].tolist(), strict=True):
        head = divmod(index, heads.shape[1])
        table.add_row("{}.{}".format(*head), f"{heads[head]:.4f}", str(layer), f"{mlps[layer]:.4f}")
    table.add_section()
    table.add_row("all", f"{heads.sum():.4f}", "all", f"{mlps.sum():.4f}")
    return table


def draw(heads: Tensor, mlps: Tensor, title: str, path: Path) -> None:
    """Layers from the bottom up; red for, blue against."""
    figure = Figure(figsize=(5.2, 0.2 * len(heads) + 1.2), layout="constrained")
    left, left_bar, right, right_bar = figure.subplots(1, 4, width_ratios=(heads.shape[1], 0.4, 1.2, 0.4))
    for panel, bar, found, label in (
        (left, left_bar, heads, "attention head"),
        (right, right_bar, mlps[:, None], "MLP"),
    ):
        limit = float(found.abs().max())
        image = panel.imshow(
            found.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", origin="lower", interpolation="nearest"
        )
        panel.set_xlabel(label, fontsize=8)
        panel.set_xticks([])
        panel.set_yticks([])
        figure.colorbar(image, cax=bar).ax.tick_params(labelsize=6)
    left.set_ylabel("layer", fontsize=8)
    left.set_xticks(range(heads.shape[1]))
    left.set_yticks(range(len(heads)))
    left.tick_params(labelsize=7, length=2)
    figure.suptitle(title, fontsize=8)
    figure.savefig(path, dpi=160)


# Without the heads


def take_out(asked: Subject, explained: lxt_fx.Explained, prompts: int) -> dict[str, list[float]]:
    """For each choice of heads, how much the answer's logit fell in each prompt."""
    means, drawn = head_means(asked.model, asked.processor), random.Random(0)
    losses: dict[str, list[float]] = {}
    for case in TASKS["facts"].cases(asked, prompts, 0):
        relevance = by_head(lxt_fx.audit(explained, case.inputs, case.value))
        whole = number(asked.model, case)
        for name, choices in chosen(relevance, drawn).items():
            left = [without(asked.model, case, heads, means) for heads in choices]
            losses.setdefault(name, []).append(whole - statistics.fmean(left))
    return losses


def chosen(relevance: Tensor, drawn: random.Random) -> dict[str, list[list[Head]]]:
    """By the name of the choice, one or several sets of heads."""
    layers, heads = relevance.shape
    everything = [(layer, head) for layer in range(layers) for head in range(heads)]
    order = sorted(everything, key=lambda head: -float(relevance[head]))
    best = order[:TAKEN]
    return {
        f"the {TAKEN} of largest relevance": [best],
        f"{TAKEN} drawn from the same layers": [same_layers(best, heads, drawn) for _ in range(DRAWS)],
        f"{TAKEN} drawn from all": [drawn.sample(everything, TAKEN) for _ in range(DRAWS)],
        f"the {TAKEN} of relevance nearest to 0": [sorted(everything, key=lambda h: abs(float(relevance[h])))[:TAKEN]],
        f"the {TAKEN} of most negative relevance": [order[-TAKEN:]],
    }


def same_layers(best: Sequence[Head], heads: int, drawn: random.Random) -> list[Head]:
    """As many heads of each layer as `best` has there."""
    layers = [layer for layer, _ in best]
    return [(layer, head) for layer in sorted(set(layers)) for head in drawn.sample(range(heads), layers.count(layer))]


@torch.no_grad()
def head_means(model: Any, tokenizer: Any) -> list[Tensor]:
    """The mean output of all heads of each layer [heads * width], over tokens of Wikipedia but the first of each text."""
    sums: list[list[Tensor]] = [[] for _ in model.model.layers]
    hooks = [
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _, given, kept=kept: kept.append(given[0][0, 1:]))
        for layer, kept in zip(model.model.layers, sums, strict=True)
    ]
    paragraphs = models.wiki_paragraphs()
    for _, text in paragraphs[:: len(paragraphs) // PARAGRAPHS][:PARAGRAPHS]:
        model(input_ids=tokenizer(text, return_tensors="pt").input_ids[:, :TOKENS])
    for hook in hooks:
        hook.remove()
    return [torch.cat(kept).mean(0) for kept in sums]


@torch.no_grad()
def number(model: Any, case: Case) -> float:
    """The explained number of a prompt."""
    return float(case.value(model(**case.inputs)))


def without(model: Any, case: Case, heads: Sequence[Head], means: Sequence[Tensor]) -> float:
    """The number where these heads give their mean."""
    with replaced(model, heads, means):
        return number(model, case)


@contextmanager
def replaced(model: Any, heads: Sequence[Head], means: Sequence[Tensor]) -> Iterator[None]:
    """While the block runs, these heads give their mean at all tokens but the first."""
    width = model.config.hidden_size // model.config.num_attention_heads
    hooks = []
    for layer in sorted({layer for layer, _ in heads}):
        of_head = torch.arange(len(means[layer])) // width
        gone = torch.isin(of_head, torch.tensor([head for at, head in heads if at == layer]))

        def replace(_: Any, given: Any, gone: Tensor = gone, mean: Tensor = means[layer]) -> Any:
            spared = torch.arange(given[0].shape[1])[:, None] == 0
            return (torch.where(gone & ~spared, mean, given[0]),)

        hooks.append(model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(replace))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def losses_table(losses: dict[str, list[float]]) -> Table:
    """Mean and standard error over prompts, and in how many the heads of largest relevance cost more."""
    first = next(iter(losses.values()))
    table = Table(box=box.SIMPLE_HEAD, title=f"{len(first)} prompts: the answer's logit without these heads")
    for heading in ("heads", "falls by", "least", "most", f"the {TAKEN} cost more"):
        table.add_column(heading, justify="left" if heading == "heads" else "right")
    for name, found in losses.items():
        error = statistics.stdev(found) / len(found) ** 0.5
        more = "" if found is first else f"{sum(a > b for a, b in zip(first, found, strict=True))} of {len(found)}"
        table.add_row(name, f"{statistics.fmean(found):.2f} ± {error:.2f}", f"{min(found):.2f}", f"{max(found):.2f}", more)
    return table


if __name__ == "__main__":
    typer.run(main)
