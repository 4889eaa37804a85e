"""Texts and chats in JSON, and the refusal of JSON that nobody said is JSON."""

from __future__ import annotations

import json
import re
from typing import Any

from lxt_fx.base.errors import InputError
from lxt_fx.shell.exits import UsageMistake

Chat = list[dict[str, Any]]

FORMS = 'write {"text": "..."}, {"messages": [{"role": "user", "content": "..."}]}, that list alone, or a string'

LINES = (
    "in a file, or in standard input with --file -, write one text or chat on each line (jq -c . makes one line of a JSON, "
    "jq -c '.[]' one of each item of a list)"
)

BRACES = 'to explain the braces themselves, write the text into {"text": "..."} and give --from-json'

_ASKED = dict.fromkeys(("target", "contrast", "position", "answer"), "give it as an option, which counts for all texts")
_PROMPT = "it changes the prompt: write the whole prompt as a text"
_MEANS: dict[str, str] = _ASKED | {"tools": _PROMPT, "documents": _PROMPT}
"""Keys beside a text that ask for another explanation or make another prompt, and what to do instead."""

_OURS = re.compile(r'\s*(?:\[\s*)*\{\s*"(?:text|messages|role|content|prompt)"\s*:')
"""How a text or chat in JSON begins, whatever is wrong with it further on."""


def text_or_chat(text: str, where: str) -> str | Chat:
    """The text or chat that this is in JSON. Raises InputError for what is neither, and says what is wrong with it."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        several = str(error).startswith("Extra data")
        raise InputError(f"{where} is no JSON ({error}); {LINES if several else FORMS}") from error
    if isinstance(found, dict):
        return _of_object(found, where)
    return _chat(found, where) if isinstance(found, list) else _string(found, where)


def refuse_json(text: str, where: str) -> None:
    """Raises UsageMistake for JSON that would be explained with its braces, as a plain text: an object, a list that holds
    one, several of these, and what begins as a text or chat in JSON and is broken further on."""
    if text.lstrip()[:1] not in ("{", "["):
        return
    try:
        found, end = json.JSONDecoder().raw_decode(text.lstrip())
    except (ValueError, RecursionError) as error:
        if _OURS.match(text):
            raise UsageMistake(
                f"{where} begins as a text or chat in JSON, but is no JSON ({error}); {FORMS}, and give --from-json; "
                f"{BRACES}"
            ) from error
        return
    if not _holds_object(found):
        return
    if text.lstrip()[end:].strip():
        raise UsageMistake(
            f"{where} is JSON with more behind it, and would be read as one text with its braces; --from-json reads JSON: "
            f"{LINES}; {BRACES}"
        )
    try:
        text_or_chat(text, where)
    except InputError as error:
        raise UsageMistake(
            f"{where} is JSON, and would be read as a text with its braces. --from-json reads JSON, but {error}; {BRACES}"
        ) from error
    raise UsageMistake(
        f"{where} is a text or chat in JSON, and would be read as a text with its braces; --from-json reads it; {BRACES}"
    )


def refuse_lines_of_one(text: str, where: str) -> None:
    """Raises InputError where all lines of a file together are one JSON, so that none of them is a text or chat."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return
    raise InputError(f"{where} is one JSON over several lines; {LINES}")


def characters(text: str, where: str) -> str:
    """A text of the command line or of JSON. Bytes that are no UTF-8 come as halves of surrogate pairs, which are no
    characters, and a tokenizer may end the process at one. Raises InputError for these."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError(f"{where} is no UTF-8, or holds half of a surrogate pair, which is no character; write it anew")
    return text


def refuse_empty(text: str, where: str) -> None:
    """Raises InputError for a text without a character that is seen."""
    if not text.strip():
        raise InputError(f"{where} is empty, so there is nothing to explain; give some words")


def _of_object(found: dict[str, Any], where: str) -> str | Chat:
    if ("text" in found) == ("messages" in found):
        has = "both" if "text" in found else f"neither, but {', '.join(map(repr, found)) or 'nothing'}"
        raise InputError(f"{where} must be an object with a text or with messages, and has {has}; {FORMS}")
    for key, instead in _MEANS.items():
        if found.get(key) not in (None, []):
            raise InputError(f"{where}: {key!r} is not read from JSON; {instead}, and leave it out here")
    return _string(found["text"], where) if "text" in found else _chat(found["messages"], where)


def _string(found: Any, where: str) -> str:
    if not isinstance(found, str):
        raise InputError(f"{where}: the text is no string; {FORMS}")
    refuse_empty(characters(found, where), where)
    return found


def _chat(found: Any, where: str) -> Chat:
    if not isinstance(found, list) or not found:
        raise InputError(f"{where}: messages must be a list of messages with a role and a content; {FORMS}")
    if all(map(_is_text_or_chat, found)):
        raise InputError(f"{where} is a list of texts or chats, and one is read at a time; {LINES}")
    for number, message in enumerate(found, start=1):
        wrong = _wrong(message)
        if wrong:
            raise InputError(
                f"{where}: messages must be a list of messages with a role and a content, and message {number} {wrong}; "
                f"{FORMS}"
            )
        characters(message["role"], where)
        characters(message["content"], where)
    return found


def _is_text_or_chat(found: Any) -> bool:
    """Whether this looks as a text or chat does, and not as a message."""
    if isinstance(found, dict):
        return "role" not in found and ("text" in found or "messages" in found)
    return isinstance(found, (str, list))


def _wrong(message: Any) -> str:
    """Why this is no message; empty if it is one."""
    if not isinstance(message, dict):
        return "is no object"
    for key in ("role", "content"):
        value = message.get(key)
        if value is None:
            return f"has no {key}"
        if not isinstance(value, str):
            parts = ": a list of parts is not read here, write their text as one" if isinstance(value, list) else ""
            return f"has a {key} that is no string{parts}"
    return ""


def _holds_object(found: Any) -> bool:
    """Whether this is an object, or a list that holds one at any depth."""
    left = [found]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            return True
        left += one if isinstance(one, list) else []
    return False
