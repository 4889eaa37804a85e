"""How the command fails: one message, the exit code of its kind, no traceback, and before the work where that can be."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from shell_run import TEXT, filled, language_model, run
from tiny_text import llama
from transformers import T5Config, T5ForConditionalGeneration, WhisperForConditionalGeneration

import lxt_fx.tasks.explain
from lxt_fx.base.errors import NonFiniteError, NoRuleError
from lxt_fx.shell import loading
from lxt_fx.shell.exits import CODES, told_by_kind

ROOT = Path(__file__).parents[1]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with files that cannot be used."""
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\0\1")
    (tmp_path / "latin.txt").write_bytes("one\nStraße".encode("latin1"))
    (tmp_path / "empty.txt").write_bytes(b"\n \r\n")
    (tmp_path / "texts.txt").write_text("one\ntwo")
    (tmp_path / "keys.jsonl").write_text('{"text": "a"}\n{"txt": 1}\n')
    (tmp_path / "half.jsonl").write_text('{"text": "\\ud800"}\n')
    (tmp_path / "broken.jsonl").write_text('{"text": "a"\n')
    (tmp_path / "turns.jsonl").write_text('{"messages": [{"role": "user"}]}\n')
    (tmp_path / "there.json").write_text("mine")
    return tmp_path


def fails(
    capsys: pytest.CaptureFixture[str], place: Path, arguments: tuple[str, ...], stdin: bytes | None = None
) -> tuple[int, str]:
    """The exit code and the message, which is no traceback. Nothing is printed on standard output."""
    code = run(*filled(arguments, place), stdin=stdin)
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err and not shown.out
    return code, re.sub(r"[\s│]+", " ", shown.err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("explian", "LLAMA"), "No such command 'explian'. Did you mean 'explain', 'plan'?"),
        (("explain", "LLAMA", TEXT, "--rulez", "x"), "No such option: --rulez (Possible options: --file, --mute, --rules)"),
        (("explain", "LLAMA", TEXT, "--scale", "mx"), "for '--scale': 'mx' is not one of 'robust', 'max', 'rank'"),
        (("explain", "LLAMA", TEXT, "--dtype", "int8"), "'int8' is not one of 'float32', 'float64', 'bfloat16', 'float16'"),
        (("explain", "LLAMA"), "UsageMistake: give a TEXT (- for standard input) or --file, and not both"),
        (("explain", "LLAMA", TEXT, "--file", "HERE/texts.txt"), "give a TEXT (- for standard input) or --file, and"),
        (("explain", "LLAMA", TEXT, "--target", "a", "--contrast", "b", "c"), "--target and --contrast both say"),
        (("explain", "LLAMA", TEXT, "--target", ""), "--target: the empty string names no token and no class"),
        (("explain", "LLAMA", TEXT, "--rules", "attnlpr"), "--rules: there is no rule table 'attnlpr'; did you mean"),
        (("explain", "LLAMA", TEXT, "--device", "gpu"), "--device 'gpu' is no device; write cpu, cuda, cuda:1 or mps"),
        (("explain", "LLAMA", TEXT, "--html", "-"), "--html -: only --json writes to standard output"),
        (("explain", "LLAMA", TEXT, "--json", "HERE/a", "--html", "HERE/a"), "--html and --json both write "),
        (("explain", "LLAMA", "--file", "HERE/texts.txt", "--png", "HERE/a.png"), "--png is a picture of one explanation"),
        (("explain", "LLAMA", "--file", "HERE/texts.txt", "--json", "HERE/texts.txt", "--force"), "would write over "),
        (("explain", "LLAMA", TEXT, "--steer", "mlp.0.neurons:1"), "write PLACE:UNIT,UNIT=VALUE, such as mlp.11.neurons"),
        (("explain", "LLAMA", TEXT, "--steer", "mlp.0.neurons=1e"), "write PLACE:UNIT,UNIT=VALUE, such as mlp.11.neurons"),
        (("explain", "LLAMA", TEXT, "--steer", "mlp.7.neurons:1=0"), "'mlp.7.neurons' selects nothing"),
        (("explain", "LLAMA", TEXT, "--mute", "frist"), "--mute 'frist' is none of first, last, special and no position"),
        (("answer", "LLAMA", TEXT, "--answer", ""), "--answer: the answer is empty"),
        (("answer", "LLAMA", TEXT, "--answer", "a", "--max-new-tokens", "2"), "--answer gives the answer and"),
        (("latent", "LLAMA", TEXT, "--places", "mlp.*.neuronz"), "the nearest are mlp.0.neurons"),
        (("lens", "LLAMA", TEXT, "--lens", "HERE/x", "--rules", "gradient"), "a lens that is there, and --rules is about"),
        (("lens", "LLAMA", "--file", "HERE/texts.txt"), "of several texts, --prompts or --lens says"),
        (("tables", "attnlpr"), "UnknownNameError: tables: there is no rule table 'attnlpr'; did you mean 'attnlrp'?"),
        (("inspect", "LLAMA", "--stage", "rule"), "there is no stage 'rule', did you mean 'rules'?; the stages are"),
        (("inspect", "LLAMA", "--module", "model.layer.0"), "no module 'model.layer.0'; nearest: model.layers.0,"),
    ],
)
def test_a_command_line_that_cannot_be_meant_is_code_2(
    place: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown = fails(capsys, place, arguments)
    assert code == 2 and message in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("explain", "./nowhere", "hi"), "InputError: there is no folder ./nowhere; give a folder"),
        (("explain", "a/b/c", "hi"), "there is no folder a/b/c; give a folder"),
        (("explain", "HERE/there.json", "hi"), "is a file; give a folder that save_pretrained wrote"),
        (("explain", "HERE", "hi"), "has no config.json, so it holds no model"),
        (("explain", "nobody/nothing", "hi"), "InputError: there is no folder nobody/nothing, it is not in the hub's"),
        (("explain", "VIT", "hi"), "is a ViTForImageClassification, which reads a picture: lxt-fx image explains it"),
        (("image", "LLAMA", "HERE/texts.txt"), "is no picture that can be read"),
        (("image", "VIT", "HERE/picture.png"), "is no picture that can be read"),
        (("image", "VIT", "HERE"), "is a folder; give a file of a picture"),
        (("image", "VIT", "HERE/pictur.png"), "pictur.png; did you mean "),
        (("answer", "BERT", "play"), "BertForSequenceClassification goes on with no text"),
        (("explain", "LLAMA", ""), "the text is empty, so there is nothing to explain"),
        (("explain", "LLAMA", " \t"), "the text is empty, so there is nothing to explain"),
        (("explain", "LLAMA", "a\udcffb"), "the text is no UTF-8"),
        (("explain", "LLAMA", "--file", "HERE/latin.txt"), "is no UTF-8 text: byte 0xdf at 8, line 2; convert it"),
        (("explain", "LLAMA", "--file", "HERE/picture.png"), "is no text: it holds a byte 0, as binary files do"),
        (("explain", "LLAMA", "--file", "HERE/empty.txt"), "empty.txt is empty"),
        (("explain", "LLAMA", "--file", "HERE"), "is a folder; give a file of texts"),
        (("explain", "LLAMA", "--file", "HERE/text.txt"), "text.txt; did you mean "),
        (("explain", "LLAMA", "--file", "HERE/another"), "there is no file HERE/another; give a file of texts"),
        (("explain", "LLAMA", "--file", "HERE/keys.jsonl"), "keys.jsonl, line 2 must be an object with a text or with"),
        (("explain", "LLAMA", "--file", "HERE/half.jsonl"), "holds half of a surrogate pair"),
        (("explain", "LLAMA", "--file", "HERE/broken.jsonl"), "broken.jsonl, line 1 is no JSON"),
        (("explain", "LLAMA", "--file", "HERE/turns.jsonl"), "messages must be a list of messages with a role and a"),
        (("explain", "BERT", "play", "--chat"), "has no chat template"),
        (("explain", "LLAMA", TEXT, "--position", "9"), "position 9 is not in the text, which has 5 tokens"),
        (("explain", "LLAMA", "--file", "HERE/texts.txt", "--position", "9"), "texts.txt, line 1: explain: position 9"),
        (("explain", "LLAMA", TEXT, "--contrast", "Parisian", "Paris"), "explain: 'Parisian' is not one token"),
        (("audit", "LLAMA", TEXT, "--target", "Parisian"), "audit: 'Parisian' is not one token of the tokenizer"),
    ],
)
def test_an_input_that_cannot_be_used_is_code_3(
    place: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown = fails(capsys, place, arguments)
    assert code == 3 and message.replace("HERE", str(place)) in shown


@pytest.mark.parametrize(
    ("given", "message"),
    [(b"", "standard input is empty"), (b"\n", "standard input is empty"), (b"a\xff", "is no UTF-8 text: byte 0xff at 1")],
)
def test_standard_input_that_cannot_be_used_is_code_3(
    tmp_path: Path, given: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown = fails(capsys, tmp_path, ("explain", "LLAMA", "-"), given)
    assert code == 3 and message in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("explain", "nobody/nothing", TEXT, "--json", "HERE/there.json"), "there.json is there already; --force writes"),
        (("explain", "nobody/nothing", TEXT, "--png", "HERE/no/out.png"), "/no/out.png: there is no folder "),
        (("audit", "nobody/nothing", TEXT, "--json", "HERE"), "it is a folder; give the path of a file"),
        (("certificate", "nobody/nothing", "--json", "HERE/there.json"), "is there already"),
        (("image", "nobody/nothing", "x.png", "--html", "HERE/there.json"), "is there already"),
        (("latent", "nobody/nothing", TEXT, "--json", "HERE/there.json"), "is there already"),
        (("lens", "nobody/nothing", TEXT, "--save", "HERE/there.json"), "is there already"),
        (("answer", "nobody/nothing", TEXT, "--pdf", "HERE/there.json"), "is there already"),
    ],
)
def test_an_output_that_cannot_be_written_is_code_6_before_the_work(
    place: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model does not exist: had it been looked for, the code were 3."""
    code, shown = fails(capsys, place, arguments)
    assert code == 6 and message in shown and (place / "there.json").read_text() == "mine"


def test_force_writes_over_a_file(place: Path) -> None:
    assert run("explain", language_model(), TEXT, "--json", str(place / "there.json"), "--force") == 0
    assert '"relevance"' in (place / "there.json").read_text()


def test_an_output_that_fails_while_it_is_written_is_code_6(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", language_model(), TEXT, "--json", "/dev/full", "--quiet") == 6
    assert "cannot write /dev/full: No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (NoRuleError("no rule for %x"), 4, "NoRuleError: no rule for %x\n"),
        (NonFiniteError("%x is NaN"), 4, "NonFiniteError: %x is NaN\n"),
        (MemoryError("8 GB"), 4, "memory ran out: 8 GB\n(a shorter text, another --device or --dtype may do)\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_whatever_ends_the_work_has_the_code_of_its_kind(
    raised: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def explain(*args: object, **settings: object) -> None:
        raise raised

    monkeypatch.setattr(lxt_fx.tasks.explain, "explain", explain)
    assert run("explain", language_model(), TEXT) == code
    assert capsys.readouterr().err == said


def test_a_fault_of_our_own_shows_its_traceback_and_is_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped, told_by_kind():
        raise KeyError("x")
    shown = capsys.readouterr().err
    assert stopped.value.code == 1 and "Traceback" in shown and "a fault of lxt_fx: please report it" in shown


def test_a_reader_that_goes_away_ends_the_command_without_a_word() -> None:
    code = """
import sys, time
sys.argv = ["/bin/lxt-fx"]
from lxt_fx.shell.exits import told_by_kind
with told_by_kind():
    print("a line", flush=True)
    time.sleep(1)
    print("more")"""
    done = subprocess.run(
        f"{sys.executable} -c '{code}' | head -1; echo ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "a line\n141\n" and not done.stderr


@pytest.fixture
def dead_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine without a network: the names that were looked up."""
    from huggingface_hub import constants

    asked = list[str]()
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "none"), raising=False)
    if (own := sys.modules.get("huggingface_hub.utils._detect_agent")) is not None:
        monkeypatch.setattr(own, "_registry", None)  # what it asked the hub for in another test

    def unknown(host: str, *more: object, **settings: object) -> None:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    return asked


def test_a_hub_that_does_not_answer_is_asked_once(dead_hub: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", "nobody/nothing", TEXT) == 3
    assert "the hub cannot be reached" in capsys.readouterr().err and len(dead_hub) == 1


def test_the_hub_is_not_asked_where_that_is_forbidden(dead_hub: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert run("explain", "nobody/nothing", TEXT) == 3 and not dead_hub


def test_the_hub_is_not_asked_for_a_folder(dead_hub: list[str]) -> None:
    assert run("explain", language_model(), TEXT) == 0 and not dead_hub


def test_a_model_in_the_cache_needs_no_hub(
    dead_hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants
    from transformers.utils import hub

    own = tmp_path / "models--nobody--tiny"
    shutil.copytree(language_model(), own / "snapshots" / "a1")
    (own / "refs").mkdir()
    (own / "refs" / "main").write_text("a1")
    for module in (constants, hub.constants):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path))
    assert run("explain", "nobody/tiny", TEXT) == 0 and len(dead_hub) == 1
    assert TEXT in capsys.readouterr().out


def test_a_hub_that_knows_the_name_not_does_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says is for transformers to tell: a repository may be private."""
    import urllib.error
    from email.message import Message

    from huggingface_hub import constants

    def answer(asked: object, timeout: float) -> None:
        assert timeout == loading.PATIENCE
        raise urllib.error.HTTPError("", 401, "Unauthorized", Message(), None)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(loading.urllib.request, "urlopen", answer)
    assert loading.source_of("nobody/nothing") == loading.Source("nobody/nothing", folder=False, answers=True)


def test_a_name_that_the_hub_does_not_know_is_the_cause(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As transformers says it, whose error begins with other words."""
    import transformers
    from huggingface_hub.errors import RepositoryNotFoundError

    def from_pretrained(name: str, **settings: Any) -> Any:
        raise OSError("nobody/nothing is not a local folder") from unknown

    unknown = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
    monkeypatch.setattr(loading, "_hub_answers", lambda name: True)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", from_pretrained)
    assert run("explain", "nobody/nothing", TEXT) == 3
    said = capsys.readouterr().err
    assert said.startswith("InputError: there is no folder nobody/nothing, and the hub has no model of this name that you")


def test_a_model_of_another_kind_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 20}
    T5ForConditionalGeneration(T5Config(**sizes)).save_pretrained(tmp_path)
    assert run("inspect", str(tmp_path)) == 3
    assert "is a T5ForConditionalGeneration, and this command loads" in capsys.readouterr().err


@pytest.mark.parametrize("made", [T5ForConditionalGeneration, WhisperForConditionalGeneration])
def test_serve_refuses_a_model_of_another_kind_by_its_config(
    made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made.config_class(architectures=[made.__name__]).save_pretrained(tmp_path)
    assert run("serve", str(tmp_path), "--no-open-browser") == 3
    said = capsys.readouterr().err
    assert f"is a {made.__name__}, and this command loads" in said and "call lxt_fx.serve for texts and pictures" in said


def test_serve_says_before_it_looks_for_the_model_that_the_port_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run("serve", "nobody/nothing", "--port", str(port), "--no-open-browser") == 3
    assert f"serve: port {port} cannot be used: " in capsys.readouterr().err


def test_serve_says_before_it_looks_for_the_model_that_the_extra_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert run("serve", "nobody/nothing", "--no-open-browser") == 3
    assert "pip install 'lxt_fx[serve]'" in capsys.readouterr().err


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llama(20).save_pretrained(tmp_path)
    assert run("explain", str(tmp_path), "hi") == 3
    assert f"the tokenizer of {tmp_path} could not be loaded" in capsys.readouterr().err


def test_weights_that_are_broken_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llama(20).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing of use")
    assert run("inspect", str(tmp_path)) == 3
    assert f"the weights of {tmp_path} could not be loaded" in capsys.readouterr().err


def test_help_and_docs_name_every_exit_code(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run("--help") == 0
    shown, page = capsys.readouterr().out, (ROOT / "docs/shell.md").read_text()
    for code, meaning in CODES.items():
        assert f"• {code}: {meaning.replace('`', '')}" in shown
        assert f"| {code} | {meaning} |" in page
