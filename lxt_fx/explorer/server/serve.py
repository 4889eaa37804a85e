"""`lxt_fx.serve`: the explorer live on localhost, with a model that answers."""

from __future__ import annotations

import secrets
import socket
import threading
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from lxt_fx.explorer.latent_data import UnitLabels
from lxt_fx.explorer.page_data import page_of, shown_results
from lxt_fx.explorer.page_file import live_page, template
from lxt_fx.explorer.server.jobs import Jobs
from lxt_fx.explorer.server.listening import ADDRESS, NAMES, listening_at
from lxt_fx.explorer.server.served_model import ServedModel

STOPS = 5.0
"""Seconds that a running question gets to end when the server stops."""


def serve(
    model: nn.Module | Any,
    processor: Any = None,
    *,
    results: Sequence[Any] = (),
    labels: UnitLabels | None = None,
    port: int = 0,
    open_browser: bool = True,
) -> None:
    """Serves the explorer on this machine until Ctrl-C: type a text, see what made the model's answer, ask again, switch
    off units inside the model and see what it says then.

        lxt_fx.serve(model, tokenizer)
        # http://127.0.0.1:43127/?token=...

    `model` is a model that reads text or pictures, what `transform` made from one, or a pipeline; `processor` is its
    tokenizer, image processor or the processor that holds both. The page has whatever is asked explained under each rule
    table, with candidates for the next token; answers that the model writes, token by token; accounts; what is inside the
    model, with `labels` of units as in `lxt_fx.explore`, and what it says when units are changed there. `results` are there
    from the start. The model answers one question at a time and does not change.

    The server listens on 127.0.0.1 only, at a free `port` unless one is given. The address that is printed has a random
    token, without which nothing is answered; `open_browser` opens it in the browser of this machine. No file is read or
    written for a request.

    Raises InputError for a model that reads neither text nor pictures or is in training mode, for a port that is taken, and
    without starlette and uvicorn (`pip install 'lxt_fx[serve]'`).
    """
    with listening_at(port) as listening:
        serve_at(listening, model, processor, results=results, labels=labels, open_browser=open_browser)


def serve_at(
    listening: socket.socket,
    model: nn.Module | Any,
    processor: Any = None,
    *,
    results: Sequence[Any] = (),
    labels: UnitLabels | None = None,
    open_browser: bool = True,
) -> None:
    """Serves a model at a socket of `listening_at` until Ctrl-C, as `serve` does."""
    with running_at(listening, model, processor, results, labels) as (address, thread):
        print(f"lxt_fx explores {type(model).__name__} at\n\n    {address}\n\nCtrl-C stops it.", flush=True)
        try:
            if open_browser:
                _open(address)
            while thread.is_alive():
                thread.join(0.5)
        except KeyboardInterrupt:
            print("stopped", flush=True)


@contextmanager
def running_at(
    listening: socket.socket,
    model: nn.Module | Any,
    processor: Any = None,
    results: Sequence[Any] = (),
    labels: UnitLabels | None = None,
) -> Iterator[tuple[str, threading.Thread]]:
    """The server at a socket of `listening_at`, in a thread, while the block runs: its address with the token, and the
    thread. Raises what `serve` does."""
    from uvicorn import Config, Server

    from lxt_fx.explorer.server.app import guarded_app

    served, token = ServedModel(model, processor, labels), secrets.token_urlsafe(32)
    page, policy = live_page(template(), page_of(shown_results(results, labels=labels), served.live()))
    own = listening.getsockname()[1]
    jobs = Jobs()
    app = guarded_app(served, jobs, page, policy, token, tuple(f"{name}:{own}" for name in NAMES))
    settings = Config(
        app, lifespan="off", ws="none", http="h11", loop="asyncio", log_config=None, access_log=False, server_header=False,
        proxy_headers=False, limit_concurrency=64, timeout_keep_alive=5, timeout_graceful_shutdown=2,
    )  # fmt: skip
    server = Server(settings)
    thread = threading.Thread(target=server.run, args=([listening],), name="lxt_fx server", daemon=True)
    thread.start()
    try:
        yield f"http://{ADDRESS}:{own}/?token={token}", thread
    finally:
        server.should_exit = True
        jobs.end(STOPS)
        thread.join(STOPS)


def _open(address: str) -> None:
    """Opens the browser, unless that is one of text, which would take the terminal, or there is none."""
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return
    if type(browser) is not webbrowser.GenericBrowser:
        browser.open(address)
