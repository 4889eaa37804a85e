"""Ask SmolLM2 about a paragraph, and see which words of it made the answer.

python examples/models.py fetch smollm2
python examples/demo_smollm2.py ~/.cache/lxt_fx/smollm2 --out out
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich import print as rich_print
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import lxt_fx

PARAGRAPH = (
    "The lighthouse on Grey Island was built in 1872 by Scottish fishermen. Its keeper, Martha Olsen, painted the door "
    "green. In winter the island is reached only by sledge."
)
QUESTION = "What colour is the door?"
ANSWER = "The door is"


def main(
    model_folder: Annotated[Path, typer.Argument(help="SmolLM2, as examples/models.py fetched it.")],
    out: Annotated[Path, typer.Option(help="The folder for the heatmap.")] = Path("out"),
) -> tuple[float, Tensor]:
    """Explain one answer of SmolLM2-135M-Instruct.

    Returns the largest difference between the logits of the model and of the explained model, and the relevance [tokens].
    """
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    prompt = f"{PARAGRAPH}\n\nQuestion: {QUESTION}\nAnswer: {ANSWER}"
    print(f"{prompt}{continuation(model, tokenizer, prompt)}\n")

    start = time.perf_counter()
    explained = lxt_fx.transform(model)
    print(f"transform: {time.perf_counter() - start:.1f} s, {len(explained.graph.nodes)} nodes")

    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        theirs, ours = model(input_ids=ids).logits, explained(inputs_embeds=lxt_fx.embed(explained, ids)).logits
    difference = float((ours - theirs).abs().max())
    print(f"forward: largest difference {difference:.2g}{', bit-equal' if torch.equal(ours, theirs) else ''}")

    explanation = lxt_fx.explain(explained, tokenizer, prompt)
    print_seconds(model, explained, ids)
    print(lxt_fx.show(explained, module="model.layers.0"))
    rich_print("", explanation, "")

    out.mkdir(parents=True, exist_ok=True)
    explanation.to_html(out / "smollm2.html")
    explanation.to_png(out / "smollm2.png")
    print(f"wrote {out / 'smollm2.html'} and {out / 'smollm2.png'}")
    return difference, explanation.relevance


def continuation(model: Any, tokenizer: Any, prompt: str) -> str:
    """What the model writes next, to the end of its line."""
    inputs = tokenizer(prompt, return_tensors="pt")
    written = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0, inputs.input_ids.shape[1] :]
    return str(tokenizer.decode(written, skip_special_tokens=True)).split("\n")[0]


def print_seconds(model: Any, explained: lxt_fx.Explained, ids: Tensor) -> None:
    """The time of an explanation beside that of a plain forward pass and of plain input * gradient."""

    def forward() -> None:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)

    def relevance(module: Any) -> None:
        embedded = lxt_fx.embed(module, ids)
        logits = module(inputs_embeds=embedded, use_cache=False).logits
        torch.autograd.grad(logits[0, -1].max(), embedded)

    plain, gradient, ours = medians(forward, lambda: relevance(model), lambda: relevance(explained))
    print(
        f"explanation: {ours:.2f} s for {ids.shape[1]} tokens, {ours / plain:.1f} plain forwards ({plain:.2f} s), "
        f"{ours / gradient:.2f} x plain input * gradient ({gradient:.2f} s)"
    )


def medians(*functions: Callable[[], None], rounds: int = 7) -> list[float]:
    """The median seconds of each function. They take turns, so that a busy moment of the machine strikes all."""
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, found in zip(functions, seconds, strict=True):
            start = time.perf_counter()
            function()
            found.append(time.perf_counter() - start)
    return [statistics.median(found) for found in seconds]


if __name__ == "__main__":
    typer.run(main)
