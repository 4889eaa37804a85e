"""A live page against a server that answers as lxt-fx serve does, one step at each question."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import payloads
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

TOKEN = "a-b_c"
LABELS = "all => all.map(one => one.getAttribute('aria-label'))"
LIVE = {
    "model": "smollm2", "tables": [{"name": "attnlrp", "summary": "AttnLRP"}, {"name": "epsilon", "summary": "epsilon"}],
    "asks": ["text", "chat", "answer"], "address": "",
    "limits": {"characters": 60, "answer_tokens": 8},
}  # fmt: skip
PAGE, POLICY = payloads.served_page(LIVE)
IDLE = {"state": "waiting", "ahead": 0, "stage": "", "share": None, "result": None, "error": None, "candidates": [],
        "before": None, "positions": None, "predicts_next": None}  # fmt: skip
CANDIDATES = [
    {"token": " Paris", "id": 17, "logit": 17.4, "probability": 0.61},
    {"token": " Lyon", "id": 18, "logit": 12.0, "probability": 0.02},
]


@dataclass
class Server:
    """What the page asked, and how every job stands."""

    address: str = ""
    asked: list[dict[str, Any]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    refuses: bool = False


@pytest.fixture
def server() -> Iterator[Server]:
    told = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/?token="):
                self.answer(200, PAGE, "text/html; charset=utf-8")
            elif self.path.startswith("/api/jobs/") and self.known():
                self.answer(200, told.state)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/api/open" and self.known():
                self.answer(200, {"results": [done(" opened")["result"], done(" second")["result"]]})
            elif self.known():
                told.asked.append(body)
                self.answer(202, {"job": f"j/{len(told.asked)}", "ahead": 2})

        def do_DELETE(self) -> None:
            if self.known():
                told.cancelled.append(self.path)
                told.state = IDLE | {"state": "cancelled"}
                self.answer(200, {})

        def known(self) -> bool:
            if told.refuses or self.headers["X-LXT-FX-Token"] != TOKEN:
                self.answer(403, {"kind": "Refused", "message": "the token is missing or wrong; open the whole address"})
                return False
            return True

        def answer(self, status: int, body: Any, kind: str = "application/json") -> None:
            data = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Security-Policy", POLICY)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    told.address = f"http://127.0.0.1:{listening.server_port}"
    yield told
    listening.shutdown()
    listening.server_close()


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1200, "height": 860}, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(10_000)
    page.goto(f"{server.address}/?token={TOKEN}")
    yield page
    context.close()


def done(label: str = " Paris", **part: Any) -> dict[str, Any]:
    return IDLE | {"state": "done", "result": payloads.result(
        [payloads.text(["The", " capital"], [1.0, 2.0], **part)], [label], [17.4], id="j/1"), "candidates": CANDIDATES,
        "positions": 2, "predicts_next": True}  # fmt: skip


def test_a_text_is_explained_and_a_candidate_becomes_the_contrast(page: Page, server: Server) -> None:
    server.state = IDLE | {"ahead": 2}
    page.get_by_label("Text", exact=True).nth(1).fill("The capital")
    page.get_by_role("button", name="Explain", exact=True).click()
    page.get_by_text("Waiting: 2 runs ahead").wait_for()
    server.state = IDLE | {"state": "running", "stage": "capturing the model", "share": 0.25}
    page.get_by_text("capturing the model").wait_for()
    assert page.locator("progress").get_attribute("value") == "0.25"
    server.state = done()
    page.get_by_text("What made Paris").wait_for()
    assert server.asked[0] == {
        "kind": "explain", "text": "The capital", "target": None, "contrast": None, "position": None, "rules": "attnlrp",
        "answer_tokens": 0, "latent": False, "account": True,
    }  # fmt: skip
    page.get_by_role("button", name="Paris 61 %").click()
    page.get_by_role("button", name="contrast with Lyon").click()
    page.wait_for_function("() => document.querySelectorAll('.tab').length === 3")
    assert [one["target"] for one in server.asked] == [None, "id:17", None]
    assert server.asked[2]["contrast"] == ["id:17", "id:18"]


def test_another_table_runs_the_last_question_again(page: Page, server: Server) -> None:
    server.state = done()
    page.get_by_label("Text", exact=True).nth(1).fill("The capital")
    page.get_by_role("button", name="Explain", exact=True).click()
    page.get_by_label("Rules").select_option("epsilon")
    page.wait_for_function("() => document.querySelectorAll('.tab').length === 2")
    assert [one["rules"] for one in server.asked] == ["attnlrp", "epsilon"]
    assert server.asked[1]["text"] == "The capital"


def test_a_chat_is_sent_as_its_messages(page: Page, server: Server) -> None:
    server.state = done()
    page.get_by_label("Chat").check()
    page.get_by_label("Message 1", exact=True).fill("Hello")
    page.get_by_role("button", name="Add a message").click()
    page.get_by_label("Message 2", exact=True).fill("Hi")
    page.get_by_label("Answer tokens").fill("99")
    page.get_by_role("button", name="Explain", exact=True).click()
    page.get_by_text("What made Paris").wait_for()
    assert server.asked[0]["chat"] == [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    assert server.asked[0]["answer_tokens"] == 8 and "text" not in server.asked[0]


def test_a_run_is_cancelled(page: Page, server: Server) -> None:
    server.state = IDLE | {"state": "running", "stage": "explaining"}
    page.get_by_label("Text", exact=True).nth(1).fill("The capital")
    page.keyboard.press("Control+Enter")
    page.get_by_role("button", name="Cancel").click()
    page.locator(".progress").wait_for(state="detached")
    assert server.cancelled == ["/api/jobs/j%2F1"] and page.locator(".notice").count() == 0


def test_failures_say_what_to_do(page: Page, server: Server) -> None:
    text, explain = page.get_by_label("Text", exact=True).nth(1), page.get_by_role("button", name="Explain", exact=True)
    text.fill("x" * 61)
    assert "The text has 61 characters, and this server takes 60" in page.get_by_role("alert").inner_text()
    assert explain.is_disabled()
    text.fill("The capital")
    error = {"kind": "InputError", "message": "target: no token 'x'; give another"}
    server.state = IDLE | {"state": "failed", "error": error}
    explain.click()
    page.get_by_text("Target: no token 'x'; give another.").wait_for()
    server.refuses = True
    explain.click()
    page.get_by_text("The token is missing or wrong; open the whole address.").wait_for()
    page.route("**/api/**", lambda route: route.abort())
    explain.click()
    page.get_by_text("The server does not answer. See whether lxt-fx serve still runs").wait_for()


def test_a_saved_explanation_is_read_by_the_server(page: Page) -> None:
    saved = {"format": 1, "relevance": [1.0], "further_parts": []}
    file = {"name": "saved.json", "mimeType": "application/json", "buffer": json.dumps(saved).encode()}
    page.locator("input[type=file]").set_input_files(file)
    page.get_by_text("What made opened").wait_for()
    assert page.locator(".tab").count() == 2


def test_a_contrast_starts_from_the_likeliest_token(page: Page, server: Server) -> None:
    server.state = done()
    page.get_by_label("Text", exact=True).nth(1).fill("The capital")
    page.get_by_role("button", name="Explain", exact=True).click()
    page.get_by_role("button", name="contrast with Lyon").click()
    page.wait_for_function("() => document.querySelectorAll('.tab').length === 2")
    assert server.asked[1]["contrast"] == ["id:17", "id:18"] and server.asked[1]["text"] == "The capital"


def test_a_click_explains_what_comes_after_a_token_where_that_is_chosen(page: Page, server: Server) -> None:
    server.state = done()
    page.get_by_label("Text", exact=True).nth(1).fill("The capital")
    page.get_by_label("Explain", exact=True).fill(" Paris")
    page.get_by_label("Answer tokens").fill("2")
    page.get_by_role("button", name="Explain", exact=True).click()
    page.get_by_text("What made Paris").wait_for()
    first = page.locator(".t").first
    first.click()
    page.locator(".t.held").wait_for()
    assert len(server.asked) == 1 and page.locator(".clicks legend").inner_text() == "A click on a token"
    first.click()
    server.state = done(" end", read=1)
    page.get_by_label("explains what comes next").check()
    first.click()
    page.get_by_text("What made end").wait_for()
    there = {"target": None, "contrast": None, "answer_tokens": 0, "position": 0}
    assert server.asked[1] == server.asked[0] | there and page.locator(".t.held").count() == 0
    assert page.locator(".t").nth(1).get_attribute("aria-label") == "capital, comes later"
    assert page.locator(".candidates h3").inner_text() == "What the model would say after “The”"
    page.get_by_role("button", name="Lyon 2 %").click()
    page.wait_for_function("() => document.querySelectorAll('.tab').length === 3")
    assert server.asked[2] == server.asked[1] | {"target": "id:18"}, "the position stays"
    first.click(modifiers=["Shift"])
    page.locator(".t.held").wait_for()
    first.click()
    page.locator(".t.held").wait_for(state="detached")
    assert len(server.asked) == 3, "what was asked before is shown again"
    assert page.locator(".tab.current").inner_text().startswith("end")


def test_enter_explains_what_comes_after_a_token_and_space_holds_it(page: Page, server: Server) -> None:
    server.state = done()
    page.get_by_label("Text", exact=True).nth(1).fill("The capital")
    page.get_by_role("button", name="Explain", exact=True).click()
    page.get_by_text("What made Paris").wait_for()
    assert "Enter explains what the model predicts there, Space holds" in (
        page.locator(".text").get_attribute("aria-label") or ""
    )
    page.locator(".t").first.focus()
    page.keyboard.press("Space")
    page.locator(".t.held").wait_for()
    assert len(server.asked) == 1
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelectorAll('.tab').length === 2")
    assert server.asked[1] == server.asked[0] | {"position": 1}


def test_what_a_model_that_reads_both_ways_predicts_is_not_said_to_come_next(page: Page, server: Server) -> None:
    server.state = done(words=[[0, 2]]) | {"predicts_next": False}
    page.get_by_label("Text", exact=True).nth(1).fill("The capital")
    page.get_by_role("button", name="Explain", exact=True).click()
    page.get_by_text("What made Paris").wait_for()
    assert page.locator(".clicks label").all_inner_texts() == ["holds it", "explains what is predicted there"]
    assert page.locator(".candidates h3").inner_text() == "What the model would say"
    page.get_by_label("words").check()
    page.get_by_label("explains what is predicted there").check()
    page.locator(".t").first.click()
    page.wait_for_function("() => document.querySelectorAll('.tab').length === 2")
    assert server.asked[1]["position"] == 0, "the first token of the word, as that of a mask"
    assert page.locator(".candidates h3").inner_text() == "What the model would say at “The”"
    assert not [one for one in page.locator(".t").evaluate_all(LABELS) if one.endswith("comes later")]


def test_a_phone_is_told_what_a_tap_does(browser: Browser, server: Server) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    page = context.new_page()
    page.set_default_timeout(10_000)
    page.goto(f"{server.address}/?token={TOKEN}")
    server.state = done()
    page.get_by_label("Text", exact=True).nth(1).fill("The capital")
    page.get_by_role("button", name="Explain", exact=True).tap()
    page.get_by_text("What made Paris").wait_for()
    assert page.locator(".clicks legend").inner_text() == "A tap on a token"
    assert page.locator(".sources .hint").inner_text() == "Tap a token to see what it gave. A second tap releases it."
    page.get_by_label("explains what comes next").check()
    assert page.locator(".sources .hint").inner_text().startswith("A tap on a token explains it.")
    page.locator(".t").first.tap()
    page.wait_for_function("() => document.querySelectorAll('.tab').length === 2")
    context.close()


def test_words_are_explained_behind_their_last_token(page: Page, server: Server) -> None:
    server.state = done(words=[[0, 2]])
    page.get_by_label("Text", exact=True).nth(1).fill("The capital")
    page.get_by_role("button", name="Explain", exact=True).click()
    page.get_by_label("words").check()
    page.get_by_label("explains what comes next").check()
    page.locator(".t").first.click()
    page.wait_for_function("() => document.querySelectorAll('.tab').length === 2")
    assert server.asked[1]["position"] == 1


def test_a_result_that_no_question_of_the_page_made_has_no_positions(page: Page) -> None:
    saved = {"format": 1, "relevance": [1.0], "further_parts": []}
    file = {"name": "saved.json", "mimeType": "application/json", "buffer": json.dumps(saved).encode()}
    page.locator("input[type=file]").set_input_files(file)
    page.get_by_text("What made opened").wait_for()
    assert page.locator(".clicks").count() == 0
    page.locator(".t").first.focus()
    page.keyboard.press("Enter")
    page.locator(".t.held").wait_for()
