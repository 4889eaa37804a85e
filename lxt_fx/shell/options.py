"""The arguments and options that commands share. A word means what it means in Python."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from lxt_fx.base.progress import progress
from lxt_fx.shell.exits import UsageMistake

if TYPE_CHECKING:
    from lxt_fx.attribution.target import Name, Target
    from lxt_fx.results.look import Look


MUTED = ("first", "last", "special")
"""Tokens that `--mute` leaves out by name."""


@dataclass(frozen=True, slots=True)
class ModelAt:
    """The model that is named, where it runs and in what it computes."""

    name: str
    device: str
    dtype: str


class DtypeName(StrEnum):
    """What a model computes in: names of torch."""

    float32 = "float32"
    float64 = "float64"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Ends(StrEnum):
    """Where the colours of a view end."""

    robust = "robust"
    max = "max"
    rank = "rank"


class UnitsName(StrEnum):
    """What a view of a text shows the relevance of."""

    tokens = "tokens"
    words = "words"
    sentences = "sentences"


def _without_progress(context: typer.Context, wanted: bool) -> bool:
    if wanted:
        context.with_resource(progress(False))
    return wanted


ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A local folder, or a name on the Hugging Face hub.")]
Text = Annotated[
    str | None, typer.Argument(metavar="TEXT", help="The text, in quotes; - reads it from standard input.")
]
File = Annotated[
    str | None,
    typer.Option(
        "--file", "-f", metavar="FILE",
        help='Many texts: one on each line, or .jsonl with a "text" or "messages" on each line. Empty lines do not count.',
    ),
]  # fmt: skip
ChatTurn = Annotated[bool, typer.Option("--chat", help="The text is one turn of a user, in the model's chat template.")]
FromJson = Annotated[
    bool,
    typer.Option("--from-json", help='What is read is JSON: {"text": ...}, {"messages": [...]}, that list, or a string.'),
]
TargetName = Annotated[
    str | None,
    typer.Option("--target", metavar="NAME", help="A token or class, or its index as id:17. Default: what the model says."),
]
Contrast = Annotated[
    tuple[str, str] | None,
    typer.Option("--contrast", metavar="A B", help="Why A rather than B: the difference of their logits."),
]
Position = Annotated[
    int | None,
    typer.Option("--position", metavar="N", help="The token after (or at) which the model answers; -1 is the last."),
]
RulesName = Annotated[str, typer.Option("--rules", metavar="TABLE", help="A rule table; see lxt-fx tables.")]
Account = Annotated[bool, typer.Option("--account", help="Say where all of the number went, in one more run.")]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="Where the model runs: cpu, cuda, cuda:1, mps.")]
Dtype = Annotated[DtypeName, typer.Option("--dtype", metavar="NAME", help="float32, float64, bfloat16 or float16.")]
Html = Annotated[Path | None, typer.Option("--html", help="Write a page to explore.")]
Png = Annotated[Path | None, typer.Option("--png", help="Write a picture.")]
Pdf = Annotated[Path | None, typer.Option("--pdf", help="Write the picture as vectors, for a paper.")]
Svg = Annotated[Path | None, typer.Option("--svg", help="Write the picture as vectors, for a web page.")]
Scale = Annotated[
    Ends,
    typer.Option("--scale", metavar="NAME", help="Where colours end: robust (99 % of the places), max, or rank."),
]
Mute = Annotated[
    list[str] | None,
    typer.Option("--mute", metavar="NAME", help="Tokens without colour: first, last, special, a position; again for more."),
]
Units = Annotated[
    UnitsName, typer.Option("--units", metavar="NAME", help="What is shown the sums of: tokens, words, sentences.")
]
Json = Annotated[
    Path | None,
    typer.Option("--json", help="Write it as data; - is standard output, alone. Of many texts each is a line."),
]
Show = Annotated[
    bool | None,
    typer.Option(
        "--show/--no-show", help="Print the view, with --json - on standard error. Default: unless --json -.",
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Write over files that are there.")]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", callback=_without_progress, help="Nothing on standard error but errors."),
]
NoProgress = Annotated[
    bool, typer.Option("--no-progress", callback=_without_progress, help="Show no progress on standard error.")
]


def target_of(target: str | None, contrast: tuple[str, str] | None, position: int | None) -> Target:
    """What is explained. Raises UsageMistake where two options say it, and for an empty name."""
    from lxt_fx.attribution.target import Target

    if target is not None and contrast is not None:
        raise UsageMistake("--target and --contrast both say what to explain; give one of them")
    first, second = contrast if contrast is not None else (target, None)
    return Target(name_of(first, "--target"), name_of(second, "--contrast"), position)


def look_of(
    scale: str = "robust", mute: Sequence[str] | None = None, units: str = "tokens", patch: int | None = None
) -> Look:
    """How views show a result. Raises UsageMistake for a `--mute` that is neither a name nor a position."""
    muted = tokens_of(mute, "--mute")
    found: dict[str, object] = {"scale": str(scale)}
    found |= {"mute": muted} if muted else {}
    found |= {"units": str(units)} if units != "tokens" else {}
    found |= {"patch": patch} if patch is not None else {}
    return cast("Look", found)


def tokens_of(written: Sequence[str] | None, option: str) -> list[str | int]:
    """Tokens by name or position. Raises UsageMistake for what is neither."""
    found: list[str | int] = []
    for each in written or ():
        if each in MUTED:
            found.append(each)
        elif re.fullmatch(r"-?[0-9]{1,9}", each):
            found.append(int(each))
        else:
            near = difflib.get_close_matches(each, MUTED, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise UsageMistake(f"{option} {each!r} is none of {', '.join(MUTED)} and no position{meant}")
    return found


def name_of(written: str | None, option: str) -> Name | None:
    """An index where it is written `id:17`, else a name."""
    if written == "":
        raise UsageMistake(f"{option}: the empty string names no token and no class")
    index = (written or "").removeprefix("id:")
    if written is not None and index != written and index.isascii() and index.isdigit():
        return int(index)
    return written
