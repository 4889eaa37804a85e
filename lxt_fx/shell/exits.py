"""How the command ends: one exit code for each kind of failure, one message on standard error, no traceback but of our own
faults."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from lxt_fx.base.errors import CallError, InputError, LedgerError, LxtFxError, UnknownNameError

DONE, FAULT, USAGE, INPUT, MODEL, LEDGER, OUTPUT, INTERRUPTED, PIPE = 0, 1, 2, 3, 4, 5, 6, 130, 141

CODES = {
    DONE: "done",
    FAULT: "a fault of lxt_fx itself; the traceback belongs in a report",
    USAGE: "the command line: an unknown command, option, table, stage, module or place, or options that exclude another",
    INPUT: "the input: a model, text, picture or target that is not there, cannot be read or does not fit; a port that is "
    "taken; a package that is missing",
    MODEL: "the model: it could not be captured, an operation has no rule, a value is not finite, memory ran out",
    LEDGER: "the audit: a rule absorbed relevance that it claims to conserve",
    OUTPUT: "the output: a file is there already, or cannot be written",
    INTERRUPTED: "interrupted by Ctrl-C",
    PIPE: "the reader of the pipe went away (`| head`)",
}
"""What each exit code means, as help and docs say it."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What the operating system says where nothing more can be written."""


class UsageMistake(InputError):
    """What was typed cannot be meant: options that exclude one another, or a value of the wrong form."""


class CannotWrite(LxtFxError):
    """An output is there already, or cannot be written."""


def code_of(error: LxtFxError) -> int:
    """The exit code of an error raised on purpose."""
    if isinstance(error, (UsageMistake, UnknownNameError)):
        return USAGE
    if isinstance(error, CannotWrite):
        return OUTPUT
    if isinstance(error, LedgerError):
        return LEDGER
    return INPUT if isinstance(error, (InputError, CallError)) else MODEL


@contextmanager
def told_by_kind() -> Iterator[None]:
    """Whatever ends the block becomes a message on standard error and SystemExit with the code of its kind."""
    try:
        yield
        sys.stdout.flush()
    except LxtFxError as error:
        _end(code_of(error), f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        _end(INTERRUPTED, "interrupted")
    except BrokenPipeError:
        _drop_output()
        raise SystemExit(PIPE) from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            _drop_output()
            _end(OUTPUT, f"cannot write to standard output: {error.strerror}")
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
            _end(MODEL, f"memory ran out: {error}\n(a shorter text, another --device or --dtype may do)")
        if error.__class__.__module__.split(".")[0] in ("typer", "click"):  # its own messages and exits
            _without_pydantic(error)
            raise
        traceback.print_exc()
        _end(FAULT, "this is a fault of lxt_fx: please report it with the lines above")


def _without_pydantic(error: Exception) -> None:
    """Drops what pydantic, by which typer reads values, writes before the message of an error."""
    message = getattr(error, "message", None)
    if isinstance(message, str):
        error.message = message.removeprefix("Value error, ")  # type: ignore[attr-defined]


def _end(code: int, said: str) -> None:
    try:
        print(said, file=sys.stderr, flush=True)
    except BrokenPipeError:
        _drop_output()
    raise SystemExit(code) from None


def _drop_output() -> None:
    """Nothing more is written, so that nothing fails when the interpreter ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())
