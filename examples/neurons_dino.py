"""What does a neuron of a vision transformer (DINOv2-S) look for? The photos and patches that make it large, those in which
it mattered for the answer, and a picture made for it.

python examples/models.py fetch dino_saliency photos
python examples/neurons_dino.py --out out
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from rich import print as rich_print
from torch import Tensor

import lxt_fx
import models

PLACE = "mlp.10.neurons"


def main(
    out: Annotated[Path, typer.Option(help="The folder for what is found.")] = Path("out"),
    count: Annotated[int, typer.Option(help="How many neurons.")] = 3,
    steps: Annotated[int, typer.Option(help="Steps of the gradient ascent.")] = 96,
) -> list[lxt_fx.Maximised]:
    """Read the photos for the neurons that mattered most for how salient the first one is. Returns the pictures made for
    them."""
    out.mkdir(parents=True, exist_ok=True)
    model, processor = models.load("dino_saliency")
    photos = models.photos()
    explained = lxt_fx.transform(model, kwargs=dict(processor(Image.open(photos[0]).convert("RGB"), return_tensors="pt")))
    neurons = lxt_fx.latent(explained, photos[0], saliency, PLACE, processor=processor).top(count, PLACE)
    rich_print(neurons)
    found = lxt_fx.corpus(
        explained, processor, photos, PLACE, units=neurons[PLACE], target=saliency, folder=out / "neurons_dino", top=4
    )
    made = []
    for one in neurons.found:
        rich_print("", found.unit(PLACE, one.unit))
        made.append(lxt_fx.maximise(explained, PLACE, one.unit, processor=processor, seeds=2, steps=steps))
        rich_print(made[-1])
        (out / f"neuron_{one.unit}.html").write_text(f"{found.unit(PLACE, one.unit)._repr_html_()}{made[-1]._repr_html_()}")
    return made


def saliency(output: Any) -> Tensor:
    """How much each picture draws the eye, [batch]."""
    return output.mean((1, 2))


if __name__ == "__main__":
    typer.run(main)
