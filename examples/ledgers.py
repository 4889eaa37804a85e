"""Where did the relevance go? The ledgers of four trained models on real inputs, and whether they close.

python examples/models.py fetch smollm2 gemma3 minilm vit_digits
python examples/ledgers.py --out out
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import lxt_fx
import models
from explain_minilm import OTHERS, SENTENCE
from similarity import encode, similarity_to
from train_vit_digits import digits

PROMPT = "The capital of France is"
TEXT, WORDS = "The bees flew back to the hive with their", ("honey", "money")
DIGIT = 7
MODELS = ("smollm2", "gemma3", "minilm", "vit_digits")
DOUBLE = ("minilm", "vit_digits")
"""Small enough to be audited in float64 as well."""


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """What is audited: the inputs, the target, and the tokenizer that names the tokens."""

    inputs: Any
    target: Any
    tokenizer: Any = None


def case(name: str, model: Any, tokenizer: Any) -> Case:
    """A prompt and its top next token, a text and a contrast of two next words, two sentences, or a digit."""
    match name:
        case "smollm2":
            return Case(tokenizer(PROMPT, return_tensors="pt"), None, tokenizer)
        case "gemma3":
            return Case(tokenizer(TEXT, return_tensors="pt"), WORDS, tokenizer)
        case "minilm":
            target = similarity_to(encode(model, tokenizer, OTHERS[0]))
            return Case(tokenizer(SENTENCE, return_tensors="pt"), target, tokenizer)
        case "vit_digits":
            _, _, images, labels = digits()
            image = images[(labels == DIGIT).nonzero()[0]]
            return Case({"pixel_values": image.to(model.dtype)}, None)
    raise KeyError(name)


def main(
    only: Annotated[list[str] | None, typer.Option(help="One of the models; may be repeated. All by default.")] = None,
    rules: Annotated[str, typer.Option(help="The rule table.")] = "attnlrp",
    out: Annotated[Path | None, typer.Option(help="The folder for the waterfalls. None by default.")] = None,
) -> dict[str, lxt_fx.Ledger]:
    """Audit each model, print its ledger, and check that it closes. Returns the ledgers by model and dtype.

    Raises LedgerError where a ledger does not close.
    """
    unknown = [name for name in only or () if name not in MODELS]
    if unknown:
        raise typer.BadParameter(f"no {', '.join(unknown)}; there are {', '.join(MODELS)}")
    ledgers: dict[str, lxt_fx.Ledger] = {}
    for name in only or MODELS:
        model, tokenizer = models.load(name)
        ledger = ledgers[f"{name}, float32"] = audit(model, case(name, model, tokenizer), rules)
        print(f"{name}\n\n{ledger}")
        if any(source.is_tokens for source in ledger.sources):
            print(ledger.landing(0))
        if out:
            out.mkdir(parents=True, exist_ok=True)
            ledger.to_png(out / f"ledger_{name}.png")
            print(f"\nwrote {out / f'ledger_{name}.png'}\n")
        if name in DOUBLE:
            ledgers[f"{name}, float64"] = audit(model.double(), case(name, model, tokenizer), rules)
    print(closing(ledgers))
    return ledgers


def audit(model: Any, given: Case, rules: str) -> lxt_fx.Ledger:
    """The ledger, once it closes."""
    explained = lxt_fx.transform(model, rules=rules)
    ledger = lxt_fx.audit(explained, given.inputs, given.target, tokenizer=given.tokenizer)
    ledger.check()
    return ledger


def closing(ledgers: dict[str, lxt_fx.Ledger]) -> str:
    """One line for each ledger."""
    lines = [f"{'':<22}{'explained':>10}{'at the input':>14}{'residual':>10}{'worst node':>12}"]
    for name, ledger in ledgers.items():
        residual, worst = missing(ledger)
        value, arrived = float(ledger.value), float(ledger.relevance)
        lines.append(f"{name:<22}{value:>10.4f}{arrived:>14.4f}{residual:>10.1e}{worst:>12.1e}")
    return "\n".join(lines)


def missing(ledger: lxt_fx.Ledger) -> tuple[float, float]:
    """The residual, and the largest amount of one node that no rule accounts for, relative to the largest relevance."""
    scale = ledger.scale()
    kept = [entry.amount.abs() / scale for entry in ledger.entries if entry.cause is lxt_fx.Cause.UNACCOUNTED]
    return float((ledger.residual.abs() / scale).max()), float(torch.stack(kept).max())


if __name__ == "__main__":
    typer.run(main)
