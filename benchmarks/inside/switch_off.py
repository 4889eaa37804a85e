"""Do the neurons, heads and features that relevance names make the answer? They are switched off, and the answer is read.

    python benchmarks/inside/switch_off.py     (20 minutes on one core; --quick: two minutes)
    python benchmarks/inside/switch_off.py --again     (the tables and the picture of out/switch_off.json)

**Prompts.** Facts of 14 relations ("A baby cow is called a"), at most five of each, 30 subjects whose verb must agree with
them ("The keys to the cabinet"), 30 opposites ("The opposite of hot is"). Only those count that SmolLM2-135M answers right,
by its largest logit. Each has a control answer: that of another fact of its relation, the other form of the verb, another
opposite.

**Switching off.** The k units with the largest score are set to 0, or, behind the first token, to their mean over all
prompts. How far do the answer's logit and that of the control fall,
and the difference of the two? Only the last says that units speak for *this* answer. And a prompt of another kind must
still be answered without them: else they carry what every answer needs. Units are neurons (what the down projections of all
MLPs read), at all positions and at all but the first token, heads (what the output projections of all attentions read), and
features of a dictionary in the residual stream, if there is one in smollm2_dictionary.

**Scores** of a unit, summed over positions: relevance for the answer's logit by `attnlrp`, `cp_lrp` and the plain gradient
(gradient x activation); its absolute activation; chance. And relevance for the difference of the two logits.

**Steering.** In the prompt of one fact, the top units of another one's prompt, of the same relation and as many tokens, get
the values that they have there. How often does the model then give the other answer?

Needs the fetched smollm2 and texts: python3 dev.py models smollm2 texts.
"""

from __future__ import annotations

import fnmatch
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from torch import Tensor, nn

import lxt_fx
from lxt_fx import edits

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))
from switch_off_prompts import Prompt, answered, questions  # noqa: E402
from switch_off_report import KINDS_OF_PROMPTS, report  # noqa: E402

import models  # noqa: E402

TABLES = ("attnlrp", "cp_lrp", "gradient")
NEURONS, HEADS = "neurons", "heads"
TO_0, TO_MEAN = "set to 0", "set to the mean"
PLACE = "residual.12"
"""Where the dictionary was trained."""
OUT = Path("out")
ELSEWHERE = 3
"""For every third prompt another one is asked without the units, too."""
MOST_AT_ONCE = 64
"""So many copies of a prompt, each with its own change, go through the model at once."""

Edits = dict[str, Any]
Step = tuple[Edits, slice]
"""Edits by place, and the positions at which they act."""


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """What one forward and some backwards say about the units of a prompt, over all places of a kind: which units have the
    largest scores, by ranking [most], and the activations by place, [tokens, units] or [tokens, heads, size]."""

    top: dict[str, Tensor]
    activation: dict[str, Tensor]


Outcomes = dict[str, dict[str, dict[str, list[list[float]]]]]
"""By way, ranking and count, the numbers of each prompt."""


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """Units of one kind: their places, how many units each has, how many are switched off at once, in which ways, and the
    first position at which they are scored and changed. Features also have directions [features, width] of the place
    `written`, since no module of the model takes or returns them."""

    name: str
    places: tuple[str, ...]
    width: int
    counts: tuple[int, ...]
    ways: tuple[str, ...]
    first: int = 0
    directions: Tensor | None = None
    written: str = ""

    def by_place(self, units: Tensor) -> dict[str, list[int]]:
        """Units counted over all places, as lists of units of each place."""
        found: dict[str, list[int]] = {}
        for unit in units.tolist():
            found.setdefault(self.places[unit // self.width], []).append(unit % self.width)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Explained modules by table, and the kinds of units that are read in them."""

    modules: Mapping[str, lxt_fx.Explained]
    kinds: tuple[Kind, ...]


# Scores


def kinds_of(explained: lxt_fx.Explained) -> list[Kind]:
    """Neurons and heads of a model. Neurons count twice, with the first token and without: some of them carry the attention
    sink there, without which the model says nothing."""
    by_name = lxt_fx.places(explained)
    neurons, heads = (tuple(fnmatch.filter(by_name, pattern)) for pattern in ("mlp.*.neurons", "attention.*.heads"))
    many, few = int(by_name[neurons[0]].shape[-1]), int(by_name[heads[0]].shape[1])
    return [
        Kind(NEURONS, neurons, many, (1, 5, 20, 100), (TO_0,)),
        Kind(f"{NEURONS}, first token spared", neurons, many, (1, 5, 20, 100), (TO_0, TO_MEAN), 1),
        Kind(HEADS, heads, few, (1, 5, 20), (TO_0, TO_MEAN)),
    ]


def scored(
    modules: Mapping[str, nn.Module], prompt: Prompt, kinds: Sequence[Kind], chance: torch.Generator
) -> list[Scored]:
    """For each kind of units, the best by each ranking, and the activations."""
    targets: list[Any] = [prompt.answer, lxt_fx.Target(prompt.answer, minus=prompt.control)]
    places = [place for kind in kinds for place in kind.places]
    inputs = {"input_ids": torch.tensor([prompt.ids])}
    latents = {table: lxt_fx.latent(module, inputs, targets, places) for table, module in modules.items()}
    found = []
    for kind in kinds:
        scores = {}
        for table, latent in latents.items():
            by_unit = [latent[place].by_token_and_unit()[:, 0, kind.first :].sum(1) for place in kind.places]
            scores[table], scores[f"{table}, difference"] = torch.cat(by_unit, dim=1)
        latent = latents[TABLES[0]]
        sizes = [latent[place].activation_by_token_and_unit()[0, kind.first :].abs().sum(0) for place in kind.places]
        scores["activation"] = torch.cat(sizes)
        scores["random"] = torch.rand(len(scores["activation"]), generator=chance)
        most = min(max(kind.counts), len(scores["random"]))
        top = {ranking: score.topk(most).indices for ranking, score in scores.items()}
        found.append(Scored(top, {place: by_token(latent[place]) for place in kind.places}))
    return found


def by_token(value: Any) -> Tensor:
    """The activation at a place of the one example, [tokens, units], of heads [tokens, heads, size]."""
    found: Tensor = value.activation[0]
    return found.transpose(0, 1) if "heads" in value.axes else found


def means(found: Sequence[Scored]) -> dict[str, Tensor]:
    """The mean activation of each unit by place, over all positions of all prompts but their first."""
    return {place: torch.cat([one.activation[place][1:] for one in found]).mean(0) for place in found[0].activation}


# Changes


def switched_off(kind: Kind, found: Scored, units: Tensor) -> list[Step]:
    """The units are 0. Features, of h = sum_k f_k d_k + b + e, are taken out of h along d_k, and b and the error e stay."""
    if kind.directions is not None:
        gone = -found.activation[kind.places[0]][:, units] @ kind.directions[units]
        return [({kind.written: edits.add(gone[at])}, slice(at, at + 1)) for at in range(kind.first, len(gone))]
    return [({place: edits.scale(0, units=few) for place, few in kind.by_place(units).items()}, slice(kind.first, None))]


def at_mean(kind: Kind, units: Tensor, mean: Mapping[str, Tensor]) -> list[Step]:
    """The units have their mean at all positions but the first."""
    by_place = kind.by_place(units)
    return [({place: edits.ablate_mean(mean[place][few], units=few) for place, few in by_place.items()}, slice(1, None))]


def as_there(kind: Kind, there: Scored, units: Tensor, positions: range) -> list[Step]:
    """The units have the values of another prompt of as many tokens, position by position."""
    by_place, values = kind.by_place(units), there.activation
    return [
        ({place: edits.clamp(values[place][at, few], units=few) for place, few in by_place.items()}, slice(at, at + 1))
        for at in positions
    ]


def answers_under(
    model: nn.Module, explained: nn.Module, ids: Sequence[int], variants: Sequence[Sequence[Step]]
) -> Tensor:
    """The last logits [variants, vocabulary] of a prompt under each of these changes."""
    found = [steered(model, explained, ids, variants[i : i + MOST_AT_ONCE]) for i in range(0, len(variants), MOST_AT_ONCE)]
    return torch.cat(found)


@torch.no_grad()
def steered(model: nn.Module, explained: nn.Module, ids: Sequence[int], variants: Sequence[Sequence[Step]]) -> Tensor:
    """The last logits [variants, vocabulary]: one example for each variant, steered by a mask that is true at it alone."""
    with ExitStack() as blocks:
        for row, steps in enumerate(variants):
            for changes, positions in steps:
                mask = torch.zeros(len(variants), len(ids), dtype=torch.bool)
                mask[row, positions] = True
                blocks.enter_context(lxt_fx.steer(model, changes, positions=mask, explained=explained))
        given = torch.tensor([ids]).expand(len(variants), -1)
        logits: Tensor = model(input_ids=given, use_cache=False, logits_to_keep=1).logits
    return logits[:, -1]


# Measurements


def score_all(source: Source, prompts: Sequence[Prompt], progress: Progress) -> dict[str, list[Scored]]:
    """By kind of units, what is known of each prompt."""
    chance, found = torch.Generator().manual_seed(0), defaultdict(list)
    for prompt in progress.track(prompts, description="explaining"):
        for kind, one in zip(source.kinds, scored(source.modules, prompt, source.kinds, chance), strict=True):
            found[kind.name].append(one)
    return found


def measure_off(
    model: nn.Module,
    explained: nn.Module,
    kind: Kind,
    prompts: Sequence[Prompt],
    found: Sequence[Scored],
    progress: Progress,
) -> Outcomes:
    """By way of switching off, ranking and count: for each prompt the drop of the logits of answer and control, and whether
    the answer is still the model's. For units set to 0 in every third prompt also whether one of another kind is still
    answered without them."""
    mean, outcomes = means(found), made_outcomes()
    for index, prompt in enumerate(progress.track(prompts, description=f"{kind.name} off")):
        one, beside = found[index], unrelated(prompts, index)
        chosen = {(ranking, str(k)): top[:k] for ranking, top in one.top.items() for k in kind.counts}
        for way in kind.ways:
            if way == TO_0:
                off = [switched_off(kind, one, units) for units in chosen.values()]
            else:
                off = [at_mean(kind, units, mean) for units in chosen.values()]
            logits = answers_under(model, explained, prompt.ids, [[], *off])
            drops = (logits[0] - logits[1:])[:, [prompt.answer, prompt.control]]
            measured = [*drops.T, (logits[1:].argmax(dim=1) == prompt.answer).float()]
            if way == TO_0 and index % ELSEWHERE == 0:
                elsewhere = [switched_off(kind, found[beside], units) for units in chosen.values()]
                best = answers_under(model, explained, prompts[beside].ids, elsewhere).argmax(dim=1)
                measured.append((best == prompts[beside].answer).float())
            for (ranking, count), row in zip(chosen, torch.stack(measured, dim=1).tolist(), strict=True):
                outcomes[way][ranking][count].append(row)
    return outcomes


def unrelated(prompts: Sequence[Prompt], index: int) -> int:
    """The index of a prompt of another kind, another one for each prompt as far as there are as many."""
    others = [i for i, prompt in enumerate(prompts) if prompt.kind != prompts[index].kind]
    return others[index % len(others)]


def measure_steering(
    model: nn.Module,
    explained: nn.Module,
    kind: Kind,
    prompts: Sequence[Prompt],
    found: Sequence[Scored],
    progress: Progress,
) -> Outcomes:
    """By ranking and count, and for all units: for each fact with another one of as many tokens, whether the answer
    becomes the other one, and how far the other's logit moves against its own. Only what follows the first token that
    differs is changed."""
    outcomes = made_outcomes()
    pairs = [(prompt, prompt.other) for prompt in prompts if prompt.kind == "facts" and prompt.other is not None]
    for prompt, other in progress.track(pairs, description=f"steering by {kind.name}"):
        there, tokens = found[other], range(len(prompt.ids))
        first = next(at for at in tokens if prompt.ids[at] != prompts[other].ids[at])
        chosen = {(ranking, str(k)): top[:k] for ranking, top in there.top.items() for k in kind.counts}
        chosen["all", "all"] = torch.arange(len(kind.places) * kind.width)
        variants = [[], *(as_there(kind, there, units, tokens[first:]) for units in chosen.values())]
        logits = answers_under(model, explained, prompt.ids, variants)
        shift = logits[:, prompt.control] - logits[:, prompt.answer]
        became = logits.argmax(dim=1) == prompt.control
        for (ranking, count), hit, far in zip(chosen, became[1:].tolist(), (shift[1:] - shift[0]).tolist(), strict=True):
            outcomes["steering"][ranking][count].append([float(hit), far])
    return outcomes


def made_outcomes() -> Outcomes:
    return defaultdict(lambda: defaultdict(lambda: defaultdict(list)))


def dictionary_source(modules: Mapping[str, lxt_fx.Explained], folder: Path) -> Source:
    """The features of a dictionary, which is spliced into the modules at the place that it was trained at."""
    dictionary = lxt_fx.Dictionary.load(folder)
    spliced = {table: lxt_fx.splice(module, PLACE, dictionary) for table, module in modules.items()}
    directions = dictionary.tensors["W_dec"]
    kind = Kind("features", (f"{PLACE}.features",), dictionary.features, (1, 5, 20, 100), (TO_0,), 1, directions, PLACE)
    return Source(spliced, (kind,))


def measure(
    model: nn.Module, prompts: Sequence[Prompt], progress: Progress, folder: Path | None, into: dict[str, Any], file: Path
) -> None:
    """Puts what the report reads into `into`: {"off": by kind of units, "steering": by kind of units}, and writes the file
    after each kind. What is there already is not measured again."""
    modules = {table: lxt_fx.transform(model, rules=table) for table in progress.track(TABLES, description="transform")}
    explained = modules[TABLES[0]]
    sources = [Source(modules, tuple(kinds_of(explained)))]
    if folder is not None and folder.is_dir():
        sources.append(dictionary_source(modules, folder))
    for source in sources:
        missing = tuple(kind for kind in source.kinds if kind.name not in into["off"])
        found = score_all(Source(source.modules, missing), prompts, progress) if missing else {}
        for kind in missing:
            into["off"][kind.name] = measure_off(model, explained, kind, prompts, found[kind.name], progress)
            if kind.name in (NEURONS, HEADS):
                steering = measure_steering(model, explained, kind, prompts, found[kind.name], progress)
                into["steering"][kind.name] = steering["steering"]
            file.write_text(json.dumps(into))


def main(
    out: Annotated[Path, typer.Option(help="Where switch_off.json, switch_off.md and switch_off.png are written.")] = OUT,
    quick: Annotated[bool, typer.Option("--quick", help="Every sixth prompt.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Measure only what switch_off.json has not.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Measure nothing, report switch_off.json.")] = False,
) -> None:
    """Measure what switching off the most relevant units does to the answers."""
    console, file = Console(), out / "switch_off.json"
    if again:
        report(json.loads(file.read_text()), out, console)
        return
    out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = models.load("smollm2")
    asked = questions()[:: 6 if quick else 1]
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        prompts = answered(model, tokenizer, asked)
        found = json.loads(file.read_text()) if resume and file.exists() else {"off": {}, "steering": {}}
        found["asked"] = {kind: sum(each.kind == kind for each in asked) for kind in KINDS_OF_PROMPTS}
        found["prompts"] = [asdict(prompt) for prompt in prompts]
        measure(model, prompts, progress, models.cache_folder() / "smollm2_dictionary", found, file)
    report(found, out, console)


if __name__ == "__main__":
    typer.run(main)
