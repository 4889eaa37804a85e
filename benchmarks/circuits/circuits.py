"""How faithful the circuits of each table are, and how near its scores are to true activation patching, in SmolLM2-135M.

    python examples/models.py fetch smollm2
    python benchmarks/circuits/circuits.py [--pairs 40] [--quick]

For indirect objects and greater-than: edges are scored on half of the pairs, circuits of MIB's sizes are measured on the
other half (CPR of the edges that speak for the answer, CMD of those that matter in either way; 95 % intervals by bootstrap
over pairs), and node scores are correlated with activation patching of all heads and MLPs, and of 200 random neurons. By
estimate an hour of one core with 40 pairs; `--quick` takes 8 pairs and two methods.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import lxt_fx
from lxt_fx.referee.tasks.patching_pairs import PatchingPair, patching_pairs

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import models  # noqa: E402

METHODS: dict[str, tuple[str, Any]] = {
    "EAP": ("gradient", "corrupted"),
    "EAP-IG": ("gradient", 5),
    "relp": ("relp", "corrupted"),
    "gim": ("gim", "corrupted"),
    "attnlrp": ("attnlrp", "corrupted"),
    "attnlrp, clean": ("attnlrp", "clean"),
}
"""Table and place of the gradient, by name; beside them a random order of the edges."""

TASKS = ("indirect_object", "greater_than")
NEURONS, DRAWS = 200, 1000


def batches(pairs: Sequence[PatchingPair]) -> list[tuple[dict[str, Tensor], dict[str, Tensor], list[Any]]]:
    """Pairs with one number of tokens together: clean and corrupted inputs, and the target of each."""
    by_length: dict[int, list[PatchingPair]] = defaultdict(list)
    for pair in pairs:
        by_length[pair.clean.shape[1]].append(pair)
    return [
        (
            {"input_ids": torch.cat([pair.clean for pair in some])},
            {"input_ids": torch.cat([pair.corrupted for pair in some])},
            [pair.target for pair in some],
        )
        for some in by_length.values()
    ]


def answered(model: Any, pairs: Sequence[PatchingPair]) -> list[PatchingPair]:
    """The pairs whose clean prompt the model answers right, and more so than the corrupted one."""
    with torch.no_grad():
        numbers = [[float(pair.target(model(input_ids=ids))) for ids in (pair.clean, pair.corrupted)] for pair in pairs]
    return [pair for pair, (clean, corrupted) in zip(pairs, numbers, strict=True) if clean > max(0.0, corrupted)]


def scores_of(explained: Any, pairs: Sequence[PatchingPair], at: Any) -> lxt_fx.CircuitScores:
    """The scores of all pairs."""
    found = [lxt_fx.circuit_scores(explained, *batch, at=at) for batch in batches(pairs)]
    neurons = {place: torch.cat([each.neurons[place] for each in found]) for place in found[0].neurons}
    joined = {name: torch.cat([getattr(each, name) for each in found]) for name in ("edges", "nodes", "clean", "corrupted")}
    return replace(found[0], neurons=neurons, **joined)


def curve_of(explained: Any, pairs: Sequence[PatchingPair], circuits: Any) -> lxt_fx.CircuitFaithfulness:
    """The faithfulness of circuits over all pairs."""
    found = [lxt_fx.circuit_faithfulness(explained, *batch, circuits) for batch in batches(pairs)]
    joined = {name: torch.cat([getattr(each, name) for each in found]) for name in ("clean", "corrupted")}
    return replace(found[0], values=torch.cat([each.values for each in found], 1), **joined)


def interval(curve: lxt_fx.CircuitFaithfulness, what: str) -> list[float]:
    """An area with its 95 % interval over pairs."""
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(DRAWS):
        at = torch.randint(len(curve.clean), (len(curve.clean),), generator=generator)
        drawn = replace(curve, values=curve.values[:, at], clean=curve.clean[at], corrupted=curve.corrupted[at])
        found.append(getattr(drawn, what))
    return [getattr(curve, what), *torch.tensor(found).quantile(torch.tensor([0.025, 0.975])).tolist()]


def shuffled(scores: lxt_fx.CircuitScores) -> lxt_fx.CircuitScores:
    """A random order of the edges."""
    return replace(scores, edges=torch.randn(1, *scores.is_edge.shape, generator=torch.Generator().manual_seed(0)))


def patched(explained: Any, pairs: Sequence[PatchingPair], units: Any) -> tuple[tuple[str, ...], Tensor]:
    """The mean true effect of each part."""
    found = [lxt_fx.activation_patching(explained, *batch, units) for batch in batches(pairs)]
    return found[0].parts, torch.cat([each.effects for each in found]).mean(0)


def random_neurons(scores: lxt_fx.CircuitScores) -> dict[str, list[int]]:
    """Neurons of all layers, by place."""
    generator, found = torch.Generator().manual_seed(0), defaultdict(set)
    places = list(scores.neurons)
    for _ in range(NEURONS):
        place = places[int(torch.randint(len(places), (), generator=generator))]
        found[place].add(int(torch.randint(scores.neurons[place].shape[1], (), generator=generator)))
    return {place: sorted(found[place]) for place in places if place in found}


def correlation(one: Tensor, other: Tensor) -> float:
    """Pearson's correlation."""
    return float(torch.corrcoef(torch.stack([one.double(), other.double()]))[0, 1])


def measured(model: Any, task: str, pairs: Sequence[PatchingPair]) -> dict[str, Any]:
    """Everything about one task, by method."""
    half, found = len(pairs) // 2, dict[str, Any]()
    chosen, heads, neurons = dict[str, list[int]](), ((), torch.empty(0)), ((), torch.empty(0))
    for name, (rules, at) in track(list(METHODS.items()), description=task):
        explained = lxt_fx.transform(model, rules=rules)
        scores = scores_of(explained, pairs[:half], at)
        if not chosen:
            chosen = random_neurons(scores)
            heads = patched(explained, pairs[:half], ("attention.*.heads", "mlp.*.output"))
            neurons = patched(explained, pairs[:half], chosen)
            found["random"] = areas(explained, pairs[half:], shuffled(scores))
        by_neuron = {f"{place}:{unit}": scores.neurons[place][:, unit].mean() for place in chosen for unit in chosen[place]}
        found[name] = areas(explained, pairs[half:], scores) | {
            "heads and MLPs": correlation(torch.stack([scores.node(part).mean() for part in heads[0]]), heads[1]),
            "neurons": correlation(torch.stack([by_neuron[part] for part in neurons[0]]), neurons[1]),
        }
    return found


def areas(explained: Any, pairs: Sequence[PatchingPair], scores: lxt_fx.CircuitScores) -> dict[str, Any]:
    """CPR and CMD with intervals, and the curve of faithfulness by size."""
    signed, absolute = (curve_of(explained, pairs, scores.circuits(by=by)) for by in ("signed", "absolute"))
    return {
        "CPR": interval(signed, "cpr"),
        "CMD": interval(absolute, "cmd"),
        "faithfulness": {"signed": signed.faithfulness.tolist(), "absolute": absolute.faithfulness.tolist()},
    }


def table_of(task: str, found: dict[str, Any]) -> Table:
    """The results of a task as a table."""
    table = Table("method", "CPR", "CMD", "heads and MLPs", "neurons", title=task, title_justify="left")
    for name, each in found.items():
        shown = [f"{each[what][0]:.2f} ({each[what][1]:.2f} to {each[what][2]:.2f})" for what in ("CPR", "CMD")]
        table.add_row(
            name, *shown, *(f"{each[what]:.2f}" if what in each else "" for what in ("heads and MLPs", "neurons"))
        )
    return table


def main(
    out: Annotated[Path, typer.Option(help="The file that results are written to.")] = Path("circuits.json"),
    pairs: Annotated[int, typer.Option(help="Pairs of each task that are tried.")] = 40,
    quick: Annotated[bool, typer.Option("--quick", help="Eight pairs, two methods.")] = False,
) -> None:
    """Measure circuits of SmolLM2 by every method."""
    model, tokenizer = models.load("smollm2")
    if quick:
        pairs = 8
        for name in list(METHODS)[2:]:
            del METHODS[name]
    found, console = {}, Console()
    for task in TASKS:
        tried = answered(model, patching_pairs(task, tokenizer, pairs))
        found[task] = {"pairs": len(tried), "methods": measured(model, task, tried)}
        out.write_text(json.dumps(found))
        console.print(table_of(f"{task}, {len(tried)} of {pairs} pairs", found[task]["methods"]))


if __name__ == "__main__":
    typer.run(main)
