"""How faithful the circuits of each table are, and how near its scores are to true activation patching, in SmolLM2-135M.

    python examples/models.py fetch smollm2
    python benchmarks/circuits/circuits.py --data FOLDER     (goes on where it was stopped; --report shows what is there)

For indirect objects and greater-than, of the project's own prompts and of the public ones (`ioi.json`, `greater_than.csv`
in FOLDER): edges are scored on half of the pairs, and circuits of MIB's sizes are measured on the other half. No group of
prompts (two people, a year) has pairs in both halves. CPR is that of the edges that speak for the answer, CMD that of those
that matter in either way, as MIB prints them. Node scores are correlated with activation patching of all heads, and neuron
scores with that of 200 random neurons, over the first half: by noising (corrupted values in the clean run) and by denoising
(the other way round). Intervals (95 %) and differences to `attnlrp` by bootstrap over groups. Every batch of pairs is
written when it is known.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console
from torch import Tensor

import lxt_fx
from lxt_fx.referee.tasks.patching_pairs import PatchingPair, patching_pairs

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))
from circuits_report import tables  # noqa: E402

import models  # noqa: E402

METHODS: dict[str, tuple[str, Any]] = {
    "attnlrp": ("attnlrp", "clean"),
    "EAP": ("gradient", "clean"),
    "EAP-IG": ("gradient", 5),
    "relp": ("relp", "clean"),
    "gim": ("gim", "clean"),
    "attnlrp, 5 steps": ("attnlrp", 5),
    "attnlrp, corrupted": ("attnlrp", "corrupted"),
    "EAP, corrupted": ("gradient", "corrupted"),
    "relp, corrupted": ("relp", "corrupted"),
    "gim, corrupted": ("gim", "corrupted"),
}
"""Table and place of the gradient, by name. EAP and EAP-IG are as in MIB."""

RANDOM = "random"
"""A random order of the edges, in which no sign means anything: one curve for both areas."""

TASKS = {"indirect_object": "ioi.json", "greater_than": "greater_than.csv"}
ORDERS = ("signed", "absolute")
PATCHED: tuple[Literal["clean", "corrupted"], ...] = ("clean", "corrupted")
NEURONS, BATCH = 200, 8

Batch = tuple[dict[str, Tensor], dict[str, Tensor], list[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """A task's pairs, and the folder that results are written to: `circuits.jsonl` has a line for each pair and
    measurement, and a file for each method has its scores so far."""

    name: str
    pairs: Sequence[PatchingPair]
    folder: Path

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The lines of this study."""
        return [line for line in lines_of(self.folder) if line["study"] == self.name]

    def half(self, which: int) -> list[int]:
        """The pairs that are scored (0), and those that circuits are measured on (1): every other group."""
        order = {group: at for at, group in enumerate(dict.fromkeys(map(self.group, range(len(self.pairs)))))}
        return [at for at in range(len(self.pairs)) if order[self.group(at)] % 2 == which]

    def group(self, at: int) -> str:
        """The group of a pair; one without has its own."""
        return self.pairs[at].group or f"pair {at}"

    def batches(self, places: Sequence[int]) -> Iterator[tuple[list[int], Batch]]:
        """Pairs with one number of tokens together, as functions for circuits take them."""
        by_length: dict[int, list[int]] = defaultdict(list)
        for at in places:
            by_length[self.pairs[at].clean.shape[1]].append(at)
        for alike in by_length.values():
            for start in range(0, len(alike), BATCH):
                some = alike[start : start + BATCH]
                clean, corrupted = (
                    torch.cat([getattr(self.pairs[at], side) for at in some]) for side in ("clean", "corrupted")
                )
                yield some, ({"input_ids": clean}, {"input_ids": corrupted}, [self.pairs[at].target for at in some])

    def write(
        self, what: str, places: Sequence[int], values: Sequence[Mapping[str, Any]], seconds: float, **more: str
    ) -> None:
        """Appends a line for each of these pairs; `seconds` is the CPU time of all of them."""
        with (self.folder / "circuits.jsonl").open("a", encoding="utf-8") as file:
            for at, each in zip(places, values, strict=True):
                line = {"study": self.name, "what": what, "pair": at, "group": self.group(at), **more, **each}
                file.write(json.dumps(line | {"seconds": seconds / len(places)}) + "\n")


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """What is there already; a line that was not written whole is dropped, and measured again."""
    path = folder / "circuits.jsonl"
    if not path.exists():
        return []
    whole, _, rest = path.read_text(encoding="utf-8").rpartition("\n")
    if rest:
        path.write_text(f"{whole}\n" if whole else "", encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def answered(model: Any, pairs: Sequence[PatchingPair]) -> list[PatchingPair]:
    """The pairs whose clean prompt the model answers right, and more so than the corrupted one."""
    with torch.no_grad():
        numbers = [[float(pair.target(model(input_ids=ids))) for ids in (pair.clean, pair.corrupted)] for pair in pairs]
    return [pair for pair, (clean, corrupted) in zip(pairs, numbers, strict=True) if clean > max(0.0, corrupted)]


def random_neurons(scores: lxt_fx.CircuitScores) -> dict[str, list[int]]:
    """Neurons of all layers, by place."""
    generator, found = torch.Generator().manual_seed(0), defaultdict(set)
    places = list(scores.neurons)
    for _ in range(NEURONS):
        place = places[int(torch.randint(len(places), (), generator=generator))]
        found[place].add(int(torch.randint(scores.neurons[place].shape[1], (), generator=generator)))
    return {place: sorted(found[place]) for place in places if place in found}


@dataclass(slots=True, eq=False)
class Scored:
    """Scores of a method so far: the sum over pairs of those of the edges, and which pairs these are. `scores` are those of
    the last batch, which has the names of all parts."""

    edges: Tensor
    pairs: list[int]
    scores: lxt_fx.CircuitScores

    def circuits(self, by: Any) -> dict[float, Any]:
        """The circuits of MIB's sizes by the mean over all pairs."""
        mean = (self.edges / len(self.pairs))[None].to(self.scores.edges.dtype)
        return replace(self.scores, edges=mean).circuits(by=by)


def scored(study: Study, explained: Any, method: str) -> Scored:
    """The scores of the first half of the pairs, batch by batch."""
    path = study.folder / f"{study.name} {method}.pt".replace(" ", "_").replace(",", "")
    found: Scored | None = torch.load(path, weights_only=False) if path.exists() else None
    done = {line["pair"] for line in study.lines if line["what"] == "scores" and line["method"] == method}
    for places, batch in study.batches(study.half(0)):
        if found is not None and set(places) <= set(found.pairs) & done:
            continue
        start = process_time()
        scores = lxt_fx.circuit_scores(explained, *batch, at=METHODS[method][1])
        chosen = random_neurons(scores)
        seconds = process_time() - start
        if found is None or not set(places) <= set(found.pairs):
            before, known = (
                (found.edges, found.pairs) if found else (torch.zeros(scores.is_edge.shape, dtype=torch.float64), [])
            )
            found = Scored(before + scores.edges.double().sum(0), [*known, *places], scores)
            _save(found, path)
        values = [{"parts": parts_of(scores, at), "neurons": neurons_of(scores, chosen, at)} for at in range(len(places))]
        study.write("scores", places, values, seconds, method=method)
    assert found is not None, "a study has pairs in both halves"
    return found


def _save(found: Scored, path: Path) -> None:
    unfinished = path.with_suffix(".unfinished")
    torch.save(found, unfinished)
    unfinished.rename(path)


def parts_of(scores: lxt_fx.CircuitScores, at: int) -> dict[str, float]:
    """The node scores of the heads of a pair."""
    found = zip(scores.writers, scores.nodes[at].tolist(), strict=True)
    return {writer: score for writer, score in found if ".heads:" in writer}


def neurons_of(scores: lxt_fx.CircuitScores, chosen: Mapping[str, Sequence[int]], at: int) -> dict[str, float]:
    """The scores of some neurons of a pair."""
    return {f"{place}:{unit}": float(scores.neurons[place][at, unit]) for place in chosen for unit in chosen[place]}


def patch(study: Study, explained: Any, chosen: Mapping[str, Sequence[int]], at: Literal["clean", "corrupted"]) -> None:
    """Measures the true effect of all heads and of the chosen neurons in one run of the first half of the pairs."""
    done = {line["pair"] for line in study.lines if line["what"] == "patched" and line["at"] == at}
    for places, batch in study.batches(study.half(0)):
        if set(places) <= done:
            continue
        start = process_time()
        heads, neurons = (
            lxt_fx.activation_patching(explained, *batch, units, at=at) for units in ("attention.*.heads", chosen)
        )
        values = [
            {name: dict(zip(each.parts, each.effects[pair].tolist(), strict=True)) for name, each in
             (("parts", heads), ("neurons", neurons))}
            for pair in range(len(places))
        ]  # fmt: skip
        study.write("patched", places, values, process_time() - start, at=at)


def measure(study: Study, explained: Any, method: str, by: str, circuits: Mapping[float, Any]) -> None:
    """Measures circuits on the other half of the pairs."""
    known = (line for line in study.lines if line["what"] == "circuits")
    done = {line["pair"] for line in known if (line["method"], line["order"]) == (method, by)}
    for places, batch in study.batches(study.half(1)):
        if set(places) <= done:
            continue
        start = process_time()
        curve = lxt_fx.circuit_faithfulness(explained, *batch, circuits)
        numbers = zip(curve.values.T.tolist(), curve.clean.tolist(), curve.corrupted.tolist(), strict=True)
        values = [{"values": each, "clean": clean, "corrupted": corrupted} for each, clean, corrupted in numbers]
        more = {"sizes": list(curve.sizes)}
        study.write("circuits", places, [each | more for each in values], process_time() - start, method=method, order=by)


def modules(model: Any) -> dict[str, Any]:
    """The model under each table."""
    return {rules: lxt_fx.transform(model, rules=rules) for rules in {table: None for table, _ in METHODS.values()}}


def run(study: Study, by_table: Mapping[str, Any], console: Console) -> None:
    """Everything about one study that is not there yet, a method after the other."""
    if not study.half(0) or not study.half(1):
        raise typer.BadParameter(f"{study.name}: the model answers {len(study.pairs)} pairs right; ask for more")
    for name, (rules, _) in METHODS.items():
        explained = by_table[rules]
        found = scored(study, explained, name)
        if name == next(iter(METHODS)):
            for at in PATCHED:
                patch(study, explained, random_neurons(found.scores), at)
            drawn = torch.randn(found.edges.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            measure(study, explained, RANDOM, ORDERS[0], Scored(drawn, [0], found.scores).circuits(ORDERS[0]))
        for by in ORDERS:
            measure(study, explained, name, by, found.circuits(by))
        console.print(f"{study.name}: {name}")


def main(
    out: Annotated[Path, typer.Option(help="The folder that results are written to.")] = Path("circuits"),
    data: Annotated[Path | None, typer.Option(help="The folder of the public files.")] = None,
    pairs: Annotated[int, typer.Option(help="Pairs of each task that are tried.")] = 40,
    report: Annotated[bool, typer.Option("--report", help="Measure nothing, show what is there.")] = False,
) -> None:
    """Measure circuits of SmolLM2 by every method."""
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    if not report:
        torch.set_num_threads(1)
        model, tokenizer = models.load("smollm2")
        by_table = modules(model)
        for task, file in TASKS.items():
            for source, path in {"generated": None, "public": data and data / file}.items():
                if source == "generated" or path:
                    tried = answered(model, patching_pairs(task, tokenizer, pairs, path=path))  # type: ignore[arg-type]
                    run(Study(f"{task}, {source}, {pairs} tried", tried, out), by_table, console)
    console.print("\n".join(tables(lines_of(out))), soft_wrap=True, markup=False)


if __name__ == "__main__":
    typer.run(main)
