"""The explorer page in a real browser: what a person does with it, by pointer and by keyboard."""

from __future__ import annotations

import csv
import json
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import payloads
import pytest
import scale_cases
from found_browser import Opened

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

ONE_BELOW_THE_OTHER = """() => {
    const [first, second] = [...document.querySelectorAll(".pane")].map(one => one.getBoundingClientRect());
    return first.bottom < second.top;
}"""
ACROSS = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


def reads(found: Locator, text: str) -> None:
    """An element has this text, now or soon."""
    from playwright.sync_api import expect

    expect(found).to_have_text(text)


def says(found: Locator, text: str) -> None:
    """The same of a piece of its text."""
    from playwright.sync_api import expect

    expect(found).to_contain_text(text)


def tokens(page: Page) -> list[str]:
    """The labels of the tokens for a screen reader."""
    return page.locator(".t").evaluate_all("all => all.map(one => one.getAttribute('aria-label'))")


def test_a_page_says_what_is_explained_where_its_scale_ends_and_where_the_rest_went(opened: Opened) -> None:
    page = opened(payloads.france())
    reads(page.locator("h1"), "What made Paris")
    says(page.locator(".explained-number"), "= 17.4")
    reads(page.locator(".gap"), "Of 17.4: 6.4 reaches the tokens, 11.0 is the softmax offset.")
    said = page.locator(".legend .said").inner_text()
    assert said.strip() == "The scale ends at 0.82; 1 token goes beyond it (up to 3.64, with a double edge)."
    assert tokens(page)[3] == "France, relevance plus 0.82, for"
    assert page.locator(".waterfall tbody tr").count() == 5
    page.get_by_label("max").check()
    says(page.locator(".legend .said"), "ends at 3.64, the largest")


def test_the_tokens_have_the_colours_of_python(opened: Opened) -> None:
    from lxt_fx.views.colour import LIGHT, ink

    page = opened(payloads.france())
    found = (
        page.locator(".t").nth(1).evaluate("one => [getComputedStyle(one).backgroundColor, getComputedStyle(one).color]")
    )
    colour = LIGHT.colour(round(0.558 / 0.824 * 128) / 128)
    assert found == [_css(colour), _css(ink(colour))]


def _css(colour: str) -> str:
    return "rgb({}, {}, {})".format(*bytes.fromhex(colour[1:]))


def test_a_click_on_an_output_token_shows_what_made_it(opened: Opened) -> None:
    page = opened(payloads.answer())
    reads(page.locator("h1"), "What made Paris")
    before = page.locator(".t", has_text="France").get_attribute("aria-label")
    page.locator(".block.answer .t", has_text="Se").click()
    reads(page.locator("h1"), "What made Se")
    reads(page.locator(".t.explained"), "Se")
    assert page.locator(".t", has_text="France").get_attribute("aria-label") != before
    assert (
        page.locator(".block.answer .t", has_text="ine").get_attribute("aria-label")
        == "ine, comes later, press Enter to explain it"
    )
    assert page.locator(".block.answer .t", has_text="Paris").evaluate("one => one.className").count("later") == 0


def test_a_contrast_is_the_difference_of_relevance(opened: Opened) -> None:
    page = opened(payloads.classes())
    assert "film, relevance plus 0.20, for" in tokens(page)
    page.get_by_label("rather than").select_option(label="2 · positive (−1.00)")
    reads(page.locator("h1"), "What made negative rather than positive")
    says(page.locator(".explained-number"), "= 3.00")
    assert tokens(page)[1:5] == [
        "not, relevance plus 2.40, for", "a, relevance minus 0.10, against", "good, relevance minus 1.90, against",
        "film, relevance minus 0.20, against",
    ]  # fmt: skip


def test_words_and_sentences_have_the_sum_of_their_tokens(opened: Opened) -> None:
    part = payloads.text(["Ca", "ts", " sleep", ".", " So", " what"], [1.0, 0.5, -0.25, 0.125, 2.0, 3.0])
    page = opened(payloads.result([part], ["?"], [7.0]))
    page.get_by_label("words").check()
    assert tokens(page)[:2] == ["Cats, relevance plus 1.50, for", "sleep, relevance minus 0.25, against"]
    page.get_by_label("sentences").check()
    assert tokens(page) == ["Cats sleep., relevance plus 1.38, for", "So what, relevance plus 5.00, for"]


def test_tokens_that_are_left_out_are_hatched_and_their_sum_is_said(opened: Opened) -> None:
    page = opened(payloads.france())
    page.get_by_label("last", exact=True).check()
    last = page.locator(".t").last
    assert "muted" in (last.get_attribute("class") or "") and "left out" in (last.get_attribute("aria-label") or "")
    says(page.locator(".legend .said"), "1 token left out of the colours (hatched), together +3.64.")


def test_a_source_shows_its_routes(opened: Opened) -> None:
    page = opened(payloads.answer())
    page.locator(".t", has_text="France").hover()
    aside = page.locator(".sources")
    says(aside.locator(".source-name"), "France")
    assert "at this token" in aside.inner_text()
    says(aside.locator(".units"), "capitals of countries")
    assert page.locator(".routes canvas").bounding_box() is not None
    page.locator(".t", has_text="France").click()
    page.mouse.move(5, 5)
    says(aside.locator(".source-name"), "France")
    aside.get_by_role("button", name="release").click()
    assert aside.locator(".source-name").count() == 0


def test_units_of_a_contrast_are_those_that_both_numbers_have(opened: Opened) -> None:
    result = payloads.answer()
    first, second = ([unit for unit in result["latent"]["units"] if unit["number"] == number] for number in (0, 1))
    result["latent"]["units"] = [*first, *second[1:]]  # the first unit is among the strongest of the first number alone
    page = opened(result)
    says(page.locator(".units"), first[0]["label"])
    page.get_by_label("rather than").select_option(index=2)
    reads(page.locator("h1"), "What made Paris rather than is")
    assert first[0]["label"] not in page.locator(".units").inner_text()
    says(page.locator(".sources"), "1 unit more is among the strongest of one side only")
    assert page.locator(".units li").count() == 0  # all others have the same relevance for both, so the difference is 0


def test_the_map_of_routes_says_what_it_leaves_out(opened: Opened) -> None:
    result = payloads.answer()
    stream = payloads.numbers(result["latent"]["stream"])
    layers, tokens = result["latent"]["stream"]["shape"][1:]
    page = opened(result)
    last = [stream[layer * tokens + result["parts"][0]["tokens"].index("Paris") - 1] for layer in (0, layers - 1)]
    said = page.locator(".routes .readout").inner_text()
    found = re.search(r"together \+([\d.]+) in the lowest layer and \+([\d.]+) in the highest", said)
    assert found is not None and [float(found[1]), float(found[2])] == pytest.approx(last, abs=0.01)
    page.get_by_label("leave out the last token, from which").uncheck()
    says(page.locator(".routes .readout"), "Colours end at")
    assert "together" not in page.locator(".routes .readout").inner_text()


def test_two_results_stand_side_by_side_on_one_scale(opened: Opened) -> None:
    page = opened(payloads.france(), payloads.classes())
    page.get_by_role("button", name="Pin to compare").click()
    page.get_by_role("button", name="negative", exact=True).click()
    assert page.locator(".pane").count() == 2
    ends = page.locator(".pane .legend .said").all_inner_texts()
    assert len(ends) == 2 and ends[0] == ends[1] and "Both results share it." in ends[0]
    boxes = [box for box in (page.locator(".pane").nth(at).bounding_box() for at in (0, 1)) if box is not None]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    page.get_by_role("button", name="Unpin").click()
    assert page.locator(".pane").count() == 1


@pytest.mark.parametrize("first", ["france", "picture"])
def test_the_texts_of_two_results_begin_on_one_line(opened: Opened, first: str) -> None:
    """Whatever stands above them wraps to: headings, accounts, legends."""
    page = opened(getattr(payloads, first)(), payloads.classes())
    page.get_by_label("first", exact=True).check()  # a longer legend of one of them
    page.get_by_role("button", name="Pin to compare").click()
    page.locator(".tab").nth(1).locator("button").first.click()
    legends, parts = (page.locator(f".pane > .part:nth-of-type(1) > {one}") for one in (".legend", ":is(.text, .image)"))
    tops = [[one.evaluate("one => one.getBoundingClientRect().top") for one in each.all()] for each in (legends, parts)]
    assert all(len(top) == 2 and abs(top[0] - top[1]) < 1 for top in tops)
    page.locator(".pane .legend .said").first.evaluate("one => one.append(' More.'.repeat(60))")
    moved = [one.evaluate("one => one.getBoundingClientRect().top") for one in parts.all()]
    assert moved[0] > tops[1][0] + 20 and abs(moved[0] - moved[1]) < 1
    page.set_viewport_size({"width": 700, "height": 900})
    page.wait_for_function(ONE_BELOW_THE_OTHER)  # pictures are drawn anew, a frame behind the page


def test_the_activation_of_a_unit_is_called_so(opened: Opened) -> None:
    page = opened(payloads.answer())
    assert page.locator(".units .faint").first.inner_text().endswith("activation 2.40")
    assert "The activation is the unit’s own value" in page.locator(".sources").inner_text()
    assert "active" not in page.locator(".sources").inner_text()


def test_a_tap_on_a_cell_reads_it(opened: Opened) -> None:
    page = opened(payloads.answer(), width=360, height=740, has_touch=True, is_mobile=True)
    assert page.locator(".sources .hint").inner_text() == "Tap a token to see what it gave. A second tap releases it."
    assert "Tap a cell to see its line in the text" in page.locator(".matrix").inner_text()
    says(page.locator(".matrix .readout"), "Tap a cell to read it.")
    page.locator(".scroller").tap(position={"x": 200, "y": 130})
    says(page.locator(".matrix .readout"), "from “")


def test_a_search_finds_words_across_tokens(opened: Opened) -> None:
    page = opened(payloads.answer())
    page.get_by_label("Search").fill(" SEINE")
    assert page.locator(".t.hit").all_inner_texts() == ["Se", "ine"]
    says(page.locator(".search"), "2 tokens")


def test_all_is_done_with_the_keyboard(opened: Opened) -> None:
    page = opened(payloads.answer())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the result"
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.classList.contains('t')"):
            break
    assert page.locator(".t:focus").get_attribute("data-at") == "0"
    assert page.locator(".t[tabindex='0']").count() == 1
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    reads(page.locator(".t:focus"), "What")
    says(page.locator(".source-name"), "What")
    page.keyboard.press("Space")
    assert "held" in (page.locator(".t:focus").get_attribute("class") or "")
    page.keyboard.press("Escape")
    assert page.locator(".t.held").count() == 0
    page.keyboard.press("ArrowDown")
    reads(page.locator(".t:focus"), "<|im_start|>")
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    reads(page.locator("h1"), "What made .")
    reads(page.locator(".t:focus"), ".")
    page.locator(".scroller").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    says(page.locator(".matrix .readout"), "“is”")
    page.keyboard.press("Enter")
    reads(page.locator("h1"), "What made is")


def test_the_theme_follows_the_system_and_can_be_switched(opened: Opened) -> None:
    for dark in (False, True):
        page = opened(payloads.france(), dark=dark)
        ground = "() => getComputedStyle(document.body).backgroundColor"
        own = page.evaluate(ground)
        assert own == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
        token = page.locator(".t").nth(1).evaluate("one => one.style.background")
        page.get_by_role("button", name="Light theme" if dark else "Dark theme").click()
        assert page.evaluate(ground) != own
        assert page.locator(".t").nth(1).evaluate("one => one.style.background") != token


@pytest.mark.parametrize("name", ["france", "answer", "picture", "sound", "ledger", "foreign", "classes"])
def test_a_phone_needs_no_scrolling_to_the_side(opened: Opened, name: str) -> None:
    page = opened(getattr(payloads, name)(), width=360, height=740, has_touch=True, is_mobile=True)
    assert page.evaluate(ACROSS) == 0
    if page.locator(".folded").count():
        page.locator(".folded summary").tap()
        assert page.get_by_label("Search").count() == 0 or page.get_by_label("Search").is_visible()
        assert page.evaluate(ACROSS) == 0


def test_two_thousand_tokens_are_drawn_at_once_and_scroll(opened: Opened) -> None:
    page = opened(payloads.long(2000))
    assert page.locator(".t").count() == 2000
    paint = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    painted = page.wait_for_function(paint).json_value()
    assert painted < 5000  # milliseconds; 300 on an idle laptop
    frames = page.evaluate("""() => new Promise(done => {
        const times = []; let last = performance.now(), count = 0;
        const step = now => {
            times.push(now - last); last = now; scrollBy(0, 120);
            if (++count < 60) requestAnimationFrame(step); else done(times.slice(2));
        };
        requestAnimationFrame(step);
    })""")
    assert sorted(frames)[len(frames) // 2] < 100  # milliseconds; 17 where nothing else runs
    assert page.evaluate("scrollY") > 1000
    spent = page.evaluate("""() => {
        const all = [...document.querySelectorAll('.t')], start = performance.now();
        for (const one of all.slice(0, 50)) one.dispatchEvent(new PointerEvent('pointerover', {bubbles: true}));
        return performance.now() - start;
    }""")
    assert spent < 1000


def test_a_large_matrix_does_not_freeze_the_page(opened: Opened) -> None:
    page = opened(payloads.matrix(200, 2000))
    scroller = page.locator(".scroller")
    scroller.scroll_into_view_if_needed()
    size = page.locator(".scroller canvas").evaluate("one => one.width * one.height")
    assert size < 4e6  # what is in sight, and not the 40,000 x 4,000 of all cells
    spent = scroller.evaluate("""async one => {
        const start = performance.now();
        for (let at = 0; at < 20; at++) {
            one.scrollLeft += 300; one.scrollTop += 60; await new Promise(requestAnimationFrame);
        }
        return performance.now() - start;
    }""")
    assert spent < 5000
    assert page.get_by_label("leave out the last token before each").is_checked()
    says(page.locator(".matrix .legend .said"), "together +1000")
    page.get_by_label("leave out the last token before each").uncheck()
    assert "together" not in page.locator(".matrix .legend .said").inner_text()
    box = scroller.bounding_box()
    assert box is not None
    scroller.evaluate("one => { one.scrollLeft = 0; one.scrollTop = 0; }")
    page.mouse.click(box["x"] + 132 + 30, box["y"] + 96 + 50)
    reads(page.locator("h1"), "What made w1802")


def test_markup_in_tokens_stays_text(opened: Opened) -> None:
    page = opened(payloads.foreign())
    assert page.evaluate("window.hacked") is None
    assert page.locator("main script, main img, main b").count() == 0
    reads(page.locator(".t").nth(0), "<script>")
    reads(page.locator("h1"), "What made </script><b>bold")
    assert page.title() == "<b>Markup</b> · lxt_fx"


def test_right_to_left_tokens_stand_in_their_order(opened: Opened) -> None:
    page = opened(payloads.foreign())
    left = {name: page.locator(".t", has_text=name).bounding_box() for name in ("שלום", "عليكم", "עולם", "and", "end")}
    x = {name: box["x"] for name, box in left.items() if box is not None}
    assert x["שלום"] > x["עולם"] > x["عليكم"] and x["and"] > x["שלום"] and x["end"] > x["and"]
    only = payloads.text(["שלום", " עולם", " 12", "!"], [1.0, 2.0, -1.0, 0.5])
    page = opened(payloads.result([only], ["כן"], [1.0]))
    assert page.locator(".text").get_attribute("dir") == "rtl"
    page.locator(".t").first.focus()
    page.keyboard.press("ArrowLeft")
    reads(page.locator(".t:focus"), "עולם")


def test_a_picture_and_a_sound_are_drawn_with_their_relevance(opened: Opened) -> None:
    page = opened(payloads.picture(), payloads.sound())
    canvas = page.locator(".image canvas")
    red = (
        "one => [...one.getContext('2d').getImageData(Math.floor(one.width * .6), Math.floor(one.height * .4), 1, 1).data]"
    )
    page.wait_for_function(f"() => ({red})(document.querySelector('.image canvas'))[3] > 100")
    pixel = canvas.evaluate(red)
    assert pixel[0] > 150 and pixel[1] < 60
    page.get_by_label("Overlay").fill("0")
    page.wait_for_function(f"() => ({red})(document.querySelector('.image canvas'))[3] === 0")
    canvas.hover(position={"x": 200, "y": 130})
    says(page.locator(".source-name"), "row ")
    page.get_by_role("button", name="yes", exact=True).click()
    page.locator(".sound canvas").focus()
    page.keyboard.press("ArrowRight")
    reads(page.locator(".source-name"), "0.00 s")
    assert page.locator(".sound img").evaluate("one => one.naturalWidth") == 64


@pytest.mark.parametrize(
    ("name", "canvas", "spots", "places"),
    [
        ("picture", ".image canvas", [(120, 40), (300, 100)], ["row 1, column 1", "row 2, column 2"]),
        ("sound", ".sound canvas", [(100, 60), (400, 60)], ["0.00 s", "0.02 s"]),
    ],
)
def test_a_click_or_enter_holds_a_place_of_a_picture_or_a_sound(
    opened: Opened, name: str, canvas: str, spots: list[tuple[int, int]], places: list[str]
) -> None:
    page = opened(getattr(payloads, name)())
    drawn, source = page.locator(canvas), page.locator(".source-name")
    for x, y in spots:
        drawn.click(position={"x": x, "y": y})
        clicked = (source.inner_text()).replace("release", "").strip()
        page.mouse.move(5, 5)
        says(source, clicked)
        source.get_by_role("button", name="release").wait_for()
    x, y = spots[0]
    drawn.hover(position={"x": x, "y": y})
    assert clicked not in source.inner_text(), "what is pointed at goes before what is held"
    drawn.click(position={"x": spots[1][0], "y": spots[1][1]})
    page.mouse.move(5, 5)
    assert source.count() == 0, "a second click releases it"
    drawn.focus()
    live = page.locator("figure p[aria-live]")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    if name == "picture":
        page.keyboard.press("ArrowDown")
    says(live, places[1])
    page.keyboard.press("Enter")
    says(live, ", held")
    page.keyboard.press("Home")
    says(live, places[0])
    page.keyboard.press("Tab")
    says(source, places[1])
    drawn.focus()
    page.keyboard.press("Escape")
    assert source.count() == 0


def test_the_map_of_routes_is_moved_through_with_the_keyboard(opened: Opened) -> None:
    result = payloads.answer()
    stream = payloads.numbers(result["latent"]["stream"])
    layers, count = result["latent"]["stream"]["shape"][1:]
    names = result["parts"][0]["tokens"]
    page = opened(result)
    readout, canvas = page.locator(".routes .readout"), page.locator(".routes canvas")
    assert readout.get_attribute("aria-live") == "polite"
    assert canvas.get_attribute("aria-describedby") == readout.get_attribute("id")
    canvas.focus()
    page.keyboard.press("Home")
    page.keyboard.press("PageDown")
    says(readout, "residual.0, “<|im_start|>”")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowDown")
    says(readout, "residual.0, “<|im_start|>”")
    for key, times in (("ArrowRight", 8), ("ArrowUp", 3)):
        for _ in range(times):
            page.keyboard.press(key)
    assert names[8] == " France"
    says(readout, "residual.3, “France”")
    amount = re.search(r"([+−])([\d.]+)", readout.inner_text())
    assert amount is not None
    assert float(amount[2]) * (1 if amount[1] == "+" else -1) == pytest.approx(stream[3 * count + 8], abs=0.01)
    says(page.locator(".source-name"), "France")
    page.keyboard.press("Enter")
    says(readout, ", held")
    reads(page.locator(".t.held"), "France")
    page.keyboard.press("PageUp")
    says(readout, f"residual.{layers - 1}, “France”")
    page.keyboard.press("End")
    says(readout, f"residual.{layers - 1}, “.”")
    page.keyboard.press("Tab")
    says(page.locator(".source-name"), "France")
    says(readout, "Colours end at")
    page.keyboard.press("Shift+Tab")
    says(readout, "residual.0, “France”")
    page.keyboard.press("Escape")
    assert page.locator(".t.held").count() == 0


def test_a_click_on_the_map_of_routes_holds_a_token_and_a_second_releases_it(opened: Opened) -> None:
    page = opened(payloads.answer())
    canvas = page.locator(".routes canvas")
    canvas.click(position={"x": 260, "y": 60})
    held = page.locator(".t.held").inner_text()
    page.mouse.move(5, 5)
    says(page.locator(".source-name"), held)
    canvas.click(position={"x": 260, "y": 60})
    assert page.locator(".t.held").count() == 0


def test_a_sound_that_is_shorter_than_its_steps_stands_above_its_own(opened: Opened) -> None:
    page = opened(payloads.sound(1500, seconds=3.0), payloads.sound(1500, seconds=None))
    wide = page.locator(".sound canvas").bounding_box()
    spectrogram = page.locator(".sound img").bounding_box()
    assert wide is not None and spectrogram is not None
    assert spectrogram["width"] == pytest.approx(wide["width"] / 10, rel=0.02)
    says(page.locator(".sound figcaption"), "a bar is 0.10 s")
    label = page.locator(".sound canvas").get_attribute("aria-label")
    assert label == "sound: relevance of 300 bars; arrow keys move, Enter holds, Escape releases"
    page.locator(".tab").nth(1).locator("button").first.click()
    page.locator(".tab.current").nth(0).wait_for()
    assert page.locator(".sound img").count() == 0  # where it belongs is not known


def test_tables_are_shown_as_tables(opened: Opened) -> None:
    page = opened(payloads.ledger())
    reads(page.locator("h1"), "Ledger of “Paris”")
    assert page.locator(".plain").first.locator("tbody tr").first.inner_text().split() == ["softmax", "offset", "11.0"]
    page.get_by_text("As it is printed").click()
    says(page.locator("pre"), "17.4")


@pytest.mark.parametrize("name", ["france", "answer", "picture", "sound", "foreign"])
def test_exports_are_files_of_what_is_shown(opened: Opened, tmp_path: Path, name: str) -> None:
    result = getattr(payloads, name)()
    page = opened(result)
    files = {kind: _saved(page, kind, tmp_path) for kind in ("PNG", "SVG", "CSV", "JSON")}
    assert files["PNG"].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    across, down = struct.unpack(">II", files["PNG"].read_bytes()[16:24])
    assert across == 1840 and 300 < down < 4000
    from xml.etree import ElementTree

    root = ElementTree.fromstring(files["SVG"].read_text(encoding="utf-8"))
    assert root.tag.endswith("svg") and len(list(root)) > 60
    if name == "france":
        assert "France" in ["".join(one.itertext()) for one in root]
    lines = list(csv.reader(files["CSV"].read_text(encoding="utf-8").splitlines()))
    part = result["parts"][0]
    assert lines[0] == ["part", "place", "name", "relevance", "counts"]
    if part["kind"] == "text" and not part["several"]:
        assert [line[2].lstrip("'") for line in lines[1:]] == part["tokens"]
        wanted = struct.unpack(f"<{len(part['tokens'])}f", _bytes(part["values"]))
        assert [float(line[3]) for line in lines[1:]] == pytest.approx(wanted)
    again = json.loads(files["JSON"].read_text(encoding="utf-8"))
    assert again["results"][0]["parts"] == result["parts"]


def _bytes(values: dict[str, Any]) -> bytes:
    import base64

    return base64.b64decode(values["data"])


def _saved(page: Page, kind: str, folder: Path) -> Path:
    page.get_by_text("Export", exact=True).click()
    with page.expect_download() as waited:
        page.locator(".menu-list button", has_text=kind).first.click()
    path = folder / waited.value.suggested_filename
    waited.value.save_as(path)
    assert path.suffix == f".{kind.lower()}"
    return path


def test_files_are_opened_by_picker_and_by_drop(opened: Opened, tmp_path: Path) -> None:
    page = opened()
    reads(page.locator("h1"), "Open a result")
    saved = tmp_path / "saved.json"
    saved.write_text(json.dumps(SAVED))
    page.locator("input[type=file]").set_input_files(saved)
    reads(page.locator("h1"), "What made Paris")
    assert tokens(page) == ["The, relevance plus 0.50, for", "capital, relevance plus 1.50, for"]
    drop = """text => { const data = new DataTransfer(); data.items.add(new File([text], 'page.html'));
        dispatchEvent(new DragEvent('drop', {dataTransfer: data, cancelable: true})); }"""
    page.evaluate(drop, payloads.page(payloads.classes()))
    page.get_by_text("What made negative").wait_for()
    page.evaluate(drop, "no result")
    page.get_by_role("alert").wait_for()
    assert "page.html is neither JSON nor a page of lxt_fx" in page.get_by_role("alert").inner_text()


def test_a_saved_list_is_opened_as_one_result_each_to_choose_from(opened: Opened) -> None:
    page = opened()
    for count in (3, 9):
        saved = [{**SAVED, "label": f" number {at}", "value": float(at)} for at in range(count)]
        file = {"name": "all.json", "mimeType": "application/json", "buffer": json.dumps({"explanations": saved}).encode()}
        page.locator("input[type=file]").set_input_files(file)
        reads(page.locator("h1"), "What made number 0")
        if count == 3:
            assert page.locator(".tab").count() == 3
    chooser = page.get_by_label("One of 12 results")
    assert chooser.locator("option").all_inner_texts()[3] == "4 · number 0 · The capital"
    chooser.select_option("12 · number 8 · The capital")
    reads(page.locator("h1"), "What made number 8")
    page.get_by_role("button", name="Close number 8").click()
    assert page.get_by_label("One of 11 results").count() == 1
    parquet = {"name": "all.parquet", "mimeType": "application/octet-stream", "buffer": b"PAR1\x15\x04"}
    page.locator("input[type=file]").set_input_files(parquet)
    says(page.get_by_role("alert"), "all.parquet is a parquet file, which this page does not read; in Python")
    empty = {"name": "none.json", "mimeType": "application/json", "buffer": b'{"explanations": []}'}
    page.locator("input[type=file]").set_input_files(empty)
    says(page.get_by_role("alert"), "none.json is an empty list of explanations")


SAVED = {
    "format": 1, "explained": "logit of ' Paris'", "value": 17.4, "label": " Paris", "sum": 2.0, "part": "text",
    "kind": "text", "axes": ["position"], "tokens": ["The", " capital"], "input_ids": [1, 2], "special": [False, False],
    "segments": [0, 0],
    "answer_tokens": 0, "text": "The capital", "spans": [[0, 3], [3, 11]], "dtype": "float32", "relevance": [0.5, 1.5],
    "further_parts": [], "rules": "attnlrp", "model_class": "Llama", "checkpoint": "", "versions": {}, "seconds": 1.0,
    "account": None,
}  # fmt: skip


def test_the_policy_lets_nothing_run_but_the_page(opened: Opened) -> None:
    page = opened(payloads.france(), refused="Content Security Policy")
    policy = page.locator("meta[http-equiv]").get_attribute("content") or ""
    assert "default-src 'none'" in policy and "connect-src 'none'" in policy
    scripts = policy.partition("script-src")[2].partition(";")[0]
    assert "sha256-" in scripts and "unsafe" not in scripts  # styles are free: those of the static sheet
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}))")
    assert page.evaluate("window.ran") is None
    assert page.evaluate("fetch('https://example.org').then(() => 'asked', () => 'refused')") == "refused"


def test_a_page_of_a_hundred_tokens_is_small() -> None:
    part = payloads.text([" token"] * 100, [0.1] * 100)
    assert len(payloads.page(payloads.result([part], ["x"], [1.0])).encode()) < 250_000


@pytest.mark.parametrize("name", ["france", "answer", "picture", "sound", "ledger", "foreign"])
def test_axe_finds_no_serious_fault(opened: Opened, axe: str, name: str) -> None:
    page = opened(getattr(payloads, name)(), payloads.classes())
    if page.locator(".t").count() > 2:
        page.locator(".t").nth(2).click()
    page.evaluate(axe)
    for theme in ("light", "dark"):
        if theme == "dark":
            page.get_by_role("button", name="Dark theme").click()
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        serious = [fault for fault in found["violations"] if fault["impact"] in ("serious", "critical")]
        said = [
            (fault["id"], [(node["target"], node["failureSummary"]) for node in fault["nodes"][:3]]) for fault in serious
        ]
        assert not said, theme


def test_the_cases_of_the_scale_are_current() -> None:
    assert json.loads(scale_cases.FILE.read_text()) == scale_cases.cases()


BROKEN: dict[str, tuple[str, Any, str]] = {
    "numbers that are no base64": ("values", {"shape": [5], "data": "!!"}, "an array is no base64"),
    "NaN": ("values", payloads.array([float("nan")] * 5, 5), "has a number that is NaN or infinite"),
    "no tokens": ("tokens", None, "has 5 places, and not as many tokens"),
    "a word outside": ("words", [[0, 9]], "has a word or sentence outside of its tokens"),
    "no kinds of tokens": ("special", [], "does not say of each token what it is"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_in_words_and_what_is_shown_stays(opened: Opened, tmp_path: Path, case: str) -> None:
    key, value, said = BROKEN[case]
    page = opened(payloads.france())
    before = page.locator("main").inner_text()
    broken = payloads.text(["The", " capital", " of", " France", " is"], [1.0] * 5)
    broken[key] = value
    page.locator("input[type=file]").set_input_files(_file(tmp_path, payloads.result([broken], ["a"], [5.0])))
    assert said in page.get_by_role("alert").inner_text()
    assert page.locator("main").inner_text().endswith(before)


def test_a_damaged_file_is_not_described_in_the_words_of_javascript(opened: Opened, tmp_path: Path) -> None:
    page = opened(payloads.france())
    for results in ([None], [{}], [{"parts": [{}]}], [{"parts": None, "title": "x"}]):
        (tmp_path / "damaged.json").write_text(json.dumps({"format": 1, "results": results}), encoding="utf-8")
        page.locator("input[type=file]").set_input_files(tmp_path / "damaged.json")
        said = page.get_by_role("alert").inner_text()
        assert "cannot be shown" in said and "undefined" not in said.replace('"undefined"', "")
    saved = {"format": 1, "relevance": [1], "further_parts": None}
    (tmp_path / "saved.json").write_text(json.dumps(saved), encoding="utf-8")
    page.locator("input[type=file]").set_input_files(tmp_path / "saved.json")
    page.get_by_text("saved.json is damaged").wait_for()


def _file(folder: Path, result: dict[str, Any]) -> Path:
    path = folder / "broken.json"
    path.write_text(json.dumps({"format": 1, "results": [result]}), encoding="utf-8")
    return path
