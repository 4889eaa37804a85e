"""The pictures that the README and the site begin with: why SmolLM2 answers that the door is green, in the explorer, and by
plain input * gradient beside AttnLRP.

python examples/models.py fetch smollm2
python examples/door_smollm2.py --out docs --browser chromium
"""

from __future__ import annotations

import subprocess
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
QUIET = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --hide-scrollbars"


def main(
    out: Annotated[Path, typer.Option(help="The folder for what is made.")] = Path("out"),
    browser: Annotated[str, typer.Option(help="A Chromium, which takes a picture of the explorer.")] = "",
) -> list[lxt_fx.Explanation]:
    """Explain why the door is green: a page, a saved explanation and pictures. Returns the explanation under each table."""
    out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = models.load("smollm2")
    model.config.name_or_path = "SmolLM2-135M-Instruct"  # and not a folder of this machine
    explained = lxt_fx.transform(model)
    prompt = f"{PARAGRAPH}\n\nQuestion: {QUESTION}\nAnswer: {ANSWER}"
    found = [
        lxt_fx.explain(explained, tokenizer, prompt, " green", rules=rules, account=True) for rules in METHODS.values()
    ]
    stacked(found, list(METHODS)).save(out / "gradient_and_attnlrp.png", optimize=True)
    found[1].to_json(out / "door.json")
    latent = lxt_fx.latent(explained, prompt, " green", processor=tokenizer)
    with TemporaryDirectory() as folder:
        page = Path(folder, "door.html") if browser else out / "door.html"
        lxt_fx.explore(found[1], latent=latent, path=page)
        if browser:
            picture(browser, page, out / "explorer.png")
    print(f"wrote into {out}: {', '.join(sorted(file.name for file in out.glob('*door*')))}, the pictures")
    return found


def picture(browser: str, page: Path, path: Path) -> None:
    """What the browser shows of a page."""
    settings = [*QUIET.split(), f"--user-data-dir={page.parent / 'browser'}", "--window-size=1200,860"]
    subprocess.run([browser, *settings, f"--screenshot={path}", page.as_uri()], check=True, capture_output=True)


def stacked(explanations: list[lxt_fx.Explanation], names: list[str]) -> Image.Image:
    """Their pictures below one another, each under its name and on its own scale."""
    with TemporaryDirectory() as folder:
        pictures = []
        for explanation in explanations:
            explanation.to_png(Path(folder, "one.png"))
            pictures.append(Image.open(Path(folder, "one.png")).convert("RGB"))
    sheet = Image.new("RGB", (max(one.width for one in pictures), sum(one.height + BAND for one in pictures)), "white")
    top = 0
    for name, one in zip(names, pictures, strict=True):
        ImageDraw.Draw(sheet).text((22, top + 22), name, fill="black", font=FONT)
        sheet.paste(one, (0, top + BAND))
        top += BAND + one.height
    return sheet


if __name__ == "__main__":
    typer.run(main)
