"""Where `attnlrp` chooses otherwise than LXT: the division that normalises a router's weights, and a final soft cap.

    python benchmarks/faithfulness/choices.py [--inputs 200]

Prints, for tiny random models (the golden ones of the tests, tokens drawn at random): the sum of relevance over the logit,
and the area between the curves of the logit when tokens are removed (embedding set to zero) in order of relevance, least
relevant first less most relevant first. A larger area means that relevance ranks tokens better. Differences are paired.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from golden_cases import load_golden

import lxt_fx

CHOICES = {"qwen3_moe-attn": "router", "gemma3cap-attn": "soft cap"}
TOKENS = 16


def relevance_of(explained: lxt_fx.Explained, embeds: Tensor) -> tuple[Tensor, float, int]:
    """Relevance [tokens] of the top logit at the last position, its value and its token."""
    leaf = embeds.clone().requires_grad_()
    logits = explained(inputs_embeds=leaf).logits[0, -1]
    token = int(logits.argmax())
    logits[token].backward()
    assert leaf.grad is not None
    return (leaf * leaf.grad).detach().sum(-1)[0], float(logits[token].detach()), token


def area(model: nn.Module, embeds: Tensor, relevance: Tensor, token: int) -> float:
    """Mean logit while the least relevant tokens go first, less the mean while the most relevant go first. The last token,
    whose logit is explained, stays."""
    order = relevance[:-1].argsort()
    means = []
    for removal in (order, order.flip(0)):
        steps = embeds.repeat(len(removal), 1, 1)
        for count in range(1, len(removal)):
            steps[count, removal[:count]] = 0
        with torch.no_grad():
            means.append(model(inputs_embeds=steps).logits[:, -1, token].mean().item())
    return means[0] - means[1]


def measure(name: str, inputs: int) -> dict[str, Tensor]:
    """For both tables: [inputs] of areas and of relevance sums over the logit."""
    model = load_golden(name, torch.float32).model
    embedding: Callable[[Tensor], Tensor] = model.get_input_embeddings()
    modules = {table: lxt_fx.transform(model, rules=table) for table in ("attnlrp", "lxt")}
    generator = torch.Generator().manual_seed(0)
    found: dict[str, list[float]] = {f"{what} {table}": [] for what in ("area", "sum") for table in modules}
    for _ in track(range(inputs), CHOICES[name]):
        embeds = embedding(torch.randint(0, 64, (1, TOKENS), generator=generator)).detach()
        for table, explained in modules.items():
            relevance, value, token = relevance_of(explained, embeds)
            found[f"area {table}"].append(area(model, embeds, relevance, token))
            found[f"sum {table}"].append(float(relevance.sum()) / value)
    return {name: torch.tensor(values) for name, values in found.items()}


def main() -> None:
    """Print one line for each choice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=200)
    inputs = parser.parse_args().inputs
    table = Table("choice", "area attnlrp", "area lxt", "paired difference", "sum R / logit attnlrp", "sum R / logit lxt")
    for name, choice in CHOICES.items():
        found = measure(name, inputs)
        difference = found["area attnlrp"] - found["area lxt"]
        error = difference.std() / inputs**0.5
        table.add_row(
            choice, f"{found['area attnlrp'].mean():.4f}", f"{found['area lxt'].mean():.4f}",
            f"{difference.mean():+.4f} ± {error:.4f}", f"{found['sum attnlrp'].median():.3f}",
            f"{found['sum lxt'].median():.3f}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
