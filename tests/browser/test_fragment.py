"""The view of a notebook in a browser: no stylesheet of a notebook reaches it, it follows the notebook's theme, and fits a
phone. And a whole notebook, where its tools are installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from test_results import KINDS, of

import lxt_fx
from lxt_fx.results.part import Part
from lxt_fx.results.readings import TextReading

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = """
body { background: #777; font: 22px serif; text-align: right; letter-spacing: 4px; line-height: 3; color: lime; }
#cell .out table, #cell .out tr, #cell .out td { background: black; color: lime; border: 3px solid red; width: 300px;
  text-align: right; padding: 12px; font-size: 30px; }
#cell .out p, #cell .out span, #cell .out div { color: lime; font-size: 30px; margin: 20px; display: block; float: right; }
#cell .out figure, #cell .out img { width: 30px; padding: 9px; }
#cell .out tbody tr:nth-child(odd) { background: black; }
"""
"""What notebooks do to outputs, and worse."""

KEYS = "color backgroundColor fontSize fontFamily display width height textAlign letterSpacing padding margin float"

STYLES = f"""() => [...document.querySelectorAll('.lxt-fx, .lxt-fx *:not(style)')].map(
  (e) => {{ const s = getComputedStyle(e); return {KEYS.split()}.map((k) => s[k]).join(' ') }})"""


def page(
    browser: Browser, body: str, *, style: str = "", width: int = 900, dark: bool = False, attributes: str = ""
) -> Page:
    context = browser.new_context(viewport={"width": width, "height": 700}, color_scheme="dark" if dark else "light")
    opened = context.new_page()
    opened.set_content(
        f"<!doctype html><html><head><meta name='viewport' content='width=device-width'><style>{style}</style></head>"
        f"<body {attributes} style='margin:0'><div id='cell'><div class='out'>{body}</div></div></body></html>"
    )
    return opened


def everything() -> str:
    table = lxt_fx.TABLES["cp_lrp"]
    return "".join(KINDS[kind]()._repr_html_() for kind in KINDS) + table._repr_html_()


def test_no_stylesheet_of_a_notebook_reaches_it(browser: Browser) -> None:
    body = everything()
    plain, hostile = (page(browser, body, style=style).evaluate(STYLES) for style in ("", HOSTILE))
    assert len(plain) > 400 and plain == hostile


@pytest.mark.parametrize(
    "attributes, dark, wanted",
    [
        ("", False, "light"), ("", True, "dark"),
        ("data-jp-theme-light='true'", True, "light"), ("data-jp-theme-light='false'", False, "dark"),
        ("class='vscode-light'", True, "light"), ("class='vscode-dark'", False, "dark"),
        ("class='vscode-high-contrast vscode-high-contrast-light'", True, "light"),
        ("class='vscode-high-contrast'", False, "dark"), ("theme='dark'", False, "dark"),
        ("data-theme='light'", True, "light"), ("data-md-color-scheme='slate'", False, "dark"),
    ],
)  # fmt: skip
def test_it_follows_the_theme_of_the_notebook_before_that_of_the_system(
    browser: Browser, attributes: str, dark: bool, wanted: str
) -> None:
    opened = page(browser, KINDS["text"]()._repr_html_(), attributes=attributes, dark=dark)
    colours = opened.evaluate(
        "() => ['.lxt-fx', '.t.o'].map((name) => getComputedStyle(document.querySelector(name)).backgroundColor)"
    )
    light = ["rgb(255, 255, 255)", "rgb(183, 24, 36)"]
    assert colours == (light if wanted == "light" else ["rgb(29, 33, 38)", "rgb(241, 68, 69)"])


def test_nothing_leaves_the_card_on_a_phone(browser: Browser) -> None:
    opened = page(browser, everything(), width=360)
    assert opened.evaluate("() => document.documentElement.scrollWidth") == 360
    outside = """() => [...document.querySelectorAll('.lxt-fx *:not(.wide *)')].filter((e) => {
      const card = e.closest('.lxt-fx').getBoundingClientRect(), own = e.getBoundingClientRect()
      return own.width && (own.left < card.left || own.right > card.right + 1) }).map((e) => e.outerHTML.slice(0, 80))"""
    assert opened.evaluate(outside) == []


def test_signs_and_edges_are_shapes_too(browser: Browser) -> None:
    opened = page(browser, KINDS["text"]()._repr_html_())
    styles = """(name) => [...document.querySelectorAll(name)].map((e) => { const s = getComputedStyle(e)
      return [s.borderBottomStyle, s.outlineStyle, s.boxShadow !== 'none' || s.borderBottomStyle !== 'solid'] })"""
    assert {found[0] for found in opened.evaluate(styles, ".t.f")} == {"solid"}
    assert {found[0] for found in opened.evaluate(styles, ".t.a")} == {"dashed"}
    assert {found[1] for found in opened.evaluate(styles, ".t.o")} == {"double"}
    assert [word.inner_text() for word in opened.query_selector_all(".legend .against, .legend .for")] == ["against", "for"]


def test_tokens_are_text_and_run_in_the_order_of_their_script(browser: Browser) -> None:
    tokens = ("<img src=x onerror=alert(1)>", " \u202eevil", " مرحبا", " بالعالم")
    e = of(Part("text", ("position",), torch.ones(4), TextReading(tokens, None, (False,) * 4, (0,) * 4)))
    opened = page(browser, e._repr_html_())
    assert opened.query_selector(".lxt-fx img") is None and "⟨U+202E⟩evil" in opened.inner_text(".text")
    first, second = (opened.query_selector_all(".t")[at].bounding_box() for at in (2, 3))
    assert first is not None and second is not None and second["x"] < first["x"], "from right to left"


def executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A notebook that has run: an explanation, its text, and a view of it."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    KINDS["text"]().to_json(tmp_path / "e.json")
    kernel = tmp_path / "data" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    argv = f'["{sys.executable}", "-m", "ipykernel_launcher", "-f", "{{connection_file}}"]'
    (kernel / "kernel.json").write_text(f'{{"argv": {argv}, "display_name": "Python", "language": "python"}}')
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    first = f"import lxt_fx\ne = lxt_fx.Explanation.from_json({str(tmp_path / 'e.json')!r})\ne"
    cells = [first, "print(e)", "e.view(scale='max')"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    return notebook


def test_print_is_plain_text_in_a_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = executed(tmp_path, monkeypatch)
    (printed,) = [output for output in notebook.cells[1].outputs if output.output_type == "stream"]
    assert "\x1b" not in printed.text and "  <s>The capital of don't costs 3.14!! Yes.\n+ " in printed.text
    assert all('class="lxt-fx"' in notebook.cells[at].outputs[-1]["data"]["text/html"] for at in (0, 2))


def test_a_notebook_is_drawn_in_both_themes_of_the_lab(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nbconvert import HTMLExporter

    exporter: Any = HTMLExporter
    notebook = executed(tmp_path, monkeypatch)
    backgrounds = []
    for theme in ("light", "dark"):
        path = tmp_path / f"{theme}.html"
        path.write_text(exporter(template_name="lab", theme=theme).from_notebook_node(notebook)[0], encoding="utf-8")
        opened = browser.new_page()
        opened.route("http*://**", lambda route: route.abort())
        opened.goto(path.as_uri())
        cards = "() => [...document.querySelectorAll('.lxt-fx')].map((e) => getComputedStyle(e).backgroundColor)"
        backgrounds.append(opened.evaluate(cards))
        row = opened.evaluate("() => getComputedStyle(document.querySelector('.lxt-fx tr')).backgroundColor")
        assert row == "rgba(0, 0, 0, 0)", "the lab's stripes stay outside"
    assert backgrounds == [["rgb(255, 255, 255)"] * 2, ["rgb(29, 33, 38)"] * 2]
