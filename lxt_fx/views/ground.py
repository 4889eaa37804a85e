"""Whether a terminal is dark or light, so that what is irrelevant has the colour of its background."""

from __future__ import annotations

import os
import re
import select
import sys
import time
from functools import cache
from typing import Literal

from rich.console import Console

from lxt_fx.views.colour import DARK, LIGHT, Scale

Ground = Literal["dark", "light"]

SET = "LXT_FX_BACKGROUND"
"""The environment variable that says what the background is."""

PATIENCE = 0.2
"""The seconds in which a terminal must answer."""

ASK = "\x1b]11;?\x1b\\\x1b[c"
"""What is your background; and what are you, which every terminal answers, so that nobody waits for one that does not know
the first question."""

_ANSWER = re.compile(rb"\x1b\]11;rgba?:([0-9a-fA-F]+)/([0-9a-fA-F]+)/([0-9a-fA-F]+)")
_END = re.compile(rb"\x1b\[\?[0-9;]*c")


def colours_of(console: Console) -> Scale | None:
    """The colours for this console: none where it has no more than 16, which are a mess for a heatmap."""
    if console.color_system not in ("truecolor", "256"):
        return None
    return LIGHT if ground() == "light" else DARK


def ground() -> Ground:
    """The background: what LXT_FX_BACKGROUND says, `dark` or `light`; else COLORFGBG, which some terminals set; else what
    the terminal answers, if standard input and output are one; else dark."""
    said = os.environ.get(SET, "").strip().lower()
    if said in ("dark", "light"):
        return "light" if said == "light" else "dark"
    last = os.environ.get("COLORFGBG", "").rpartition(";")[2]
    if last.isdigit():
        return "light" if int(last) == 7 or int(last) >= 9 else "dark"
    return _asked()


@cache
def _asked() -> Ground:
    """What the terminal answers, once for a process."""
    try:
        import termios
        import tty

        fd = sys.__stdin__.fileno() if sys.__stdin__ is not None else -1
        if not (os.isatty(fd) and sys.stdout.isatty()) or os.environ.get("TERM", "dumb") == "dumb":
            return "dark"
        if os.tcgetpgrp(fd) != os.getpgrp():  # in the background of a shell a question would stop the process
            return "dark"
        before = termios.tcgetattr(fd)
    except (ImportError, OSError, ValueError, AttributeError):  # no such system, or no terminal
        return "dark"
    try:
        tty.setcbreak(fd, termios.TCSANOW)
        os.write(sys.__stdout__.fileno() if sys.__stdout__ is not None else fd, ASK.encode())
        return ground_of(_read(fd))
    except OSError:
        return "dark"
    finally:
        termios.tcsetattr(fd, termios.TCSANOW, before)


def _read(fd: int) -> bytes:
    found, until = b"", time.monotonic() + PATIENCE
    while not _END.search(found) and (left := until - time.monotonic()) > 0:
        if select.select([fd], [], [], left)[0]:
            found += os.read(fd, 256)
    return found


def ground_of(answer: bytes) -> Ground:
    """The background that a terminal's answer to `ASK` names; dark where it names none."""
    named = _ANSWER.search(answer)
    if named is None:
        return "dark"
    red, green, blue = (int(channel, 16) / (16 ** len(channel) - 1) for channel in named.groups())
    return "light" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.5 else "dark"
