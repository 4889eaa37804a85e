"""Which gammas explain a small vision transformer best? A search over a grid, as a table and a picture.

python examples/models.py fetch vit_digits
python examples/tune_vit_digits.py --out out
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import lxt_fx
import models
from lxt_fx.tuned import TunedTable
from train_vit_digits import digits


def main(
    out: Annotated[Path, typer.Option(help="The folder for the picture.")] = Path("out"),
    images: Annotated[int, typer.Option(help="How many held-out images score each point.")] = 64,
) -> TunedTable:
    """Tune the gammas of `attnlrp_gamma` on held-out digits; print the grid and draw it."""
    out.mkdir(parents=True, exist_ok=True)
    model, _ = models.load("vit_digits")
    _, _, pixels, _ = digits()
    picture = out / "tuning_digits.png"
    table = lxt_fx.tune(model, pixels[:images], picture=picture)
    print(table)
    print(f"wrote {picture}")
    lxt_fx.transform(model, rules=table)  # what it is for
    return table


if __name__ == "__main__":
    typer.run(main)
