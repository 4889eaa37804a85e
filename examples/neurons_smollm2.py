"""Which neurons of SmolLM2 know that Paris is in France? What else makes them large, what do they write, and what does the
model answer without them?

python examples/models.py fetch smollm2 texts
python examples/neurons_smollm2.py --out out
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

PROMPT, OTHER = "The capital of France is", "The capital of Germany is"
ANSWER, INSTEAD = " Paris", " Berlin"
PLACES = "mlp.*.neurons"


def main(
    out: Annotated[Path, typer.Option(help="The folder for what is found.")] = Path("out"),
    count: Annotated[int, typer.Option(help="How many neurons.")] = 20,
    paragraphs: Annotated[int, typer.Option(help="How many paragraphs of Wikipedia are read.")] = 300,
) -> tuple[Tensor, Tensor]:
    """Find the neurons, read a corpus for them, and switch them off.

    Returns the logits of both capitals, [2], after either prompt [2, 2]: of the model, and without these neurons.
    """
    out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = models.load("smollm2")
    explained = lxt_fx.transform(model)

    latent = lxt_fx.latent(explained, PROMPT, (ANSWER, INSTEAD), processor=tokenizer)
    rich_print(latent, "\nThe neurons that speak most for Paris and against Berlin, behind the first token:")
    neurons = latent.top(count, PLACES, positions=slice(1, None))  # what rests on the first token says nothing of France
    rich_print(neurons)

    first = neurons.found[:4]
    shares = lxt_fx.conditional(explained, PROMPT, [{one.place: one.unit} for one in first], ANSWER, processor=tokenizer)
    rich_print("", shares)
    shares.to_png(out / "neurons_smollm2.png")

    texts = [text for _, text in models.wiki_paragraphs()[:paragraphs]]
    found = lxt_fx.corpus(
        explained, tokenizer, texts, list(neurons), units=dict(neurons), folder=out / "neurons_smollm2", top=4
    )
    for one in first:
        rich_print("", found.unit(one.place, one.unit))

    before = capitals(explained, tokenizer)
    with lxt_fx.steer(explained, lxt_fx.edits.scale(0).of(neurons)):
        after = capitals(explained, tokenizer)
    print(f"\nlogits of{ANSWER} and{INSTEAD}, before and after {count} of 46,080 neurons are switched off:")
    for prompt, *numbers in zip((PROMPT, OTHER), before.tolist(), after.tolist(), strict=True):
        print(f"  {prompt} ...  {numbers[0][0]:.1f} {numbers[0][1]:.1f}  ->  {numbers[1][0]:.1f} {numbers[1][1]:.1f}")
    print(f"  the model writes {written(model, tokenizer)!r},")
    with lxt_fx.steer(model, lxt_fx.edits.scale(0).of(neurons), explained=explained):
        print(f"  and without them {written(model, tokenizer)!r}")
    return before, after


def capitals(explained: lxt_fx.Explained, tokenizer: object) -> Tensor:
    """The logits of both capitals after either prompt, [prompts, capitals]."""
    asked = [lxt_fx.explain(explained, tokenizer, prompt, [ANSWER, INSTEAD]) for prompt in (PROMPT, OTHER)]
    return torch.tensor([[number.value for number in each.numbers] for each in asked])


def written(model: torch.nn.Module, tokenizer: object) -> str:
    """How the model goes on."""
    inputs = tokenizer(PROMPT, return_tensors="pt")  # type: ignore[operator]
    ids = model.generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=0)  # type: ignore[operator]
    return str(tokenizer.decode(ids[0, inputs.input_ids.shape[1] :]))  # type: ignore[attr-defined]


if __name__ == "__main__":
    typer.run(main)
