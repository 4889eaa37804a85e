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


FORMS = 'write {"text": "..."}, {"messages": [{"role": "user", "content": "..."}]}, that list alone, or a string'


def texts_of(text: str | None, file: str | None, chat: bool, from_json: bool = False) -> Texts:
    """The texts to explain. With `chat` a text is one turn of a user; with `from_json` what is read is JSON, whatever a
    file is called.

    Raises UsageMistake for none, for both a TEXT and `--file`, and for JSON that would be read as it stands; InputError for
    what cannot be read, is empty, or is no UTF-8."""
    if (text is None) == (file is None):
        raise UsageMistake("give a TEXT (- for standard input) or --file, and not both")
    if file is not None:
        from_json = from_json or file.lower().endswith((".jsonl", ".ndjson"))
        lines = [Given(_read(line, where, from_json), where) for where, line in _lines(file)]
        return Texts(tuple(_with_turn(given, chat) for given in lines), many=True)
    assert text is not None, "one of both is there"
    where = "standard input" if text == STDIN else "the text"
    found = _one_line_less(_decoded(sys.stdin.buffer.read(), where)) if text == STDIN else _typed(text)
    _refuse_empty(found, where)
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


def _lines(file: str) -> list[tuple[str, str]]:
    """The lines of a file that are not empty, each with where it stands."""
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
    return found


def _read(text: str, where: str, from_json: bool) -> str | Chat:
    """A text as it stands, or the text or chat that it is in JSON. Raises UsageMistake for JSON that nobody said is JSON:
    as plain text it would be explained with its braces."""
    if from_json:
        return _of_json(text, where)
    if text.lstrip()[:1] in ("{", "["):
        try:
            _of_json(text, where)
        except InputError:
            return text
        raise UsageMistake(
            f"{where} is a text or chat in JSON, and would be read as a text with these braces; --from-json reads it (to "
            'explain the braces, write them into {"text": "..."})'
        )
    return text


def _of_json(text: str, where: str) -> str | Chat:
    """The text or chat in JSON."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InputError(f"{where} is no JSON ({error}); {FORMS}") from error
    if isinstance(found, dict):
        if ("text" in found) == ("messages" in found):
            raise InputError(f"{where} must be an object with a text or with messages; {FORMS}")
        return _string(found["text"], where) if "text" in found else _chat(found["messages"], where)
    return _chat(found, where) if isinstance(found, list) else _string(found, where)


def _string(found: Any, where: str) -> str:
    if not isinstance(found, str):
        raise InputError(f"{where}: the text is no string; {FORMS}")
    _refuse_empty(_typed(found), where)
    return found


def _chat(found: Any, where: str) -> Chat:
    if not isinstance(found, list) or not found or not all(map(_is_message, found)):
        raise InputError(f"{where}: messages must be a list of messages with a role and a content; {FORMS}")
    for message in found:
        _typed(message["role"])
        _typed(message["content"])
    return found


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
