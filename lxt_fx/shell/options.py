"""The arguments and options that commands share. A word means what it means in Python."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lxt_fx.base.progress import progress
from lxt_fx.shell.exits import UsageMistake

if TYPE_CHECKING:
    from lxt_fx.attribution.target import Name, Target


class DtypeName(StrEnum):
    """What a model computes in: names of torch."""

    float32 = "float32"
    float64 = "float64"
    bfloat16 = "bfloat16"
    float16 = "float16"


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


def name_of(written: str | None, option: str) -> Name | None:
    """An index where it is written `id:17`, else a name."""
    if written == "":
        raise UsageMistake(f"{option}: the empty string names no token and no class")
    index = (written or "").removeprefix("id:")
    if written is not None and index != written and index.isascii() and index.isdigit():
        return int(index)
    return written
