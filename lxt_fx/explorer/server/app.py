"""What the live page can ask: the routes of the server. starlette is imported here only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from lxt_fx.base.errors import InputError, LxtFxError
from lxt_fx.explorer.explanation_data import explanation_data
from lxt_fx.explorer.page_file import safe_json
from lxt_fx.explorer.plain import Payload
from lxt_fx.explorer.server.asked import read_asked, saved_explanations
from lxt_fx.explorer.server.guard import OPEN, App, Guard
from lxt_fx.explorer.server.jobs import Jobs, TooManyJobs
from lxt_fx.explorer.server.served_model import ServedModel
from lxt_fx.results.explanation import Explanation


def guarded_app(model: ServedModel, jobs: Jobs, page: str, policy: str, token: str, hosts: tuple[str, ...]) -> App:
    """The whole application: `page` at / with its `policy`, the questions below /api, all of it behind the guard."""
    routes = _Routes(model, jobs, page)
    app = Starlette(
        routes=[
            Route("/", routes.page, methods=["GET"]),
            Route("/api/jobs", _answered(routes.ask), methods=["POST"]),
            Route("/api/jobs/{job}", _answered(routes.look), methods=["GET"]),
            Route("/api/jobs/{job}", _answered(routes.cancel), methods=["DELETE"]),
            Route(OPEN, _answered(routes.open), methods=["POST"]),
        ],
        exception_handlers={HTTPException: _no_route, Exception: _unexpected},
    )
    app.router.redirect_slashes = False
    return Guard(app, token, hosts, policy, picture=model.reads_pictures)


class _Routes:
    """The answers of the routes: a status, and what goes out as JSON."""

    def __init__(self, model: ServedModel, jobs: Jobs, page: str) -> None:
        self.model, self.jobs, self._page = model, jobs, page

    async def page(self, request: Request) -> Response:
        """The page itself."""
        return HTMLResponse(self._page)

    def ask(self, body: bytes, job: str) -> tuple[int, Payload]:
        """Queues a question."""
        asked = read_asked(_text(body))
        found, ahead = self.jobs.add(lambda: self.model.answer(asked))
        return 202, {"job": found, "ahead": ahead}

    def look(self, body: bytes, job: str) -> tuple[int, Payload]:
        """What is known of a job."""
        found = self.jobs.look(job)
        return (404, _no_job()) if found is None else (200, found)

    def cancel(self, body: bytes, job: str) -> tuple[int, Payload]:
        """Cancels a job."""
        return (200, {"job": job}) if self.jobs.cancel(job) else (404, _no_job())

    def open(self, body: bytes, job: str) -> tuple[int, Payload]:
        """A saved explanation, or each of several, as a result."""
        found = [explanation_data(Explanation.read(saved)) for saved in saved_explanations(_text(body))]
        return 200, {"results": [{**one, "id": f"opened-{at}"} for at, one in enumerate(found, start=1)]}


Answer = Callable[[bytes, str], tuple[int, Payload]]


def _answered(answer: Answer) -> Callable[[Request], Any]:
    """The route of an answer. What it raises on purpose goes out as {kind, message}."""

    async def called(request: Request) -> Response:
        body, job = await request.body(), str(request.path_params.get("job", ""))
        return await run_in_threadpool(written, body, job)

    def written(body: bytes, job: str) -> Response:
        try:
            return _json(*answer(body, job))
        except LxtFxError as error:
            status = 429 if isinstance(error, TooManyJobs) else 400
            return _json(status, {"kind": type(error).__name__, "message": str(error)})

    return called


def _json(status: int, found: Payload) -> Response:
    return Response(safe_json(found).encode("utf-8"), status, media_type="application/json")


def _text(body: bytes) -> str:
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"request: the body is no UTF-8 text: {error.reason}") from error


def _no_job() -> Payload:
    return {"kind": "InputError", "message": "there is no such question, or it was too long ago; ask again"}


async def _no_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    return _json(status, {"kind": "Refused", "message": f"the server has no {request.method} at this address"})


async def _unexpected(request: Request, error: Exception) -> Response:
    return _json(500, {"kind": "Unexpected", "message": "the server failed; its terminal says more"})
