"""Which neurons of a sentence encoder (MiniLM) make it call two sentences similar, and which words do they read?

python examples/models.py fetch minilm
python examples/neurons_minilm.py --out out
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich import print as rich_print

import lxt_fx
import models
from explain_minilm import OTHERS, SENTENCE


def main(
    out: Annotated[Path, typer.Option(help="The folder for the heatmaps.")] = Path("out"),
) -> list[lxt_fx.TopUnits]:
    """For a sentence and two others, the neurons and heads that make it similar to either. Returns the neurons."""
    out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = models.load("minilm")
    explained = lxt_fx.transform(model)
    found = []
    for number, other in enumerate(OTHERS, start=1):
        pair = (SENTENCE, other)
        latent = lxt_fx.latent(explained, pair, processor=tokenizer)
        found.append(latent.top(8))
        rich_print("", latent, found[-1], latent.top(4, "attention.*.heads"))
        best = found[-1].found[0]
        share = lxt_fx.conditional(explained, pair, {best.place: best.unit}, processor=tokenizer)
        rich_print(share)
        share.to_png(out / f"neurons_minilm_{number}.png")
    return found


if __name__ == "__main__":
    typer.run(main)
