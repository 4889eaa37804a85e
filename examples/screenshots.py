"""Remakes the pictures of the explorer in docs/ from what SmolLM2 says: light, dark, a phone, routes inside the model, a
circuit, and the live page with heads that are switched off.

    pip install playwright pillow 'lxt_fx[serve]'
    python examples/screenshots.py            # all of them, into docs/

A Chromium is found by its name, or named in CHROMIUM.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

import lxt_fx
from lxt_fx.explorer.server.listening import listening_at
from lxt_fx.explorer.server.serve import running_at
from models import load

DOCS = Path(__file__).parents[1] / "docs"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
TEXT = "The capital of France is"
TABLES = ("attnlrp", "gradient")
PAIR = [f"When Mary and John went to the store, {name} gave a drink to" for name in ("John", "Mary")]
NAMES_OF = (" Mary", " John")
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
LARGEST = 200_000
"""Bytes of a picture."""


def main(folder: Annotated[Path, typer.Argument(help="where the pictures go")] = DOCS) -> None:
    """Writes explorer_answer.png, explorer_dark.png, explorer_routes.png, explorer_phone.png, explorer_live.png and
    circuit.png."""
    model, tokenizer = load("smollm2")
    with tempfile.TemporaryDirectory() as pages, chromium() as browser:
        answer, both = Path(pages) / "answer.html", Path(pages) / "both.html"
        write_pages(model, tokenizer, answer, both)
        shots(browser, answer, both, folder)
        circuit(browser, model, tokenizer, Path(pages) / "circuit.html", folder)
        with listening_at(0) as listening, running_at(listening, model, tokenizer) as (address, _):
            live(browser, address, folder)


def write_pages(model: Any, tokenizer: Any, answer: Path, both: Path) -> None:
    """An answer with what is inside the model, and one text under two tables."""
    ids = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    count = ids["input_ids"].shape[1]
    written = model.generate(**ids, max_new_tokens=10, do_sample=False)[0].tolist()
    end = model.generation_config.eos_token_id
    said = [token for token in written[count:] if token != end]
    said = said[: next((at for at, token in enumerate(said) if tokenizer.decode(token) == "."), len(said)) + 1]
    found = lxt_fx.answer_relevance(model, tokenizer, QUESTION, said, with_prompt=False, account=True)
    targets = [lxt_fx.Target.at(count - 1 + at, token) for at, token in enumerate(said)]
    inside = lxt_fx.latent(model, [*written[:count], *said], targets, processor=tokenizer)
    lxt_fx.explore(found, latent=inside, path=answer)
    by_tables = (lxt_fx.explain(model, tokenizer, TEXT, " Paris", rules=rules, account=True) for rules in TABLES)
    lxt_fx.explore(*by_tables, path=both)


def shots(browser: Browser, answer: Path, both: Path, folder: Path) -> None:
    """The pictures of pages that are files."""
    with page(browser, 1280, 900) as shown:
        shown.goto(answer.as_uri())
        about(shown)
        save(shown.screenshot(), folder / "explorer_answer.png")
        routes = shown.locator(".routes")
        routes.scroll_into_view_if_needed()
        save(routes.screenshot(), folder / "explorer_routes.png")
    with page(browser, 1280, 800, dark=True) as shown:
        shown.goto(both.as_uri())
        shown.get_by_label("last", exact=True).check()
        shown.get_by_role("button", name="Pin to compare").click()
        shown.locator(".tab").nth(1).locator("button").first.click()
        save(shown.screenshot(), folder / "explorer_dark.png")
    with page(browser, 360, 740, times=2, is_mobile=True, has_touch=True) as shown:
        shown.goto(both.as_uri())
        shown.locator(".folded summary").click()
        shown.get_by_label("last", exact=True).check()
        shown.locator(".folded summary").click()
        shown.locator(".t", has_text="France").click()
        shown.evaluate("scrollTo(0, 0)")
        save(shown.screenshot(), folder / "explorer_phone.png")


def about(shown: Page) -> None:
    """Explains the capital, with first, last and special tokens left out of the colours, and holds the country."""
    shown.locator(".block.answer .t", has_text="Paris").first.click()
    for name in ("first", "last", "special"):
        shown.get_by_label(name, exact=True).check()
    shown.locator(".block:not(.answer) .t", has_text="France").first.click()
    shown.mouse.move(0, 0)
    shown.evaluate("scrollTo(0, 0)")


def circuit(browser: Browser, model: Any, tokenizer: Any, path: Path, folder: Path) -> None:
    """What makes SmolLM2 say the name that stood once, with the strongest head at the last token chosen."""
    found = lxt_fx.circuit_scores(model, *PAIR, NAMES_OF, processor=tokenizer, rules="relp", by_token=True)
    found.to_html(path)
    head = max((link for link in found.links(20) if link[2] == "logits" and "heads" in link[0]), key=lambda link: link[4])
    layer, unit = head[0].split(".")[1], head[0].split(":")[1]
    with page(browser, 1280, 1300, times=1) as shown:
        shown.goto(path.as_uri())
        shown.get_by_label("Edges", exact=True).fill("115")
        shown.locator(f'.node[aria-label^="head {unit} of layer {layer} at “to”"]').click()
        shown.mouse.move(0, 0)
        save(shown.locator(".circuit").screenshot(), folder / "circuit.png")


def live(browser: Browser, address: str, folder: Path) -> None:
    """The live page with the two heads switched off that carry most relevance of the country, one after the other."""
    with page(browser, 1280, 1040) as shown:
        shown.set_default_timeout(120_000)
        shown.goto(address)
        shown.get_by_placeholder("Type or paste a text").fill(TEXT)
        shown.get_by_label("with routes").check()
        shown.get_by_role("button", name="Explain", exact=True).click()
        for _ in range(2):
            shown.locator(".pane").last.locator(".t", has_text="France").click()
            shown.get_by_role("button", name=re.compile("Switch off head")).first.click()
            shown.locator(".progress").wait_for()
            shown.locator(".progress").wait_for(state="detached")
        shown.get_by_label("last", exact=True).check()
        shown.mouse.move(0, 0)
        shown.evaluate("scrollTo(0, 0)")
        save(shown.screenshot(), folder / "explorer_live.png")


@contextmanager
def chromium() -> Iterator[Browser]:
    """A Chromium without a window."""
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@contextmanager
def page(
    browser: Browser, width: int, height: int, *, dark: bool = False, times: float = 1.5, **more: Any
) -> Iterator[Page]:
    """A page of this size; `times` pixels for each of it."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", device_scale_factor=times,
        reduced_motion="reduce", **more,
    )  # fmt: skip
    yield context.new_page()
    context.close()


def save(shot: bytes, path: Path) -> None:
    """Writes a picture as small as it can be: without transparency, and in 256 colours where that is not enough."""
    written, picture = io.BytesIO(), Image.open(io.BytesIO(shot)).convert("RGB")
    picture.save(written, "png", optimize=True)
    if len(written.getvalue()) > LARGEST:
        written = io.BytesIO()
        picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(written, "png", optimize=True)
    if len(written.getvalue()) > LARGEST:
        raise SystemExit(f"{path.name} would have {len(written.getvalue())} bytes, and {LARGEST} is the most")
    path.write_bytes(written.getvalue())
    print(f"{path} {len(written.getvalue()) // 1000} kB")


if __name__ == "__main__":
    typer.run(main)
