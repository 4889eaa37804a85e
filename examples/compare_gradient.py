"""The same answer of SmolLM2, explained by plain input * gradient and by AttnLRP, one above the other.

python examples/models.py fetch smollm2
python examples/compare_gradient.py --out docs
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont

import lxt_fx
import models
from demo_smollm2 import ANSWER, PARAGRAPH, QUESTION

METHODS = {"input * gradient": "gradient", "AttnLRP": "attnlrp"}
FONT = ImageFont.truetype(findfont(FontProperties(weight="bold")), 40)
BAND = 70


def main(out: Annotated[Path, typer.Option(help="The folder for the picture.")] = Path("out")) -> list[lxt_fx.Explanation]:
    """Explain why the door is green, under two tables. Returns both explanations."""
    out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = models.load("smollm2")
    explained = lxt_fx.transform(model)
    prompt = f"{PARAGRAPH}\n\nQuestion: {QUESTION}\nAnswer: {ANSWER}"
    found = [lxt_fx.explain(explained, tokenizer, prompt, " green", rules=rules) for rules in METHODS.values()]
    stacked(found, list(METHODS)).save(out / "gradient_and_attnlrp.png", optimize=True)
    print(f"wrote {out / 'gradient_and_attnlrp.png'}")
    return found


def stacked(explanations: list[lxt_fx.Explanation], names: list[str]) -> Image.Image:
    """Their pictures below one another, each under its name and on its own scale."""
    with TemporaryDirectory() as folder:
        pictures = []
        for explanation in explanations:
            explanation.to_png(Path(folder, "one.png"))
            pictures.append(Image.open(Path(folder, "one.png")).convert("RGB"))
    sheet = Image.new("RGB", (max(one.width for one in pictures), sum(one.height + BAND for one in pictures)), "white")
    top = 0
    for name, picture in zip(names, pictures, strict=True):
        ImageDraw.Draw(sheet).text((22, top + 22), name, fill="black", font=FONT)
        sheet.paste(picture, (0, top + BAND))
        top += BAND + picture.height
    return sheet


if __name__ == "__main__":
    typer.run(main)
