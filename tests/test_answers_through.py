"""`answer_relevance(..., through="answer")`: the matrix of a model, with rows in a folder, and the command."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from shell_run import language_model, run
from test_answers import ANSWERS, PROMPTS, Words, batch_of, explained, model, same
from test_recursive_answer import along_all_paths, near
from torch import Tensor, nn

import lxt_fx
from lxt_fx import InputError, RecursiveAnswer, answer_relevance
from lxt_fx.attribution import many_targets
from lxt_fx.tasks import answer_rows

pytestmark = pytest.mark.usefixtures("captures_in_files")

PROMPT, ANSWER = [5, 9, 17, 23], [12, 44, 7, 3, 8]


def one(found: Any) -> RecursiveAnswer:
    assert isinstance(found, RecursiveAnswer)
    return found


# The matrix of a model


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_matrix_is_that_of_the_answer_and_one_pass_is_one_backward(name: str) -> None:
    weights = [0.0, 0.5, 0.0, 0.25, 1.0]
    found = one(answer_relevance(explained(name), None, PROMPT, ANSWER, through="answer", of=weights))
    plain = answer_relevance(explained(name), None, PROMPT, ANSWER)
    assert found.matrix is not None and torch.equal(found.matrix.relevance, plain.relevance)
    expected = along_all_paths(plain.relevance.double(), torch.tensor(weights, dtype=torch.float64), len(PROMPT)).sum(0)
    near(found.relevance[: len(PROMPT)], expected)

    def target(out: Any) -> Tensor:
        logits = out.logits[0, len(PROMPT) - 1 :]
        return torch.stack([weight * logits[at, ANSWER[at]] for at, weight in enumerate(weights)]).sum()[None]

    once = lxt_fx.relevance_of(explained(name), {"input_ids": torch.tensor([[*PROMPT, *ANSWER]])}, target)[0, 0]
    same(found.single.relevance, once.double())  # the norms of a Llama are in float32
    assert float(once[len(PROMPT) :].abs().max()) > 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_each_answer_of_a_padded_batch_is_as_alone(side: str) -> None:
    found = answer_relevance(
        explained("llama"), Words(), batch_of(PROMPTS, side), ANSWERS, through="answer", of=["44", slice(0, 2)]
    )
    assert isinstance(found, tuple) and len(found) == 2
    for each, prompt, answer, of in zip(found, PROMPTS, ANSWERS, ("44", slice(0, 2)), strict=True):
        alone = one(answer_relevance(explained("llama"), Words(), prompt, answer, through="answer", of=of))
        torch.testing.assert_close(each.relevance, alone.relevance, rtol=0, atol=1e-6)
        assert each.recursive.tokens == alone.recursive.tokens and torch.equal(each.weights, alone.weights)
        assert each.recursive.explained == alone.recursive.explained
    for_all = answer_relevance(explained("llama"), Words(), PROMPTS, ANSWERS, through="answer", of=slice(-1, None))
    assert [each.weights.tolist() for each in for_all] == [[0, 1], [0, 0, 1]]


class Chain(nn.Module):
    """Each position reads embeddings of the positions that `reads` names, with these amounts, and says what it read."""

    def __init__(self, reads: dict[int, dict[int, float]], count: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 4)
        nn.init.constant_(self.embedding.weight, 0.5)
        mix = torch.zeros(count, count)
        for at, before in reads.items():
            for there, amount in before.items():
                mix[at, there] = amount
        self.register_buffer("mix", mix)
        self.head = nn.Linear(4, 8, bias=False)
        nn.init.ones_(self.head.weight)

    def forward(self, input_ids: Tensor) -> Tensor:
        count = input_ids.shape[1]
        out: Tensor = self.head(self.mix[:count, :count] @ self.embedding(input_ids))
        return out


def test_a_model_that_copies_in_two_steps_is_followed_to_its_source() -> None:
    """Prompt: source 0, distractor 1, 2. The first answer token reads the source, the last one reads the first."""
    of = Chain({2: {0: 1.0}, 3: {3: 1.0}, 4: {3: 8.0, 1: 1.0}}, 6).eval()
    found = one(answer_relevance(of, None, [1, 2, 3], [4, 5, 6], through="answer", of=slice(-1, None), rules="gradient"))
    near(found.relevance, torch.tensor([8 / 9, 1 / 9, 0, 0, 0, 0], dtype=torch.float64))
    assert found.single.relevance[:3].argmax() == 1 and found.single.relevance[0] == 0
    assert found.recursive.top(1)[0].position == 0


def test_a_decoder_flows_back_to_the_source() -> None:
    found = one(answer_relevance(explained("t5"), None, PROMPT, ANSWER, through="answer"))
    plain = answer_relevance(explained("t5"), None, PROMPT, ANSWER)
    flat = torch.cat([plain.part("text").values, plain.part("answer").values], 1).double()
    weights = torch.full((len(ANSWER),), 1 / len(ANSWER), dtype=torch.float64)
    expected = along_all_paths(flat, weights, len(PROMPT) + 1).sum(0)  # behind the source stands the start token
    near(found.recursive.part("text").values, expected[:-1])
    near(found.recursive.part("answer").values[0], expected[-1])
    assert found.by_answer("tokens").part("answer").reading.ids == (0,)


def test_the_account_is_that_of_the_single_pass() -> None:
    of = [0.0, 0.5, 0.0, 0.25, 1.0]
    found = one(answer_relevance(explained("llama"), None, PROMPT, ANSWER, through="answer", of=of, account=True))
    account = found.single.account
    assert account is not None and account.value == pytest.approx(found.single.value, rel=1e-9)
    assert account.reached["text"] == pytest.approx(float(found.single.relevance.sum()), rel=1e-5)
    assert found.recursive.account is None


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"through": "prompt"}, 'through must be "answer", or None'),
        ({"of": "44"}, 'say what flows through the answer; give through="answer" too'),
        ({"without": "special"}, 'say what flows through the answer; give through="answer" too'),
        ({"through": "answer", "of": "99"}, "'99' does not stand in the answer"),
        ({"through": "answer", "without": 9}, "without=9 is no position of a text of 9 tokens"),
        ({"through": "answer", "without": ["first", "last"]}, "without='last' is another token for each"),
        ({"through": "answer", "without": "all"}, "without takes 'first', 'last', 'special' and positions"),
        ({"through": "answer", "of": [1.0]}, r"the answer has 5 tokens, and the weights the shape \[1\]"),
    ],
)
def test_what_does_not_fit_is_refused_before_work(how: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lxt_fx.tasks import answers

    monkeypatch.setattr(answers, "as_explained", lambda *args: pytest.fail("worked"))
    with pytest.raises(InputError, match=f"^answer_relevance: .*{said}"):
        answer_relevance(model("gpt2"), Words(), PROMPT, ANSWER, **how)


def test_special_tokens_of_an_answer_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """An end of text, a tag of thinking: which tokens are special is asked of the tokenizer, in prompt and answer."""
    monkeypatch.setattr(Words, "all_special_ids", [9, 44, 8])
    for name, special in (("llama", [1, 5, 8]), ("t5", None)):
        found = one(answer_relevance(explained(name), Words(), PROMPT, ANSWER, through="answer", without="special"))
        last = found.matrix.parts[-1].reading
        assert [at for at, each in zip(last.ids, last.special, strict=True) if each] == [9, 44, 8][special is None :]
        if special is not None:
            at = one(answer_relevance(explained(name), Words(), PROMPT, ANSWER, through="answer", without=special))
            assert torch.equal(found.relevance, at.relevance) and found.carried[1] == found.weights[1]
    with pytest.raises(InputError, match="^answer_relevance: without='special' needs the tokenizer"):
        answer_relevance(explained("llama"), None, PROMPT, ANSWER, through="answer", without="special")


def test_weights_of_several_answers_are_a_list() -> None:
    for of in (torch.ones(2), ["44"], [1.0, 2.0, 3.0]):
        with pytest.raises(InputError, match="there are 2 prompts, so `of` is .* a list with one for each"):
            answer_relevance(explained("gpt2"), Words(), PROMPTS, ANSWERS, through="answer", of=of)


# Rows in a folder


def in_folder(folder: Path, *, name: str = "llama", prompt: Any = PROMPT, answer: Any = ANSWER, **how: Any) -> Any:
    return answer_relevance(explained(name), None, prompt, answer, folder=folder, chunk=2, **how)


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_in_a_folder_are_those_in_memory(side: str, tmp_path: Path) -> None:
    for name in ("llama", "t5"):
        prompts = batch_of(PROMPTS, side)
        there = in_folder(tmp_path / name, name=name, prompt=prompts, answer=ANSWERS)
        here = answer_relevance(explained(name), None, prompts, ANSWERS, chunk=2)
        for in_file, in_memory in zip(there, here, strict=True):
            for part in in_memory.parts:
                assert torch.equal(in_file.part(part.name).values, part.values) and part.values.any()


def test_a_call_that_was_stopped_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    backward, add = many_targets.backward, answer_rows.RowsFolder.add
    monkeypatch.setattr(many_targets, "backward", lambda *args: sizes.append(len(args[2][0])) or backward(*args))

    def stopped(self: Any, rows: Any, total: int) -> None:
        if self.done == 2:
            self._files[0][2:4] = 7.0  # what was written of a chunk that is not complete
            raise KeyboardInterrupt
        add(self, rows, total)

    monkeypatch.setattr(answer_rows.RowsFolder, "add", stopped)
    with pytest.raises(KeyboardInterrupt):
        in_folder(tmp_path / "rows")
    assert sizes == [2, 2] and json.loads((tmp_path / "rows/progress.json").read_text())["done"] == 2
    monkeypatch.setattr(answer_rows.RowsFolder, "add", add)
    sizes.clear()
    found = in_folder(tmp_path / "rows", through="answer")
    assert sizes == [1, 2, 1], "the last complete row for a check, then the rest"
    whole = answer_relevance(explained("llama"), None, PROMPT, ANSWER, chunk=2)
    torch.testing.assert_close(found.matrix.relevance, whole.relevance, rtol=0, atol=1e-9)
    sizes.clear()
    again = in_folder(tmp_path / "rows")
    assert sizes == [1] and torch.equal(again.relevance, found.matrix.relevance)
    (written,) = answer_rows.RowsFolder(tmp_path / "rows", 0.0).relevance().values()
    written[:] = 3.0
    assert torch.equal(in_folder(tmp_path / "rows").relevance, found.matrix.relevance), "the file is not changed"


def test_a_folder_of_another_call_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    in_folder(folder)
    before = (folder / "0.npy").read_bytes()
    others: list[tuple[dict[str, Any], str]] = [
        ({"answer": [12, 44, 7, 3, 9]}, "inputs, answers differ"),
        ({"contrast": 9}, "answers differ"),
        ({"name": "gpt2"}, "model_class, weights differ"),
        ({"rules": "attnlrp"}, "rules differ"),
    ]
    for how, said in others:
        with pytest.raises(InputError, match=f"^answer_relevance: .*rows of another call: .*{said}; give a new folder"):
            in_folder(folder, **how)
    other = copy.deepcopy(model("llama"))
    with torch.no_grad():
        other.get_input_embeddings().weight[5] += 0.1
    with pytest.raises(InputError, match="weights differ"):
        answer_relevance(lxt_fx.transform(other, rules="gradient"), None, PROMPT, ANSWER, folder=folder)
    assert (folder / "0.npy").read_bytes() == before


def test_weights_that_differ_by_less_than_rounding_are_those_of_another_model(tmp_path: Path) -> None:
    """In bfloat16 two rows are near one another up to a tenth, and so are those of a model that was trained a little."""
    coarse = copy.deepcopy(model("llama")).bfloat16()
    answer_relevance(lxt_fx.transform(coarse), None, PROMPT, ANSWER, folder=tmp_path / "rows")
    with torch.no_grad():
        coarse.get_input_embeddings().weight.mul_(1.01)
    with pytest.raises(InputError, match="rows of another call: weights differ"):
        answer_relevance(lxt_fx.transform(coarse), None, PROMPT, ANSWER, folder=tmp_path / "rows")


@pytest.mark.parametrize("name", ["header.json", "progress.json", "0.npy"])
@pytest.mark.parametrize("holds", ["{", "[]", None])
def test_a_file_of_a_folder_that_cannot_be_read_is_named(name: str, holds: str | None, tmp_path: Path) -> None:
    in_folder(tmp_path / "rows")
    file = tmp_path / "rows" / name
    file.unlink()
    if holds is not None:
        file.write_text(holds)
    elif name == "progress.json":
        assert in_folder(tmp_path / "rows").relevance.any(), "without it nothing is there"
        return
    with pytest.raises(InputError, match="^answer_relevance: .*give (a|an empty or a) new folder"):
        in_folder(tmp_path / "rows")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        InputError, match="^answer_relevance: the rows in .* cannot be read or written .*; give a new folder"
    ):
        in_folder(tmp_path / "file" / "rows")


def test_other_rules_of_the_same_name_are_recognised_by_the_last_row(tmp_path: Path) -> None:
    table = lxt_fx.TABLES["cp_lrp"]
    in_folder(tmp_path / "rows", rules=replace(lxt_fx.TABLES["attnlrp"], name="mine"))
    with pytest.raises(InputError, match="its last row is another one with this model and these rules"):
        in_folder(tmp_path / "rows", rules=replace(table, name="mine"))


def test_a_folder_with_other_files_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"has other files \(mine.txt\); give an empty or a new folder"):
        in_folder(tmp_path)
    with pytest.raises(InputError, match="is a file; give a folder"):
        in_folder(tmp_path / "mine.txt")


def test_what_is_not_finite_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backward, calls = many_targets.backward, list[int]()

    def broken(*args: Any) -> list[Tensor]:
        calls.append(1)
        return [each * (torch.nan if len(calls) == 2 else 1) for each in backward(*args)]

    monkeypatch.setattr(many_targets, "backward", broken)
    with pytest.raises(lxt_fx.NonFiniteError, match="answer_relevance: an explained number, or its relevance, is not fin"):
        in_folder(tmp_path / "rows")
    monkeypatch.setattr(many_targets, "backward", backward)
    assert json.loads((tmp_path / "rows/progress.json").read_text())["done"] == 2
    assert in_folder(tmp_path / "rows").relevance.isfinite().all()


# The command


def test_the_command_lets_relevance_flow_through_the_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("answer", language_model(), "The capital of France is", "--answer", " Paris and Rome", "--through", "answer")
    paths = ("--json", str(tmp_path / "found.json"), "--html", str(tmp_path / "found.html"))
    assert run(*given, "--of", "Rome", "--without", "first", "--folder", str(tmp_path / "rows"), *paths) == 0
    assert "through the answer: 'Rome', through the answer = 1" in capsys.readouterr().out
    found = RecursiveAnswer.from_json(tmp_path / "found.json")
    assert found.recursive.tokens[:2] == ("The", " capital") and found.relevance[0] == 0 and found.relevance[1:].any()
    assert found.without == ("first",)
    assert "one pass" in (tmp_path / "found.html").read_text(encoding="utf-8") and (tmp_path / "rows/0.npy").is_file()
    lines = tmp_path / "texts.txt"
    lines.write_text("The capital of France is\nThe capital of Italy is\n")
    many = ("answer", language_model(), "--file", str(lines), "--answer", " Paris", "--through", "answer", "--json", "-")
    assert run(*many, "--html", str(tmp_path / "many.html")) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["kind"] for each in shown] == ["recursive answer"] * 2 and (tmp_path / "many.html").is_file()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--of", "Rome"), "give --through answer too"),
        (("--without", "first"), "give --through answer too"),
        (("--through", "answer", "--without", "firts"), "--without 'firts' is none of first, last, special"),
    ],
)
def test_options_that_do_not_fit_are_mistakes(options: Any, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("answer", "nobody/nothing", "The capital", *options) == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", " ").split())
