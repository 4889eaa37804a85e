"""Which words of a sentence make a BERT sentence encoder (MiniLM) call it similar to another one?

python examples/models.py fetch minilm
python examples/explain_minilm.py --out out
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

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

    Returns the largest difference between the model's output and the explained model's, and the relevance [2, tokens].
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
        explanation = lxt_fx.explain(explained, tokenizer, SENTENCE, target=similarity_to(encode(model, tokenizer, other)))
        print(f"\nto: {other}")
        rich_print(explanation)
        explanation.to_png(out / f"minilm_{number}.png")
        relevance.append(explanation.relevance)
    print(f"wrote {out / 'minilm_1.png'} and {out / 'minilm_2.png'}")
    return difference, torch.stack(relevance)


@torch.no_grad()
def encode(model: Any, tokenizer: Any, sentence: str) -> Tensor:
    """The sentence's embedding [hidden], of length 1: the mean of its tokens."""
    mean = model(**tokenizer(sentence, return_tensors="pt")).last_hidden_state[0].mean(dim=0)
    return mean / mean.norm()


def similarity_to(other: Tensor) -> Callable[[Any], Tensor]:
    """The target: the cosine similarity with the embedding `other`."""

    def similarity(output: Any) -> Tensor:
        mean = output.last_hidden_state[0].mean(dim=0)
        # The length is held constant, as LRP does in every norm. By its plain gradient, all relevance would cancel: a
        # longer vector is no more similar.
        return mean @ other / mean.norm().detach()

    return similarity


if __name__ == "__main__":
    typer.run(main)
