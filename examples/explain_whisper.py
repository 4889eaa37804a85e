"""Which part of a sound made Whisper write a word? An encoder-decoder: relevance goes to the audio and to the words before.

python examples/models.py fetch whisper voices
python examples/explain_whisper.py --out out
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich import print as rich_print
from torch import Tensor

import lxt_fx
import models

CLIP = "front left"


def main(out: Annotated[Path, typer.Option(help="The folder for the heatmaps.")] = Path("out")) -> tuple[float, Tensor]:
    """Explain each word that Whisper hears in one clip.

    Returns the largest difference between the model's logits and the explained model's, and the relevance of the audio
    [tokens, frames].
    """
    out.mkdir(parents=True, exist_ok=True)
    model, processor = models.load("whisper")
    sound = dict(models.voice_clips())[CLIP].numpy()
    features = processor(sound, sampling_rate=16_000, return_tensors="pt").input_features
    written = model.generate(features, max_new_tokens=12)

    explained = lxt_fx.transform(model)
    difference = forward_difference(model, explained, features, written)
    print(f"forward: largest difference {difference:.2g}\n")

    explanation = lxt_fx.answer_relevance(explained, processor, sound, written)
    rich_print(explanation)
    explanation.to_html(out / "whisper.html")
    explanation.to_png(out / "whisper.png")
    print(f"\nwrote {out / 'whisper.html'} and {out / 'whisper.png'}")
    return difference, explanation.part("sound").values


@torch.no_grad()
def forward_difference(model: Any, explained: lxt_fx.Explained, features: Tensor, ids: Tensor) -> float:
    """The largest difference between the logits of the model and of the explained model."""
    theirs = model(input_features=features, decoder_input_ids=ids).logits
    ours = explained(input_features=features, decoder_inputs_embeds=lxt_fx.embed(explained, ids)).logits
    return float((ours - theirs).abs().max())


if __name__ == "__main__":
    typer.run(main)
