"""What flows through an answer: against the sum over all paths, one path at a time, in float64."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lxt_fx import Explanation, InputError, RecursiveAnswer
from lxt_fx.results import answer_flow
from lxt_fx.results.origin import ExplainedNumber, Origin
from lxt_fx.results.part import Part
from lxt_fx.results.readings import ImageReading, TextReading
from lxt_fx.views.sheet import Tokens

PROMPT, ANSWER = 4, 6
TOKENS = ("<s>", "Tom", " lives", " there", "So", " he", " may", ".", " Yes", "</s>")


def raw(prompt: int = PROMPT, answer: int = ANSWER, seed: int = 0) -> Tensor:
    """M as a model gives it: signs, and nothing from an answer token itself or a later one."""
    made = torch.randn(answer, prompt + answer, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    made[:, prompt:] = made[:, prompt:].tril(-1)
    return made


def explained(values: Tensor, tokens: tuple[str, ...] = TOKENS, *more: Part) -> Explanation:
    """The matrix of an answer as `answer_relevance` returns it."""
    count = len(values)
    special = tuple(token.startswith("<") for token in tokens)
    reading = TextReading(tokens, tuple(range(len(tokens))), special, (0,) * len(tokens), count)
    numbers = tuple(ExplainedNumber(f"logit {at}", at + 0.5, tokens[at - count]) for at in range(count))
    parts = (Part("text", ("target", "position"), values, reading), *more)
    return Explanation(parts, numbers, Origin("attnlrp", "LlamaForCausalLM"))


def shares(matrix: Tensor) -> Tensor:
    """The positive part of each row, divided by its sum, one entry at a time."""
    found = torch.zeros_like(matrix)
    for row in range(len(matrix)):
        total = math.fsum(max(float(each), 0.0) for each in matrix[row])
        for column in range(matrix.shape[1]):
            if total > 0:
                found[row, column] = max(float(matrix[row, column]), 0.0) / total
    return found


def along_all_paths(matrix: Tensor, weights: Tensor, prompt: int) -> Tensor:
    """[hops, prompt]: the sum of the products of shares along each path from a token through others, which end in the
    prompt."""
    part, count = shares(matrix), len(matrix)
    found = torch.zeros(count, prompt, dtype=torch.float64)
    for size in range(1, count + 1):
        for path in itertools.combinations(range(count - 1, -1, -1), size):
            product = float(weights[path[0]])
            for here, there in itertools.pairwise(path):
                product *= float(part[here, prompt + there])
            for place in range(prompt):
                found[size - 1, place] += product * float(part[path[-1], place])
    return found


def near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


# The numbers


@pytest.mark.parametrize("rows", [1, 2, 4, 512])
def test_all_hops_are_the_sum_over_all_paths(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_flow, "MOST_ROWS", rows)  # blocks of rows that divide the answer, and that do not
    matrix, weights = raw(), torch.tensor([0.0, 0.3, 0.0, 0.2, 0.0, 1.5])
    found = RecursiveAnswer.of(explained(matrix), weights)
    by_hops = along_all_paths(matrix, weights, PROMPT)
    near(found.relevance[:PROMPT], by_hops.sum(0))
    assert float(by_hops[1:].sum()) > 0.4, "hops matter here"
    near(found.hops(2)[:, :PROMPT], torch.stack([by_hops[0], by_hops[1], by_hops[2:].sum(0)]))
    near(found.hops(9)[:ANSWER, :PROMPT], by_hops)
    near(found.hops(3).sum(0), found.relevance)
    near(found.single.relevance, weights.double() @ matrix)
    among = shares(matrix)[:, PROMPT:]
    near(found.carried, weights.double() @ torch.linalg.inv(torch.eye(ANSWER, dtype=torch.float64) - among))
    assert found.single.value == pytest.approx(0.3 * 1.5 + 0.2 * 3.5 + 1.5 * 5.5)
    assert found.recursive.value == pytest.approx(2.0) and found.stopped == 0


def flashtrace(matrix: Tensor, weights: Tensor, prompt: int) -> Tensor:
    """FlashTrace's sum of hops (METHODS A): r = r_0 + sum_h rho_(h-1) r_h, where each hop starts with what the hop before
    left on the answer, as shares, and rho_h = rho_(h-1) * the mass of hop h on it."""
    found, rho, start = torch.zeros(prompt, dtype=torch.float64), 1.0, weights
    while rho > 0:
        hop = start @ matrix
        found += rho * hop[:prompt]
        mass = float(hop[prompt:].sum())
        rho, start = rho * mass, hop[prompt:] / mass if mass else start
    return found


def test_on_shares_the_sum_of_hops_of_flashtrace_is_the_same() -> None:
    matrix, weights = shares(raw(5, 9, 3)), torch.zeros(9, dtype=torch.float64)
    weights[-2:] = 0.5
    found = RecursiveAnswer.of(explained(matrix, tuple(map(str, range(14)))), weights)
    near(found.relevance[:5], flashtrace(matrix, weights, 5))


def test_what_reaches_the_prompt_is_the_weights_without_what_ends_in_rows_without_a_positive_entry() -> None:
    matrix = raw(3, 5, 4)
    matrix[2] = -matrix[2].abs()
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4, 1.0], dtype=torch.float64)
    found = RecursiveAnswer.of(explained(matrix, tuple("abcdefgh")), weights)
    ends = float(found.carried[2])
    assert ends > 0.3, "more than its own weight ends there"
    near(found.relevance[3:], torch.tensor([0, 0, ends, 0, 0], dtype=torch.float64))
    assert float(found.relevance[:3].sum()) == pytest.approx(2.0 - ends, abs=1e-12) and found.stopped == ends
    near(found.hops(2).sum(1).sum(), torch.tensor(2.0, dtype=torch.float64))
    assert "of 2 ends inside the answer, in tokens for which nothing before them has positive relevance" in " ".join(
        str(found).split()
    )
    nothing = RecursiveAnswer.of(explained(-matrix.abs(), tuple("abcdefgh")), weights)
    near(nothing.relevance, torch.cat([torch.zeros(3, dtype=torch.float64), weights]))
    tiny = RecursiveAnswer.of(explained(matrix * 1e-300, tuple("abcdefgh")), weights)
    near(tiny.relevance, found.relevance)


def test_the_single_pass_misses_a_source_two_hops_away() -> None:
    """The last token reads an answer token, and this reads the source; the last one reads a distractor a little."""
    matrix = torch.zeros(3, 7, dtype=torch.float64)
    matrix[0, 1], matrix[1, 4], matrix[1, 3], matrix[2, 5], matrix[2, 2] = 2.0, 3.0, 1.0, 9.0, 1.0
    found = RecursiveAnswer.of(explained(matrix, tuple("abcdefg")), slice(-1, None))
    near(found.relevance[:4], torch.tensor([0.0, 0.675, 0.1, 0.225], dtype=torch.float64))
    assert found.single.relevance[:4].tolist() == [0.0, 0.0, 1.0, 0.0]
    assert found.recursive.top(1)[0].position == 1 and found.hops(3).argmax(0)[1] == 2


def test_nothing_flows_through_what_is_left_out() -> None:
    matrix = raw().abs()
    matrix[:, PROMPT:] = matrix[:, PROMPT:].tril(-1)
    found = RecursiveAnswer.of(explained(matrix), "Yes", without="special")
    cut = matrix.clone()
    cut[:, 0] = cut[:, -1] = 0
    near(found.relevance, RecursiveAnswer.of(explained(cut), "Yes").relevance)
    assert found.relevance[0] == 0 and RecursiveAnswer.of(explained(matrix), "Yes").relevance[0] > 0
    assert found.single.relevance[0] == matrix[4, 0], "one pass is as it is"
    through = RecursiveAnswer.of(explained(matrix), "Yes", without=[5, "first"])
    assert through.carried[1] == 0 and through.carried[2] > 0 and through.relevance[0] == 0
    near(through.hops(2).sum(0), through.relevance)


def test_a_picture_before_the_answer_has_its_share() -> None:
    grid = torch.rand(ANSWER, 2, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    picture = ImageReading(torch.zeros(2, 3, 3, dtype=torch.uint8))
    matrix = raw()
    found = RecursiveAnswer.of(explained(matrix, TOKENS, Part("image", ("target", "row", "column"), grid, picture)))
    flat = torch.cat([grid.flatten(1), matrix], 1)
    expected = along_all_paths(flat, torch.full((ANSWER,), 1 / ANSWER, dtype=torch.float64), 6 + PROMPT).sum(0)
    near(found.recursive.part("image").values, expected[:6].reshape(2, 3))
    near(found.recursive.part("text").values[:PROMPT], expected[6:])
    near(found.single.part("image").values, grid.mean(0))
    near(found.by_answer("words").part("image").values.sum(0), expected[:6].reshape(2, 3))


# Which tokens, and which places


def test_weights_are_given_or_named() -> None:
    matrix = explained(raw())
    whole, last, two = (RecursiveAnswer.of(matrix, of) for of in (None, slice(-1, None), slice(1, 3)))
    near(whole.weights, torch.full((ANSWER,), 1 / ANSWER, dtype=torch.float64))
    assert last.weights.tolist() == [0, 0, 0, 0, 0, 1] and two.weights.tolist() == [0, 0.5, 0.5, 0, 0, 0]
    assert RecursiveAnswer.of(matrix, " he may").weights.tolist() == two.weights.tolist()
    assert two.recursive.explained == "'he may', through the answer" and whole.recursive.explained.startswith("the answer,")
    assert RecursiveAnswer.of(matrix, [0, 0, 0, 0, 1, 0]).weights.tolist() == [0, 0, 0, 0, 1, 0]
    again = RecursiveAnswer.of(explained(raw(), (*TOKENS[:5], " Tom", " Tom", *TOKENS[7:])), "Tom")
    assert again.weights.tolist() == [0, 0, 1, 0, 0, 0], "the last place in the answer, not one of the prompt"


@pytest.mark.parametrize(
    ("of", "said"),
    [
        ("lives", "'lives' does not stand in the answer"),
        (" ", "an empty string is no span"),
        (slice(6, 9), "holds none of the 6 tokens of the answer"),
        ([1.0, 2.0], r"the answer has 6 tokens, and the weights the shape \[2\]"),
        ([0.0] * 6, "none below 0 and not all 0"),
        ([1.0] * 5 + [-0.1], "none below 0"),
        ([1.0] * 5 + [math.nan], "must be finite"),
        (["a"] * 6, "the weights are no numbers"),
        ((2, 4), "a slice of its tokens"),
        (3, "a slice of its tokens"),
    ],
)
def test_tokens_that_are_not_in_the_answer_and_wrong_weights_are_refused(of: Any, said: str) -> None:
    with pytest.raises(InputError, match=f"^RecursiveAnswer: .*{said}"):
        RecursiveAnswer.of(explained(raw()), of)


def test_what_is_no_matrix_of_an_answer_is_refused() -> None:
    matrix = explained(raw())
    for other in (matrix[0], matrix[1:3], RecursiveAnswer.of(matrix).recursive):
        with pytest.raises(InputError, match="needs its matrix, one explained number for each of its tokens"):
            RecursiveAnswer.of(other)
    ahead = raw()
    ahead[2, PROMPT + 2] = 0.1
    with pytest.raises(InputError, match="relevance from itself or a later one"):
        RecursiveAnswer.of(explained(ahead))
    for broken in (math.nan, math.inf):
        values = raw()
        values[2, 0] = broken
        with pytest.raises(InputError, match="the relevance is not finite, so it has no shares"):
            RecursiveAnswer.of(explained(values))
    with pytest.raises(InputError, match="without=10 is no position of a text of 10 tokens"):
        RecursiveAnswer.of(matrix, without=10)
    with pytest.raises(InputError, match="^RecursiveAnswer: without takes 'first', 'last', 'special' and positions"):
        RecursiveAnswer.of(matrix, without="all")  # type: ignore[arg-type]
    found = RecursiveAnswer.of(matrix)
    with pytest.raises(InputError, match="the number of hops must be at least 1"):
        found.hops(0)
    with pytest.raises(InputError, match="units are tokens, words, sentences or a list of spans, got 'lines'"):
        found.by_answer("lines")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"the span \(3, 11\) is not within"):
        found.by_answer([(3, 11)])
    with pytest.raises(InputError, match="'Rome' is not in the text"):
        found.by_answer(["Rome"])


def test_each_part_of_the_answer_says_what_it_took() -> None:
    matrix = raw()
    found = RecursiveAnswer.of(explained(matrix), "Yes")
    by_token = found.by_answer("tokens")
    near(by_token.relevance, found.carried[:, None] * shares(matrix)[:, :PROMPT])
    by_sentence = found.by_answer()
    assert by_sentence.labels == ("So he may.", " Yes", "</s>") and by_sentence.tokens == TOKENS[:PROMPT]
    near(by_sentence.relevance[0], by_token.relevance[:4].sum(0))
    near(by_sentence.relevance.sum(0), found.relevance[:PROMPT])
    near(by_sentence.values, by_sentence.relevance.sum(1))
    assert by_sentence.numbers[0].said == "what 'So he may.' took, on the way to 'Yes'"
    spans = found.by_answer([(3, 6), "may."])  # the first span begins in the prompt
    assert spans.labels == ("So he", " may.", " Yes", "</s>")
    near(spans.relevance[1], by_token.relevance[2:4].sum(0))
    words, sums = found.merge("words"), found.merge([(1, 3)])
    assert words[0].tokens == found.recursive.merge("words").tokens and len(words) == 2
    near(sums[0].relevance[1], found.relevance[1:3].sum())


# Files and views


def test_an_answer_goes_to_files_and_back(tmp_path: Path) -> None:
    found = RecursiveAnswer.of(explained(raw()), "Yes", without=["special", 2])
    found.to_json(tmp_path / "whole.json", matrix=True)
    found.to_json(tmp_path / "short.json")
    whole, short = (RecursiveAnswer.from_json(tmp_path / f"{name}.json") for name in ("whole", "short"))
    for read in (whole, short):
        assert torch.equal(read.weights, found.weights) and torch.equal(read.carried, found.carried)
        assert torch.equal(read.relevance, found.relevance) and read.without == ("special", 2)
        assert torch.equal(read.single.relevance, found.single.relevance) and read.stopped == found.stopped
    assert torch.equal(whole.hops(2), found.hops(2))
    with pytest.raises(InputError, match=r"RecursiveAnswer.hops: the matrix was not saved; write it with to_json"):
        short.hops()
    data = json.loads((tmp_path / "short.json").read_text())
    for key, value, said in (("weights", [1.0], "weights has 1 numbers"), ("kind", "answer", "is no recursive answer")):
        (tmp_path / "broken.json").write_text(json.dumps(data | {key: value}))
        with pytest.raises(InputError, match=said):
            RecursiveAnswer.from_json(tmp_path / "broken.json")


def test_a_data_frame_has_both_and_what_flowed_through_each_token() -> None:
    found = RecursiveAnswer.of(explained(raw()), [0.0, 0, 0, 0, 2, 1])
    frame = found.to_dataframe()
    assert frame["token"].tolist() == list(TOKENS) and len(frame) == PROMPT + ANSWER
    assert frame["relevance"].tolist() == found.relevance.tolist()
    assert frame["single"].tolist() == found.single.relevance.tolist()
    assert frame["carried"][PROMPT:].tolist() == found.carried.tolist() and frame["carried"][:PROMPT].isna().all()
    assert frame["weight"][PROMPT:].tolist() == [0, 0, 0, 0, 2, 1]


def test_views_show_both_on_scales_of_their_own(tmp_path: Path) -> None:
    matrix = raw()
    matrix[:, :PROMPT] *= 1000
    found = RecursiveAnswer.of(explained(matrix), "Yes")
    shown = str(found)
    assert "through the answer: 'Yes', through the answer = 1" in shown
    assert "one pass: weighted sum of the logits of 'Yes' = 4.5" in shown
    assert "\n" not in repr(found) and len(repr(found)) < 200
    sheet = found.sheet()
    shares = [[cell.share for cell in section.cells] for section in sheet.sections if isinstance(section, Tokens)]
    alone = [one.sheet().sections[0] for one in (found.recursive, found.single)]
    assert shares == [[cell.share for cell in one.cells] for one in alone if isinstance(one, Tokens)]
    assert len(shares) == 2 and len(set(map(abs, shares[1]))) > 3
    found.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "through the answer" in page and "one pass" in page
    assert found.to_png(tmp_path / "figure.png")[0].stat().st_size > 1000
    assert "one pass" in found._repr_html_() and "through the answer" in str(found.view(units="words", scale="max"))
