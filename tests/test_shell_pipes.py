"""The command among other commands: what it reads, what it writes to standard output, and how wide that is."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shell_run
import torch
from PIL import Image
from shell_run import TEXT, filled, run
from tiny_text import byte_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import lxt_fx
from lxt_fx.explorer.server import serve
from lxt_fx.explorer.server.served_model import ServedModel
from lxt_fx.shell.main import COMMANDS

ROOT = Path(__file__).parents[1]
PRINTED = ROOT / "tests/printed/shell"

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    """The language model and its tokenizer, loaded in Python."""
    name = shell_run.language_model()
    return AutoModelForCausalLM.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)


def ran(capsys: Capture, *arguments: str, place: Path = ROOT, stdin: bytes | None = None) -> tuple[str, str]:
    """What a command that is done wrote to standard output, and to standard error."""
    assert run(*filled(arguments, place), stdin=stdin) == 0
    shown = capsys.readouterr()
    return shown.out, shown.err


def test_json_alone_on_standard_output_is_what_python_finds(loaded: tuple[Any, Any], capsys: Capture) -> None:
    out, err = ran(capsys, "explain", "LLAMA", "-", "--json", "-", stdin=f"{TEXT}\n".encode())
    expected = lxt_fx.explain(*loaded, TEXT).to_dict()
    found = json.loads(out)
    assert not err and out.count("\n") == 1 and found | {"seconds": 0, "checkpoint": ""} == expected | {
        "seconds": 0, "checkpoint": "",
    }  # fmt: skip


def test_the_view_goes_to_standard_error_where_it_is_asked_for(capsys: Capture) -> None:
    out, err = ran(capsys, "explain", "LLAMA", TEXT, "--json", "-", "--show")
    assert json.loads(out)["tokens"][0] == "The" and err.startswith("logit of ") and TEXT in err
    assert ran(capsys, "explain", "LLAMA", TEXT, "--no-show") == ("", "")


def test_the_command_stands_in_a_pipe(tmp_path: Path) -> None:
    """A process of its own, as a person types it."""
    (tmp_path / "text").write_text(f"{TEXT}\n")
    read = "jq -c .relevance" if shutil.which("jq") else f"{sys.executable} -m json.tool --compact"
    command = f"{sys.executable} -m lxt_fx explain {shell_run.language_model()} - --json - < {tmp_path}/text | {read}"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert len(found if isinstance(found, list) else found["relevance"]) == 5 and "Traceback" not in done.stderr


def test_many_texts_are_a_line_of_json_each(loaded: tuple[Any, Any], tmp_path: Path, capsys: Capture) -> None:
    chat = [{"role": "user", "content": "Rome"}]
    (tmp_path / "texts.jsonl").write_text(f'{{"text": "Paris is"}}\n\n{json.dumps({"messages": chat})}\n')
    out, err = ran(capsys, "explain", "LLAMA", "--file", "HERE/texts.jsonl", "--json", "-", place=tmp_path)
    first, second = map(json.loads, out.splitlines())
    assert first["text"] == "Paris is" and not err
    torch.testing.assert_close(torch.tensor(second["relevance"]), lxt_fx.explain(*loaded, chat).relevance)
    _, err = ran(capsys, "explain", "LLAMA", "--file", "HERE/texts.jsonl", "--json", "HERE/o", place=tmp_path)
    assert err == f"wrote {tmp_path}/o\n"
    assert [json.loads(line)["value"] for line in (tmp_path / "o").open()] == [first["value"], second["value"]]


def test_lines_of_standard_input_are_many_texts(capsys: Capture) -> None:
    raw = b"\xef\xbb\xbfParis is\r\n\r\nRome is"
    out, _ = ran(capsys, "explain", "LLAMA", "--file", "-", stdin=raw)
    assert out.startswith("standard input, line 1:\nlogit of") and "standard input, line 3:\nlogit of" in out
    out, _ = ran(capsys, "explain", "LLAMA", "--file", "-", "--json", "-", stdin=raw)
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["Paris is", "Rome is"]


def test_many_texts_are_one_page(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "texts").write_text("Paris is\nRome is")
    ran(capsys, "explain", "LLAMA", "--file", "HERE/texts", "--html", "HERE/out.html", "--no-show", place=tmp_path)
    assert "Rome" in (tmp_path / "out.html").read_text()


def test_a_text_is_one_turn_of_a_chat(loaded: tuple[Any, Any], capsys: Capture) -> None:
    out, _ = ran(capsys, "explain", "LLAMA", "Rome", "--chat", "--json", "-")
    expected = lxt_fx.explain(*loaded, [{"role": "user", "content": "Rome"}])
    assert json.loads(out)["tokens"] == list(expected.tokens)
    torch.testing.assert_close(torch.tensor(json.loads(out)["relevance"]), expected.relevance)


def test_the_account_and_the_dtype_are_asked_for(capsys: Capture) -> None:
    out, _ = ran(capsys, "explain", "LLAMA", TEXT, "--account", "--dtype", "float64", "--json", "-")
    found = json.loads(out)
    assert found["account"]["reached"] and found["dtype"] == "float64"


def test_the_answer_is_what_the_model_writes(loaded: tuple[Any, Any], capsys: Capture) -> None:
    model, tokenizer = loaded
    out, _ = ran(capsys, "answer", "LLAMA", TEXT, "--max-new-tokens", "3", "--json", "-")
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    for _ in range(3):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    found = json.loads(out)
    assert found["input_ids"] == ids[0].tolist() and found["answer_tokens"] == 3
    expected = lxt_fx.answer_relevance(model, tokenizer, TEXT, ids[0, -3:].tolist(), with_prompt=False)
    torch.testing.assert_close(torch.tensor(found["relevance"]), expected.relevance)


def test_the_answer_of_a_model_that_takes_token_types(tmp_path: Path, capsys: Capture) -> None:
    """GPT-2 does, and a tokenizer may write them, as that of BERT does."""
    names = ["input_ids", "token_type_ids", "attention_mask"]
    made = byte_tokenizer().backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, model_input_names=names)  # without a token that ends a text
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=4, n_positions=64)).eval()
    for each in (tokenizer, model):
        each.save_pretrained(tmp_path)
    assert "token_type_ids" in AutoTokenizer.from_pretrained(tmp_path)(TEXT)
    out, _ = ran(capsys, "answer", str(tmp_path), TEXT, "--max-new-tokens", "3", "--json", "-")
    found, inputs = json.loads(out), dict(tokenizer(TEXT, return_tensors="pt"))
    for _ in range(3):
        following = model(**inputs).logits[:, -1:].argmax(-1)
        more = {"input_ids": following, "attention_mask": torch.ones_like(following)}
        inputs = {name: torch.cat([ids, more.get(name, ids[:, -1:])], 1) for name, ids in inputs.items()}
    assert found["input_ids"] == inputs["input_ids"][0].tolist() and found["answer_tokens"] == 3


def test_an_answer_is_given_and_contrasted(loaded: tuple[Any, Any], capsys: Capture) -> None:
    out, _ = ran(capsys, "answer", "LLAMA", TEXT, "--answer", " Paris", "--contrast", " London", "--json", "-")
    expected = lxt_fx.answer_relevance(*loaded, TEXT, " Paris", contrast=" London")
    torch.testing.assert_close(torch.tensor(json.loads(out)["relevance"]), expected.relevance)


def test_pictures_are_explained(tmp_path: Path, capsys: Capture) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (2, 20, 20, 3), dtype=np.uint8)
    for name, picture in zip("ab", pixels, strict=True):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    out, _ = ran(capsys, "image", "VIT", "HERE/a.png", "--target", "id:3", place=tmp_path)
    assert out.startswith("logit of class 3") and "ViTForImageClassification" in out
    out, _ = ran(capsys, "image", "VIT", "HERE/a.png", "HERE/b.png", "--patch", "2", "--json", "-", place=tmp_path)
    first, second = map(json.loads, out.splitlines())
    assert first["kind"] == "image" and first["relevance"] != second["relevance"]


def test_the_inside_of_a_model_is_data(loaded: tuple[Any, Any], capsys: Capture) -> None:
    out, _ = ran(capsys, "latent", "LLAMA", TEXT, "--top", "3", "--by", "absolute", "--json", "-")
    found, expected = json.loads(out), lxt_fx.latent(loaded[0], TEXT, processor=loaded[1])
    best = expected.top(3, by="absolute").found
    assert [(one["place"], one["unit"], one["token"]) for one in found["top"]] == [(b.place, b.unit, b.token) for b in best]
    assert found["explanation"]["explained"] == expected.numbers()[0].said
    heads = found["places"]["attention.0.heads"]
    torch.testing.assert_close(torch.tensor(heads["heads"]), expected.heads()[0])
    assert heads["relevance"] == pytest.approx(expected.total("attention.0.heads"))
    shown, _ = ran(capsys, "latent", "LLAMA", TEXT, "--places", "attention.*.heads", "--top", "2")
    assert "attention.heads" in shown and shown.count("attention.0.heads") == 2


def test_what_the_layers_say_is_data_and_a_lens_is_kept(loaded: tuple[Any, Any], tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "prompts").write_text(f"{TEXT}\nParis is in France\n")
    kept = ("--save", "HERE/lens.safetensors", "--prompts", "HERE/prompts", "--skip", "1", "--rules", "gradient")
    out, _ = ran(capsys, "lens", "LLAMA", TEXT, *kept, "--png", "HERE/lens.png", "--html", "HERE/lens.html", place=tmp_path)
    lens = lxt_fx.lens(
        loaded[0], [TEXT, "Paris is in France"], processor=loaded[1], positions=slice(1, None), rules="gradient"
    )
    assert str(lens.read(TEXT)) in out and out.endswith(f"a lens of 2 prompts, {lens.facts.positions} positions\n")
    assert Image.open(tmp_path / "lens.png").width == 1300 and "lens: " in (tmp_path / "lens.html").read_text()
    found = [
        json.loads(ran(capsys, "lens", "LLAMA", TEXT, *how, "--top", "2", "--json", "-", place=tmp_path)[0])
        for how in (("--lens", "HERE/lens.safetensors"), ())
    ]
    assert found[0] == json.loads(json.dumps(lens.read(TEXT, k=2).to_dict()))
    alone = lxt_fx.lens(loaded[0], TEXT, processor=loaded[1])
    assert found[1] == json.loads(json.dumps(alone.read(TEXT, k=2).to_dict())), "by the Jacobian of the text itself"
    lines, _ = ran(
        capsys, "lens", "LLAMA", "--file", "HERE/prompts", "--lens", "HERE/lens.safetensors", "--json", "-", place=tmp_path
    )
    assert [len(json.loads(line)["tokens"]) for line in lines.splitlines()] == [
        len(loaded[1](text)["input_ids"]) for text in (TEXT, "Paris is in France")
    ]


def test_audits_of_many_texts_go_on_to_the_last(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "texts").write_text("Paris is\nRome is\nLondon is")
    checked, real = list[str](), lxt_fx.Ledger.check

    def check(ledger: lxt_fx.Ledger) -> None:
        checked.append(ledger.explained[0])
        real(ledger)
        if len(checked) == 2:
            raise lxt_fx.LedgerError("ledger: %x")

    monkeypatch.setattr(lxt_fx.Ledger, "check", check)
    assert run(*filled(("audit", "LLAMA", "--file", "HERE/texts", "--json", "-"), tmp_path)) == 5
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 3 and shown.err == f"LedgerError: {tmp_path}/texts, line 2: ledger: %x\n"


def test_ledgers_of_many_texts_are_one_page(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "texts").write_text("Paris is\nRome is")
    command = ("audit", "LLAMA", "--file", "HERE/texts", "--html", "HERE/out.html", "--no-show")
    _, err = ran(capsys, *command, place=tmp_path)
    page = (tmp_path / "out.html").read_text()
    assert err == f"wrote {tmp_path}/out.html\n" and page.count('"kind":"ledger"') == 2


def test_a_view_looks_as_asked(loaded: tuple[Any, Any], tmp_path: Path, capsys: Capture) -> None:
    look = ("--scale", "max", "--mute", "last", "--mute", "0", "--units", "words")
    out, err = ran(capsys, "explain", "LLAMA", TEXT, *look, "--svg", "HERE/out.svg", place=tmp_path)
    found = lxt_fx.explain(*loaded, TEXT).view(scale="max", mute=["last", 0], units="words")
    assert out.split() == str(found).split() and err == f"wrote {tmp_path}/out.svg\n"
    assert "<svg" in (tmp_path / "out.svg").read_text()


def test_each_page_of_a_picture_is_named_and_none_is_written_over(tmp_path: Path, capsys: Capture) -> None:
    text = "Paris is " * 800
    _, err = ran(capsys, "explain", "LLAMA", text, "--png", "HERE/out.png", "--no-show", place=tmp_path)
    pages = sorted(path.name for path in tmp_path.iterdir())
    assert len(pages) > 1 and err == "".join(f"wrote {tmp_path}/{name}\n" for name in ("out.png", *pages[:-1]))
    (tmp_path / "out.png").unlink()
    assert run(*filled(("explain", "LLAMA", text, "--png", "HERE/out.png"), tmp_path)) == 6
    assert "out-2.png is there already, where a further page of" in capsys.readouterr().err
    (tmp_path / "out-2.png").rename(tmp_path / "out-17.png")
    for page in tmp_path.glob("out-?.png"):
        page.unlink()
    assert run(*filled(("explain", "LLAMA", text, "--png", "HERE/out.png"), tmp_path)) == 6
    assert "out-17.png is there already" in capsys.readouterr().err


def test_the_certificate_and_the_ledger_are_data_on_standard_output(capsys: Capture) -> None:
    out, err = ran(capsys, "certificate", "LLAMA", "--json", "-")
    assert json.loads(out)["proven"] is True and not err
    out, err = ran(capsys, "audit", "LLAMA", TEXT, "--json", "-")
    assert json.loads(out)["rules"] == "attnlrp" and not err


@pytest.mark.parametrize(
    ("name", "model_class", "tool"),
    [
        ("LLAMA", "LlamaForCausalLM", "Tokenizer"), ("BERT", "BertForSequenceClassification", "Tokenizer"),
        ("VIT", "ViTForImageClassification", "ImageProcessor"),
    ],
)  # fmt: skip
def test_serve_has_the_model_its_tool_and_the_port(
    name: str, model_class: str, tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = list[Any]()

    def serve_at(listening: socket.socket, model: Any, processor: Any, *, open_browser: bool) -> None:
        found.extend([listening.getsockname(), ServedModel(model, processor), processor, open_browser])

    monkeypatch.setattr(serve, "serve_at", serve_at)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert run("serve", shell_run.MODELS[name](), "--port", str(port), "--no-open-browser") == 0
    address, served, processor, opened = found
    assert address == ("127.0.0.1", port) and served.facts.model_class == model_class and opened is False
    assert tool in "".join(each.__name__ for each in type(processor).__mro__)


WIDE_COMMANDS = [
    ("inspect", "LLAMA", "--full"),
    ("inspect", "LLAMA", "--diff", "canonical", "rules"),
    ("certificate", "LLAMA", "--full"),
    ("tables",),
    ("tables", "attnlrp"),
    ("audit", "LLAMA", TEXT),
    ("latent", "LLAMA", TEXT),
    ("lens", "LLAMA", TEXT),
    ("answer", "LLAMA", TEXT, "--max-new-tokens", "3"),
]


@pytest.mark.parametrize("command", WIDE_COMMANDS, ids=" ".join)
@pytest.mark.parametrize("width", [60, 80])
def test_no_line_is_wider_than_the_terminal(
    command: tuple[str, ...], width: int, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    out, _ = ran(capsys, *command)
    assert not [line for line in out.splitlines() if len(line) > width]


def test_lines_are_whole_in_a_pipe(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    graph, _ = ran(capsys, "inspect", "LLAMA")
    assert "…" not in graph and max(map(len, graph.splitlines())) > 100
    monkeypatch.setenv("COLUMNS", "80")
    narrow, _ = ran(capsys, "inspect", "LLAMA")
    rules = [re.findall(r" \| (\S.*)$", text, re.M) for text in (graph, narrow)]
    assert rules[0] == rules[1] and "… |" in narrow, "rules stay where a line is cut"


def golden(name: str, text: str) -> None:
    """Compares with the golden text of this name; UPDATE_GOLDEN=1 writes it."""
    path, shown = PRINTED / f"{name}.txt", "".join(f"{line.rstrip()}\n" for line in text.rstrip().splitlines())
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(shown)
    assert shown == path.read_text(), "UPDATE_GOLDEN=1 writes it anew; then read the diff"


@pytest.mark.parametrize("command", ["", *COMMANDS, "cache"])
def test_the_help_at_80_columns(command: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out, _ = ran(capsys, *command.split(), "--help")
    golden(f"help_{command}".rstrip("_"), out)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("explain", ("explain", "LLAMA", TEXT, "--contrast", " Paris", " London", "--dtype", "float64")),
        ("inspect", ("inspect", "LLAMA", "--module", "model.layers.0.self_attn")),
    ],
)
def test_what_is_printed_at_80_columns(
    name: str, command: tuple[str, ...], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out, _ = ran(capsys, *command)
    golden(name, re.sub(r"(modeling_\w+\.py):\d+", r"\1", out))


@pytest.mark.parametrize("ground", ["dark", "light"])
def test_the_colours_fit_the_background(ground: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"COLUMNS": "80", "FORCE_COLOR": "1", "COLORTERM": "truecolor", "TERM": "xterm", "LXT_FX_BACKGROUND": ground}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    out, _ = ran(capsys, "explain", "LLAMA", TEXT, "--dtype", "float64")
    golden(f"explain_{ground}", out.replace("\x1b", "␛"))


LINES = [line for block in re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs/shell.md").read_text(), re.S | re.M)
         for line in block.splitlines()]  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_the_commands_of_the_docs_run(
    line: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, with what is piped in; what reads the output is left out."""
    monkeypatch.chdir(tmp_path)
    texts = {"text.txt": TEXT, "texts.txt": "Paris is\nRome is", "chats.jsonl": '{"text": "Paris"}'}
    for name, text in texts.items():
        Path(name).write_text(text)
    (command,) = re.findall(r"lxt-fx ([^|<]+)", line)
    stdin = b'[{"role": "user", "content": "Rome"}]' if line.endswith("< chats.txt") else TEXT.encode()
    arguments = ["LLAMA" if word == "MODEL" else word for word in shlex.split(command)]
    out, _ = ran(capsys, *arguments, stdin=stdin)
    assert out or "--no-show" in arguments


def test_the_docs_name_every_command() -> None:
    page = (ROOT / "docs/shell.md").read_text()
    assert all(f"| `{name}` | {said[0].lower()}{said[1:].rstrip('.')} |" in page for name, (_, said) in COMMANDS.items())
