"""What a request asks of the model, checked: no value of a request is used before it has passed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lxt_fx.attribution.target import Name, Target
from lxt_fx.base.saved_json import Saved, read_json
from lxt_fx.compiler.options import table_named
from lxt_fx.explorer.plain import Payload
from lxt_fx.explorer.server.asked_picture import read_picture
from lxt_fx.inputs.kinds import is_chat
from lxt_fx.inside.steering.edits import Edit, clamp, scale

SOURCE = "request"

MOST_CHARACTERS, MOST_ANSWER, MOST_MESSAGES, LONGEST_NAME = 20_000, 256, 200, 1_000
"""The most characters of a text or chat, tokens of an answer, messages of a chat, and characters of a target or place."""

MOST_SAVED, MOST_EDITS, MOST_UNITS = 200, 100, 10_000
"""The most explanations of a saved file, edits of a steered question, and units of an edit."""

FIELDS = frozenset(
    ("kind", "text", "chat", "image", "target", "contrast", "position", "rules", "answer_tokens", "latent", "account")
    + ("steer",)
)
ROLES = {role: role for role in ("system", "user", "assistant")}


@dataclass(frozen=True, slots=True)
class Asked:
    """What is explained: a text, a chat or a picture, which number, under which table, and what is shown beside it. With
    `answer_tokens` the model writes so many tokens first, and each of them is explained. `steer` says what is changed
    inside the model meanwhile, by place."""

    given: Any
    title: str
    has_text: bool
    has_picture: bool
    target: Target
    rules: str
    answer_tokens: int
    latent: bool
    account: bool
    steer: Mapping[str, Sequence[Edit]]


def read_asked(body: str) -> Asked:
    """The request of a job. Raises InputError that names the field for a value that cannot be used, or is unknown, and
    UnknownNameError for an unknown table."""
    saved = read_json(body, SOURCE)
    unknown = sorted(set(saved.entries()) - FIELDS)
    if unknown:
        saved.fail(f"has the unknown fields {', '.join(map(ascii, unknown[:5]))}; known are {', '.join(sorted(FIELDS))}")
    if (kind := saved.item("kind").text()) != "explain":
        saved.item("kind").fail(f"is {kind!a:.40}; only 'explain' is known")
    rules = saved.item("rules").text(LONGEST_NAME)
    table_named(rules)
    count = saved.maybe("answer_tokens")
    target, answer_tokens = _target(saved), 0 if count is None else count.whole(0, MOST_ANSWER)
    if answer_tokens and target != Target():
        saved.fail("names a target, contrast or position beside answer_tokens; each token of the answer is its own target")
    shown, steer = (_flag(saved, "latent"), _flag(saved, "account")), _steer(saved)
    written, image = _written(saved), saved.maybe("image")
    picture = None if image is None else read_picture(image)
    title = written[-1]["content"] if isinstance(written, list) else ""
    has = (written is not None, picture is not None)
    return Asked(_joined(written, picture), title, *has, target, rules, answer_tokens, *shown, steer)


def _joined(written: str | list[dict[str, str]] | None, picture: Any) -> Any:
    """What `explain` takes: a text, a chat, a picture, or a picture in one of the two, before the person's first words."""
    if picture is None:
        return written
    if not isinstance(written, list):
        return picture if written is None else {"text": written, "image": picture}
    first = next((at for at, message in enumerate(written) if message["role"] == "user"), 0)
    words = {"type": "text", "text": written[first]["content"]}
    message = {**written[first], "content": [{"type": "image", "image": picture}, words]}
    return [*written[:first], message, *written[first + 1 :]]


def _written(saved: Saved) -> str | list[dict[str, str]] | None:
    """The text or chat. Raises InputError for both, and for neither where there is no picture either."""
    text, chat = saved.maybe("text"), saved.maybe("chat")
    if text is None and chat is None and saved.maybe("image") is not None:
        return None
    if (text is None) == (chat is None):
        saved.fail("must have a text or a chat, and not both")
    if text is not None:
        found = text.exact_text(MOST_CHARACTERS)
        if not found.strip():
            text.fail("is empty, so there is nothing to explain")
        return _encodable(text, found)
    assert chat is not None, "one of both is there"
    messages = [_message(message) for message in chat.parts(MOST_MESSAGES)]
    if sum(len(message["content"]) for message in messages) > MOST_CHARACTERS:
        chat.fail(f"has more than {MOST_CHARACTERS} characters")
    if not is_chat(messages):
        chat.fail("has no message")
    return messages


def _message(saved: Saved) -> dict[str, str]:
    if set(saved.entries()) != {"role", "content"}:
        saved.fail("must have role and content, and nothing else")
    content = saved.item("content")
    return {"role": saved.item("role").one_of(ROLES), "content": _encodable(content, content.exact_text(MOST_CHARACTERS))}


def _encodable(saved: Saved, text: str) -> str:
    """Half of a surrogate pair is no character, and a tokenizer may end the process at it."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        saved.fail("holds half of a surrogate pair, which is no character")
    return text


def _target(saved: Saved) -> Target:
    target, contrast, position = (saved.maybe(key) for key in ("target", "contrast", "position"))
    if target is not None and contrast is not None:
        saved.fail("has a target and a contrast, which both say what to explain; give one of them")
    names: list[Name | None] = [None, None]
    if target is not None:
        names[0] = _name(target)
    if contrast is not None:
        pair = contrast.parts(2)
        if len(pair) != 2:
            contrast.fail("must be two names")
        names = [_name(one) for one in pair]
    return Target(names[0], names[1], None if position is None else position.whole(-(2**31), 2**31))


def _name(saved: Saved) -> Name:
    """A token or class by its name, or by its index where it is written `id:17`."""
    name = _encodable(saved, saved.exact_text(LONGEST_NAME))
    if not name:
        saved.fail("is empty; null stands for the model's own answer")
    index = name.removeprefix("id:")
    return int(index) if index != name and index.isascii() and index.isdigit() and len(index) < 10 else name


def _flag(saved: Saved, key: str) -> bool:
    found = saved.maybe(key)
    return found is not None and found.flag()


def _steer(saved: Saved) -> dict[str, list[Edit]]:
    """Edits by place: {"units": [..], "scale": n} multiplies these units, or all, "value" sets them."""
    found, steer = dict[str, list[Edit]](), saved.maybe("steer")
    for place, given in ({} if steer is None else steer.entries()).items():
        if len(place) > LONGEST_NAME:
            saved.item("steer").fail(f"names a place of {len(place)} characters; {LONGEST_NAME} is the most")
        found[place] = [_edit(one) for one in (given.parts(MOST_EDITS) if isinstance(given.value, list) else [given])]
        if not found[place]:
            given.fail("is empty; leave the place out to change nothing there")
    if steer is not None and sum(map(len, found.values())) > MOST_EDITS:
        steer.fail(f"has more than {MOST_EDITS} edits")
    return found


def _edit(saved: Saved) -> Edit:
    known, units = set(saved.entries()), saved.maybe("units")
    if known - {"units"} not in ({"scale"}, {"value"}):
        saved.fail('must have "scale" or "value", beside "units", and nothing else')
    chosen = None if units is None else [unit.whole(0) for unit in units.parts(MOST_UNITS)]
    if "scale" in known:
        return scale(saved.item("scale").number(), chosen)
    return clamp(saved.item("value").number(), chosen)


def steered_data(steer: Mapping[str, Sequence[Edit]]) -> list[Payload]:
    """The edits as the page has them."""
    return [
        {"place": place, "units": None if edit.units is None else list(edit.units),
         "scale" if edit.kind == "scale" else "value": edit.amount}
        for place, edits in steer.items() for edit in edits
    ]  # fmt: skip


def saved_explanations(body: str) -> list[Saved]:
    """The JSON of one saved explanation, or of each of several. Raises InputError for a file of none, or of too many."""
    saved = read_json(body, SOURCE)
    if not isinstance(saved.value, dict) or "explanations" not in saved.value:
        return [saved]
    listed = saved.item("explanations")
    if not (found := listed.parts(MOST_SAVED)):
        listed.fail("is empty, so there is nothing to open")
    return found
