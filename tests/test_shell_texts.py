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


@pytest.mark.parametrize(
    "text", ['{"key": 1}', "[1, 2]", "{not json", '["Rome"]', '{"text": 5}', '{"text": "a", "messages": []}']
)
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
        ('["Rome"]', "the text: messages must be a list of messages with a role and a content"),
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
