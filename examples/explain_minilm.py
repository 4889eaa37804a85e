"""Which words of two sentences make a BERT sentence encoder (MiniLM) call them similar?

python examples/models.py fetch minilm
python examples/explain_minilm.py --out out
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

SENTENCE = "A man sits in the park and plays the guitar."
OTHERS = ("Someone makes music on six strings.", "We had lunch on the grass under the trees.")


def main(out: Annotated[Path, typer.Option(help="The folder for the heatmaps.")] = Path("out")) -> tuple[float, Tensor]:
    """Explain the similarity of one sentence to two others, which rests on different words.

    Returns the largest difference between the model's output and the explained model's, and the relevance of
    the sentence [2, tokens].
    """
    out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = models.load("minilm")
    explained = lxt_fx.transform(model)
    inputs = tokenizer(SENTENCE, return_tensors="pt")
    with torch.no_grad():
        theirs = model(input_ids=inputs.input_ids).last_hidden_state
        ours = explained(inputs_embeds=lxt_fx.embed(explained, inputs.input_ids)).last_hidden_state
    difference = float((ours - theirs).abs().max())
    print(f"forward: largest difference {difference:.2g}")

    relevance = []
    for number, other in enumerate(OTHERS, start=1):
        explanation = lxt_fx.explain(explained, tokenizer, (SENTENCE, other))
        rich_print("", explanation)
        explanation.to_png(out / f"minilm_{number}.png")
        relevance.append(explanation.relevance)
    print(f"\nwrote {out / 'minilm_1.png'} and {out / 'minilm_2.png'}")
    return difference, torch.stack(relevance)


if __name__ == "__main__":
    typer.run(main)
