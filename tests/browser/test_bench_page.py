"""The page of a benchmark, as a browser draws it: wide and on a phone, light and dark, read out and by the keyboard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from test_bench_results import contents

from lxt_fx.referee.results import BenchResults
from lxt_fx.views.colour import contrast

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (360, True), (360, False)])
def test_the_page_fits_asks_nothing_of_a_network_and_can_be_read(
    browser: Browser, tmp_path: Path, width: int, dark: bool
) -> None:
    path = tmp_path / "bench.html"
    BenchResults(contents()).to_html(path)
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme="dark" if dark else "light")
    page, asked, said = context.new_page(), list[str](), list[str]()
    page.on("request", lambda one: asked.append(one.url))
    page.on("console", lambda one: said.append(one.text))
    page.goto(path.as_uri())
    assert asked == [path.as_uri()] and not said
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    plots = page.get_by_role("img")
    assert plots.count() == 4 and plots.first.bounding_box()["width"] >= 300  # type: ignore[index]
    name = "area minus that of attnlrp: model 0, facts"
    assert page.get_by_role("img", name=name).evaluate("one => one.querySelector('desc').textContent").startswith("gim: −")
    region = page.get_by_role("region", name="area: model 0, facts")
    region.focus()
    assert region.evaluate("one => document.activeElement === one")
    colours = page.locator(".worse").first.evaluate(
        "one => [getComputedStyle(one).color, getComputedStyle(document.body).backgroundColor]"
    )
    ink, ground = ("#" + "".join(f"{int(part):02x}" for part in one[4:-1].split(",")) for one in colours)
    assert contrast(ink, ground) >= 4.5 and (ground == "#ffffff") == (not dark)
    context.close()


def test_axe_finds_no_fault(browser: Browser, tmp_path: Path, axe: str) -> None:
    path = tmp_path / "bench.html"
    BenchResults(contents()).to_html(path)
    page = browser.new_page(bypass_csp=True)
    page.goto(path.as_uri())
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert not found["violations"], [one["id"] for one in found["violations"]]
    page.close()
