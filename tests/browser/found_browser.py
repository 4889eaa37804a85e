"""Where a Chromium is, and what is done without one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

Opened = Callable[..., "Page"]
"""Opens a page with results."""


def lacking(what: str) -> NoReturn:
    """Skips a test, or fails it where a browser is wanted."""
    if os.environ.get("LXT_FX_NEED_BROWSER") == "1":
        pytest.fail(f"LXT_FX_NEED_BROWSER=1, but {what}")
    pytest.skip(what)


def chromium() -> str:
    """Where a Chromium is; skips where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = os.environ.get("CHROMIUM") or next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        lacking("no Chromium is found: install one, or name it in CHROMIUM (the page is not tested in a browser)")
    return found
