"""The port at which the live explorer listens, on this machine only."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

from lxt_fx.base.errors import InputError

ADDRESS, NAMES = "127.0.0.1", ("127.0.0.1", "localhost")
"""Where the server listens, and the names under which it may be asked."""


@contextmanager
def listening_at(port: int) -> Iterator[socket.socket]:
    """A socket that listens at this port, 0 for any free one, while the block runs: who asks before the server runs waits.

    Raises InputError for a port that is taken or none, and without starlette and uvicorn, before anything is loaded.
    """
    _check_extra()
    with closing(_bound(port)) as found:
        yield found


def _check_extra() -> None:
    try:
        import starlette.applications  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise InputError(f"serve: needs starlette and uvicorn ({error}): pip install 'lxt_fx[serve]'") from error


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
