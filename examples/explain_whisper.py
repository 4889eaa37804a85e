"""Which part of a sound made Whisper write a word? An encoder-decoder: relevance goes to the audio and to the words before.

python examples/models.py fetch whisper voices
python examples/explain_whisper.py --out out
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure
from torch import Tensor

import lxt_fx
import models

CLIP = "front left"
FRAMES_A_SECOND = 100
SMOOTH = 5
"""Frames that are averaged in the picture."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word that Whisper wrote: the relevance of each audio frame [frames] and of each token before it."""

    text: str
    logit: float
    audio: Tensor
    before: list[tuple[str, float]]


def main(out: Annotated[Path, typer.Option(help="The folder for the picture.")] = Path("out")) -> tuple[float, Tensor]:
    """Explain each word that Whisper hears in one clip.

    Returns the largest difference between the model's logits and the explained model's, and the relevance of the audio
    [words, frames].
    """
    out.mkdir(parents=True, exist_ok=True)
    model, processor = models.load("whisper")
    sound = dict(models.voice_clips())[CLIP]
    features = processor(sound.numpy(), sampling_rate=16_000, return_tensors="pt").input_features
    ids = heard(model, processor, features)

    explained = lxt_fx.transform(model)
    with torch.no_grad():
        theirs = model(input_features=features, decoder_input_ids=ids).logits
        ours = explained(input_features=features, decoder_inputs_embeds=lxt_fx.embed(explained, ids)).logits
    difference = float((ours - theirs).abs().max())
    print(f"forward: largest difference {difference:.2g}")

    words = explain_words(explained, processor.tokenizer, features, ids)
    seconds = len(sound) / 16_000
    for word in words:
        print_word(word, seconds)
    draw(features[0], words, seconds, out / "whisper.png")
    print(f"wrote {out / 'whisper.png'}")
    return difference, torch.stack([word.audio for word in words])


def heard(model: Any, processor: Any, features: Tensor) -> Tensor:
    """The ids [1, tokens] of the decoder: the start tokens, what Whisper wrote, and the end token."""
    start = [model.config.decoder_start_token_id, model.generation_config.no_timestamps_token_id]
    written = processor.tokenizer.decode(model.generate(features, max_new_tokens=12)[0], skip_special_tokens=True)
    text = processor.tokenizer.encode(written, add_special_tokens=False)
    return torch.tensor([[*start, *text, model.config.eos_token_id]])


def explain_words(explained: lxt_fx.Explained, tokenizer: Any, features: Tensor, ids: Tensor) -> list[Word]:
    """One explanation for each token of `ids` after the two start tokens, all from one forward pass."""
    audio, decoder = features.clone().requires_grad_(True), lxt_fx.embed(explained, ids)
    logits = explained(input_features=audio, decoder_inputs_embeds=decoder).logits
    tokens = [tokenizer.decode(token) for token in ids[0]]
    words = []
    for position in range(2, len(tokens)):
        value = logits[0, position - 1, ids[0, position]]
        by_audio, by_decoder = torch.autograd.grad(value, (audio, decoder), retain_graph=True)
        before = (decoder * by_decoder).sum(dim=-1)[0, :position].tolist()
        heat = (audio * by_audio).sum(dim=1)[0].detach()
        words.append(Word(tokens[position], float(value.detach()), heat, list(zip(tokens, before, strict=False))))
    return words


def print_word(word: Word, seconds: float) -> None:
    inside = word.audio[: int(seconds * FRAMES_A_SECOND)]
    loudest = smooth(inside).argmax() / FRAMES_A_SECOND
    before = "  ".join(f"{token.strip()} {relevance:+.2f}" for token, relevance in word.before)
    print(
        f"{word.text.strip():<16} logit {word.logit:5.2f}   audio {inside.sum():+.2f}, most at {loudest:.2f} s   "
        f"silence after it {word.audio[len(inside) :].sum():+.2f}   {before}"
    )


def smooth(frames: Tensor) -> Tensor:
    """The mean of each frame and its neighbours, of relevance [frames] or [words, frames]."""
    return torch.nn.functional.avg_pool1d(frames.view(1, -1, frames.shape[-1]), SMOOTH, 1, SMOOTH // 2).view(frames.shape)


def draw(features: Tensor, words: list[Word], seconds: float, path: Path) -> None:
    """The sound as Whisper takes it, and below it the relevance of every moment for each token that was written."""
    count = int(seconds * FRAMES_A_SECOND)
    time = [frame / FRAMES_A_SECOND for frame in range(count)]
    figure = Figure(figsize=(7, 1.2 * (len(words) + 1)), layout="constrained")
    panels = figure.subplots(len(words) + 1, 1, sharex=True)
    panels[0].imshow(features[:, :count].numpy(), origin="lower", aspect="auto", cmap="gray_r", extent=(0, seconds, 0, 80))
    panels[0].set_ylabel("mel")
    for panel, word in zip(panels[1:], words, strict=True):
        heat = smooth(word.audio[:count]).numpy()
        panel.fill_between(time, heat.clip(min=0), color="#b71824", linewidth=0)
        panel.fill_between(time, heat.clip(max=0), color="#1762b6", linewidth=0)
        panel.axhline(0, color="#c9ced6", linewidth=0.6)
        panel.set_ylabel(word.text.strip(), rotation=0, horizontalalignment="right")
        panel.set(yticks=[])
        panel.spines[["top", "right", "left"]].set_visible(False)
    panels[-1].set_xlabel("seconds")
    figure.savefig(path, dpi=160)


if __name__ == "__main__":
    typer.run(main)
