"""A Chromium that draws pages of the explorer. Without one, or without playwright, the tests are skipped, which
LXT_FX_NEED_BROWSER=1 makes a failure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import payloads
import pytest
from found_browser import Opened, chromium, lacking

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

AXE = Path(__file__).parents[2] / "web" / "node_modules" / "axe-core" / "axe.min.js"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        lacking("playwright is not installed: pip install playwright (the page is not tested in a browser)")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Opened]:
    """Opens a page with results, as a file. What the page asked of any network, and what it printed or threw, fails the
    test at its end, but for errors that say `refused`."""
    contexts, faults = [], list[str]()

    def open_page(
        *results: dict[str, Any],
        width: int = 1280,
        height: int = 860,
        dark: bool = False,
        refused: str = "",
        **options: Any,
    ) -> Page:
        path = tmp_path / f"page{len(contexts)}.html"
        path.write_text(payloads.page(*results), encoding="utf-8")
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", accept_downloads=True,
            reduced_motion="reduce", **options,
        )  # fmt: skip
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("request", lambda asked: None if _own(asked.url, path) else faults.append(f"request {asked.url}"))
        page.on(
            "console",
            lambda said: None if said.type != "error" or refused and refused in said.text else faults.append(said.text),
        )
        page.on("pageerror", lambda error: faults.append(f"error {error}"))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults


def _own(url: str, path: Path) -> bool:
    return url.split("#")[0] == path.as_uri() or url.startswith(("data:", "blob:"))


@pytest.fixture(scope="session")
def axe() -> str:
    """The script of axe-core."""
    if not AXE.is_file():
        lacking("axe-core is not installed: npm ci in web/")
    return AXE.read_text(encoding="utf-8")
