"""A real server with a real, tiny model, asked by a real browser."""

from __future__ import annotations

import http.client
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import tiny_text
import torch

import lxt_fx
from lxt_fx.explorer.server.listening import listening_at
from lxt_fx.explorer.server.serve import running_at

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

TEXT = "The capital of France is"
LABELS = "all => all.map(one => one.getAttribute('aria-label'))"
RUN = 60_000
"""Milliseconds that a question may take on a machine with other work."""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_text.byte_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return tiny_text.llama_of_neurons(len(tokenizer))


@pytest.fixture(scope="module")
def address(model: Any, tokenizer: Any) -> Iterator[str]:
    """The address of a server of the model, as it is printed."""
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    with listening_at(0) as listening, running_at(listening, model, tokenizer) as (found, _):
        yield found


@contextmanager
def tabs(browser: Browser) -> Iterator[BrowserContext]:
    """A browser window; what its pages throw or print as an error fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    faults = list[str]()
    context.on("weberror", lambda error: faults.append(str(error.error)))
    context.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    yield context
    context.close()
    assert not faults


def opened(context: BrowserContext, address: str) -> Page:
    page = context.new_page()
    page.set_default_timeout(RUN)
    page.goto(address)
    return page


def asked(page: Page, text: str = TEXT) -> None:
    """Types a text and asks for its explanation."""
    page.get_by_placeholder("Type or paste a text").fill(text)
    page.get_by_role("button", name="Explain", exact=True).click()


def shows(page: Page, pattern: str) -> None:
    """The heading of what is shown matches, now or soon."""
    from playwright.sync_api import expect

    expect(page.locator("h1").last).to_have_text(re.compile(pattern), timeout=RUN)


def value(page: Page) -> float:
    """The explained number of what is shown."""
    return float(page.locator(".explained-number strong").last.inner_text().removeprefix("= ").replace("−", "-"))


def amounts(page: Page) -> list[float]:
    """The relevance of the tokens, as it is said to a screen reader."""
    said = page.locator(".pane").last.locator(".t").evaluate_all("all => all.map(one => one.getAttribute('aria-label'))")
    found = [re.search(r"(plus|minus) ([\d.]+(?:e−\d+)?)", one) for one in said]
    return [0.0 if one is None else float(one[2].replace("−", "-")) * (-1 if one[1] == "minus" else 1) for one in found]


def near(wanted: Any) -> Any:
    """What the page says, which has two or three digits."""
    return pytest.approx(wanted.tolist() if isinstance(wanted, torch.Tensor) else wanted, rel=0.05, abs=2e-3)


def test_a_text_is_explained_a_candidate_clicked_and_contrasted_under_two_tables(
    browser: Browser, address: str, model: Any, tokenizer: Any
) -> None:
    with tabs(browser) as context:
        page = opened(context, address)
        asked(page)
        own = lxt_fx.explain(model, tokenizer, TEXT)
        shows(page, "^What made ")
        assert value(page) == near(own.value) and amounts(page) == near(own.relevance)
        best = model(**tokenizer(TEXT, return_tensors="pt")).logits[0, -1].topk(2).indices.tolist()
        page.locator(".candidates li").nth(1).locator("button").first.click()
        page.wait_for_function("() => document.querySelectorAll('.tab').length === 2")
        second = lxt_fx.explain(model, tokenizer, TEXT, best[1])
        assert value(page) == near(second.value) and amounts(page) == near(second.relevance)
        page.locator(".candidates li").first.get_by_role("button", name="contrast with").click()
        page.wait_for_function("() => document.querySelectorAll('.tab').length === 3")
        both = lxt_fx.explain(model, tokenizer, TEXT, (best[1], best[0]))
        assert value(page) == near(both.value) and amounts(page) == near(both.relevance)
        page.get_by_label("Rules").select_option("gradient")
        page.wait_for_function("() => document.querySelectorAll('.tab').length === 4")
        plain = lxt_fx.explain(model, tokenizer, TEXT, (best[1], best[0]), rules="gradient")
        assert amounts(page) == near(plain.relevance)
        assert "rules gradient" in page.locator(".facts").last.inner_text()


def test_a_token_is_clicked_to_explain_what_comes_after_it(
    browser: Browser, address: str, model: Any, tokenizer: Any
) -> None:
    logits = model(**tokenizer(TEXT, return_tensors="pt")).logits[0].detach()
    with tabs(browser) as context:
        page = opened(context, address)
        page.get_by_label("with routes").check()
        asked(page)
        shows(page, "^What made ")
        page.get_by_label("explains what comes next").check()
        tokens = page.locator(".pane").last.locator(".t")
        for count, at in ((2, 2), (3, 0)):
            if count == 2:
                tokens.nth(at).click()
            else:
                tokens.nth(at).focus()
                page.keyboard.press("Enter")
            page.wait_for_function(f"() => document.querySelectorAll('.tab').length === {count}")
            own = lxt_fx.explain(model, tokenizer, TEXT, lxt_fx.Target.at(at))
            assert own.value == pytest.approx(float(logits[at].max()), rel=1e-4)
            assert value(page) == near(own.value) and amounts(page) == near(own.relevance)
            later = [one for one in tokens.evaluate_all(LABELS) if one.endswith("comes later")]
            assert len(later) == tokens.count() - at - 1


def test_a_neuron_is_switched_off_by_a_click_and_on_again(
    browser: Browser, address: str, model: Any, tokenizer: Any
) -> None:
    with tabs(browser) as context:
        page = opened(context, address)
        page.get_by_label("with routes").check()
        asked(page)
        shows(page, "^What made ")
        before, said = value(page), page.locator("h1").inner_text()
        switch = page.get_by_role("button", name=re.compile(r"Switch off unit \d+ of mlp\.0\.neurons")).first
        unit = int(re.findall(r"unit (\d+)", switch.get_attribute("aria-label") or "")[0])
        switch.click()
        page.locator(".steered").wait_for()
        assert page.locator(".steered").inner_text() == f"With unit {unit} of mlp.0.neurons off"
        assert page.locator("h1").all_inner_texts() == [said, said], "the same number, beside what it was"
        explained = lxt_fx.transform(model)
        with lxt_fx.steer(explained, {"mlp.0.neurons": lxt_fx.edits.scale(0, units=[unit])}):
            target = int(model(**tokenizer(TEXT, return_tensors="pt")).logits[0, -1].argmax())
            steered = lxt_fx.explain(explained, tokenizer, TEXT, target)
        assert value(page) == near(steered.value) and amounts(page) == near(steered.relevance)
        was, now = (one.removeprefix("= ") for one in page.locator(".explained-number strong").all_inner_texts())
        assert page.locator(".compared tbody tr").count() == 8
        assert page.locator(".compared tbody tr", has_text=f"{was} → {now}").count() >= 1, "its logit, before and after"
        page.get_by_role("button", name=f"Undo: unit {unit} of mlp.0.neurons off").click()
        page.wait_for_function("() => document.querySelectorAll('.pane').length === 1")
        assert value(page) == before and page.locator(".steered").count() == 0 and page.locator(".tab").count() == 2
        head = page.get_by_role("button", name=re.compile("Switch off head")).first
        head.click()
        page.locator(".steered").wait_for()
        assert re.fullmatch(r"With head \d of attention\.0\.heads off", page.locator(".steered").inner_text())


def test_a_changed_model_is_shown_without_fault_on_a_phone(browser: Browser, address: str, axe: str) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    page = opened(context, address)
    page.get_by_label("with routes").check()
    asked(page)
    page.get_by_role("button", name=re.compile("Switch off unit")).first.tap()
    page.locator(".steered").wait_for()
    assert page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    grave = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
    assert not [(one["id"], one["nodes"][0]["target"]) for one in grave]
    context.close()


def test_a_change_that_cannot_be_is_said_and_one_of_the_form_is_made(browser: Browser, address: str) -> None:
    with tabs(browser) as context:
        page = opened(context, address)
        asked(page)
        shows(page, "^What made ")
        page.get_by_text("Change a unit inside the model").click()
        page.get_by_label("Place", exact=True).fill("mlp.7.neurons")
        page.get_by_role("button", name="Explain with it").click()
        page.get_by_text("mlp.0.neurons").wait_for()
        assert "mlp.7.neurons" in page.get_by_role("alert").inner_text() and page.locator(".steered").count() == 0
        page.get_by_label("Place", exact=True).fill("mlp.0.neurons")
        page.get_by_label("Unit", exact=True).fill("64")
        page.get_by_role("button", name="Explain with it").click()
        page.get_by_text("has no unit 64").wait_for()
        page.get_by_label("Unit", exact=True).fill("5")
        page.get_by_label("What is done").select_option("set to")
        page.get_by_label("Amount").fill("-1.5")
        page.get_by_label("Amount").press("Enter")
        page.locator(".steered").wait_for()
        assert page.locator(".steered").inner_text() == "With unit 5 of mlp.0.neurons set to -1.5"
        assert page.get_by_role("alert").count() == 0


def test_a_run_is_cancelled_and_the_next_one_answered(browser: Browser, address: str) -> None:
    with tabs(browser) as context:
        page = opened(context, address)
        page.get_by_label("Answer tokens").fill("256")
        asked(page)
        page.get_by_role("button", name="Cancel").click()
        page.locator(".progress").wait_for(state="detached")
        assert page.locator("h1").inner_text() == "No result yet" and page.get_by_role("alert").count() == 0
        page.get_by_label("Answer tokens").fill("2")
        asked(page)
        page.locator(".block.answer .t").first.wait_for()


def test_two_tabs_at_once_get_their_own_answers(browser: Browser, address: str, model: Any, tokenizer: Any) -> None:
    texts = ("Paris, London and Rome: play", "The capital of England is")
    with tabs(browser) as context:
        pages = [opened(context, address) for _ in texts]
        for page, text in zip(pages, texts, strict=True):
            asked(page, text)
        for page, text in zip(pages, texts, strict=True):
            shows(page, "^What made ")
            own = lxt_fx.explain(model, tokenizer, text)
            assert "".join(page.locator(".t").all_text_contents()).replace(" ", "") == text.replace(" ", "")
            assert value(page) == near(own.value) and amounts(page) == near(own.relevance)


def test_strangers_are_refused(browser: Browser, address: str) -> None:
    parts = urlsplit(address)
    context = browser.new_context()
    page = context.new_page()
    for wrong in (f"{parts.scheme}://{parts.netloc}/", f"{parts.scheme}://{parts.netloc}/?token=wrong"):
        answer = page.goto(wrong)
        assert answer is not None and answer.status == 403 and "token is missing or wrong" in page.content()
    page.goto("data:text/html,another site")
    token = parts.query.removeprefix("token=")
    for headers in ("{}", f"{{'X-LXT-FX-Token': '{token}'}}"):
        asking = f"fetch('{parts.scheme}://{parts.netloc}/api/jobs/x', {{headers: {headers}}})"
        assert page.evaluate(f"{asking}.then(() => 'read', () => 'no')") == "no"
    context.close()
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=30)
    connection.request("GET", f"/?token={token}", headers={"Host": f"evil.example:{parts.port}"})
    assert connection.getresponse().status == 403
    connection.close()


def test_a_picture_is_explained(browser: Browser) -> None:
    image = pytest.importorskip("PIL.Image")
    import transformers

    written = io.BytesIO()
    image.new("RGB", (30, 20), (200, 40, 90)).save(written, "png")
    processor = transformers.ViTImageProcessor(size={"height": 8, "width": 8})
    with (
        listening_at(0) as listening,
        running_at(listening, tiny_text.vit(), processor) as (address, _),
        tabs(browser) as context,
    ):
        page = opened(context, address)
        assert page.locator("form textarea").count() == 0
        explain = page.get_by_role("button", name="Explain", exact=True)
        assert explain.is_disabled()
        notes = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no picture"}
        page.get_by_label("Picture", exact=True).set_input_files(notes)
        assert page.get_by_role("alert").inner_text() == "notes.txt is no PNG, JPEG or WebP."
        picture = {"name": "red.png", "mimeType": "image/png", "buffer": written.getvalue()}
        page.get_by_label("Picture", exact=True).set_input_files(picture)
        page.get_by_alt_text("The picture of the question").wait_for()
        explain.click()
        page.locator(".image canvas").wait_for()
        shows(page, "^What made ")
        assert page.locator(".candidates li").count() == 5
