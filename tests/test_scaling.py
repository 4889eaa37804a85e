"""Where the colours end, which tokens count for them, and what the views say of it."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_results import KINDS, TOKENS, image, numbers, of, several, text, values
from torch import Tensor

import lxt_fx
from lxt_fx.base.errors import InputError
from lxt_fx.results.look import Asked, seen
from lxt_fx.results.part import Part
from lxt_fx.results.readings import TextReading
from lxt_fx.views.heatmap import sheet_figures
from lxt_fx.views.page import ROWS, fragment
from lxt_fx.views.scaling import scaling
from lxt_fx.views.sheet import Matrix, Tokens
from lxt_fx.views.terminal import plain

pytestmark = pytest.mark.usefixtures("captures_in_files")

CASES = json.loads((Path(__file__).parent / "browser" / "scale_cases.json").read_text(encoding="utf-8"))

FRANCE = torch.tensor([0.784, 0.558, 0.618, 0.824, 3.644])
"""SmolLM2's relevance of "The capital of France is", whose last token takes all colour from the others."""


def france(relevance: Tensor = FRANCE) -> lxt_fx.Explanation:
    tokens = ("The", " capital", " of", " France", " is")
    reading = TextReading(tokens, None, (True, False, False, False, False), (0,) * 5)
    return of(Part("text", ("position",), relevance, reading), value=17.37)


def test_the_scale_is_that_of_the_page() -> None:
    assert len(CASES) > 40
    for case in CASES:
        relevance, counts = torch.tensor(case["values"], dtype=torch.float64), torch.tensor(case["counts"]).bool()
        scale = scaling(relevance, counts, case["ends"])
        assert (scale.end, scale.beyond) == (pytest.approx(case["end"]), case["beyond"]), case
        assert scale.shares(relevance).where(counts, 0).tolist() == pytest.approx(case["shares"]), case
        assert int((scale.goes_beyond(relevance) & counts).sum()) == case["beyond"]


def test_one_token_does_not_take_the_colours_of_the_others() -> None:
    (tokens,) = france().sheet().sections
    assert isinstance(tokens, Tokens)
    assert [round(cell.share, 2) for cell in tokens.cells] == [0.95, 0.68, 0.75, 1.0, 1.0]
    assert [cell.beyond for cell in tokens.cells] == [False] * 4 + [True]
    (old,) = france().sheet(scale="max").sections
    assert isinstance(old, Tokens) and max(cell.share for cell in old.cells[:4]) < 0.23
    (rank,) = france(-FRANCE).sheet(scale="rank").sections
    assert isinstance(rank, Tokens) and [cell.share for cell in rank.cells] == pytest.approx([-0.6, -0.2, -0.4, -0.8, -1])


@pytest.mark.parametrize(
    "look, said",
    [
        ({}, "The scale is robust and ends at 0.824; 1 token goes beyond its end, up to 3.64, MARK."),
        ({"scale": "max"}, "The scale ends at 3.64, the largest relevance."),
        ({"scale": "rank"}, "Colour is the rank of the relevance among the tokens, not its size."),
        ({"mute": ["last", "special"]},
         "The scale is robust and ends at 0.824; nothing goes beyond it. 2 tokens are left out of the colours, together "
         "+4.43."),
        ({"units": "sentences", "mute": 4},
         "The scale is robust and ends at 2; nothing goes beyond it. 1 token is left out of the colours, together +3.64."),
    ],
)  # fmt: skip
def test_every_view_says_where_the_scale_ends(look: dict[str, object], said: str) -> None:
    view = france().view(**look)  # type: ignore[arg-type]
    figure = sheet_figures(view.sheet(), 9.0, None)[0]
    drawn = " ".join(text for found in figure.get_children() if (text := getattr(found, "get_text", str)()))
    edge, printed = "drawn with a double edge", " ".join(plain(view, 200).split())
    for mark, shown in ((edge, view._repr_html_()), (edge, drawn), ("drawn as ▲ or ▼", printed)):
        assert said.replace("MARK", mark) in shown
        assert "for" in shown and "against" in shown and "sum of relevance +6.43" in shown


def test_why_the_sum_is_not_the_value_is_a_sentence() -> None:
    for shown in (plain(france(), 200), france()._repr_html_()):
        assert "The relevance of the tokens sums to 6.4 of the value 17.4; the rest was absorbed on the way" in shown
    assert "need not sum to its value" in plain(KINDS["matrix"](), 200)


def test_what_is_left_out_has_no_colour_and_is_in_no_word() -> None:
    found = france().sheet(mute=["first", -1])
    (tokens,) = found.sections
    assert isinstance(tokens, Tokens)
    assert [(cell.muted, cell.share == 0) for cell in tokens.cells] == [(True, True), *[(False, False)] * 3, (True, True)]
    assert [place.name for place in found.top] == [" France", " of", " capital"]
    word = ("un", "believ", "able")
    pieces = of(Part("text", ("position",), torch.tensor([5.0, 1.0, 2.0]), TextReading(word, None, (False,) * 3, (0,) * 3)))
    assert [place.relevance for place in pieces.sheet(units="words", mute="first").top] == [3.0]
    assert [place.relevance for place in pieces.sheet(units="words").top] == [8.0]
    assert pieces.sheet(units="words", mute="first").facts.total == 8.0, "the sum is that of all tokens"


def test_an_answer_token_is_coloured_by_what_was_read_before_it() -> None:
    e = several(text(answer=3), count=3)
    (shown,) = seen(e.parts, Asked(mute=("last",)))
    assert shown.read.sum(1).tolist() == [13, 14, 15]
    assert [row.nonzero().flatten().tolist() for row in shown.read & ~shown.counts] == [[12], [13], [14]]
    (matrix,) = e.sheet(mute="last").sections
    assert isinstance(matrix, Matrix) and matrix.muted.sum(1).tolist() == [1, 1, 1]
    assert not matrix.shares[~shown.counts].any()


@pytest.mark.parametrize(
    "look, why",
    [
        ({"scale": "robuste"}, "scale must be one of 'robust', 'max', 'rank', got 'robuste'"),
        ({"mute": "middle"}, "mute takes 'first', 'last', 'special' and positions, or a list of these, got 'middle'"),
        ({"mute": 99}, "mute=99 is no position of a text of 16 tokens"),
        ({"units": "letters"}, "units must be one of 'tokens', 'words', 'sentences'"),
        ({"patch": 3}, "there is no image"),
    ],
)
def test_what_a_view_cannot_do_is_refused(look: dict[str, object], why: str, tmp_path: Path) -> None:
    e = KINDS["text"]()
    png, svg = functools.partial(e.to_png, tmp_path / "no.png"), functools.partial(e.to_svg, tmp_path / "no.svg")
    for view in (e.view, png, svg):
        with pytest.raises(InputError, match=why):
            view(**look)  # type: ignore[operator]
    with pytest.raises(InputError, match="there is no text"):
        of(numbers()).view(mute="first")


def test_a_view_has_its_keywords_everywhere(tmp_path: Path) -> None:
    view = of(image(), text()).view(scale="max", units="words", mute="special", patch=3)
    assert view.sheet().facts.is_rank is False and view.sheet(scale="rank").facts.is_rank
    view.to_png(tmp_path / "a.png")
    of(image(), text()).to_png(tmp_path / "b.png", scale="max", units="words", mute="special", patch=3)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert repr(view).endswith("scale='max', units='words', mute='special', patch=3)") and len(repr(view)) < 200
    both = lxt_fx.compare(KINDS["text"](), KINDS["text"](), names=("a", "b"))
    assert "together" in plain(both.view(mute="special"), 200) and "capital" in plain(both.view(units="words"), 200)


def test_the_sign_survives_a_grey_print(tmp_path: Path) -> None:
    """The lines below two tokens of the same strength differ where the colours do not."""
    reading = TextReading(("mmmm", " mmmm"), None, (False,) * 2, (0,) * 2)
    e = of(Part("text", ("position",), torch.tensor([1.0, -1.0]), reading))
    e.to_png(tmp_path / "e.png")
    grey = torch.tensor(list(Image.open(tmp_path / "e.png").convert("L").tobytes())).reshape(-1, 1300)
    below = max((row < 200 for row in grey[118:127]), key=lambda row: int(row.sum()))
    runs = [len(run) for run in "".join("x" if dark else " " for dark in below.tolist()).split()]
    assert runs[0] > 80 and len(runs) > 8 and max(runs[1:]) < 12, "solid below the first, dashed below the second"


def test_a_matrix_of_a_long_text_stays_small() -> None:
    reading = TextReading((" t",) * 2000, None, (False,) * 2000, (0,) * 2000)
    long = several(Part("text", ("position",), values(2000), reading))
    many = replace(long, numbers=long.numbers * 75, parts=(replace(long.parts[0], values=values(150, 2000)),))
    assert len(fragment([many.sheet()])) < 3_000_000 and f"and {150 - ROWS} more numbers" in fragment([many.sheet()])
    figures = sheet_figures(many.sheet(), 6.5, 11.0)
    sizes = [tuple(figure.get_size_inches()) for figure in figures]
    assert len(figures) > 1 and all(width < 20 and height <= 11 for width, height in sizes)
    assert "the 100 of 2000 tokens with the strongest relevance" in fragment([long.sheet()])
    assert max(map(len, plain(long, 80).splitlines())) <= 80 and len(TOKENS) == 16
