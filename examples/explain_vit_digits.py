"""Which pixels make a small vision transformer read a digit, and which tell it from the runner-up?

python examples/models.py fetch vit_digits
python examples/explain_vit_digits.py --out out
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from matplotlib.figure import Figure
from torch import Tensor

import lxt_fx
import models
from train_vit_digits import digits


def main(out: Annotated[Path, typer.Option(help="The folder for the picture.")] = Path("out")) -> tuple[float, Tensor]:
    """Draw ten held-out digits, the pixels that speak for the class, and those that speak for it and not the runner-up.

    Returns the largest difference between the model's logits and the explained model's, and the relevance [10, 2, 8, 8].
    """
    out.mkdir(parents=True, exist_ok=True)
    model, _ = models.load("vit_digits")
    explained = lxt_fx.transform(model)
    _, _, images, labels = digits()
    chosen = images[[int((labels == digit).nonzero()[0, 0]) for digit in range(10)]]
    with torch.no_grad():
        logits = model(pixel_values=chosen).logits
        difference = float((explained(pixel_values=chosen).logits - logits).abs().max())
    best = logits.topk(2).indices
    print(f"forward: largest difference {difference:.2g}; read as {best[:, 0].tolist()}, or as {best[:, 1].tolist()}")

    targets = [[first, (first, second)] for first, second in best.tolist()]
    explanations = lxt_fx.explain(explained, None, chosen, targets)
    relevance = torch.stack([explanation.relevance for explanation in explanations])
    draw(chosen[:, 0], best, relevance, out / "vit_digits.png")
    print(f"wrote {out / 'vit_digits.png'}")
    return difference, relevance


def draw(images: Tensor, best: Tensor, relevance: Tensor, path: Path) -> None:
    """A column for each image [8, 8]: itself, then its two heatmaps, red for and blue against."""
    figure = Figure(figsize=(len(images), 3.6), layout="constrained")
    panels = figure.subplots(3, len(images))
    for column, (image, (first, second), maps) in enumerate(zip(images, best.tolist(), relevance, strict=True)):
        panels[0, column].imshow(image.numpy(), cmap="gray_r")
        for row, heatmap in enumerate(maps, start=1):
            strongest = float(heatmap.abs().max())
            panels[row, column].imshow(heatmap.numpy(), cmap="RdBu_r", vmin=-strongest, vmax=strongest)
        panels[1, column].set_title(f"{first}", fontsize=9)
        panels[2, column].set_title(f"{first}, not {second}", fontsize=9)
    for panel in panels.flat:
        panel.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=160)


if __name__ == "__main__":
    typer.run(main)
