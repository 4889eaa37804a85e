"""The texts that are explained: an argument, standard input, or a file of many."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lxt_fx.base.errors import InputError, LxtFxError
from lxt_fx.shell.exits import UsageMistake

STDIN = "-"

Chat = list[dict[str, Any]]


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


def texts_of(text: str | None, file: str | None, chat: bool) -> Texts:
    """The texts to explain. Raises UsageMistake for none, or for both a TEXT and `--file`; InputError for what cannot be
    read, is empty, or is no UTF-8."""
    if (text is None) == (file is None):
        raise UsageMistake("give a TEXT (- for standard input) or --file, and not both")
    if file is not None:
        return Texts(tuple(_with_turn(given, chat) for given in _of_file(file)), many=True)
    assert text is not None, "one of both is there"
    found = _one_line_less(_decoded(sys.stdin.buffer.read(), "standard input")) if text == STDIN else _typed(text)
    _refuse_empty(found, "standard input" if text == STDIN else "the text")
    return Texts((_with_turn(Given(found), chat),), many=False)


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
        raise InputError(f"there is no file {path}{_near(path)}")
    return path


def _near(path: Path) -> str:
    """The name beside a path that is most like its own, as a question."""
    try:
        names = [each.name for each in path.parent.iterdir()]
    except OSError:
        return f"; there is no folder {path.parent}"
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def _of_file(file: str) -> list[Given]:
    if file == STDIN:
        raw, name = sys.stdin.buffer.read(), "standard input"
    else:
        path, name = readable_file(Path(file), "texts"), file
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {file}: {error.strerror}") from error
    lines = [line.removesuffix("\r") for line in _decoded(raw, name).split("\n")]
    found = [(f"{name}, line {number}", line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not found:
        raise InputError(f"{name} is empty, so there is nothing to explain; write one text on each line")
    if file.lower().endswith((".jsonl", ".ndjson")):
        return [Given(_of_json(line, where), where) for where, line in found]
    return [Given(line, where) for where, line in found]


def _of_json(line: str, where: str) -> str | Chat:
    """The text or chat of one line of JSON."""
    form = 'write {"text": "..."} or {"messages": [{"role": "user", "content": "..."}]}'
    try:
        found = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is no JSON ({error}); {form}") from error
    if not isinstance(found, dict) or ("text" in found) == ("messages" in found):
        raise InputError(f"{where} must be an object with a text or with messages; {form}")
    if "text" in found:
        if not isinstance(found["text"], str):
            raise InputError(f"{where}: the text is no string; {form}")
        _refuse_empty(_typed(found["text"]), where)
        return str(found["text"])
    chat = found["messages"]
    if not isinstance(chat, list) or not chat or not all(map(_is_message, chat)):
        raise InputError(f"{where}: messages must be a list of messages with a role and a content; {form}")
    return chat


def _is_message(found: Any) -> bool:
    return isinstance(found, dict) and isinstance(found.get("role"), str) and isinstance(found.get("content"), str)


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


def _typed(text: str) -> str:
    """A text of the command line or of JSON. Bytes that are no UTF-8 come as halves of surrogate pairs, which are no
    characters, and a tokenizer may end the process at one."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError("the text is no UTF-8, or holds half of a surrogate pair, which is no character")
    return text


def _one_line_less(text: str) -> str:
    """The text without the line break that `echo` and editors end it with."""
    return text.removesuffix("\n").removesuffix("\r")


def _refuse_empty(text: str, name: str) -> None:
    if not text.strip():
        raise InputError(f"{name} is empty, so there is nothing to explain; give some words")
