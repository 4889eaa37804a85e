"""`lxt_fx.serve`: the explorer live on localhost, with a model that answers."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from lxt_fx.base.errors import InputError
from lxt_fx.explorer.latent_data import UnitLabels
from lxt_fx.explorer.page_data import page_of, shown_results
from lxt_fx.explorer.page_file import live_page, template
from lxt_fx.explorer.server.jobs import Jobs
from lxt_fx.explorer.server.served_model import ServedModel

ADDRESS, NAMES = "127.0.0.1", ("127.0.0.1", "localhost")
"""Where the server listens, and the names under which it may be asked."""

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
    with running(model, processor, results=results, labels=labels, port=port) as (address, thread):
        print(f"lxt_fx explores {type(model).__name__} at\n\n    {address}\n\nCtrl-C stops it.", flush=True)
        try:
            if open_browser:
                _open(address)
            while thread.is_alive():
                thread.join(0.5)
        except KeyboardInterrupt:
            print("stopped", flush=True)


@contextmanager
def running(
    model: nn.Module | Any,
    processor: Any = None,
    *,
    results: Sequence[Any] = (),
    labels: UnitLabels | None = None,
    port: int = 0,
) -> Iterator[tuple[str, threading.Thread]]:
    """The server in a thread while the block runs: its address with the token, and the thread. Raises what `serve` does."""
    try:
        from uvicorn import Config, Server

        from lxt_fx.explorer.server.app import guarded_app
    except ImportError as error:
        raise InputError(f"serve: needs starlette and uvicorn ({error}): pip install 'lxt_fx[serve]'") from error
    served, token = ServedModel(model, processor, labels), secrets.token_urlsafe(32)
    page, policy = live_page(template(), page_of(shown_results(results, labels=labels), served.live()))
    listening = _bound(port)
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
        listening.close()


def _open(address: str) -> None:
    """Opens the browser, unless that is one of text, which would take the terminal, or there is none."""
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return
    if type(browser) is not webbrowser.GenericBrowser:
        browser.open(address)


def _bound(port: int) -> socket.socket:
    """A socket that listens on this machine only."""
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 65536:
        raise InputError(f"serve: port must be a whole number from 0 (any free one) to 65535, got {port!r}")
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if os.name != "nt":  # there it would let two programs listen at one port
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((ADDRESS, port))
        found.listen(128)  # a browser that is faster than the server waits
    except OSError as error:
        found.close()
        raise InputError(f"serve: port {port} cannot be used: {error.strerror}; leave port out for a free one") from error
    return found
