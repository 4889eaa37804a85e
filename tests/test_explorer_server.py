"""The live explorer: who is answered, what is refused, the queue of questions, and what the model says."""

from __future__ import annotations

import base64
import builtins
import http.client
import io
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_text
import torch
from kept_net import captures_counted
from starlette.testclient import TestClient

import lxt_fx
from lxt_fx.base.errors import InputError
from lxt_fx.base.progress import stage, steps
from lxt_fx.compiler.kept_captures import forget_captures
from lxt_fx.explorer.page_file import MARKER, live_page
from lxt_fx.explorer.server import guard
from lxt_fx.explorer.server import serve as serve_module
from lxt_fx.explorer.server.app import guarded_app
from lxt_fx.explorer.server.asked import read_asked
from lxt_fx.explorer.server.jobs import MOST_WAITING, PATIENCE, REMEMBERED, Jobs, TooManyJobs
from lxt_fx.explorer.server.served_model import Answered, ServedModel
from lxt_fx.results.explanations import Explanations

TOKEN, HOST, TEXT = "right-token", "127.0.0.1:8000", "The capital of France is"
TEMPLATE = f"<html><body>{MARKER}<script>go()</script></body></html>"
PAGE, POLICY = live_page(TEMPLATE, {"results": []})
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ASK = {"kind": "explain", "text": TEXT, "rules": "attnlrp"}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    found = tiny_text.byte_tokenizer()
    found.chat_template = CHAT
    return found


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return tiny_text.llama(len(tokenizer))


@pytest.fixture(scope="module")
def served(model: Any, tokenizer: Any) -> ServedModel:
    return ServedModel(model, tokenizer)


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    found = Jobs()
    yield found
    found.end(5)


@pytest.fixture
def client(served: ServedModel, jobs: Jobs) -> TestClient:
    return client_of(served, jobs)


def client_of(served: ServedModel, jobs: Jobs) -> TestClient:
    app = guarded_app(served, jobs, PAGE, POLICY, TOKEN, (HOST, "localhost:8000"))
    return TestClient(app, base_url=f"http://{HOST}", headers={guard.TOKEN.decode(): TOKEN})


def until(done: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What `done` returns once it is something."""
    end = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.005)
    return found


def over(jobs: Jobs, job: str) -> dict[str, Any]:
    """A job that has come to its end."""
    found: dict[str, Any] = until(lambda: (look := jobs.look(job)) and look["state"] not in ("waiting", "running") and look)
    return found


def asked(client: TestClient, **question: Any) -> dict[str, Any]:
    """The end of a job, as a page sees it."""
    answer = client.post("/api/jobs", json={**ASK, **question})
    assert answer.status_code == 202, answer.json()
    job = answer.json()["job"]

    def ended() -> Any:
        found = client.get(f"/api/jobs/{job}").json()
        return found["state"] not in ("waiting", "running") and found

    found: dict[str, Any] = until(ended)
    return found


def read(array: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(array["data"]), "<f4").reshape(array["shape"])


# who is answered


@pytest.mark.parametrize(
    "headers, why",
    [
        ({"x-lxt-fx-token": "wrong"}, "token"),
        ({"x-lxt-fx-token": TOKEN[:-1]}, "token"),
        ({"x-lxt-fx-token": ""}, "token"),
        ({"x-lxt-fx-token": b"\xc3\xbc"}, "token"),
        ({"host": "evil.example:8000"}, "its own address"),
        ({"host": "127.0.0.1"}, "its own address"),
        ({"host": "127.0.0.1:8001"}, "its own address"),
        ({"host": f"{HOST}.evil.example"}, "its own address"),
        ({"origin": "http://evil.example"}, "another site"),
        ({"origin": "null"}, "another site"),
        ({"origin": "http://localhost:8000"}, "another site"),
        ({"origin": f"https://{HOST}"}, "another site"),
    ],
    ids=str,
)
def test_a_stranger_is_refused(client: TestClient, jobs: Jobs, headers: dict[str, Any], why: str) -> None:
    for answer in (
        client.get("/api/jobs/x", headers=headers),
        client.post("/api/jobs", json=ASK, headers=headers),
        client.delete("/api/jobs/x", headers=headers),
    ):
        assert answer.status_code == 403 and answer.json()["kind"] == "Refused" and why in answer.json()["message"]
    assert not jobs._jobs


def test_the_own_page_is_answered(client: TestClient) -> None:
    for headers in ({}, {"origin": f"http://{HOST}"}, {"host": "localhost:8000", "origin": "http://localhost:8000"}):
        assert client.post("/api/jobs", json=ASK, headers=headers).status_code == 202


def test_a_header_that_comes_twice_is_refused(client: TestClient) -> None:
    for twice in ([("host", HOST), ("host", "evil.example")], [("x-lxt-fx-token", "x"), ("x-lxt-fx-token", TOKEN)]):
        answer = TestClient(client.app, base_url=f"http://{HOST}").get("/api/jobs/x", headers=twice)
        assert answer.status_code == 400 and "comes 2 times" in answer.json()["message"]


def test_the_page_asks_for_the_token_in_its_address(client: TestClient) -> None:
    bare = TestClient(client.app, base_url=f"http://{HOST}")
    assert bare.get("/").status_code == 403 == bare.get("/?token=wrong").status_code
    assert bare.get(f"/?token={TOKEN}").text == PAGE
    assert bare.get("/?" + "a=1&" * 20 + f"token={TOKEN}").status_code == 403, "more fields than any address of ours has"
    assert bare.get(f"/api/jobs/x?token={TOKEN}").status_code == 403, "only the page itself takes it from the address"


def test_every_answer_has_the_headers(client: TestClient) -> None:
    answers = [
        client.get(f"/?token={TOKEN}"), client.get("/api/jobs/x"), client.get("/nothing"), client.put("/api/jobs"),
        client.get("/", headers={"host": "evil.example"}), client.post("/api/jobs", json={}),
    ]  # fmt: skip
    assert [answer.status_code for answer in answers] == [200, 404, 404, 405, 403, 400]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-store" and answer.headers["x-frame-options"] == "DENY"
        assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize(
    "path",
    [
        "/api/jobs/../../../etc/passwd", "/../etc/passwd", "/api/jobs/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/etc/passwd",
        "/bundle/explorer.html", "/api/jobs/%00", "/api/open/..%2f..%2fpyproject.toml", "//etc/passwd", "/api", "/docs",
    ],
)  # fmt: skip
def test_no_path_reaches_the_disk(client: TestClient, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    client.get("/api/jobs/x")  # whatever is imported late
    opened: list[Any] = []
    with monkeypatch.context() as patched:
        for module, name in ((builtins, "open"), (io, "open"), (os, "open"), (os, "stat"), (os, "scandir")):
            patched.setattr(module, name, lambda *found, **more: opened.append(found))
        answers = [client.get(path), client.request("DELETE", path), client.post(path, json={"path": "/etc/passwd"})]
    assert all(answer.status_code in (404, 405) for answer in answers) and not opened
    assert not any("root:" in answer.text or str(Path.cwd()) in answer.text for answer in answers)


def test_bodies_are_limited(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "LARGEST", 1000)
    monkeypatch.setattr(guard, "LARGEST_SAVED", 2000)
    json_type = {"content-type": "application/json"}
    taken = list[int]()

    def pieces() -> Iterator[bytes]:
        for at in range(1000):
            taken.append(at)
            yield b" " * 100

    for path, most in (("/api/jobs", 1000), ("/api/open", 2000)):
        for body in (b"x" * (most + 1), pieces()):
            answer = client.post(path, content=body, headers=json_type)
            assert answer.status_code == 413 and f"larger than {most} bytes" in answer.json()["message"]
        lying = client.post(path, content=b"{}", headers={**json_type, "content-length": "9" * 20})
        assert lying.status_code == 413
    assert client.post("/api/jobs", content=b"{}", headers={"content-type": "text/plain"}).status_code == 415


@pytest.mark.parametrize(
    "body, why",
    [
        (b"{", "cannot be read"),
        (b"\xff\xfe", "no UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "must be an object"),
        (b'{"kind": "explain", "kind": "explain"}', "names a key twice"),
        ({"kind": "explain"}, "has no 'rules'"),
        ({**ASK, "path": "/etc/passwd"}, "unknown fields 'path'"),
        ({**ASK, "kind": "eval"}, "only 'explain' is known"),
        ({**ASK, "rules": "no_table"}, "no_table"),
        ({**ASK, "rules": ["attnlrp"]}, "rules must be a text"),
        ({**ASK, "text": 3}, "text must be a text"),
        ({**ASK, "text": " "}, "nothing to explain"),
        ({**ASK, "text": "x" * 20_001}, "20000 is the most"),
        ({**ASK, "text": "\ud800"}, "surrogate"),
        ({**ASK, "chat": [{"role": "user", "content": "x"}]}, "not both"),
        ({**ASK, "text": None}, "a text or a chat"),
        ({**ASK, "text": None, "chat": []}, "has no message"),
        ({**ASK, "text": None, "chat": [{"role": "root", "content": "x"}]}, "none of system, user, assistant"),
        ({**ASK, "text": None, "chat": [{"role": "user", "content": [{"type": "image", "path": "/x"}]}]}, "a text"),
        ({**ASK, "text": None, "chat": [{"role": "user", "content": "x", "url": "y"}]}, "role and content"),
        ({**ASK, "text": None, "chat": [{"role": "user", "content": "x" * 15_000}] * 2}, "more than 20000"),
        ({**ASK, "target": "a", "contrast": ["a", "b"]}, "give one of them"),
        ({**ASK, "contrast": ["a"]}, "two names"),
        ({**ASK, "target": ""}, "is empty"),
        ({**ASK, "position": 1.5}, "position must be a whole number"),
        ({**ASK, "answer_tokens": 100_000}, "from 0 to 256"),
        ({**ASK, "answer_tokens": 2, "target": "a"}, "beside answer_tokens"),
        ({**ASK, "latent": 1}, "true or false"),
        ({**ASK, "steer": [1]}, "steer must be an object"),
        ({**ASK, "steer": {"mlp.0.neurons": {"units": [1]}}}, 'must have "scale" or "value"'),
        ({**ASK, "steer": {"mlp.0.neurons": {"scale": 0, "value": 1}}}, 'must have "scale" or "value"'),
        ({**ASK, "steer": {"mlp.0.neurons": {"units": [-1], "scale": 0}}}, "units[0] is -1"),
        ({**ASK, "steer": {"mlp.0.neurons": {"units": [], "scale": 0}}}, "units of scale is empty"),
        ({**ASK, "steer": {"mlp.0.neurons": {"units": [0.5], "scale": 0}}}, "must be a whole number"),
        ({**ASK, "steer": {"mlp.0.neurons": {"scale": "x"}}}, "scale must be a number"),
        ({**ASK, "steer": {"mlp.0.neurons": []}}, "is empty"),
        ({**ASK, "steer": {"mlp.0.neurons": [{"scale": 0}] * 101}}, "100 is the most"),
        ({**ASK, "steer": {"x" * 1001: {"scale": 0}}}, "1000 is the most"),
        (json.dumps({**ASK, "steer": {"a": {"scale": float("inf")}}}).encode(), "no finite number"),
        ({**ASK, "image": "/etc/passwd"}, "must be a data URL"),
        ({**ASK, "image": "http://evil.example/a.png"}, "must be a data URL"),
        ({**ASK, "image": "data:image/svg+xml;base64,AAAA"}, "must be a data URL"),
        ({**ASK, "image": "data:image/png;base64,AAAAA"}, "no base64"),
        ({**ASK, "image": "data:image/png;base64,AAAA"}, "cannot be read as PNG"),
    ],
    ids=lambda value: repr(value)[:40] if isinstance(value, (bytes, dict)) else "",
)
def test_what_cannot_be_asked_says_why(client: TestClient, jobs: Jobs, body: Any, why: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post("/api/jobs", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and why in answer.json()["message"], answer.json()
    assert set(answer.json()) == {"kind", "message"} and "Traceback" not in answer.text and not jobs._jobs


# the queue


def result(said: str) -> Answered:
    return Answered({"id": "", "title": said}, [])


def test_questions_of_two_pages_are_answered_in_order(jobs: Jobs) -> None:
    go, order = threading.Event(), list[str]()

    def work(name: str) -> Callable[[], Answered]:
        def run() -> Answered:
            assert go.wait(30)
            order.append(name)
            return result(name)

        return run

    found = [jobs.add(work(name)) for name in ("a", "b", "c")]
    until(lambda: jobs.look(found[0][0])["state"] == "running")  # type: ignore[index]
    assert [jobs.look(job)["ahead"] for job, _ in found] == [0, 1, 2]  # type: ignore[index]
    go.set()
    ends = [over(jobs, job) for job, _ in found]
    assert order == ["a", "b", "c"] == [end["result"]["title"] for end in ends]
    assert [end["result"]["id"] for end in ends] == [job for job, _ in found]


def test_a_question_that_waits_is_cancelled_and_never_runs(jobs: Jobs) -> None:
    go, ran = threading.Event(), list[str]()
    first, _ = jobs.add(lambda: result("first") if go.wait(30) else result("late"))
    second, _ = jobs.add(lambda: ran.append("second") or result("second"))  # type: ignore[func-returns-value]
    third, _ = jobs.add(lambda: result("third"))
    assert jobs.cancel(second) and not jobs.cancel("unknown")
    go.set()
    assert over(jobs, third)["state"] == "done" and over(jobs, second)["state"] == "cancelled" and not ran
    assert jobs.cancel(first) and jobs.look(first)["state"] == "done"  # type: ignore[index]


def test_a_question_that_runs_ends_at_its_next_step(jobs: Jobs) -> None:
    started, go, after = threading.Event(), threading.Event(), list[str]()

    def work() -> Answered:
        with suppress(Exception), stage("first step"):
            started.set()
            assert go.wait(30)
        with suppress(Exception), stage("second step"):
            after.append("second step")
        after.append("went on")
        return result("whole")

    job, _ = jobs.add(work)
    assert started.wait(30) and jobs.look(job)["stage"] == "first step"  # type: ignore[index]
    jobs.cancel(job)
    go.set()
    found = over(jobs, job)
    assert found["state"] == "cancelled" and found["result"] is None and not after
    assert over(jobs, jobs.add(lambda: result("next"))[0])["state"] == "done"


def test_a_cancelled_question_without_a_further_step_has_no_result(jobs: Jobs) -> None:
    started, go = threading.Event(), threading.Event()
    job, _ = jobs.add(lambda: result("whole") if started.set() or go.wait(30) else result(""))  # type: ignore[func-returns-value]
    assert started.wait(30) and jobs.cancel(job)
    go.set()
    assert over(jobs, job)["state"] == "cancelled"


def test_steps_are_told_with_their_share(jobs: Jobs) -> None:
    turn, told = threading.Semaphore(0), threading.Semaphore(0)

    def work() -> Answered:
        for _ in steps("answer tokens", range(4), 4):
            told.release()
            assert turn.acquire(timeout=30)
        return result("")

    job, _ = jobs.add(work)
    seen = []
    for _ in range(4):
        assert told.acquire(timeout=30)
        look = jobs.look(job)
        assert look is not None
        seen.append((look["stage"], look["share"]))
        turn.release()
    assert seen == [("answer tokens", share) for share in (0.0, 0.25, 0.5, 0.75)]
    assert over(jobs, job)["share"] is None


def test_what_nobody_asks_for_is_dropped() -> None:
    now, go, ran = [0.0], threading.Event(), list[str]()
    jobs = Jobs(clock=lambda: now[0])
    started = threading.Event()

    def running() -> Answered:
        started.set()
        assert go.wait(30)
        with stage("next step"):
            return result("kept")

    first, _ = jobs.add(running)
    second, _ = jobs.add(lambda: ran.append("second") or result("second"))  # type: ignore[func-returns-value]
    third, _ = jobs.add(lambda: result("third"))
    assert started.wait(30)
    now[0] = PATIENCE - 1
    jobs.look(third)
    now[0] = PATIENCE + 1
    go.set()
    assert over(jobs, third)["state"] == "done" and not ran
    assert jobs.look(first)["state"] == "cancelled" == jobs.look(second)["state"]  # type: ignore[index]
    now[0] += REMEMBERED + 1
    assert jobs.look(third) is None
    jobs.end(5)


def test_a_question_that_runs_for_nobody_ends_at_its_next_step() -> None:
    now, after = [0.0], list[str]()
    jobs = Jobs(clock=lambda: now[0])

    def work() -> Answered:
        now[0] = PATIENCE + 1
        with stage("next step"):
            after.append("went on")
        return result("")

    job, _ = jobs.add(work)
    until(lambda: jobs._jobs[job].state not in ("waiting", "running"))
    assert jobs._jobs[job].state == "cancelled" and not after
    jobs.end(5)


def test_too_many_questions_are_refused(client: TestClient, jobs: Jobs) -> None:
    go = threading.Event()
    first, _ = jobs.add(lambda: result("") if go.wait(30) else result(""))
    until(lambda: jobs.look(first)["state"] == "running")  # type: ignore[index]
    for _ in range(MOST_WAITING):
        jobs.add(lambda: result(""))
    with pytest.raises(TooManyJobs):
        jobs.add(lambda: result(""))
    answer = client.post("/api/jobs", json=ASK)
    assert answer.status_code == 429 and answer.json()["kind"] == "TooManyJobs"
    go.set()


class Panic(BaseException):
    """As the tokenizers library raises it."""


def test_errors_are_told_without_tracebacks_and_the_worker_goes_on(jobs: Jobs, caplog: pytest.LogCaptureFixture) -> None:
    def failing(error: BaseException) -> Callable[[], Answered]:
        def run() -> Answered:
            raise error

        return run

    found = [over(jobs, jobs.add(failing(error))[0]) for error in (InputError("no 'x'"), KeyError("/home/me"), Panic())]
    assert [one["state"] for one in found] == ["failed"] * 3
    assert found[0]["error"] == {"kind": "InputError", "message": "no 'x'"}
    assert found[1]["error"]["kind"] == "Unexpected" and "/home/me" not in json.dumps(found) and "/home/me" in caplog.text
    assert over(jobs, jobs.add(lambda: result("next"))[0])["state"] == "done"


def test_an_unknown_job_is_not_found(client: TestClient) -> None:
    for answer in (client.get("/api/jobs/x"), client.delete("/api/jobs/x")):
        assert answer.status_code == 404 and "no such question" in answer.json()["message"]


# what the model says


def test_the_answer_is_that_of_explain_and_the_model_is_unchanged(client: TestClient, model: Any, tokenizer: Any) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    forget_captures()
    with captures_counted() as captured:
        found = [asked(client, rules=rules) for rules in ("attnlrp", "cp_lrp", "attnlrp")]
        assert len(captured) == 1, "one graph for all questions and tables"
    for one, rules in zip(found, ("attnlrp", "cp_lrp", "attnlrp"), strict=True):
        alone = lxt_fx.explain(model, tokenizer, TEXT, rules=rules)
        (number,), (part,) = one["result"]["numbers"], one["result"]["parts"]
        assert (number["said"], one["result"]["rules"]) == (alone.explained, rules)
        assert number["value"] == pytest.approx(alone.value, rel=1e-5)
        np.testing.assert_allclose(read(part["values"]), alone.relevance, rtol=1e-4, atol=1e-6)
    logits = model(**tokenizer(TEXT, return_tensors="pt")).logits[0, -1].detach()
    best = logits.topk(10)
    assert [each["id"] for each in found[0]["candidates"]] == best.indices.tolist()
    assert found[0]["candidates"][0]["probability"] == pytest.approx(float(logits.softmax(0).max()), rel=1e-4)
    assert not model.training and not model._forward_hooks and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_targets_contrasts_and_positions(client: TestClient, model: Any, tokenizer: Any) -> None:
    paris, london = (tokenizer.encode(name)[0] for name in (" Paris", " London"))
    logits = model(**tokenizer(TEXT, return_tensors="pt")).logits[0].detach()
    for question, value in (
        ({"target": " Paris"}, logits[-1, paris]),
        ({"target": f"id:{london}"}, logits[-1, london]),
        ({"contrast": [" Paris", f"id:{london}"]}, logits[-1, paris] - logits[-1, london]),
        ({"target": " Paris", "position": 1}, logits[1, paris]),
    ):
        found = asked(client, **question)
        assert found["result"]["numbers"][0]["value"] == pytest.approx(float(value), rel=1e-4)
        assert found["candidates"][0]["logit"] == pytest.approx(float(logits[question.get("position", -1)].max()), rel=1e-4)
    assert found["positions"] == len(logits) and found["result"]["parts"][0]["read"] == 2
    for position in (0, 3, -2):
        there = asked(client, position=position)
        assert there["candidates"][0]["id"] == int(logits[position].argmax())
        (part,) = there["result"]["parts"]
        assert part["read"] == position % len(logits) + 1 and not read(part["values"])[part["read"] :].any()
    assert "read" not in asked(client)["result"]["parts"][0]
    wrong = asked(client, position=99)
    assert wrong["state"] == "failed" and wrong["error"]["kind"] == "InputError" and "99" in wrong["error"]["message"]


def test_an_answer_is_written_and_each_of_its_tokens_explained(client: TestClient, model: Any, tokenizer: Any) -> None:
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    end = model.generation_config.eos_token_id
    written = model.generate(ids, max_new_tokens=4, do_sample=False, eos_token_id=end, pad_token_id=0)[0, ids.shape[1] :]
    found = asked(client, answer_tokens=4, latent=True, account=True)
    (part,) = found["result"]["parts"]
    assert part["answer"] == len(written) == len(found["result"]["numbers"]) == 4
    assert part["ids"] == [*ids[0].tolist(), *written.tolist()]
    alone = lxt_fx.answer_relevance(model, tokenizer, TEXT, written.tolist())
    np.testing.assert_allclose(read(part["values"]), alone.relevance, rtol=1e-4, atol=1e-6)
    inside = found["result"]["latent"]
    np.testing.assert_allclose(read(inside["stream"])[:, 0], read(part["values"]), rtol=1e-3, atol=1e-5)
    total = sum(number["value"] for number in found["result"]["numbers"])
    assert found["result"]["account"]["value"] == pytest.approx(total, rel=1e-4)
    assert found["candidates"][0]["id"] == int(written[0])


def test_an_answer_of_an_explained_module_is_that_of_its_model(model: Any, tokenizer: Any, served: ServedModel) -> None:
    explained = ServedModel(lxt_fx.transform(model), tokenizer)
    written = {}
    for one in (served, explained):
        found = one.answer(read_asked(json.dumps({**ASK, "answer_tokens": 3})))
        written[one] = found.result["parts"][0]["ids"]
    assert written[served] == written[explained] and "answer" in explained.live()["asks"]
    for rules in ("attnlrp", "gradient"):
        found = explained.answer(read_asked(json.dumps({**ASK, "rules": rules})))
        alone = lxt_fx.explain(model, tokenizer, TEXT, rules=rules)
        np.testing.assert_allclose(read(found.result["parts"][0]["values"]), alone.relevance, rtol=1e-4, atol=1e-6)
        assert found.result["rules"] == rules and len(found.candidates) == 10


def test_a_chat_goes_through_its_template_with_an_account(client: TestClient) -> None:
    found = asked(client, text=None, chat=[{"role": "user", "content": "Where is Paris?"}], account=True, latent=True)
    (part,) = found["result"]["parts"]
    assert "".join(part["tokens"]) == "<user>Where is Paris?<assistant>" and found["result"]["title"] == "Where is Paris?"
    said = found["result"]["account"]["sentences"]
    assert said == found["result"]["numbers"][0]["sentences"] and "reaches the tokens" in said[0]
    assert found["result"]["latent"]["heads"]["places"] == ["attention.0.heads"]


def test_classes_and_masks_have_candidates_too(jobs: Jobs) -> None:
    words = tiny_text.word_tokenizer()
    client = client_of(ServedModel(tiny_text.bert("classifier", len(words)), words), jobs)
    found = asked(client, text="play playing")
    assert {each["token"] for each in found["candidates"]} == {"bad", "fair", "good"} and found["positions"] is None
    assert found["candidates"][0]["token"] in found["result"]["numbers"][0]["said"]
    assert sum(each["probability"] for each in found["candidates"]) == pytest.approx(1)
    wrong = asked(client, text="play", answer_tokens=3)
    assert wrong["error"]["kind"] == "InputError" and "goes on with no text" in wrong["error"]["message"]
    client = client_of(ServedModel(tiny_text.bert("masked", len(words)), words), jobs)
    found = asked(client, text="Paris is [MASK]")
    assert len(found["candidates"]) == 10 and found["candidates"][0]["token"] in found["result"]["numbers"][0]["said"]
    (part,) = found["result"]["parts"]
    assert found["positions"] == len(part["tokens"]) and "read" not in part


def test_a_token_that_the_model_rules_out_is_no_candidate(client: TestClient, model: Any, tokenizer: Any) -> None:
    out_of_use = torch.arange(len(tokenizer)) > 1
    handle = model.lm_head.register_forward_hook(lambda part, args, logits: logits.masked_fill(out_of_use, -torch.inf))
    try:
        found = asked(client, text="hello")
    finally:
        handle.remove()
    assert found["state"] == "done" and sorted(each["id"] for each in found["candidates"]) == [0, 1]


def test_a_module_that_is_steered_where_it_is_served_answers_steered(model: Any, tokenizer: Any) -> None:
    explained = lxt_fx.transform(model)
    with lxt_fx.steer(explained, {"mlp.0.neurons": lxt_fx.edits.scale(0)}):
        own = lxt_fx.explain(explained, tokenizer, TEXT)
        found = Jobs()
        try:
            result = asked(client_of(ServedModel(explained, tokenizer), found))["result"]
        finally:
            found.end(5)
    assert result["numbers"][0]["value"] == own.numbers[0].value != lxt_fx.explain(model, tokenizer, TEXT).numbers[0].value
    assert np.array_equal(read(result["parts"][0]["values"]), own.relevance.numpy())


def test_a_saved_explanation_is_opened(client: TestClient, model: Any, tokenizer: Any, tmp_path: Path) -> None:
    own = lxt_fx.explain(model, tokenizer, TEXT, " Paris")
    own.to_json(tmp_path / "own.json")
    other = lxt_fx.explain(model, tokenizer, TEXT, " London")
    Explanations([own, other]).to_json(tmp_path / "several.json")
    json_type = {"content-type": "application/json"}
    answer = client.post("/api/open", content=(tmp_path / "own.json").read_bytes(), headers=json_type)
    (opened,) = answer.json()["results"]
    assert answer.status_code == 200 and opened["numbers"][0]["said"] == own.explained
    assert np.array_equal(read(opened["parts"][0]["values"]), own.relevance.numpy())
    several = client.post("/api/open", content=(tmp_path / "several.json").read_bytes(), headers=json_type)
    assert [one["numbers"][0]["said"] for one in several.json()["results"]] == [own.explained, other.explained]
    assert [one["id"] for one in several.json()["results"]] == ["opened-1", "opened-2"]
    for wrong, why in (
        ({"format": 1}, "has no"), ({**own.to_dict(), "value": float("nan")}, "NaN or infinite"),
        ({"explanations": []}, "nothing to open"), ({"explanations": [own.to_dict()] * 201}, "200 is the most"),
        ({"explanations": [own.to_dict(), {"format": 1}]}, "explanations[1]"),
    ):  # fmt: skip
        answer = client.post("/api/open", content=json.dumps(wrong).encode(), headers=json_type)
        assert answer.status_code == 400 and why in answer.json()["message"]


# serving


def test_what_cannot_be_served_is_refused_before_it_begins(model: Any, tokenizer: Any) -> None:
    training = tiny_text.llama(len(tokenizer)).train()
    for wrong, why in (
        ((tiny_text.vit(), None), "give the image processor"),
        ((tiny.whisper(), None), "takes neither text nor pictures"),
        ((training, tokenizer), "in training mode"),
        ((model, None), "give the tokenizer"),
        (("gpt2", None), "load the model"),
        ((tokenizer, model), "swap the two"),
    ):
        with pytest.raises(InputError, match=why):
            ServedModel(*wrong)
    for port in (-1, 70_000, True, "80"):
        with pytest.raises(InputError, match="port must be a whole number"):
            lxt_fx.serve(object(), port=port)  # type: ignore[arg-type]


def test_without_the_extra_the_error_names_it_before_the_model_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(InputError, match=r"pip install 'lxt_fx\[serve\]'"):
        lxt_fx.serve(object(), open_browser=False)


def test_a_real_server_answers_on_this_machine_only_until_ctrl_c(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve_module, "template", lambda: TEMPLATE)
    seen: dict[str, Any] = {}

    def visit(address: str) -> None:
        """What a browser does, then Ctrl-C."""
        found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\?token=([\w-]{43})", address)
        assert found is not None
        port, token = int(found[1]), found[2]
        seen["port"] = port
        seen["page"] = ask(port, "GET", f"/?token={token}")
        seen["stranger"] = ask(port, "GET", "/?token=wrong")
        status, body = ask(port, "POST", "/api/jobs", json.dumps(ASK), {"x-lxt-fx-token": token})
        job = json.loads(body)["job"]
        seen["state"] = until(lambda: state_of(port, token, job) in ("done", "failed") and state_of(port, token, job))
        with pytest.raises(InputError, match=f"port {port} cannot be used"):
            lxt_fx.serve(object(), port=port)
        raise KeyboardInterrupt

    def state_of(port: int, token: str, job: str) -> str:
        found: str = json.loads(ask(port, "GET", f"/api/jobs/{job}", None, {"x-lxt-fx-token": token})[1])["state"]
        return found

    monkeypatch.setattr(serve_module.webbrowser, "get", lambda: SimpleNamespace(open=visit))
    result = lxt_fx.explain(model, tokenizer, TEXT)
    lxt_fx.serve(model, tokenizer, results=[result])
    assert seen["page"][0] == 200 and '"chat"' in seen["page"][1] and result.labels[0] in seen["page"][1]
    assert seen["stranger"][0] == 403 and seen["state"] == "done"
    printed = capsys.readouterr().out
    assert "LlamaForCausalLM" in printed and f"http://127.0.0.1:{seen['port']}/?token=" in printed and "stopped" in printed
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", seen["port"]), timeout=2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lxt_fx explorer")]


def ask(
    port: int, method: str, path: str, body: str | None = None, headers: dict[str, str] | None = None
) -> tuple[int, str]:
    """One request over a real socket."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, body, {**({"content-type": "application/json"} if body else {}), **(headers or {})})
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    connection.close()
    return found
