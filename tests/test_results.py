"""The one result model: what its parts hold, sums and differences, merging, files, frames, views."""

from __future__ import annotations

import functools
import json
import math
import re
import tempfile
import types
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_text
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text as DrawnText
from rich.console import Console
from rich.text import Text
from shared_captures import explained as shared
from shared_captures import one_worker
from test_bench_results import contents as bench_contents
from torch import Tensor

import lxt_fx
from lxt_fx.base.errors import InputError
from lxt_fx.referee.results import BenchResults
from lxt_fx.results.account import MEANINGS, Account
from lxt_fx.results.comparison import compare
from lxt_fx.results.explanation import ExplainedNumber, Explanation, Origin
from lxt_fx.results.explanations import Explanations
from lxt_fx.results.part import Part
from lxt_fx.results.readings import ImageReading, NumbersReading, Reading, SoundReading, TextReading
from lxt_fx.views.colour import LIGHT
from lxt_fx.views.heatmap import sheet_figure
from lxt_fx.views.listed import Listed
from lxt_fx.views.sheet import Matrix, Sheet, Strong, Track
from lxt_fx.views.terminal import plain
from lxt_fx.views.view import TIE

ORIGIN = Origin("attnlrp", "LlamaForCausalLM", "llama", {"torch": "2.13.0"}, 0.25)
ACCOUNT = Account(13.2, {"text": 9.1, "image": 1.0}, {"bias": 2.1, "softmax offset": 1.2, "epsilon": -0.2}, 1e-9)
TOKENS = ("<s>", "The", " cap", "ital", " of", " don", "'", "t", " costs", " 3", ".", "14", "!", "!", " Yes", ".")
PICTURE = torch.arange(6 * 9 * 3).reshape(6, 9, 3).to(torch.uint8)
WAVE = torch.sin(torch.arange(800) / 5.0)


def reading(tokens: tuple[str, ...], answer: int = 0, **facts: Any) -> TextReading:
    special = tuple(token.startswith("<") for token in tokens)
    segments = tuple(int(at > 13) for at in range(len(tokens)))
    return TextReading(tokens, tuple(range(len(tokens))), special, segments, answer, **facts)


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def text(tokens: tuple[str, ...] = TOKENS, answer: int = 0, seed: int = 0, **facts: Any) -> Part:
    units = values(len(tokens), 4, seed=seed)
    return Part("text", ("position",), units.sum(1), reading(tokens, answer, **facts), units)


def image(seed: int = 1) -> Part:
    units = values(6, 9, 3, seed=seed)
    return Part("image", ("row", "column"), units.sum(2), ImageReading(PICTURE, 3, pixel_values=values(3, 6, 9)), units)


def sound() -> Part:
    return Part("sound", ("time",), values(10, seed=2), SoundReading(0.02, WAVE, 4000))


def numbers() -> Part:
    return Part("numbers", ("feature",), values(3, seed=3), NumbersReading(("age", "income", "$x_1$")))


def of(*parts: Part, value: float = 13.2, said: str = "logit of ' Paris'", account: Account | None = None) -> Explanation:
    return Explanation(parts, (ExplainedNumber(said, value, " Paris"),), ORIGIN, account)


def several(*parts: Part, count: int = 2) -> Explanation:
    """The relevance of number i is that of one number, times i + 1."""
    found = []
    for part in parts:
        stacked = torch.stack([part.values * (at + 1) for at in range(count)])
        found.append(replace(part, axes=("target", *part.axes), values=stacked, units=None))
    said = tuple(ExplainedNumber(f"number {at}", float(at), f" n{at}") for at in range(count))
    return Explanation(tuple(found), said, ORIGIN)


KINDS: dict[str, Callable[[], Explanation]] = {
    "text": lambda: of(text(), account=ACCOUNT),
    "answer": lambda: of(text(answer=3)),
    "image": lambda: of(image()),
    "sound": lambda: of(sound()),
    "numbers": lambda: of(numbers()),
    "all": lambda: of(image(), text(text="a\x00\u202eb", spans=((0, 1),) * 16), sound(), numbers(), account=ACCOUNT),
    "matrix": lambda: several(text(answer=2)),
    "images": lambda: several(image(), text()),
}


def same_reading(one: Reading, other: Reading) -> None:
    assert type(one) is type(other)
    for name in type(one).__dataclass_fields__:
        a, b = getattr(one, name), getattr(other, name)
        if isinstance(a, Tensor):
            assert a.dtype == b.dtype and torch.equal(a, b), name
        else:
            assert a == b, name


def assert_same(one: Explanation, other: Explanation, *, units: bool) -> None:
    assert (one.numbers, one.origin, one.account) == (other.numbers, other.origin, other.account)
    for a, b in zip(one.parts, other.parts, strict=True):
        assert (a.name, a.axes, a.values.dtype) == (b.name, b.axes, b.values.dtype)
        assert torch.equal(a.values, b.values)
        assert (b.units is None) if not units or a.units is None else torch.equal(a.units, b.units)
        same_reading(a.reading, b.reading)


# what a part and an explanation may hold


@pytest.mark.parametrize(
    "wrong, why",
    [
        (lambda: Part("text", ("position",), torch.ones(3), reading(("a", "b"))), r"reading has \[2\] places"),
        (lambda: Part("text", ("position",), torch.ones(2).half(), reading(("a", "b"))), "not float32 or float64"),
        (lambda: Part("text", ("target", "position"), torch.ones(2), reading(("a", "b"))), "have the axes"),
        (lambda: Part("image", ("row", "column"), torch.ones(5, 9), ImageReading(PICTURE)), r"\[6, 9\] places"),
        (lambda: replace(text(), units=torch.ones(3, 4)), "units of shape"),
        (lambda: of(text(), text()), "different names"),
        (lambda: replace(several(text()), numbers=KINDS["text"]().numbers), "an explanation of 1 numbers has the axes"),
        (lambda: replace(of(text()), numbers=several(text()).numbers), "an explanation of 2 numbers"),
        (lambda: replace(of(text()), parts=(*several(text()).parts, image())), "an explanation of 1 numbers"),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_refused(wrong: Callable[[], object], why: str) -> None:
    with pytest.raises(InputError, match=why):
        wrong()


def test_old_names_are_those_of_the_first_part() -> None:
    e, i, m = KINDS["answer"](), KINDS["image"](), KINDS["matrix"]()
    assert e.tokens == TOKENS and e.input_ids == tuple(range(16)) and e.answer_tokens == 3 and e.prompt == 13
    assert (e.explained, e.value, e.table_name, e.model_class) == ("logit of ' Paris'", 13.2, "attnlrp", "LlamaForCausalLM")
    torch.testing.assert_close(e.attribution.sum(-1), e.relevance)
    assert i.attribution.shape == (3, 6, 9) and torch.equal(i.attribution.sum(0), i.relevance)
    assert i.shown is PICTURE and i.pixel_values.shape == (3, 6, 9)
    assert m.values.tolist() == [0.0, 1.0] and m.logits.dtype == torch.float32 and m.of_prompt().shape == (2, 14)
    assert isinstance(i, lxt_fx.ImageExplanation) and not isinstance(e, lxt_fx.ImageExplanation)
    assert isinstance(m, lxt_fx.AnswerRelevance) and not isinstance(e, lxt_fx.AnswerRelevance)


def test_a_name_that_is_not_there_says_where_it_is() -> None:
    assert not hasattr(KINDS["image"](), "tokens") and not hasattr(KINDS["matrix"](), "value")
    with pytest.raises(InputError, match=r"first part is image, not text; explanation.part\('text'\).reading has one"):
        _ = KINDS["all"]().tokens
    with pytest.raises(InputError, match=r"no part 'sound'; the parts are 'text'"):
        KINDS["text"]().part("sound")
    with pytest.raises(InputError, match="2 numbers were explained; take explanation"):
        _ = KINDS["matrix"]().value


# along the first axis


def test_indexing_goes_along_places_or_numbers_as_in_numpy() -> None:
    e, m, i = KINDS["text"](), KINDS["images"](), KINDS["image"]()
    assert len(e) == 16 and [place.token for place in e] == list(TOKENS)
    assert (e[-1].position, e[-1].token, float(e[-1].relevance)) == (15, ".", float(e.relevance[-1]))
    position, token, relevance = e[3]
    assert (position, token, relevance) == (3, "ital", float(e.relevance[3]))
    assert e[2:4].tokens == (" cap", "ital") and e[2:4].input_ids == (2, 3) and e[2:4].account is None
    assert torch.equal(e[1::5].relevance, e.relevance[1::5])
    assert len(m) == 2 and [one.explained for one in m] == ["number 0", "number 1"]
    assert torch.equal(m[1].part("text").values, 2 * m[0].part("text").values) and m[1].axes == ("row", "column")
    assert m[0:1].axes == ("target", "row", "column") and m[1, 2, 3].relevance == float(m.relevance[1, 2, 3])
    assert i[2, 3].position == (2, 3) and i[2, 3].relevance == float(i.relevance[2, 3])
    piece = i[3:5, 3:6]
    assert torch.equal(piece.relevance, i.relevance[3:5, 3:6]) and torch.equal(piece.shown, PICTURE[3:5, 3:6])
    assert torch.equal(i[2].relevance, i.relevance[2:3])
    late = KINDS["sound"]()[5:8].parts[0].reading
    assert late.start == pytest.approx(0.1) and torch.equal(late.waveform, WAVE[400:640])
    assert KINDS["answer"]()[12:15].answer_tokens == 2
    assert KINDS["numbers"]()[1:].parts[0].reading.names == ("income", "$x_1$")


@pytest.mark.parametrize(
    "kind, index, error, why",
    [
        ("text", 16, IndexError, "position 16 is out of range, there are 16"),
        ("text", slice(4, 4), InputError, "holds no place"),
        ("text", slice(None, None, -1), InputError, "steps of 1 or more"),
        ("image", (slice(None, None, 2),), InputError, "steps of 1"),
        ("text", "text", InputError, r"part\(name\)"),
        ("text", (1, 2), IndexError, "2 indices for the axes"),
        ("matrix", slice(2, 2), IndexError, "none of the 2 explained numbers"),
        ("text", 1.5, InputError, "no index"),
    ],
)
def test_an_index_without_a_place_is_refused(kind: str, index: Any, error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why) as raised:
        KINDS[kind]()[index]
    assert isinstance(raised.value, InputError)


def test_top_looks_at_every_part() -> None:
    e = KINDS["all"]()
    flat = torch.cat([part.values.flatten() for part in e.parts])
    found = e.top(200)
    assert [abs(p.relevance) for p in found] == flat.abs().sort(descending=True).values.tolist()
    assert {p.part for p in found} == {"image", "text", "sound", "numbers"}
    best = found[0]
    assert float(e.part(best.part).values[best.position]) == best.relevance
    with pytest.raises(InputError, match="2 numbers were explained"):
        KINDS["matrix"]().top(3)


# sums and differences


@pytest.mark.parametrize("kind", KINDS)
def test_differences_and_sums_go_place_by_place(kind: str) -> None:
    a = KINDS[kind]()
    b = replace(a, parts=tuple(replace(part, values=part.values.cos(), units=None) for part in a.parts))
    for part, one, other in zip((a - b).parts, a.parts, b.parts, strict=True):
        assert torch.equal(part.values, one.values - other.values)
    assert torch.equal((a + b).relevance, a.relevance + b.relevance)
    assert torch.equal((-a).relevance, -a.relevance) and torch.equal(abs(a).relevance, a.relevance.abs())
    assert (a - b).numbers[0].said == f"{a.numbers[0].said} minus the same"
    assert (a + b).values.tolist() == (2 * a.values).tolist() and (-a).values.tolist() == (-a.values).tolist()
    assert not (a - a).relevance.any() and (a - a).values.tolist() == [0.0] * len(a.numbers)


def test_a_difference_keeps_its_books_and_names_both_tables() -> None:
    a = KINDS["text"]()
    rome = ExplainedNumber("logit of ' Rome'", 3.2, " Rome")
    found = a - replace(a, origin=replace(ORIGIN, table_name="gradient"), numbers=(rome,))
    assert (found.explained, found.value) == ("logit of ' Paris' minus logit of ' Rome'", 10.0)
    assert found.table_name == "attnlrp and gradient" and found.model_class == "LlamaForCausalLM"
    assert found.account is not None and set(found.account.reached.values()) == {0.0}
    assert (a - found).explained == "logit of ' Paris' minus (logit of ' Paris' minus logit of ' Rome')"
    assert (-a).account is not None and (-a).account.value == -13.2 and (-a).account.took["bias"] == -2.1


@pytest.mark.parametrize(
    "one, other, why",
    [
        (text(), text((*TOKENS[:-1], "?")), r"place 15 of 'text' is '\.' in one and '\?' in the other"),
        (text(), text(TOKENS[:-1]), r"16 places in one and 15 in the other; place 15 is '\.'"),
        (text(), image(), "one is about text, the other about image"),
        (image(), replace(image(), reading=ImageReading(PICTURE.flip(0))), "shows another picture.*row"),
        (sound(), replace(sound(), reading=SoundReading(0.04)), "steps of 0.02 s in one and of 0.04 s"),
        (sound(), replace(sound(), reading=SoundReading(0.02, WAVE.flip(0), 4000)), "another sound"),
        (numbers(), replace(numbers(), reading=NumbersReading(("age", "height", "c"))), "'income' in one and 'height'"),
        (text(), several(text()).parts[0], "one explains one number, the other 2 numbers"),
    ],
)  # fmt: skip
def test_a_difference_of_other_places_says_how_they_differ(one: Part, other: Part, why: str) -> None:
    b = replace(several(text()), parts=(other,)) if other.several else of(other)
    with pytest.raises(InputError, match=why):
        _ = of(one) - b
    with pytest.raises(TypeError):
        _ = of(one) - 1  # type: ignore[operator]


# merging


@pytest.mark.parametrize(
    "tokens, merged",
    [
        (TOKENS, ("<s>", "The", " capital", " of", " don't", " costs", " 3.14", "!!", " Yes", ".")),
        ((" 漢", "字", " 東京", " ไทย"), (" 漢", "字", " 東京", " ไทย")),
        (("字(1/3)", "字(2/3)", "字(3/3)", "x"), ("字", "x")),
        ((" हि", "न्दी", " 한", "국어"), (" हिन्दी", " 한국어")),
        (("well", "-", "known", "(", "a", ")", "…"), ("well", "-", "known", "(", "a", ")", "…")),
        ((" a", "↵", "b", "\u200d"), (" a", "↵", "b\u200d")),
        (("the end", "s.A", "b"), ("the ends.Ab",)),
        (("(1/2)", "(2/2)"), ("(1/2)", "(2/2)")),
        (("👩", "\u200d", "👧", "👍", "🏽"), ("👩\u200d👧", "👍🏽")),
    ],
)
def test_words_are_what_a_person_calls_words(tokens: tuple[str, ...], merged: tuple[str, ...]) -> None:
    assert of(text(tokens)).merge("words").tokens == merged


@pytest.mark.parametrize(
    "tokens, merged",
    [
        (TOKENS, ("<s>", "The capital of don't costs 3.14!!", " Yes.")),
        ((" Dr", ".", " J", ".", " No", " ate", ".", " Then"), (" Dr. J. No ate.", " Then")),
        (("One", ".", "↵", "↵", "two", "?", '"', " Three", "."), ("One.↵↵", 'two?"', " Three.")),
        (("e.g", ".", " this", "!", " and"), ("e.g. this! and",)),
        (("一。", "二", "！", "三"), ("一。", "二！", "三")),
    ],
)
def test_sentences_end_where_a_person_ends_them(tokens: tuple[str, ...], merged: tuple[str, ...]) -> None:
    assert of(text(tokens)).merge("sentences").tokens == merged


def test_a_word_reaches_into_no_other_text_no_answer_and_no_special_token() -> None:
    tokens = ("<s>", "in", "put", "</s>", "out", "put", "ted")
    pair = replace(reading(tokens, answer=1), segments=(0, 0, 0, 0, 1, 1, 1))
    e = of(Part("text", ("position",), values(7), pair))
    found = e.merge("words")
    assert found.tokens == ("<s>", "input", "</s>", "output", "ted") and found.answer_tokens == 1
    assert found.parts[0].reading.segments == (0, 0, 0, 1, 1)
    assert e.merge("segments").tokens == ("<s>", "input", "</s>", "output", "ted")
    with pytest.raises(InputError, match="tokens were merged"):
        _ = found.input_ids


def test_spans_are_ranges_or_strings_and_the_rest_stays_alone() -> None:
    e = KINDS["text"]()
    assert e.merge([(1, 4)]).tokens == ("<s>", "The capital", *TOKENS[4:])
    assert e.merge(["capital of", "don't"]).tokens == (*TOKENS[:2], " capital of", " don't", *TOKENS[8:])
    assert e.merge([(1, 4), "!!"]).relevance[1] == pytest.approx(float(e.relevance[1:4].double().sum()))
    known = ((0, 0), (0, 3), (4, 7), (7, 11), *[(20, 21)] * 12)
    cased = of(text(tuple(token.lower() for token in TOKENS), text="The CAPITAL of", spans=known))
    assert cased.merge(["CAPITAL"]).tokens[:4] == ("<s>", "the", " capital", " of")
    assert cased.merge(["CAPITAL"]).parts[0].reading.spans[2] == (4, 11)


@pytest.mark.parametrize(
    "kind, what, why",
    [
        ("text", [(4, 4)], "not within the 16 tokens"),
        ("text", [(10, 17)], "not within the 16 tokens"),
        ("text", [(-2, 3)], "not within"),
        ("text", [(1, 4), (3, 6)], "tokens 1 to 3 and 3 to 5 share 'ital'"),
        ("text", ["capital", "London"], "'London' is not in the text"),
        ("text", ["  "], "empty string"),
        ("text", [], "list of spans is empty"),
        ("text", [3], "a span is"),
        ("text", "phrases", "not words, sentences, segments or patches"),
        ("image", "words", r"no text in this explanation; the parts are 'image' \(image\)"),
        ("text", "patches", "no image in this explanation"),
    ],
)
def test_a_span_that_is_not_there_is_refused(kind: str, what: Any, why: str) -> None:
    with pytest.raises(InputError, match=why):
        KINDS[kind]().merge(what)


def test_pictures_and_sounds_merge_to_patches_and_seconds() -> None:
    e = KINDS["all"]()
    found = e.merge("words", patch=4, seconds=0.05)
    squares = found.part("image").values
    assert squares.shape == (2, 3) and squares[1, 2] == pytest.approx(float(e.part("image").values[4:, 8:].double().sum()))
    assert torch.equal(found.part("sound").values[0], e.part("sound").values[:2].double().sum())
    assert found.part("sound").reading.step == pytest.approx(0.04)
    assert len(found.part("text").values) == 10 and found.part("numbers") is e.part("numbers")
    assert e.merge("patches").part("image").values.shape == (2, 3)
    assert torch.equal(e.merge(patch=2).merge(patch=4).relevance, e.merge(patch=4).relevance)
    for wrong, why in (({"patch": 0}, "at least 1 pixel"), ({"seconds": 0.0}, "more than 0"), ({}, "say what")):
        with pytest.raises(InputError, match=why):
            e.merge(**wrong)
    with pytest.raises(InputError, match="multiple of 4, got 6"):
        e.merge(patch=4).merge(patch=6)


TOKEN = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cf", "Zl", "Zp", "Cs")), min_size=1, max_size=6)
NUMBER = st.floats(-1e6, 1e6, width=32)


@st.composite
def texts(draw: st.DrawFn) -> Explanation:
    tokens = tuple(draw(st.lists(TOKEN, min_size=1, max_size=12)))
    count, dtype = len(tokens), draw(st.sampled_from([torch.float32, torch.float64]))
    relevance = torch.tensor(draw(st.lists(NUMBER, min_size=count, max_size=count)), dtype=dtype)
    special = tuple(draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    given_text = draw(st.one_of(st.none(), st.text(st.characters(codec="utf-8"))))
    segments = tuple(draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)))
    made = TextReading(tokens, None, special, segments, draw(st.integers(0, count)), given_text)
    said = ExplainedNumber(draw(TOKEN), draw(st.floats(allow_nan=False)), draw(TOKEN))
    account = draw(st.sampled_from([None, ACCOUNT]))
    return Explanation((Part("text", ("position",), relevance, made),), (said,), ORIGIN, account)


@settings(max_examples=60, deadline=None)
@given(texts())
def test_merging_preserves_the_sum_and_every_token(e: Explanation) -> None:
    total = math.fsum(e.relevance.tolist())
    for what in ("words", "sentences", "segments", [(0, len(e))]):
        found = e.merge(what)
        assert math.fsum(found.relevance.tolist()) == pytest.approx(total, rel=0, abs=1e-8)
        assert "".join(found.tokens) == "".join(e.tokens)
    again = e.merge("words").merge("words")
    assert again.tokens == e.merge("words").tokens


@settings(max_examples=40, deadline=None)
@given(texts())
def test_json_gives_back_every_bit(tmp_path_factory: pytest.TempPathFactory, e: Explanation) -> None:
    folder = tmp_path_factory.mktemp("results")
    e.to_json(folder / "e.json")
    assert_same(e, Explanation.from_json(folder / "e.json"), units=False)


# files


@pytest.mark.parametrize("units", [False, True])
def test_every_kind_comes_back_from_a_file(tmp_path: Path, units: bool) -> None:
    every = Explanations(make() for make in KINDS.values())
    every.to_json(tmp_path / "every.json", units=units)
    for one, other in zip(every, Explanations.from_json(tmp_path / "every.json"), strict=True):
        assert_same(one, other, units=units)
    pytest.importorskip("pyarrow")
    every.save(tmp_path / "every.parquet", units=units)
    loaded = Explanations.load(tmp_path / "every.parquet")
    for one, other in zip(every, loaded, strict=True):
        assert_same(one, other, units=units)
    Explanations().save(tmp_path / "none.parquet")
    assert len(Explanations.load(tmp_path / "none.parquet")) == 0


def test_json_of_a_text_has_its_facts_at_the_top(tmp_path: Path) -> None:
    e = KINDS["answer"]()
    e.to_json(tmp_path / "e.json")
    found = json.loads((tmp_path / "e.json").read_text(encoding="utf-8"))
    assert (found["tokens"], found["relevance"]) == (list(TOKENS), e.relevance.tolist())
    assert (found["explained"], found["value"], found["rules"], found["answer_tokens"]) == (e.explained, 13.2, "attnlrp", 3)
    assert found["sum"] == pytest.approx(float(e.relevance.sum())) and found["model_class"] == "LlamaForCausalLM"


@pytest.mark.parametrize(
    "kind, change, why",
    [
        ("text", lambda found: found.pop("tokens"), "e.json: has no 'tokens'"),
        ("text", lambda found: found.update(format=2), "has format 2"),
        ("text", lambda found: found["relevance"].append(1.0), "16.* places"),
        ("text", lambda found: found["relevance"].__setitem__(3, "x"), r"relevance\[3\] must be a number, not a text"),
        ("text", lambda found: found["relevance"].__setitem__(3, True), r"relevance\[3\] must be a number, not a flag"),
        ("text", lambda found: found["tokens"].__setitem__(1, "\x1b[31m"), r"tokens\[1\] holds a control character"),
        ("text", lambda found: found.update(dtype="int8"), "dtype is 'int8', which is none of float32, float64"),
        ("text", lambda found: found.update(kind="video"), "kind is 'video'"),
        ("text", lambda found: found.update(axes=["target", "position"]), "relevance.0. must be a list"),
        ("matrix", lambda found: found["value"].pop(), "not as many items"),
        ("matrix", lambda found: found["relevance"][0].pop(), "several lengths"),
        ("image", lambda found: found["shown"].update(shape=[6, 9, 4]), "holds 162 bytes, and the shape 216"),
        ("image", lambda found: found["shown"].update(shape=[6, 9, 10**12]), "4294967296 is the most"),
        ("image", lambda found: found["shown"].update(data="$$"), "is not compressed data"),
        ("image", lambda found: found.update(side=0), "side is 0; it must be from 1"),
        ("sound", lambda found: found.update(step=0.0), "must be more than 0"),
    ],
)
def test_a_file_that_someone_changed_is_refused_by_place(
    tmp_path: Path, kind: str, change: Callable[[dict[str, Any]], object], why: str
) -> None:
    found = KINDS[kind]().to_dict()
    change(found)
    (tmp_path / "e.json").write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(InputError, match=why):
        Explanation.from_json(tmp_path / "e.json")


def test_a_parquet_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"nothing")
    for name, why in (("a", "has the columns"), ("b", "cannot be read as explanations")):
        with pytest.raises(InputError, match=f"{name}.parquet: {why}"):
            Explanations.load(tmp_path / f"{name}.parquet")


def test_a_frame_has_a_line_for_each_place_and_number() -> None:
    pytest.importorskip("pandas")
    every = Explanations([KINDS["all"](), KINDS["matrix"]()])
    frame = every.to_dataframe()
    assert len(frame) == 54 + 16 + 10 + 3 + 2 * 16
    assert list(frame.columns[:3]) == ["example", "target", "part"]
    first = frame[(frame.example == 0) & (frame.part == "image") & (frame.row == 2) & (frame.column == 3)]
    assert first.relevance.tolist() == [float(every[0].relevance[2, 3])]
    second = frame[(frame.example == 1) & (frame.target == 1)]
    assert second.relevance.tolist() == every[1].relevance[1].tolist() and set(second.explained) == {"number 1"}
    assert second.token.tolist() == list(TOKENS) and second.answer.sum() == 2 and second.special.sum() == 1
    heard = frame[frame.part == "sound"]
    assert heard.start.iloc[3] == pytest.approx(0.06) and heard.end.iloc[3] == pytest.approx(0.08)
    assert frame[frame.part == "numbers"].name.tolist() == ["age", "income", "$x_1$"]
    assert "example" not in every[0].to_dataframe().columns


def test_a_batch_is_a_sequence_that_does_not_change() -> None:
    a, b = KINDS["text"](), KINDS["image"]()
    every = Explanations([a, b])
    assert list(every) == [a, b] and every[1] is b and list(every[::-1]) == [b, a] and isinstance(every[:1], Explanations)
    assert list(every + [a]) == [a, b, a] and list([b] + every) == [b, a, b] and isinstance([b] + every, Explanations)
    assert a in every and not Explanations()
    with pytest.raises(IndexError, match="there are 2"):
        every[2]
    with pytest.raises(InputError, match="item 1 is a int"):
        Explanations([a, 3])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        every[0] = b  # type: ignore[index]


# views


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_every_view(kind: str, tmp_path: Path) -> None:
    e = KINDS[kind]()
    e.to_png(tmp_path / "e.png")
    e.to_pdf(tmp_path / "e.pdf")
    e.to_svg(tmp_path / "e.svg")
    drawn = (tmp_path / "e.svg").read_text(encoding="utf-8")
    assert drawn.startswith("<?xml") and "<svg" in drawn and "<text" not in drawn and "<script" not in drawn
    page, shown = e._repr_html_().replace(TIE, " "), plain(e, width=80)
    assert (tmp_path / "e.png").read_bytes()[:4] == b"\x89PNG" and (tmp_path / "e.pdf").read_bytes()[:4] == b"%PDF"
    assert "<html" not in page and "<script" not in page and max(map(len, shown.splitlines())) <= 80
    for found in (page, shown):
        assert "rules attnlrp" in found and any(said in found for said in ("Paris", "n0", "number 0"))
        assert e.account is None or "Accounts: of 13.2, 9.1 (69 %) reached the text" in found
    for part in e.parts:
        assert part.kind != "numbers" or "income" in shown and "income" in page
        assert part.kind != "sound" or "0.2 s" in shown and page.count('<i title="') == 10


def test_parts_share_one_scale_and_pictures_are_in_patches() -> None:
    big = replace(numbers(), values=torch.tensor([80.0, -1.0, 0.5]))
    sheet = of(image(), text(), big).sheet(scale="max")
    pictures, words, bars = sheet.sections
    assert sheet.facts.end == 80.0 == pictures.scale.end == bars.scale.end
    assert pictures.relevance.shape == (2, 3)
    assert words.cells[1].share == pytest.approx(float(text().values[1]) / 80.0)
    assert sheet.top[0] == Strong(80.0, 1.0, "age", "numbers")


def coloured(e: object, width: int) -> str:
    """What a terminal with colours shows, without the colours."""
    console = Console(width=width, file=StringIO(), force_terminal=True, color_system="truecolor", highlight=False)
    console.print(e)
    return Text.from_ansi(console.file.getvalue()).plain  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", (40, 60, 80, 120))
def test_a_number_of_a_matrix_is_one_line_and_its_colours_another_where_the_first_is_full(width: int) -> None:
    e = several(text(tuple(f" token{i}" for i in range(36))))
    shown, piped = coloured(e, width), plain(e, width)
    assert all(len(line) <= width for line in f"{shown}\n{piped}".splitlines())
    (said,) = [line for line in piped.splitlines() if line.startswith(" n0")]
    assert re.search(r"token\d+ [+−][\d.]+ \(\d+\)", said), "the strongest token of each number, whole"
    lines = shown.splitlines()
    at = next(at for at, line in enumerate(lines) if line.startswith(" explained"))
    header, first, after = lines[at : at + 3]
    assert ("tokens 0 to 35" in header) == (width > 40) and "tokens 0 to 35" not in piped
    below = not re.sub("[▲▼]", "", after).split()
    assert below == (width in (60, 80)) and first.startswith(" n0")


def test_a_number_stays_with_its_sign_of_percent_and_a_value_with_its_name() -> None:
    e = replace(KINDS["text"](), account=ACCOUNT)
    for width in range(30, 90):
        lines = plain(e, width).splitlines()
        assert not any(line.lstrip().startswith(("%", "=")) or line.endswith("=") for line in lines)


def test_a_matrix_gives_each_number_its_own_scale() -> None:
    (matrix,) = KINDS["matrix"]().sheet().sections
    assert isinstance(matrix, Matrix) and matrix.split == 14
    assert matrix.shares.abs().amax(1).tolist() == [1.0, 1.0] and matrix.beyond.sum(1).tolist() == [1, 1]
    assert matrix.shares[0, 14:].tolist() == [0.0, 0.0], "the first answer token was computed before these were read"


def test_a_comparison_shows_all_on_one_scale(tmp_path: Path) -> None:
    a = of(text(("one", " two")))
    a = replace(a, parts=(replace(a.parts[0], values=torch.tensor([4.0, -2.0]), units=None),))
    b = replace(a, parts=(replace(a.parts[0], values=torch.tensor([1.0, 2.0])),))
    b = replace(b, origin=replace(ORIGIN, table_name="gradient"))
    found = lxt_fx.compare(a, b)
    assert found.names == ("attnlrp", "gradient") and found.differences[0].relevance.tolist() == [3.0, -4.0]
    assert found.sheet().facts.end == 4.0
    found.to_png(tmp_path / "c.png")
    page, shown = found._repr_html_(), plain(found, width=80)
    assert f"--l:{LIGHT.colour(0.25)}" in page and f"--l:{LIGHT.colour(1.0)}" in page
    assert "attnlrp minus gradient" in shown and "one scale for all" in shown and "rules attnlrp and gradient" in shown
    other = compare(a, of(text(("one", " three"))), names=("here", "there"))
    assert not other.differences and "No difference of here and there: place 1 of 'text' is ' two'" in plain(other)
    loud = replace(a, parts=(Part("sound", ("time",), torch.full((500,), 0.5), SoundReading(0.02)),))
    soft = replace(loud, parts=(replace(loud.parts[0], values=torch.full((500,), 0.1)),), origin=b.origin)
    bars = [track.bars(100) for track in compare(loud, soft).sheet().sections if isinstance(track, Track)]
    heights = [float(scale.shares(sums).max()) for sums, scale, _ in bars]
    assert heights == pytest.approx([1.0, 0.2, 0.8]), "bars of five steps, one scale"
    matrix = KINDS["matrix"]()
    for wrong, why in (((a,), "two explanations or more"), ((a, 3), "argument 1 is a int"), ((a, matrix), "of 2 numbers")):
        with pytest.raises(InputError, match=why):
            compare(*wrong)
    with pytest.raises(InputError, match="a different name for each"):
        compare(a, b, names=("x", "x"))


def titles_inside(sheet: Sheet, width: float) -> int:
    """The lines of text of a figure; each ends before its right edge."""
    figure = sheet_figure(sheet, width)
    canvas, edge = FigureCanvasAgg(figure), figure.bbox.width
    lines = [found for found in figure.get_children() if isinstance(found, DrawnText)]
    assert all(found.get_window_extent(canvas.get_renderer()).x1 <= edge for found in lines)
    return len(lines)


def test_a_sound_is_shown_without_the_silence_behind_it() -> None:
    wave = SoundReading(0.1, waveform=torch.ones(350), rate=1000)  # 0.35 s: four steps
    part = Part("sound", ("time",), torch.tensor([1.0, -2.0, 0.5, 1.0, 0.25, 0.25]), wave)
    (track,) = of(part).sheet().sections
    assert isinstance(track, Track) and track.relevance.tolist() == [1.0, -2.0, 0.5, 1.0]
    assert track.title == "0.2 s of silence behind it: +0.5"
    beside = of(part, text(("<s>", " so"))).sheet()
    assert beside.sections[0].title == "sound; relevance +0.5 on a scale of its own; 0.2 s of silence behind it: +0.5"
    where = {place.name: place.where for place in beside.top}
    assert where["0.3 s"] == "sound" and where["0.4 s"] == "sound, the silence behind it"
    assert where[" so"] == "text, position 1"
    two = several(part, text(("<s>", " so")))
    two = replace(two, numbers=(ExplainedNumber("log-probability of 'so'", -1.5, "so"), two.numbers[1]))
    title = two.sheet().sections[0].title.replace(TIE, " ")
    assert title.startswith("sound: log-probability of 'so' = −1.5; relevance +0.5 on")
    for width in (2.5, 4.0, 6.5):
        assert titles_inside(two.sheet(), width) >= 5, "of two sounds and a text, none cut off at the edge"
    longer = replace(wave, waveform=torch.ones(600))
    (track,) = of(replace(part, reading=longer)).sheet().sections
    assert isinstance(track, Track) and len(track.relevance) == 6 and track.title == ""


def test_an_account_says_what_took_the_rest() -> None:
    took = {"bias": 2.1, "softmax offset": 1.2, "selection": -0.25, "epsilon": 0.04, "inputs of 0": -0.01, "target": 0.0}
    said = str(Account(13.2, {"text": 9.1}, took, 1.02))
    assert said == (
        "of 13.2, 9.1 (69 %) reached the text; bias took 2.1 (16 %), softmax offset 1.2 (9 %), selection −0.25 (−2 %) "
        "and 2 smaller causes 0.03 (0.2 %); 1.02 is rounding"
    )
    assert str(Account(2.0, {"text": 2.0}, {}, 1e-9)) == "of 2, 2 (100 %) reached the text; nothing was taken on the way"
    assert str(Account(0.0, {"text": 1.0}, {"bias": -1.0}, 0.0)) == "of 0, 1 reached the text; bias took −1"
    cancelling = Account(-1.43, {"sound": 6.15}, {"bias": -7.58}, 0.0)
    assert str(cancelling) == "of −1.43, 6.15 reached the sound; bias took −7.58", "no −430 %"
    assert "the image" in str(ACCOUNT) and "smaller" not in str(ACCOUNT)
    one_small = str(Account(10.0, {"text": 8.99}, {"bias": 1.0, "epsilon": 0.01}, 0.0))
    assert one_small.endswith("bias took 1 (10 %) and epsilon 0.01 (0.1 %)")
    assert str(Account(10.0, {"text": 9.0}, {"bias": 1.0, "not accounted for": 1e-6}, 0.0)).endswith("bias took 1 (10 %)")


def test_an_account_says_what_its_causes_mean() -> None:
    assert {cause.value for cause in lxt_fx.Cause} == set(MEANINGS), "each cause of the ledger has a meaning for a person"
    assert ACCOUNT.meanings().startswith(f"bias: {MEANINGS['bias']}; softmax offset: ")
    assert Account(2.0, {"text": 2.0}, {}, 0.0).meanings() == ""
    shown = plain(replace(KINDS["text"](), account=ACCOUNT), width=120)
    assert "Bias: the biases of layers; softmax offset: the part of the attention weights" in " ".join(shown.split())


# one line for each object


def read_corpus() -> lxt_fx.Corpus:
    """What a corpus of two texts gives for one place."""
    tokenizer = tiny_text.byte_tokenizer()
    folder = Path(tempfile.mkdtemp()) / "corpus"
    return lxt_fx.corpus(
        tiny_text.llama(len(tokenizer)), tokenizer, ["Paris is a city", "London"], "mlp.0.neurons", folder=folder, top=2
    )


def explained_corpus() -> list[object]:
    """A corpus of three samples, of which one is bad, and what explained it."""
    tokenizer = tiny_text.byte_tokenizer()
    made = lxt_fx.transform(tiny_text.llama(len(tokenizer)))
    folder = Path(tempfile.mkdtemp()) / "corpus"
    found = lxt_fx.explain_corpus(made, tokenizer, ["Paris is a city", "London", " "], folder=folder)
    return [found, lxt_fx.CorpusExplainer(made, tokenizer)]


def maximised() -> lxt_fx.Maximised:
    """A picture for one neuron."""
    return lxt_fx.maximise(tiny.MODELS["vit"](), "mlp.0.neurons", 1, bounds=(0.0, 1.0), seeds=1, steps=1)


@functools.cache
def made() -> dict[str, object]:
    """An object of each public class."""
    explained = shared("llama")
    torch.manual_seed(0)
    net, x = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 3)), torch.randn(4, 4)
    mlp, feature = lxt_fx.transform(net, (x,)), lxt_fx.Removal("feature", spared=torch.zeros(4, dtype=torch.bool))
    ledger = lxt_fx.audit(explained, {"input_ids": torch.tensor([[3, 1, 4, 1]])})
    curves = lxt_fx.perturbation_curves(mlp, x, torch.ones(4, 4), 0, removal=feature)
    tuned = lxt_fx.tune(net, x, removal=feature)
    e = KINDS["all"]()
    objects = [explained, explained.record, lxt_fx.certificate(explained), ledger, ledger.landing(1), lxt_fx.Cause.BIAS]
    objects += [curves, feature, tuned, explained.record.table, explained.record.table.rules[0], lxt_fx.Target(3, 4, 2)]
    objects += [e, Explanations([e, e]), compare(e, e, names=("a", "b")), ACCOUNT, lxt_fx.Conserves.ALL]
    rows, ids = torch.randn(3, 32), {"input_ids": torch.tensor([[3, 1, 4, 1]])}
    latent, places = lxt_fx.latent(explained, ids, 3), lxt_fx.places(explained)
    objects += [latent, latent.top(3), places, places["residual.1"], lxt_fx.Only(3, [0, 1])]
    objects += [BenchResults(bench_contents(1, 3))]
    lens = lxt_fx.lens(explained, ids)
    objects += [lens, lens.read(ids, k=2), lxt_fx.answer_relevance(explained, None, [3, 1], [4, 1], through="answer")]
    objects += [lxt_fx.position_relevance(shared("llama", rules="pa_lrp"), ids, 3)]
    pair = (explained, ids, {"input_ids": torch.tensor([[3, 1, 9, 1]])}, (3, 4))
    scores = lxt_fx.circuit_scores(*pair)
    curve = lxt_fx.circuit_faithfulness(*pair, scores.circuit(0.5))
    objects += [scores, curve, lxt_fx.activation_patching(*pair, "attention.0.heads")]
    objects += [lxt_fx.qk_attribution(explained, ids, 3, head="attention.1.heads:2")]
    objects += [lxt_fx.plan(explained, "2x24GB", tokens=8)]
    objects += [lxt_fx.Dictionary(rows.T.contiguous(), rows), read_corpus(), maximised(), lxt_fx.Regularisers()]
    objects += explained_corpus()
    found = {type(one).__name__: one for one in objects}
    found["Explained"] = explained
    return found | {"ImageExplanation": KINDS["image"](), "AnswerRelevance": KINDS["matrix"]()}


@one_worker("llama")
@pytest.mark.parametrize("name", lxt_fx.__all__)
def test_every_public_object_is_one_line(name: str) -> None:
    public = getattr(lxt_fx, name)
    is_class = isinstance(public, type)
    found = public("why") if is_class and issubclass(public, lxt_fx.LxtFxError) else made()[name] if is_class else public
    assert isinstance(found, public) if is_class else isinstance(found, (types.FunctionType, types.ModuleType, dict))
    shown = repr(found)
    assert "\n" not in shown and len(shown) < 200, shown


@one_worker("llama")
def test_every_printed_result_has_tables_in_a_notebook_and_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = {name: found for name, found in made().items() if hasattr(found, "__rich__")}
    wanted = {"Ledger", "Certificate", "RuleTable", "Record", "Latent", "TopUnits", "Places", "Corpus", "Landing"}
    wanted |= {"BenchResults", "Lens", "LensReading", "QKAttribution", "ExplainedCorpus", "DevicePlan"}
    answers = {"AnswerRelevance", "RecursiveAnswer"}
    assert wanted | answers | {"Account", "PerturbationCurves", "TunedTable", "Comparison"} <= set(shown)
    for name, found in shown.items():
        page = found._repr_html_()  # type: ignore[attr-defined]
        assert "<script" not in page and 'class="lxt-fx"' in page
        assert name not in wanted or '<table class="listed">' in page
        if name not in ("Certificate", "Account"):  # whose text is for files and sentences
            assert max(map(len, str(found).splitlines())) <= 80, name
    assert "model.layers.0" in shown["Ledger"]._repr_html_()  # type: ignore[attr-defined]
    assert len(shown["Record"].__str__()) < 1000


def test_a_token_is_no_markup_of_a_table() -> None:
    from rich.table import Table

    class Result(Listed):
        def __rich__(self) -> Table:
            table = Table("token", title="<b>")
            table.add_row(Text("[/b] <i>"))
            return table

    assert "&lt;b&gt;" in Result()._repr_html_() and "<td>[/b] &lt;i&gt;</td>" in Result()._repr_html_()


@pytest.mark.parametrize("kind", KINDS)
def test_long_names_stay_on_one_line(kind: str) -> None:
    long = "a\nvery long phrase " * 30
    e = KINDS[kind]()
    said = tuple(ExplainedNumber(long, 1.0, long) for _ in e.numbers)
    e = Explanation(tuple(replace(part, name=f"{part.name}{long}") for part in e.parts), said, Origin(long, long))
    places = () if e.parts[0].several else e.top(3)
    for found in (e, Explanations([e]), *e.parts, *(part.reading for part in e.parts), *e.numbers, e.origin, *places):
        assert "\n" not in repr(found) and len(repr(found)) < 200, repr(found)
