"""Text for a `repr` of one line."""

from __future__ import annotations


def one_line(text: str, most: int) -> str:
    """The text without line breaks, cut to at most so many characters."""
    shown = " ".join(text.split())
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"
