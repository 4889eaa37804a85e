"""What the command reads: texts and chats, as they stand or in JSON, one or many, for every command that takes a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import shell_run
import torch
from shell_run import TEXT, filled, run
from transformers import AutoModelForCausalLM, AutoTokenizer

import lxt_fx
from lxt_fx.shell.texts import texts_of

Capture = pytest.CaptureFixture[str]

CHAT = [{"role": "user", "content": "Rome"}, {"role": "assistant", "content": "Paris"}, {"role": "user", "content": "is"}]


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    """The language model and its tokenizer, loaded in Python."""
    name = shell_run.language_model()
    return AutoModelForCausalLM.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)


def lines(capsys: Capture, *arguments: str, stdin: bytes | None = None, place: Path = Path()) -> list[dict[str, Any]]:
    """The objects that a command that is done wrote to standard output."""
    assert run(*filled(arguments, place), stdin=stdin) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("written", [CHAT, {"messages": CHAT}])
def test_a_chat_in_json_is_read_from_an_argument_and_from_standard_input(
    written: Any, loaded: tuple[Any, Any], capsys: Capture
) -> None:
    expected = lxt_fx.explain(*loaded, CHAT)
    (typed,) = lines(capsys, "explain", "LLAMA", json.dumps(written), "--from-json", "--json", "-")
    stdin = json.dumps(written, indent=1).encode()
    (piped,) = lines(capsys, "explain", "LLAMA", "-", "--from-json", "--json", "-", stdin=stdin)
    for found in (typed, piped):
        assert found["tokens"] == list(expected.tokens)
        torch.testing.assert_close(torch.tensor(found["relevance"]), expected.relevance)


def test_texts_and_chats_in_json_are_lines_of_standard_input(loaded: tuple[Any, Any], capsys: Capture) -> None:
    given = [CHAT, "Rome is", {"text": '{"text": "Rome"}'}, {"messages": CHAT[:1]}]
    stdin = "\n\n".join(map(json.dumps, given)).encode()
    found = lines(capsys, "explain", "LLAMA", "--file", "-", "--from-json", "--json", "-", stdin=stdin)
    model, tokenizer = loaded
    for one, value in zip(found, [CHAT, "Rome is", '{"text": "Rome"}', CHAT[:1]], strict=True):
        torch.testing.assert_close(torch.tensor(one["relevance"]), lxt_fx.explain(model, tokenizer, value).relevance)


def test_the_answers_to_chats_of_a_pipe_are_what_the_model_writes(loaded: tuple[Any, Any], capsys: Capture) -> None:
    model, tokenizer = loaded
    stdin = "\n".join(map(json.dumps, (CHAT, CHAT[:1]))).encode()
    command = ("answer", "LLAMA", "--file", "-", "--from-json", "--max-new-tokens", "2", "--json", "-")
    for one, chat in zip(lines(capsys, *command, stdin=stdin), (CHAT, CHAT[:1]), strict=True):
        ids = lxt_fx.explain(model, tokenizer, chat).input_ids
        ids = torch.tensor([ids])
        for _ in range(2):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
        assert one["input_ids"] == ids[0].tolist() and one["answer_tokens"] == 2


@pytest.mark.parametrize("written", [CHAT, {"messages": CHAT}, {"text": "Rome"}])
def test_json_that_would_be_read_with_its_braces_is_refused(written: Any, tmp_path: Path, capsys: Capture) -> None:
    text = json.dumps(written)
    (tmp_path / "texts").write_text(f"Paris is\n{text}\n")
    for arguments, stdin, where in (
        (("explain", "nobody/nothing", text), None, "the text"),
        (("answer", "nobody/nothing", "-"), text.encode(), "standard input"),
        (("latent", "nobody/nothing", "--file", "HERE/texts"), None, f"{tmp_path}/texts, line 2"),
    ):
        assert run(*filled(arguments, tmp_path), stdin=stdin) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"UsageMistake: {where} is a text or chat in JSON") and "--from-json reads it" in said


PARTS = [{"role": "user", "content": [{"type": "text", "text": "Rome"}]}]

REFUSED = [
    ('{"key": 1}', "must be an object with a text or with messages, and has neither, but 'key'"),
    ('{"prompt": "x"}', "has neither, but 'prompt'"),
    ("{}", "has neither, but nothing"),
    ('{"text": 5}', "the text is no string"),
    ('{"text": ""}', "is empty, so there is nothing"),
    ('{"messages": []}', "messages must be a list of messages"),
    ('{"text": "a", "messages": []}', "and has both"),
    ('{"text": "a", "target": " Paris"}', "'target' is not read from JSON"),
    ('[{"text": "a"}, {"text": "b"}]', "is a list of texts or chats"),
    ('[{"role": "user", "text": "a"}]', "message 1 has no content"),
    (json.dumps([CHAT, CHAT]), "is a list of texts or chats"),
    (json.dumps(PARTS), "message 1 has a content that is no string: a list of parts is not read here"),
    ('[{"role": "user", "content": "a"}, {"role": "assistant", "content": null}]', "message 2 has no content"),
    ('[{"role": "user"}]', "message 1 has no content"),
    ('[{"content": "a"}]', "message 1 has no role"),
    (f"[{json.dumps(CHAT)},]", "begins as a text or chat in JSON, but is no JSON ("),
    ('{"text": "a",}', "begins as a text or chat in JSON, but is no JSON ("),
    ('{"text": "a"}\n{"text": "b"}', "is JSON with more behind it"),
    (f"{json.dumps(CHAT)} and more", "is JSON with more behind it"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_json_is_never_explained_with_its_braces(text: str, message: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "texts").write_text(f"Rome is\n{text}\n")
    for arguments, stdin, where in (
        (("explain", "nobody/nothing", text), None, "the text"),
        (("explain", "nobody/nothing", "-"), text.encode(), "standard input"),
        (("explain", "nobody/nothing", "--file", "HERE/texts"), None, f"{tmp_path}/texts, line 2"),
    ):
        assert run(*filled(arguments, tmp_path), stdin=stdin) == 2
        said = capsys.readouterr().err
        of_one = "\n" in text and "--file" in arguments  # whose lines are read one by one
        assert said.startswith(f"UsageMistake: {where} ") and '{"text": "..."}' in said and (of_one or message in said)


def test_several_chats_in_standard_input_name_the_file_of_many(capsys: Capture) -> None:
    stdin = f"{json.dumps(CHAT)}\n{json.dumps(CHAT)}\n".encode()
    for more, code in (((), 2), (("--from-json",), 3)):
        assert run("explain", "nobody/nothing", "-", *more, stdin=stdin) == code
        said = capsys.readouterr().err
        assert "standard input is " in said and "in standard input with --file -, write one text or chat on each" in said


def test_broken_json_over_several_lines_is_refused_too(capsys: Capture) -> None:
    stdin = json.dumps([{"text": "a"}], indent=1).replace("}", "},").encode()
    assert run("explain", "nobody/nothing", "--file", "-", stdin=stdin) == 2
    assert "standard input begins as a text or chat in JSON, but is no JSON (" in capsys.readouterr().err


@pytest.mark.parametrize("written", [CHAT, {"messages": CHAT}, [CHAT, CHAT]])
def test_json_over_several_lines_is_no_file_of_many(written: Any, tmp_path: Path, capsys: Capture) -> None:
    """Not under another name and not in a pipe; where it is said to be JSON, it is said how a file of many is written."""
    text = json.dumps(written, indent=1)
    for name in ("chats.json", "chats.txt", "chats.jsonl"):
        (tmp_path / name).write_text(text)
    for arguments, stdin, code, message in (
        (("--file", "HERE/chats.json"), None, 2, "chats.json is JSON by its name, and each of its lines would be read"),
        (("--file", "HERE/chats.txt"), None, 3, "chats.txt is one JSON over several lines; in a file"),
        (("--file", "-"), text.encode(), 3, "standard input is one JSON over several lines; in a file"),
        (("--file", "HERE/chats.json", "--from-json"), None, 3, "chats.json is one JSON over several lines; in a file"),
        (("--file", "HERE/chats.jsonl"), None, 3, "chats.jsonl is one JSON over several lines; in a file"),
    ):
        assert run(*filled(("explain", "nobody/nothing", *arguments), tmp_path), stdin=stdin) == code
        assert message in capsys.readouterr().err


def test_a_file_named_json_is_read_by_its_lines_where_that_is_asked(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "texts.json").write_text('{"text": "Rome is"}\n"Paris"\n')
    found = lines(capsys, "explain", "LLAMA", "--file", "HERE/texts.json", "--from-json", "--json", "-", place=tmp_path)
    assert [one["text"] for one in found] == ["Rome is", "Paris"]


@pytest.mark.parametrize(("key", "value"), [("target", " Paris"), ("contrast", "b"), ("position", 0), ("answer", "c")])
def test_a_key_of_json_that_asks_for_something_else_is_refused(key: str, value: Any, capsys: Capture) -> None:
    assert run("explain", "nobody/nothing", json.dumps({"text": "a", key: value}), "--from-json") == 3
    assert f"the text: {key!r} is not read from JSON; give it as an option" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["tools", "documents"])
def test_a_key_of_json_that_makes_another_prompt_is_refused(key: str, capsys: Capture) -> None:
    assert run("explain", "nobody/nothing", json.dumps({"messages": CHAT, key: [{"name": "f"}]}), "--from-json") == 3
    assert f"the text: {key!r} is not read from JSON; it changes the prompt" in capsys.readouterr().err


def test_a_key_of_json_that_means_nothing_here_is_left_out(capsys: Capture) -> None:
    given = {"id": 7, "label": "good", "text": "Rome is", "target": None, "tools": []}
    (found,) = lines(capsys, "explain", "LLAMA", json.dumps(given), "--from-json", "--json", "-")
    assert found["text"] == "Rome is"


def test_json_that_is_nested_too_deeply_is_no_json(capsys: Capture) -> None:
    for text in ("[" * 3000, '{"text":' * 3000):
        assert run("explain", "nobody/nothing", text, "--from-json") == 3
        assert "the text is no JSON (" in capsys.readouterr().err
    assert texts_of("[" * 3000, None, False).given[0].value == "[" * 3000


def test_half_a_character_in_json_is_named_with_its_line(tmp_path: Path, capsys: Capture) -> None:
    for written in ({"text": "\ud800"}, [{"role": "user", "content": "\ud800"}]):
        (tmp_path / "texts.jsonl").write_text(f'"Rome"\n{json.dumps(written)}\n')
        assert run(*filled(("explain", "nobody/nothing", "--file", "HERE/texts.jsonl"), tmp_path)) == 3
        assert f"InputError: {tmp_path}/texts.jsonl, line 2 is no UTF-8, or holds half" in capsys.readouterr().err


FINISHED = CHAT[:2]


def test_the_last_message_of_the_assistant_is_the_answer(loaded: tuple[Any, Any], capsys: Capture) -> None:
    (found,) = lines(capsys, "answer", "LLAMA", json.dumps(FINISHED), "--from-json", "--json", "-")
    expected = lxt_fx.answer_relevance(*loaded, FINISHED[:1], "Paris")
    assert found["tokens"] == list(expected.tokens) and found["answer_tokens"] == len(loaded[1]("Paris").input_ids)
    torch.testing.assert_close(torch.tensor(found["relevance"]), expected.relevance)


def test_an_answer_that_was_begun_goes_on_where_that_is_asked(loaded: tuple[Any, Any], capsys: Capture) -> None:
    begun = lxt_fx.explain(*loaded, FINISHED).input_ids
    for asked, tokens in ((("--max-new-tokens", "2"), 2), (("--answer", " is"), len(loaded[1](" is").input_ids))):
        (found,) = lines(capsys, "answer", "LLAMA", json.dumps(FINISHED), "--from-json", *asked, "--json", "-")
        assert found["answer_tokens"] == tokens and found["input_ids"][:-tokens] == list(begun)


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        (FINISHED[1:], "and no message stands before it"),
        ([FINISHED[0], {"role": "assistant", "content": " "}], "and this is empty"),
    ],
)
def test_an_answer_without_a_question_and_an_empty_one_are_refused(chat: Any, message: str, capsys: Capture) -> None:
    assert run("answer", "nobody/nothing", json.dumps(chat), "--from-json") == 3
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[1, 2]", "{not json", '["Rome"]', '{"name": "Rome", "is', "[Rome](x)", "[1] Rome"])
def test_other_text_with_braces_is_a_text(text: str, capsys: Capture) -> None:
    (found,) = lines(capsys, "explain", "LLAMA", text, "--json", "-")
    assert found["text"] == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5", "the text: the text is no string; write"),
        ("Rome", "the text is no JSON ("),
        ("{}", "the text must be an object with a text or with messages"),
        ("[]", "the text: messages must be a list of messages with a role and a content"),
        ("[1]", "the text: messages must be a list of messages with a role and a content, and message 1 is no object"),
        ('["Rome"]', "the text is a list of texts or chats, and one is read at a time; in a file, or in standard input"),
        ('{"text": " "}', "the text is empty"),
        ('[{"role": "user", "content": "\\ud800"}]', "holds half of a surrogate pair"),
    ],
)
def test_json_that_is_no_text_and_no_chat_is_code_3(text: str, message: str, capsys: Capture) -> None:
    assert run("explain", "nobody/nothing", text, "--from-json") == 3
    assert message in capsys.readouterr().err


def test_the_inside_of_a_model_for_many_texts_is_a_line_each(
    loaded: tuple[Any, Any], tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "texts.jsonl").write_text(f'{{"text": "{TEXT}"}}\n\n{json.dumps(CHAT)}\n')
    command = ("latent", "LLAMA", "--file", "HERE/texts.jsonl", "--top", "3")
    found = lines(capsys, *command, "--json", "-", place=tmp_path)
    for one, given in zip(found, (TEXT, CHAT), strict=True):
        expected = lxt_fx.latent(loaded[0], given, processor=loaded[1])
        assert [(each["place"], each["unit"]) for each in one["top"]] == [(b.place, b.unit) for b in expected.top(3).found]
        assert one["explanation"]["explained"] == expected.numbers()[0].said
    out = tmp_path / "out"
    assert run(*filled((*command, "--json", f"{out}.jsonl", "--html", f"{out}.html"), tmp_path)) == 0
    shown = capsys.readouterr()
    assert f"{tmp_path}/texts.jsonl, line 1:\n" in shown.out and f"{tmp_path}/texts.jsonl, line 3:\n" in shown.out
    assert shown.out.count("mlp.0.neurons") == 6 and shown.err == f"wrote {out}.jsonl\nwrote {out}.html\n"
    written = [json.loads(line) for line in Path(f"{out}.jsonl").read_text().splitlines()]
    assert [one["top"] for one in written] == [one["top"] for one in found]
    page = Path(f"{out}.html").read_text()
    assert "Paris" in page and page.count('"heads"') >= 2


def test_a_text_of_many_that_cannot_be_read_inside_is_named(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "texts").write_text(f"{TEXT}\na")
    command = ("latent", "LLAMA", "--file", "HERE/texts", "--position", "4", "--json", "-")
    code = run(*filled(command, tmp_path))
    shown = capsys.readouterr()
    assert code == 3 and len(shown.out.splitlines()) == 1 and f"{tmp_path}/texts, line 2: " in shown.err


@pytest.mark.parametrize("command", ["explain", "answer", "audit", "latent"])
def test_no_output_is_written_over_the_file_of_texts(command: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "texts").write_text("Paris is\nRome is")
    arguments = (command, "nobody/nothing", "--file", "HERE/texts", "--json", "HERE/texts", "--force")
    assert run(*filled(arguments, tmp_path)) == 2 and "would write over" in capsys.readouterr().err
