"""Draw one text with three scales: docs/views.png.

python examples/models.py fetch smollm2
python examples/views_smollm2.py ~/.cache/lxt_fx/smollm2 --out docs/views.png
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

import lxt_fx

TEXT = "The capital of France is"
WIDTH = 5.2


def main(
    model_folder: Annotated[Path, typer.Argument(help="SmolLM2, as examples/models.py fetched it.")],
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("views.png"),
) -> None:
    """Up to the largest relevance, up to the 99 % quantile, and without the last token."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    explanation = lxt_fx.explain(model, AutoTokenizer.from_pretrained(model_folder), TEXT)
    with tempfile.TemporaryDirectory() as folder:
        drawn = [
            *explanation.to_png(Path(folder, "max.png"), width=WIDTH, scale="max"),
            *explanation.to_png(Path(folder, "robust.png"), width=WIDTH),
            *explanation.to_png(Path(folder, "mute.png"), width=WIDTH, mute="last"),
        ]
        pictures = [Image.open(path).convert("RGB") for path in drawn]
    whole = Image.new("RGB", (pictures[0].width, sum(picture.height for picture in pictures)), "white")
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height
    whole.save(out, optimize=True)


if __name__ == "__main__":
    typer.run(main)
