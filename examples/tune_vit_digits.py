"""Which gammas make relevance the most faithful for a small vision transformer that reads digits?

python examples/models.py fetch vit_digits
python examples/tune_vit_digits.py --out out      (half a minute on one core)

Gammas are chosen on 256 held-out digits; what they gain is then measured on the 194 others, which had no say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

import lxt_fx
import models
from train_vit_digits import digits

IMAGES, STEPS = 256, 16
"""How many digits choose, and how many steps remove the 16 patches: one each."""


def area(model: nn.Module, pixels: Tensor, rules: lxt_fx.RuleTable) -> Tensor:
    """The area between the removal curves of each image under a table, [examples]."""
    leaf = pixels.clone().requires_grad_()
    logits = lxt_fx.transform(model, rules=rules)(pixel_values=leaf).logits
    (gradient,) = torch.autograd.grad(logits.amax(dim=-1).sum(), leaf)
    return lxt_fx.perturbation_curves(model, pixels, leaf * gradient, removal=lxt_fx.Removal(steps=STEPS)).area


def main(
    out: Annotated[Path, typer.Option(help="The folder for the picture.")] = Path("out"),
    images: Annotated[int, typer.Option(help="How many digits choose the gammas.")] = IMAGES,
) -> lxt_fx.TunedTable:
    """Print the grid, draw it, and measure the choice on other images."""
    out.mkdir(parents=True, exist_ok=True)
    model, _ = models.load("vit_digits")
    _, _, pixels, _ = digits()
    removal = lxt_fx.Removal(steps=STEPS, batch=128)
    tuned = lxt_fx.tune(model, pixels[:images], removal=removal, picture=out / "tuning_vit_digits.png")
    print(tuned)
    others = pixels[images:]
    plain = lxt_fx.rule_table.tables.attnlrp_gamma(**tuned.plain.parameters)
    leads = area(model, others, tuned) - area(model, others, plain)
    error = float(leads.std() / len(leads) ** 0.5)
    print(f"on {len(others)} other images it leads {tuned.plain.said} by {float(leads.mean()):+.3f} ± {error:.3f}")
    print(f"wrote {out / 'tuning_vit_digits.png'}")
    return tuned


if __name__ == "__main__":
    typer.run(main)
