"""Texts of 80 columns for a dark and a light terminal and for a pipe, and how the background is found. Update the texts
with `UPDATE_GOLDEN=1 pytest tests/test_terminal_views.py` and read the diff as code; ESC is written as ␛."""

from __future__ import annotations

import os
import pty
import sys
import threading
import types
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text
from test_results import ACCOUNT, KINDS, of, text

from lxt_fx.results.explanation import Explanation
from lxt_fx.results.part import Part
from lxt_fx.results.readings import TextReading
from lxt_fx.views import ground as ground_module
from lxt_fx.views.colour import LIGHT, contrast
from lxt_fx.views.ground import SET, colours_of, ground, ground_of
from lxt_fx.views.terminal import as_text, plain

FOLDER = Path(__file__).parent / "printed"


def result() -> Explanation:
    """A text with words of several tokens, one that goes beyond the scale, and one that is irrelevant."""
    words = ("<s>", "The", " cap", "ital", " of", " the", " count", "ry", "↵", "is", " 漢", "字")
    tokens = (*words, "\x1b[31m", " Paris", "!")
    relevance = torch.tensor([-1.1, 0.2, 0.5, 0.55, 0.0, -0.3, 0.8, -0.8, 0.01, 4.0, 0.3, 0.3, 0.1, -0.6, 0.0])
    special = (True, *[False] * 14)
    return of(Part("text", ("position",), relevance, TextReading(tokens, None, special, (0,) * 15)), account=ACCOUNT)


def shown(view: object, background: str, width: int = 80) -> str:
    console = Console(
        width=width, file=StringIO(), force_terminal=True, highlight=False, force_jupyter=False,
        color_system=None if background == "plain" else "truecolor",
    )  # fmt: skip
    console.print(view)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("background", ["dark", "light", "plain"])
def test_a_text_of_80_columns(background: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SET, background)
    found = shown(result(), background).replace("\x1b", "␛")
    path = FOLDER / f"views_{background}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(found, encoding="utf-8")
    assert found == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("kind", KINDS)
def test_no_line_is_wider_than_the_terminal(kind: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SET, "dark")
    for background in ("plain", "dark"):
        assert all(word in shown(KINDS[kind](), background, width) for word in ("for", "against"))
        lines = Text.from_ansi(shown(KINDS[kind](), background, width)).plain.splitlines()
        assert max(map(cell_len, lines)) <= width


def test_what_is_irrelevant_does_not_shine(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a dark terminal no background of the text is bright but those of strong tokens."""
    monkeypatch.setenv(SET, "dark")
    drawn = Text.from_ansi(shown(of(text()), "dark").split("against")[0])
    grounds = [span.style.bgcolor.name for span in drawn.spans if getattr(span.style, "bgcolor", None) is not None]
    assert len(grounds) > 10 and all(contrast(colour, "#000000") < 8 for colour in grounds)
    zero = Text.from_ansi(shown(result(), "dark"))
    assert not any(getattr(s.style, "bgcolor", None) for s in zero.spans if " of" in zero.plain[s.start : s.end])


def test_the_bars_of_a_pipe_have_the_signs_and_the_edges() -> None:
    lines = plain(result(), 80).splitlines()
    assert lines[2].startswith("  <s>The capital of the country↵")
    columns = {mark: next(line for line in lines[3:5] if line.startswith(mark)) for mark in "+−"}
    at = lines[2].index("capital")
    assert columns["+"][at : at + 7] == "▄▄ ▄▄▄▄", "a gap between the tokens of a word"
    assert columns["−"][lines[2].index("ry") :] == "▆" and "▲▲" in lines[6]
    assert "\x1b" not in "".join(lines) and "␛[31m" in lines[5], "no token steers the terminal"


def test_sixteen_colours_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SET, "light")
    console = Console(file=StringIO(), force_terminal=True, color_system="standard", width=80)
    console.print(KINDS["text"]())
    assert "▆▆▆" in console.file.getvalue() and "\x1b[4" not in console.file.getvalue()  # type: ignore[attr-defined]
    assert colours_of(Console(file=StringIO(), force_terminal=True, color_system="256")) is LIGHT


def test_a_notebook_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its standard output says that it is one, of 16 colours."""
    stream = type("OutStream", (StringIO,), {"isatty": lambda self: True, "__module__": "ipykernel.iostream"})()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("TERM", "xterm-color")
    found = as_text(KINDS["text"]())
    assert "\x1b" not in found and "▆▆▆" in found


# the background


@pytest.mark.parametrize(
    "answer, wanted",
    [
        (b"\x1b]11;rgb:ffff/ffff/dddd\x1b\\\x1b[?62;c", "light"),
        (b"\x1b]11;rgb:1e1e/1e1e/1e1e\x07\x1b[?1;2c", "dark"),
        (b"\x1b]11;rgba:ff/ff/ff/ff\x07", "light"),
        (b"\x1b[?1;2c", "dark"),
        (b"", "dark"),
    ],
)
def test_the_answer_of_a_terminal_is_read(answer: bytes, wanted: str) -> None:
    assert ground_of(answer) == wanted


@pytest.mark.parametrize(
    "said, colours, wanted",
    [("light", "15;0", "light"), ("DARK", "0;15", "dark"), ("", "0;15", "light"), ("", "15;default;0", "dark"),
     ("", "0;7", "light"), ("", "7;8", "dark"), ("pink", "", "dark")],
)  # fmt: skip
def test_the_environment_says_what_the_background_is(
    said: str, colours: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SET, said)
    monkeypatch.setenv("COLORFGBG", colours)
    monkeypatch.setattr(ground_module, "_asked", lambda: "dark")
    assert ground() == wanted


@pytest.mark.parametrize("answers", [True, False])
def test_a_terminal_is_asked_and_nobody_waits_for_long(answers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    main, terminal = pty.openpty()
    asked = list[bytes]()

    def answer() -> None:
        asked.append(os.read(main, 64))
        if answers:
            os.write(main, b"\x1b]11;rgb:ffff/ffff/ffff\x1b\\\x1b[?62;4c")

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    stream = types.SimpleNamespace(fileno=lambda: terminal, isatty=lambda: True)
    for name in ("__stdin__", "__stdout__", "stdout"):
        monkeypatch.setattr(sys, name, stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(os, "tcgetpgrp", lambda fd: os.getpgrp())
    monkeypatch.setattr(ground_module, "PATIENCE", 5.0 if answers else 0.05)
    found = ground_module._asked.__wrapped__()
    thread.join(5)
    os.close(main)
    os.close(terminal)
    assert found == ("light" if answers else "dark") and asked == [ground_module.ASK.encode()]


def test_a_pipe_is_never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", lambda *given: pytest.fail("wrote to a pipe"))
    assert ground_module._asked.__wrapped__() == "dark"
