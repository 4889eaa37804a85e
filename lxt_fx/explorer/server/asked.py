"""What a request asks of the model, checked: no value of a request is used before it has passed here."""

from __future__ import annotations

from dataclasses import dataclass

from lxt_fx.attribution.target import Name, Target
from lxt_fx.base.errors import InputError
from lxt_fx.base.saved_json import Saved, read_json
from lxt_fx.compiler.options import table_named
from lxt_fx.inputs.kinds import is_chat

SOURCE = "request"

MOST_CHARACTERS, MOST_ANSWER, MOST_MESSAGES, LONGEST_NAME = 20_000, 256, 200, 1_000
"""The most characters of a text or chat, tokens of an answer, messages of a chat, and characters of a target."""

FIELDS = frozenset(
    ("kind", "text", "chat", "target", "contrast", "position", "rules", "answer_tokens", "latent", "account")
)
ROLES = {role: role for role in ("system", "user", "assistant")}


@dataclass(frozen=True, slots=True)
class Asked:
    """What is explained: a text or a chat, which number, under which table, and what is shown beside it. With
    `answer_tokens` the model writes so many tokens first, and each of them is explained."""

    given: str | list[dict[str, str]]
    target: Target
    rules: str
    answer_tokens: int
    latent: bool
    account: bool


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
    return Asked(_given(saved), target, rules, answer_tokens, _flag(saved, "latent"), _flag(saved, "account"))


def _given(saved: Saved) -> str | list[dict[str, str]]:
    text, chat = saved.maybe("text"), saved.maybe("chat")
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


def saved_explanation(body: str) -> Saved:
    """The JSON of a saved explanation. Raises InputError for a file of several."""
    saved = read_json(body, SOURCE)
    if isinstance(saved.value, dict) and "explanations" in saved.value:
        raise InputError(f"{SOURCE}: the file holds several explanations; lxt_fx.explore shows them in one page")
    return saved
