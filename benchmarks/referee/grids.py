"""Measures the grids of docs/benchmark.md: which models, methods, tasks and metrics, and on how many cases.

    python benchmarks/referee/grids.py core --model smollm2 --out core_smollm2.jsonl [--cases 100] [--models FOLDER]

A file that is there is gone on with, and more cases extend it. On one core of 2026 the core grid takes some two hours a
model, each other one some half an hour. `python dev.py models smollm2 gemma3 minilm vit_digits vit_mosaics dino_saliency
photos` fetches or trains the models. `python benchmarks/referee/referee.py` writes the results into the page.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import lxt_fx
from lxt_fx.referee.case import Subject
from lxt_fx.referee.contest import Method, Metric
from lxt_fx.referee.methods import METHODS
from lxt_fx.referee.methods.by_gradient import TableMethod
from lxt_fx.referee.metrics import METRICS
from lxt_fx.referee.metrics.removal import Area
from lxt_fx.referee.subjects import subject
from lxt_fx.referee.tasks import TASKS
from lxt_fx.referee.tasks.text_task import TextTask
from lxt_fx.rule_table import basic_rules
from lxt_fx.rule_table.tables import TABLES, dpa

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))

CORE_METHODS = (
    "attnlrp", "cp_lrp", "gim", "relp", "gradient", "integrated_gradients", "leave_one_out", "random",
)  # fmt: skip
CORE_TASKS = ("facts", "indirect_object", "next_token")
DECODERS = ("smollm2", "gemma3")
HALF_AS_LONG = Area(steps=4)
"""Half of the steps leave time for more cases, which narrow an interval more."""

ELSEWHERE = ("lxt_package",)
"""Needs an older transformers, in an environment of its own."""


CANDIDATES: Mapping[str, Method] = {
    "values 0.7": TableMethod("values 0.7", dpa(0.15, 0.15, 0.7)),
    "pa_lrp": METHODS["pa_lrp"],
    "pa_lrp; values 0.6": TableMethod(
        "pa_lrp; values 0.6", dpa(0.2, 0.2, 0.6).with_rules("less", basic_rules.POSITION, summary="Positions set aside.")
    ),
}
"""What `search.py` chose on the development part of the prompts by agreement with Shapley values, before any of these was
measured on the test part (none of them was run there, not even `pa_lrp`). A candidate gets a name of its own if
its mean difference to `attnlrp` is two standard errors better for both models on two tasks by one of the two metrics, Holm
corrected over all that the grid compares, and worse by as much nowhere."""


NORMS: Mapping[str, Method] = {
    "q and k norms by gradient": TableMethod(
        "q and k norms by gradient",
        TABLES["attnlrp"]
        .override("model.layers.*.self_attn.q_norm", TABLES["gradient"])
        .override("model.layers.*.self_attn.k_norm", TABLES["gradient"]),
    )
}
"""`attnlrp`, but for the norms of queries and keys, which SmolLM2 has not and Gemma 3 has. The question came up by what the
other grids say of Gemma, so it is asked on the development part of the prompts, which they have not."""


@dataclass(frozen=True, slots=True)
class Grid:
    """What is measured, on which part of the prompts."""

    models: tuple[str, ...]
    methods: tuple[str, ...] | Mapping[str, Method]
    tasks: tuple[str, ...]
    metrics: tuple[str | Metric, ...]
    cases: int
    part: Literal["development", "test"] = "test"


OTHER_METHODS = tuple(name for name in METHODS if name not in {*CORE_METHODS, *ELSEWHERE})
OTHER_TASKS = ("agreement", "answer_span", "greater_than", "sentiment", "needle", "two_hop")
EVERY = (*CORE_METHODS, *OTHER_METHODS)

GRIDS: Mapping[str, Grid] = {
    "core": Grid(DECODERS, CORE_METHODS, CORE_TASKS, (HALF_AS_LONG,), 500),
    "candidates": Grid(
        DECODERS, {"attnlrp": METHODS["attnlrp"], **CANDIDATES}, CORE_TASKS, (HALF_AS_LONG, "shapley_spearman"), 150
    ),
    "norms": Grid(
        ("gemma3",),
        {name: METHODS[name] for name in ("attnlrp", "relp")} | NORMS,
        CORE_TASKS,
        (HALF_AS_LONG,),
        100,
        "development",
    ),
    "methods": Grid(DECODERS, ("attnlrp", *OTHER_METHODS), CORE_TASKS, (HALF_AS_LONG,), 50),
    "tasks": Grid(DECODERS, CORE_METHODS, OTHER_TASKS, (HALF_AS_LONG, "gold_recall"), 50),
    "metrics": Grid(DECODERS, CORE_METHODS, ("facts", "indirect_object"), tuple(METRICS), 50),
    "sentences": Grid(("minilm",), EVERY, ("similarity",), tuple(METRICS), 50),
    "pictures": Grid(("vit_digits", "vit_mosaics", "dino_saliency"), EVERY, ("patches", "quadrants"), tuple(METRICS), 50),
}
PHOTOS_BY = {"dino_saliency": 28}
"""The models that are asked about photos, and the sides in pixels of what is removed at once: two by two patches."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures one grid for one model, or goes on."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("grid", choices=GRIDS)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--cases", type=int, help="fewer, for a first look")
    parser.add_argument("--task", help="one of the tasks alone")
    parser.add_argument("--models", type=Path, default=Path.home() / ".cache" / "lxt_fx", help="where the models lie")
    given = parser.parse_args(arguments)
    grid = GRIDS[given.grid]
    if given.model not in grid.models or given.task not in {None, *grid.tasks}:
        parser.error(f"{given.grid} has the models {', '.join(grid.models)} and the tasks {', '.join(grid.tasks)}")
    found = lxt_fx.bench(
        {given.model: asked(given.model, given.models)},
        methods=grid.methods,
        tasks=[task_of(name, given.model, given.models, grid.part) for name in grid.tasks if given.task in (None, name)],
        metrics=grid.metrics,
        cases=min(given.cases or grid.cases, grid.cases),
        file=given.out,
    )
    print(found)


def asked(name: str, folder: Path) -> Subject | Path:
    """The folder of a model, or the model itself where transformers does not have its class."""
    if name not in PHOTOS_BY:
        return folder / name
    import models  # examples/models.py

    os.environ["LXT_FX_MODELS"] = str(folder)
    return subject(*models.load(name), name=name, unit=PHOTOS_BY[name])


def task_of(name: str, model: str, models: Path, part: str) -> Any:
    """The task, of photos where the model takes these, and of texts a part: `development` are the prompts by which methods
    were chosen."""
    task = TASKS[name]
    if model in PHOTOS_BY:
        return replace(task, source=models / "photos")
    return replace(task, part=part) if isinstance(task, TextTask) else task


if __name__ == "__main__":
    main()
