"""Is relevance in images faithful? Seven methods on three trained vision transformers, their heatmaps and removal curves.

    python benchmarks/vision/vision.py     (--quick: two minutes; --model: one model; --tune: look for better gammas too)

**Explained** is the logit of the predicted class (`digits`, `fashion`), or the mean logit of the pixels that the
model calls salient (`saliency`: DINOv2-S with a decoder; the pixels are chosen once, on the whole photo). **Removed**
are the model's own patches, the most relevant first (MoRF) or the least relevant first (LeRF), in equal steps; a
removed pixel becomes 0, which is the mean colour of ImageNet for `saliency`, the mean grey for `fashion` and middle
grey for `digits`. The area between the two curves, in units of the logit, is the score
(`lxt_fx.perturbation_curves`). Integrated gradients start at the same zero, in 20 steps. Standard errors of
`saliency` are over its 27 photos: the four views of a photo are averaged.

Needs fetched models and data: python3 dev.py models vit_digits vit_fashion fashion dino_saliency photos
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn
from vision_figures import Results, draw_curves, draw_heatmaps

import lxt_fx
from lxt_fx.faithfulness.removal_curves import standard_error, written
from lxt_fx.rule_table import tables

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))
import models  # noqa: E402
from photo_data import as_seen, photo_views  # noqa: E402
from train_vit_digits import digits  # noqa: E402
from train_vit_fashion import CLASSES  # noqa: E402

TABLES = ("attnlrp", "attnlrp_gamma", "cp_lrp", "cp_lrp_gamma")
METHODS = (*TABLES, "gradient", "integrated", "random")
GRADIENT_STEPS = 20
PHOTO_SIDE = 140
"""Pixels; a tenth of a photo is a patch. Its own 224 would take 2.6 times as long."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured: images (at most so many as there are), removal steps, images explained at once."""

    images: int
    steps: int
    batch: int


SIZES = {"digits": Size(450, 16, 50), "fashion": Size(300, 7, 50), "saliency": Size(108, 5, 4)}
QUICK = {"digits": Size(100, 8, 50), "fashion": Size(50, 7, 50), "saliency": Size(8, 2, 4)}


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A model that gives one number for each image, [rows, 1], and images to explain.

    `chosen` [rows, ...] says which number: a class, or a mask of pixels. Images of one photo share their `photo` [rows].
    `said` names what is explained of each image, `colours` turns pixels into what is drawn.
    """

    name: str
    asked: nn.Module
    pixels: Tensor
    chosen: Tensor
    photo: Tensor
    patch: int
    said: Sequence[str]
    shown: Sequence[int]
    colours: Callable[[Tensor], Tensor]

    def rows(self, rows: Tensor) -> Subject:
        """The same with some of its images."""
        return replace(self, pixels=self.pixels[rows], chosen=self.chosen[rows], photo=self.photo[rows])


class ClassLogit(nn.Module):
    """The logit of class `chosen` [rows] of a classifier, [rows, 1]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, chosen: Tensor) -> Tensor:
        return self.model(pixel_values=pixel_values).logits.gather(1, chosen[:, None])


class MaskLogit(nn.Module):
    """The mean logit of the pixels `chosen` [rows, height, width] of a saliency model, [rows, 1]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, chosen: Tensor) -> Tensor:
        return ((self.model(pixel_values) * chosen).sum((1, 2)) / chosen.sum((1, 2)))[:, None]


# Models


@torch.no_grad()
def classifier(name: str, images: Tensor, labels: Tensor, names: Sequence[str], size: Size, low: float) -> Subject:
    """A ViT and held-out images; shown are the first images of the first six classes. `low` is a black pixel."""
    model, _ = models.load(f"vit_{name}")
    images = images[: size.images]
    chosen = model(pixel_values=images).logits.argmax(-1)
    return Subject(
        name, ClassLogit(model).eval(), images, chosen, torch.arange(len(images)), model.config.patch_size,
        [names[row] for row in chosen.tolist()], [int((labels == label).nonzero()[0, 0]) for label in range(6)],
        lambda pixels: (pixels[0] - low) / (pixels.max() - low),
    )  # fmt: skip


def digits_subject(size: Size) -> Subject:
    _, _, images, labels = digits()
    return classifier("digits", images, labels, [str(digit) for digit in range(10)], size, -1.0)


def fashion_subject(size: Size) -> Subject:
    images, labels = models.held_out_fashion()
    return classifier("fashion", images, labels, CLASSES, size, float(images.min()))


@torch.no_grad()
def saliency_subject(size: Size) -> Subject:
    """DINOv2-S with its decoder, and four views of each photo."""
    model, _ = models.load("dino_saliency")
    pixels = torch.cat([photo_views(path, PHOTO_SIDE) for path in models.photos()])[: size.images]
    chosen = torch.cat([model(part) > 0 for part in pixels.split(size.batch)])
    assert bool(chosen.flatten(1).any(1).all())  # the model calls something salient in each of our photos
    shown = [row for row in (0, 16, 44, 76, 80, 88) if row < len(pixels)]
    return Subject(
        "saliency", MaskLogit(model).eval(), pixels, chosen, torch.arange(len(pixels)) // 4, model.config.patch_size,
        ["salient"] * len(pixels), shown, lambda image: as_seen(image).permute(1, 2, 0),
    )  # fmt: skip


SUBJECTS = {"digits": digits_subject, "fashion": fashion_subject, "saliency": saliency_subject}


# Measurement


def relevance(module: nn.Module, pixels: Tensor, chosen: Tensor) -> Tensor:
    """Value * gradient of each pixel, summed over channels: [rows, height, width]."""
    leaf = pixels.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(module(leaf, chosen).sum(), leaf)
    return (pixels * gradient).sum(1)


def integrated(module: nn.Module, pixels: Tensor, chosen: Tensor) -> Tensor:
    """Integrated gradients from 0 (Sundararajan et al. 2017, eq. 1) by the midpoints of 20 steps."""
    parts = [(step + 0.5) / GRADIENT_STEPS for step in range(GRADIENT_STEPS)]
    return torch.stack([relevance(module, part * pixels, chosen) / part for part in parts]).mean(0)


def explained_by(subject: Subject, table: str | lxt_fx.RuleTable, batch: int) -> nn.Module:
    return lxt_fx.transform(subject.asked, (subject.pixels[:batch], subject.chosen[:batch]), rules=table)


def relevances(modules: dict[str, nn.Module], subject: Subject) -> dict[str, Tensor]:
    """By method, [rows, height, width]. `modules` are those of the tables; gradients are the model's own."""
    found = {name: relevance(module, subject.pixels, subject.chosen) for name, module in modules.items()}
    found["gradient"] = relevance(subject.asked, subject.pixels, subject.chosen)
    found["integrated"] = integrated(subject.asked, subject.pixels, subject.chosen)
    found["random"] = torch.rand(found["gradient"].shape)
    return found


def curves(subject: Subject, found: Tensor, size: Size) -> Tensor:
    """MoRF and LeRF [rows, 2, steps + 1]."""
    inputs = {"pixel_values": subject.pixels, "chosen": subject.chosen}
    measured = lxt_fx.perturbation_curves(
        subject.asked, inputs, found, lambda out: out[:, 0],
        removal=lxt_fx.Removal(unit=subject.patch, steps=size.steps, batch=8 * size.batch),
    )  # fmt: skip
    return torch.stack([measured.morf, measured.lerf], dim=1)


def area(found: Tensor) -> Tensor:
    """[rows]: the mean height of LeRF over MoRF, [rows, 2, steps + 1]."""
    return torch.trapezoid(found[:, 1] - found[:, 0], dim=1) / (found.shape[2] - 1)


def by_photo(subject: Subject, areas: Tensor) -> Tensor:
    """The mean over the views of each photo: [photos]."""
    return torch.stack([areas[subject.photo == photo].mean() for photo in subject.photo.unique()])


def measure(subject: Subject, size: Size, progress: Progress) -> dict[str, Tensor]:
    """By method, MoRF and LeRF [rows, 2, steps + 1]."""
    modules = {table: explained_by(subject, table, size.batch) for table in TABLES}
    batches = torch.arange(len(subject.pixels)).split(size.batch)
    found = []
    for rows in progress.track(batches, description=subject.name):
        part = subject.rows(rows)
        found.append({name: curves(part, maps, size) for name, maps in relevances(modules, part).items()})
    return {method: torch.cat([part[method] for part in found]) for method in METHODS}


def tuned(subject: Subject, size: Size, progress: Progress) -> dict[str, Any]:
    """Gammas chosen on the first half of the photos, one view of each, and what they gain on the other half."""
    first = torch.cat([(subject.photo == photo).nonzero()[:1, 0] for photo in subject.photo.unique()])
    half = len(first) // 2
    chosen_on, tested_on = subject.rows(first[:half]), subject.rows(torch.arange(len(subject.pixels))[int(first[half]) :])
    grid = {"conv": [0.0, 0.25, 1.0], "linear": [0.0, 0.05, 0.25]}
    found: dict[str, Any] = {"chosen_on": half, "tested_on": len(tested_on.photo.unique()), "tables": {}}
    for make in progress.track((tables.attnlrp_gamma, tables.cp_lrp_gamma), description=f"{subject.name}: tuning"):
        best = lxt_fx.tune(
            subject.asked, {"pixel_values": chosen_on.pixels, "chosen": chosen_on.chosen}, lambda out: out[:, 0],
            table=make, grid=grid, removal=lxt_fx.Removal(unit=subject.patch, steps=size.steps, batch=4 * size.batch),
            progress=False,
        )  # fmt: skip
        areas = {}
        for name, table in (("plain", make(0.0, 0.0)), ("default", make()), ("tuned", best)):
            module = explained_by(subject, table, size.batch)
            parts = [tested_on.rows(rows) for rows in torch.arange(len(tested_on.pixels)).split(size.batch)]
            measured = [curves(part, relevance(module, part.pixels, part.chosen), size) for part in parts]
            areas[name] = by_photo(tested_on, area(torch.cat(measured)))
        found["tables"][make.__name__] = {
            "grid": {score.said: [score.mean, score.error] for score in best.scores},
            "best": dict(best.best.parameters),
            "area": {name: written(values) for name, values in areas.items()},
            "tuned_less_default": written(areas["tuned"] - areas["default"]),
            "default_less_plain": written(areas["default"] - areas["plain"]),
        }
    return found


# Report


def summary(subject: Subject, found: dict[str, Tensor]) -> Results:
    """By method, the mean area and its standard error, the paired lead of attnlrp_gamma over it, the mean curves."""
    areas = {method: by_photo(subject, area(found[method])) for method in METHODS}
    results: Results = {}
    for method in METHODS:
        lead = areas["attnlrp_gamma"] - areas[method]
        results[method] = {
            "area": [float(areas[method].mean()), standard_error(areas[method])],
            "written": written(areas[method]),
            "gamma_leads_by": written(lead) if method != "attnlrp_gamma" else "",
            "gamma_leads_by_errors": float(lead.mean()) / standard_error(lead) if method != "attnlrp_gamma" else 0.0,
            "curves": found[method].mean(0).tolist(),
        }
    return results


def area_table(subject: Subject, results: Results) -> Table:
    photos = len(subject.photo.unique())
    views = f" of {photos} photos" if photos < len(subject.photo) else ""
    table = Table("method", title=f"{subject.name}: area LeRF - MoRF, {len(subject.photo)} images{views}")
    for heading in ("area ± standard error", "attnlrp_gamma leads by, paired"):
        table.add_column(heading, justify="right")
    for method, row in results.items():
        table.add_row(method, row["written"], row["gamma_leads_by"])
    return table


def tuning_table(name: str, found: dict[str, Any]) -> Table:
    columns = ("table", "best gammas", "gamma 0", "default", "tuned", "tuned - default")
    table = Table(*columns, title=f"{name}: gammas from {found['chosen_on']} images, areas of {found['tested_on']} others")
    for made, row in found["tables"].items():
        best = ", ".join(f"{parameter} {value:g}" for parameter, value in row["best"].items())
        table.add_row(made, best, *row["area"].values(), row["tuned_less_default"])
    return table


def main(
    out: Annotated[Path, typer.Option(help="The folder for vision.json and the pictures.")] = Path("out"),
    quick: Annotated[bool, typer.Option("--quick", help="Fewer images.")] = False,
    names: Annotated[list[str] | None, typer.Option("--model", help="digits, fashion or saliency; all without.")] = None,
    tune: Annotated[bool, typer.Option("--tune", help="Try nine pairs of gammas on half of the images.")] = False,
) -> None:
    """Measure how faithful relevance is in images. Models measured before, in the same folder, stay in the curves."""
    out.mkdir(parents=True, exist_ok=True)
    file, console = out / "vision.json", Console()
    results = json.loads(file.read_text()) if file.exists() else {}
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    for name in names or SUBJECTS:
        start, size = time.perf_counter(), (QUICK if quick else SIZES)[name]
        torch.manual_seed(0)
        subject = SUBJECTS[name](size)
        with Progress(*columns, console=console) as progress:
            found = summary(subject, measure(subject, size, progress))
            gammas = tuned(subject, size, progress) if tune else None
        draw_heatmaps(subject, heatmaps(subject), out / f"vision_{name}.png")
        seconds = time.perf_counter() - start
        console.print(area_table(subject, found), *([tuning_table(name, gammas)] if gammas else []), f"{seconds:.0f} s")
        results[name] = {"images": len(subject.pixels), "methods": found, "tuning": gammas, "seconds": seconds}
        file.write_text(json.dumps(results, indent=1))
    draw_curves({name: row["methods"] for name, row in results.items()}, out / "vision_curves.png")
    console.print(f"wrote {file}, {out / 'vision_curves.png'} and a picture of each model")


def heatmaps(subject: Subject) -> dict[str, Tensor]:
    """By method, the maps of the images that are shown."""
    shown = subject.rows(torch.tensor(list(subject.shown)))
    modules = {table: explained_by(shown, table, len(shown.pixels)) for table in TABLES}
    return relevances(modules, shown)


if __name__ == "__main__":
    typer.run(main)
