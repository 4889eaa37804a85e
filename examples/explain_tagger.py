"""Why does a grammar checker (DistilBERT) want to replace this word? A token classifier with 213 edits as classes.

python examples/models.py fetch tagger
python examples/explain_tagger.py --out out
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

WRONG = (  # a sentence, its wrong word, what it should be
    ("My brother is taller then me .", "then", "than"),
    ("They left there coats in the hall .", "there", "their"),
    ("I think it is to late to go home .", "to", "too"),
)


def main(out: Annotated[Path, typer.Option(help="The folder for the heatmaps.")] = Path("out")) -> tuple[float, Tensor]:
    """Explain one edit in each of three sentences: the logit of the edit less that of keeping the word.

    Returns the largest difference between the model's logits and the explained model's, and the relevance of all tokens.
    """
    out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = models.load("tagger")
    explained = lxt_fx.transform(model)
    differences, relevance = [], []
    for sentence, wrong, better in WRONG:
        inputs = tokenizer(sentence, return_tensors="pt")
        with torch.no_grad():
            logits = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).logits
            ours = explained(inputs_embeds=lxt_fx.embed(explained, inputs.input_ids)).logits
        differences.append(float((ours - logits).abs().max()))

        position = inputs.char_to_token(sentence.index(wrong))
        print(f"\n{sentence}   {wrong}: {model.config.id2label[int(logits[0, position].argmax())]}")
        edit = lxt_fx.Target.at(position, f"$REPLACE_{better}", minus="$KEEP")
        explanation = lxt_fx.explain(explained, tokenizer, sentence, edit)
        rich_print(explanation)
        explanation.to_png(out / f"tagger_{wrong}_{better}.png")
        relevance.append(explanation.relevance)
    print(f"\nforward: largest difference {max(differences):.2g}; wrote {out}/tagger_*.png")
    return max(differences), torch.cat(relevance)


if __name__ == "__main__":
    typer.run(main)
