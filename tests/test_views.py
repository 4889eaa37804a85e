"""What a person sees: terminal, page, figure and JSON of an explanation whose values are written out here."""

from __future__ import annotations

import html
import json
import re
import warnings
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import matplotlib
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread
from matplotlib.text import Text as DrawnText
from PIL import ImageFont
from rich.console import Console
from rich.text import Text

import lxt_fx
from lxt_fx.base.errors import InputError
from lxt_fx.results.explanation import ExplainedNumber, Explanation, Origin
from lxt_fx.results.explanations import Explanations
from lxt_fx.results.kinds import ImageExplanation
from lxt_fx.results.part import Part
from lxt_fx.results.readings import ImageReading, TextReading
from lxt_fx.views import emoji
from lxt_fx.views.colour import DARK, LIGHT, Scale, _oklab, contrast, ink
from lxt_fx.views.heatmap import BODY, MUTED, sheet_figure, sheet_figures
from lxt_fx.views.page import _coded, fragment
from lxt_fx.views.panels import displayed, panels
from lxt_fx.views.typeset import HINT, _hint, drawable, in_lines, pieces
from lxt_fx.views.view import cells, number, shares, summed

pytestmark = pytest.mark.usefixtures("captures_in_files")

TOKENS = ("The", " cap", "ital", "↵", "  ", "<script>alert(1)</script>", " $x_1^2$ & $\\frac{$", " 漢字", "🦙", " مرحبا")
RELEVANCE = torch.tensor([0.5, -1.0, 0.25, 0.0, 0.01, 2.0, -2.0, 0.1, -0.1, 0.3])


@pytest.fixture(autouse=True)
def no_warning_is_shown() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def explanation() -> Explanation:
    return make(TOKENS, RELEVANCE)


def make(tokens: tuple[str, ...], relevance: torch.Tensor) -> Explanation:
    attribution = torch.stack([relevance / 2, relevance / 2], dim=1)
    count = len(tokens)
    reading = TextReading(tokens, tuple(range(count)), (False,) * count, (0,) * count)
    number = ExplainedNumber("logit of '<b>' (rank 1) at position 9", 1.25, "<b>")
    origin = Origin("attnlrp", "LlamaForCausalLM", "", {}, 0.5)
    return Explanation((Part("text", ("position",), relevance, reading, attribution),), (number,), origin)


@pytest.fixture
def image() -> Explanation:
    generator = torch.Generator().manual_seed(0)
    pixels, attribution = (torch.randn(3, 9, 13, generator=generator) for _ in range(2))
    reading = ImageReading(displayed(pixels), pixel_values=pixels)
    part = Part("image", ("row", "column"), attribution.sum(0), reading, attribution.movedim(0, -1))
    number = ExplainedNumber("logit of class 3 (rank 1)", 1.25, "3")
    return Explanation((part,), (number,), Origin("attnlrp", "ViT", "", {}, 0.5))


def test_top_is_sorted_by_absolute_relevance(explanation: Explanation) -> None:
    assert [(t.position, t.relevance) for t in explanation.top(3)] == [(5, 2.0), (6, -2.0), (1, -1.0)]
    assert explanation.top(1)[0].token == "<script>alert(1)</script>"
    assert len(explanation.top(99)) == len(TOKENS)
    with pytest.raises(InputError, match="at least 1"):
        explanation.top(0)


def test_json_holds_what_was_explained(explanation: Explanation, tmp_path: Path) -> None:
    explanation.to_json(tmp_path / "out.json")
    read = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert read == explanation.to_dict()
    assert read["tokens"] == list(TOKENS) and read["relevance"] == RELEVANCE.tolist()
    assert read["sum"] == pytest.approx(0.06) and read["value"] == 1.25 and read["rules"] == "attnlrp"


@pytest.mark.parametrize("scale", [LIGHT, DARK])
def test_ink_is_readable_on_every_colour(scale: Scale) -> None:
    backgrounds = [scale.colour(step / 100) for step in range(-100, 101)]
    assert min(contrast(ink(colour), colour) for colour in backgrounds) >= 4.5


@pytest.mark.parametrize("scale", [LIGHT, DARK])
def test_equal_steps_of_relevance_are_equal_steps_of_colour(scale: Scale) -> None:
    for sign in (-1, 1):
        labs = [torch.tensor(_oklab(scale.colour(sign * step / 10))) for step in range(11)]
        steps = torch.stack([(b - a).norm() for a, b in zip(labs, labs[1:], strict=False)])
        assert steps.std() / steps.mean() < 0.05  # colours are rounded to 8 bits


def test_both_signs_are_equally_strong_and_zero_is_neutral() -> None:
    for scale in (LIGHT, DARK):
        assert scale.colour(0.0) == scale.neutral
        assert _oklab(scale.positive)[0] == pytest.approx(_oklab(scale.negative)[0], abs=0.03)
    assert LIGHT.colour(1.0) == LIGHT.positive and LIGHT.colour(-7.0) == LIGHT.negative
    assert LIGHT.image(torch.tensor([[-1.0, 0.0, 1.0]])).tolist() == [[[23, 98, 182], [255, 255, 255], [183, 24, 36]]]


def test_the_strongest_token_has_the_strongest_colour_whatever_the_unit() -> None:
    assert shares(RELEVANCE).abs().max() == 1.0
    assert torch.equal(shares(RELEVANCE), shares(RELEVANCE * 1024))
    assert torch.equal(shares(torch.zeros(3)), torch.zeros(3))


def test_cells_keep_words_together_and_break_at_line_ends() -> None:
    made = cells(("The", " cap", "ital", "↵  ", "x"), torch.arange(5.0))
    assert [(c.text, c.position, c.gap, c.starts, c.ends, c.ends_line) for c in made] == [
        ("The", 0, False, True, True, False),
        ("cap", 1, True, True, False, False),
        ("ital", 2, False, False, False, False),
        ("↵", 3, False, False, True, True),
        ("  ", 3, False, True, False, False),
        ("x", 4, False, False, True, False),
    ]


@pytest.mark.parametrize("value", [(0.0, "0"), (1.0, "+1"), (-0.12345, "−0.123"), (12345.0, "+1.23e+04")])
def test_numbers_are_signed_and_short(value: tuple[float, str]) -> None:
    assert number(value[0]) == value[1]


def test_the_sheet_shows_every_token_and_runs_nothing(explanation: Explanation) -> None:
    page = explanation._repr_html_()
    assert "<script" not in page and "<b>" not in page
    assert not re.search(r"""https?:|src=|@import|url\(|javascript:| on[a-z]+=""", page)
    shown = [html.unescape(text) for text in re.findall(r'<span class="t[^>]*>([^<]*)</span>', page)]
    assert shown == [token if token.isspace() else token.removeprefix(" ") for token in TOKENS]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_the_sheet_says_what_was_explained_and_every_value(explanation: Explanation) -> None:
    page = html.unescape(explanation._repr_html_())
    assert "logit of '<b>' (rank 1) at position 9\u00a0=\u00a0<output>1.25</output>" in page
    assert "sum of relevance +0.06" in page and "rules attnlrp" in page and "LlamaForCausalLM" in page
    for position, value in enumerate(RELEVANCE.tolist()):
        assert f'title="{number(value)} · position {position}"' in page
    assert f"--l:{LIGHT.colour(-0.5)}" in page and f"--d:{DARK.colour(-0.5)}" in page
    assert "prefers-color-scheme: dark" in page


def test_code_in_a_note_is_code_and_markup_in_it_is_text(explanation: Explanation) -> None:
    page = explanation._repr_html_()
    assert "<code>account=True</code> or lxt_fx.audit says where." in page and "`" not in page
    assert _coded("`a<b` & `") == "<code>a&lt;b</code> &amp; `"


def test_the_notebook_view_is_a_fragment(explanation: Explanation, image: Explanation) -> None:
    for shown in (explanation._repr_html_(), image._repr_html_()):
        assert "<html" not in shown and "<body" not in shown and '<div class="lxt-fx">' in shown


def test_every_rule_of_the_style_is_read(explanation: Explanation) -> None:
    """A browser drops a rule that it cannot parse, without a word."""
    page = explanation._repr_html_()
    styles = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert len(styles) == 1 == page.count("<style>")
    rules = [part.split("{")[-2].strip() for style in styles for part in style.split("}") if "{" in part]
    assert ".lxt-fx:not(#_#_)" in rules and len(rules) > 40
    assert all(".lxt-fx:not(#_#_)" in one for rule in rules for one in rule.split(",")), "no rule reaches the notebook"


def test_a_terminal_is_coloured_and_a_pipe_is_plain(explanation: Explanation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LXT_FX_BACKGROUND", "light")
    terminal = Console(file=StringIO(), force_terminal=True, color_system="truecolor", width=80)
    terminal.print(explanation)
    coloured = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[38;2;255;255;255;48;2;183;24;36m<script>" in coloured
    plain = str(explanation)
    assert "\x1b" not in plain
    assert plain.startswith("logit of '<b>' (rank 1) at position 9 = 1.25\n")
    assert "  The capital↵\n+ ▂▂▂    ▁▁▁\n−     ▄▄\n" in plain, "a gap in the bars stands between the tokens of a word"
    assert "sum of relevance +0.06" in plain and "+0.5" in plain


def test_repr_is_one_line(explanation: Explanation, image: Explanation) -> None:
    assert repr(explanation) == "Explanation(logit of '<b>' (rank 1) at position 9 = 1.25, 10 tokens, rules attnlrp)"
    assert repr(image) == "Explanation(logit of class 3 (rank 1) = 1.25, 9 x 13, rules attnlrp)"
    assert isinstance(image, ImageExplanation) and not isinstance(explanation, ImageExplanation)


def test_the_picture_draws_math_signs_and_any_script_as_they_stand(explanation: Explanation, tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    explanation.to_png(tmp_path / "out.png", width=5.0)
    explanation.to_pdf(tmp_path / "out.pdf")
    assert imread(tmp_path / "out.png").shape[1] == 1000
    assert (tmp_path / "out.pdf").read_bytes().startswith(b"%PDF")
    assert dict(matplotlib.rcParams) == before


def test_the_picture_holds_the_colours_of_its_tokens(tmp_path: Path) -> None:
    make(("one", " two", " three"), torch.tensor([2.0, -2.0, 1.0])).to_png(tmp_path / "out.png")
    pixels = (imread(tmp_path / "out.png")[..., :3] * 255).round().astype(int).reshape(-1, 3)
    seen = {f"#{r:02x}{g:02x}{b:02x}" for r, g, b in {tuple(pixel) for pixel in pixels.tolist()}}
    assert {LIGHT.positive, LIGHT.negative, LIGHT.colour(0.5)} <= seen


def test_pyplot_and_its_global_state_are_never_used() -> None:
    assert lxt_fx.__file__ is not None
    for source in Path(lxt_fx.__file__).parent.rglob("*.py"):
        assert not re.search(r"(from|import) .*pyplot", source.read_text(encoding="utf-8")), source.name


def test_lines_fit_and_break_between_words() -> None:
    tokens = (*(f" word{i}" for i in range(60)), "x" * 200)
    placed = in_lines(cells(tokens, torch.ones(len(tokens))), 200.0, BODY)
    assert max(p.x + p.width for p in placed) <= 200.0
    assert [p.line for p in placed] == sorted(p.line for p in placed)
    assert placed[-1].type.size < BODY.size  # the one that no line holds
    pieces = in_lines(cells((" aaaaaaaaaa", " bbbb", "cccc", "dddd"), torch.ones(4)), 120.0, BODY)
    assert [p.line for p in pieces] == [0, 1, 1, 1]


def test_a_character_without_a_font_is_written_as_its_code_point() -> None:
    assert drawable("a$é↵") == "a$é↵"
    assert drawable("\U000f0000") == "⟨U+F0000⟩"


def test_a_hint_says_once_which_fonts_to_install(caplog: pytest.LogCaptureFixture) -> None:
    _hint.cache_clear()
    for _ in range(3):
        drawable("\U000f0000 a")
    assert [record.getMessage() for record in caplog.records] == [HINT] and "Noto Color Emoji" in HINT
    drawable("a")


def test_emoji_are_pictures_of_the_font_of_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stand-in for a font with pictures, which no machine must have."""
    monkeypatch.setattr(emoji, "_font", lambda: (ImageFont.load_default(40), frozenset(map(ord, "🦙👍👩👧"))))
    emoji._picture.cache_clear()
    family = "👩\u200d👧"
    assert pieces(f"a🦙👍🏽b{family}") == [("a", False), ("🦙", True), ("👍🏽", True), ("b", False), (family, True)]
    assert drawable(f"🦙{family}") == f"🦙{family}" and BODY.width("a🦙") == pytest.approx(BODY.width("a") + 12.5)
    figure = sheet_figure(make(("a", " 🦙👍"), torch.tensor([1.0, 2.0])).sheet(), 4)
    assert len(figure.axes) == 3, "two pictures and the colour bar"
    make((" 🦙",), torch.tensor([1.0])).to_png(tmp_path / "out.png")


def test_several_explanations_are_several_pictures(explanation: Explanation, tmp_path: Path) -> None:
    both = Explanations([explanation, explanation])
    assert [path.name for path in both.to_png(tmp_path / "out.png")] == ["out.png", "out-2.png"]
    both.to_pdf(tmp_path / "out.pdf")
    assert (tmp_path / "out.pdf").read_bytes().count(b"/Type /Page ") == 2
    with pytest.raises(InputError, match="there is no explanation"):
        Explanations().to_png(tmp_path / "none.png")


@pytest.mark.parametrize("width", [2.0, 3.25, 6.5])
def test_the_footnote_stands_beside_the_colour_bar_or_below_it(explanation: Explanation, width: float) -> None:
    figure = sheet_figure(explanation.sheet(), width)
    drawn = [text for text in figure.get_children() if isinstance(text, DrawnText) and text.get_text()]
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in drawn]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0 for box in boxes)
    legend = [box for text, box in zip(drawn, boxes, strict=True) if text.get_color() == MUTED]
    assert len(legend) >= 4
    assert not any(a.overlaps(b) for at, a in enumerate(legend) for b in legend[at + 1 :])


def test_a_figure_too_narrow_is_refused(explanation: Explanation, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 inches wide, which is too narrow"):
        explanation.to_png(tmp_path / "out.png", width=1)


def test_a_long_text_is_drawn_on_pages(tmp_path: Path) -> None:
    e = make(tuple(f" word{i}" for i in range(400)), torch.linspace(-1, 1, 400))
    paths = e.to_png(tmp_path / "out.png", width=5)
    assert [path.name for path in paths] == ["out.png", "out-2.png"]
    assert all(imread(path).shape[0] <= 11 * 200 for path in paths) and imread(paths[0]).shape[1] == 1000
    figures = sheet_figures(e.sheet(), 5, 11.0)
    drawn = [[found.get_text() for found in figure.get_children() if isinstance(found, DrawnText)] for figure in figures]
    assert [text for page in drawn for text in page if text.startswith("word")] == [f"word{i}" for i in range(400)]
    assert all("against" in page and any("page" in text for text in page) for page in drawn)
    e.to_pdf(tmp_path / "out.pdf")
    assert (tmp_path / "out.pdf").read_bytes().count(b"/Type /Page ") == 2


def test_summing_squares_preserves_the_total() -> None:
    relevance = torch.randn(9, 13, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    squares = summed(relevance, 4, 2)
    assert squares.shape == (5, 4)
    assert squares[0, 0] == pytest.approx(float(relevance[:2, :4].sum()))
    assert squares[4, 3] == pytest.approx(float(relevance[8:, 12:].sum()))
    assert float(squares.sum()) == pytest.approx(float(relevance.sum()))


def test_panels_are_the_image_its_heatmap_and_both(image: Explanation) -> None:
    shown = panels(image.pixel_values, image.relevance, 1)
    assert [panel.title for panel in shown] == ["image", "relevance", "both"]
    assert all(panel.pixels.shape == (9, 13, 3) and panel.pixels.dtype == torch.uint8 for panel in shown)
    assert shown[0].pixels.min() == 0 and shown[0].pixels.max() == 255
    assert torch.equal(shown[1].pixels, LIGHT.image(shares(image.relevance)))
    ends = panels(torch.zeros(3, 1, 3), torch.tensor([[-2.0, 0.0, 2.0]]), 1)[2].pixels[0].tolist()
    assert ends == [[23, 98, 182], [102, 102, 102], [183, 24, 36]]


def test_a_panel_is_a_png_of_its_pixels(image: Explanation, tmp_path: Path) -> None:
    panel = panels(image.pixel_values, image.relevance, 1)[2]
    (tmp_path / "panel.png").write_bytes(panel.png())
    read = torch.from_numpy((imread(tmp_path / "panel.png") * 255).round().astype("uint8"))
    assert torch.equal(read, panel.pixels)


def test_a_grey_image_is_shown_grey() -> None:
    pixels = panels(torch.linspace(-1, 1, 4).reshape(1, 2, 2), torch.ones(2, 2), 1)[0].pixels
    assert pixels.tolist() == [[[0] * 3, [85] * 3], [[170] * 3, [255] * 3]]


@pytest.mark.parametrize("patch", [1, 4])
def test_an_image_is_written_as_sheet_picture_and_json(image: Explanation, tmp_path: Path, patch: int) -> None:
    image.to_png(tmp_path / "out.png", patch=patch)
    image.to_pdf(tmp_path / "out.pdf", patch=patch)
    image.to_json(tmp_path / "out.json")
    page = fragment([image.sheet(patch=patch)])
    assert page.count('src="data:image/png;base64,') == 3 and page.count("src=") == 3
    assert f"sum of relevance {number(float(image.relevance.sum()))}" in page
    assert imread(tmp_path / "out.png").shape[1] == 1300
    assert json.loads((tmp_path / "out.json").read_text())["relevance"] == image.relevance.tolist()


def test_a_patch_of_no_pixels_is_refused(image: Explanation, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="patch must be at least 1 pixel, got 0"):
        image.to_png(tmp_path / "out.png", patch=0)


def test_the_terminal_shows_an_image_in_half_blocks_and_a_pipe_in_digits(image: Explanation) -> None:
    terminal = Console(file=StringIO(), force_terminal=True, color_system="truecolor", width=80)
    terminal.print(image)
    coloured = Text.from_ansi(terminal.file.getvalue()).plain.splitlines()  # type: ignore[attr-defined]
    assert coloured[0] == "logit of class 3 (rank 1) = 1.25" and coloured[2:7] == ["▀" * 13] * 5
    shown = str(image).splitlines()
    digits = str.maketrans("·−*", "0-9")
    squares = [[int(digit.translate(digits)) for digit in line.split()] for line in shown[2:11]]
    end = float(image.relevance.abs().flatten().sort().values[int(0.99 * 116)])
    torch.testing.assert_close(torch.tensor(squares), (image.relevance / end * 9).clamp(-9, 9).round().long())
    assert shown[11] == f"9 stands for {end:.3g}, a star for more" and str(image).count("*") == 2 and "▀" not in str(image)
