"""Why does Gemma 3 go on with this word and not with that one? Two texts, under two tables of rules.

    python examples/models.py fetch gemma3
    python examples/explain_gemma3.py --out out

Gemma rests its attention on <bos> where it has nothing to look at. attnlrp passes relevance through the attention weights
and so speaks of that too, often strongly; cp_lrp holds the weights constant and speaks only of what was attended to.
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

TEXTS = (  # a text, the word that comes next, another one
    ("The bees flew back to the hive with their", "honey", "money"),
    ("The Colosseum stands in the city of", "Rome", "Paris"),
)


def main(out: Annotated[Path, typer.Option(help="The folder for the heatmaps.")] = Path("out")) -> tuple[float, Tensor]:
    """Explain the logit of one word less that of the other.

    Returns the largest difference between the model's logits and those of the explained models, and all relevance.
    """
    out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = models.load("gemma3")
    differences, relevance = [], []
    for table in ("attnlrp", "cp_lrp"):
        explained = lxt_fx.transform(model, rules=table)
        for text, word, other in TEXTS:
            ids = tokenizer(text, return_tensors="pt").input_ids
            with torch.no_grad():
                ours = explained(inputs_embeds=lxt_fx.embed(explained, ids)).logits
                differences.append(float((ours - model(input_ids=ids).logits).abs().max()))
            explanation = lxt_fx.explain(explained, tokenizer, text, target=(word, other))
            rich_print("", explanation)
            explanation.to_png(out / f"gemma3_{word}_{table}.png")
            relevance.append(explanation.relevance)
    print(f"\nforward: largest difference {max(differences):.2g}; wrote {out}/gemma3_*.png")
    return max(differences), torch.cat(relevance)


if __name__ == "__main__":
    typer.run(main)
