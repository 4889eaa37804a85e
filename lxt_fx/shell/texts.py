"""The texts that are explained: an argument, standard input, or a file of many."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lxt_fx.base.errors import InputError, LxtFxError
from lxt_fx.shell.exits import UsageMistake
from lxt_fx.shell.json_texts import (
    LINES,
    Chat,
    characters,
    refuse_empty,
    refuse_json,
    refuse_lines_of_one,
    text_or_chat,
)

STDIN = "-"

_JSON_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class Given:
    """A text or chat, and where it stands: `texts.jsonl, line 3`; empty where there is only one."""

    value: str | Chat
    where: str = ""


@dataclass(frozen=True, slots=True)
class Texts:
    """What is explained; `many` if it came from a file of many, even if that has only one."""

    given: tuple[Given, ...]
    many: bool

    def __iter__(self) -> Iterator[Given]:
        return iter(self.given)


def texts_of(text: str | None, file: str | None, chat: bool, from_json: bool = False) -> Texts:
    """The texts to explain. With `chat` a text is one turn of a user; with `from_json` what is read is JSON, whatever a
    file is called.

    Raises UsageMistake for none, for both a TEXT and `--file`, and for JSON that would be read as it stands; InputError for
    what cannot be read, is empty, or is no UTF-8."""
    if (text is None) == (file is None):
        raise UsageMistake("give a TEXT (- for standard input) or --file, and not both")
    if file is not None:
        return Texts(tuple(_with_turn(given, chat) for given in _of_file(file, from_json)), many=True)
    assert text is not None, "one of both is there"
    where = "standard input" if text == STDIN else "the text"
    found = _one_line_less(_decoded(sys.stdin.buffer.read(), where)) if text == STDIN else characters(text, where)
    refuse_empty(found, where)
    return Texts((_with_turn(Given(_read(found, where, from_json)), chat),), many=False)


@contextmanager
def named(given: Given) -> Iterator[None]:
    """An error inside the block says which text it is of, if there are many."""
    try:
        yield
    except LxtFxError as error:
        if given.where:
            error.args = (f"{given.where}: {error}",)
        raise


def readable_file(path: Path, what: str) -> Path:
    """The path of a file that is read. Raises InputError if there is none, with the nearest name beside it."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file of {what}")
    if not path.exists():
        raise InputError(f"there is no file {path}{_near(path)}; give a file of {what}")
    return path


def _near(path: Path) -> str:
    """The name beside a path that is most like its own, as a question."""
    try:
        names = [each.name for each in path.parent.iterdir()]
    except OSError:
        return f"; there is no folder {path.parent}"
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def _of_file(file: str, from_json: bool) -> list[Given]:
    """The texts or chats of a file, one on each line that is not empty, each with where it stands."""
    name = "standard input" if file == STDIN else file
    whole = _decoded(sys.stdin.buffer.read() if file == STDIN else _bytes_of(file, from_json), name)
    lines = [line.removesuffix("\r") for line in whole.split("\n")]
    found = [(f"{name}, line {number}", line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not found:
        raise InputError(f"{name} is empty, so there is nothing to explain; write one text on each line")
    from_json = from_json or file.lower().endswith(_JSON_LINES)
    if len(found) > 1:
        refuse_lines_of_one(whole, name)
    given = [Given(_read(line, where, from_json), where) for where, line in found]
    if not from_json:
        refuse_json(whole, name)
    return given


def _bytes_of(file: str, from_json: bool) -> bytes:
    path = readable_file(Path(file), "texts")
    if path.suffix.lower() == ".json" and not from_json:
        raise UsageMistake(
            f"{file} is JSON by its name, and each of its lines would be read as a plain text; --from-json reads each line "
            f"as a text or chat in JSON ({LINES}), and plain texts need another name, such as {path.with_suffix('.txt')}"
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error


def _read(text: str, where: str, from_json: bool) -> str | Chat:
    """A text as it stands, or the text or chat that it is in JSON."""
    if from_json:
        return text_or_chat(text, where)
    refuse_json(text, where)
    return text


def _with_turn(given: Given, chat: bool) -> Given:
    """The text as one turn of a user, if that was asked for; a chat stays what it is."""
    if not chat or not isinstance(given.value, str):
        return given
    return Given([{"role": "user", "content": given.value}], given.where)


def _decoded(raw: bytes, name: str) -> str:
    if b"\0" in raw:
        raise InputError(f"{name} is no text: it holds a byte 0, as binary files do; give UTF-8 text")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(
            f"{name} is no UTF-8 text: byte 0x{raw[error.start]:02x} at {error.start}, line {line}; convert it, such as by "
            "iconv -f latin1 -t utf-8"
        ) from error


def _one_line_less(text: str) -> str:
    """The text without the line break that `echo` and editors end it with."""
    return text.removesuffix("\n").removesuffix("\r")
