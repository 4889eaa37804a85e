"""What in a story makes Gemma 3 go on as it does? And what makes it prefer one word to another?

python examples/models.py fetch gemma3
python examples/explain_gemma3.py --out out
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich import print as rich_print
from torch import Tensor

import lxt_fx
import models

STORY = (
    "Anna put the red key into the drawer and the blue key into her pocket. An hour later she wanted to open the garden "
    "gate with the blue key, so she took it out of her"
)


def main(out: Annotated[Path, typer.Option(help="The folder for the heatmaps.")] = Path("out")) -> tuple[float, Tensor]:
    """Explain the next word of a story, then why it is that word and not another.

    Returns the largest difference between the model's logits and the explained model's, and the relevance [2, tokens].
    """
    out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = models.load("gemma3")
    explained = lxt_fx.transform(model)
    ids = tokenizer(STORY, return_tensors="pt").input_ids
    with torch.no_grad():
        theirs = model(input_ids=ids).logits
        ours = explained(inputs_embeds=lxt_fx.embed(explained, ids)).logits
    difference = float((ours - theirs).abs().max())
    print(f"forward: largest difference {difference:.2g}")

    word = lxt_fx.explain(explained, tokenizer, STORY)
    contrast = lxt_fx.explain(explained, tokenizer, STORY, target=("pocket", "drawer"))
    for name, explanation in (("word", word), ("contrast", contrast)):
        rich_print("", explanation)
        explanation.to_png(out / f"gemma3_{name}.png")
    print(f"wrote {out / 'gemma3_word.png'} and {out / 'gemma3_contrast.png'}")
    return difference, torch.stack([word.relevance, contrast.relevance])


if __name__ == "__main__":
    typer.run(main)
