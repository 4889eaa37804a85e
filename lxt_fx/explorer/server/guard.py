"""What every request passes before any code of ours sees it: address, origin, token, size; and the headers of every answer.

A page of another site that a browser has open can send requests to localhost, and by DNS rebinding under a name of its own.
So Host and Origin must be ours, and every request has the token that only the one who started the server was shown.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

TOKEN = b"x-lxt-fx-token"

LARGEST, LARGEST_PICTURE, LARGEST_SAVED = 256 * 1024, 11 * 1024 * 1024, 32 * 1024 * 1024
"""The most bytes of a question, those that a picture may add, and of a saved explanation."""

OPEN = "/api/open"


@dataclass(frozen=True, slots=True)
class Refused(Exception):
    """A request that is not answered: the status, and why."""

    status: int
    kind: str
    why: str


class Guard:
    """An ASGI application around another one. `hosts` are the names and ports under which the server may be asked;
    `picture` says whether a question may have a picture."""

    def __init__(self, app: App, token: str, hosts: tuple[str, ...], policy: str, *, picture: bool = False) -> None:
        self.app, self.token, self.picture = app, token.encode("ascii"), picture
        self.hosts = tuple(host.encode("ascii") for host in hosts)
        self.headers = [
            (b"content-security-policy", policy.encode("ascii")),
            (b"x-content-type-options", b"nosniff"),
            (b"x-frame-options", b"DENY"),
            (b"referrer-policy", b"no-referrer"),
            (b"cache-control", b"no-store"),
            (b"cross-origin-opener-policy", b"same-origin"),
            (b"cross-origin-resource-policy", b"same-origin"),
        ]

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers a request, or refuses it."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self.headers]
            await send(message)

        try:
            self._check(scope)
            body = await _body(scope, receive, self._most(scope))
        except Refused as refused:
            await _refuse(refused, answer)
            return
        await self.app(scope, _once(body, receive), answer)

    def _most(self, scope: Message) -> int:
        """The most bytes of a body."""
        return LARGEST_SAVED if scope["path"] == OPEN else LARGEST + (LARGEST_PICTURE if self.picture else 0)

    def _check(self, scope: Message) -> None:
        host, origin = _header(scope, b"host"), _header(scope, b"origin")
        if host not in self.hosts:
            raise Refused(403, "Refused", "this server answers under its own address only, as it was printed")
        if origin is not None and origin != b"http://" + host:
            raise Refused(403, "Refused", "a page of another site asked; open the address that the server printed")
        given = _header(scope, TOKEN)
        if given is None and scope["path"] == "/":
            given = _token_of(bytes(scope.get("query_string", b"")))
        if given is None or not hmac.compare_digest(given, self.token):
            raise Refused(403, "Refused", "the token is missing or wrong; open the whole address that the server printed")


def _token_of(query: bytes) -> bytes | None:
    """The token in the address of the page."""
    try:
        asked = parse_qs(query.decode("latin-1"), max_num_fields=10)
    except ValueError:  # too many fields
        return None
    return asked["token"][0].encode("latin-1", "replace") if "token" in asked else None


def _header(scope: Message, name: bytes) -> bytes | None:
    """The value of a header. Raises Refused for one that comes twice."""
    found = [bytes(value) for key, value in scope["headers"] if bytes(key).lower() == name]
    if len(found) > 1:
        raise Refused(400, "Refused", f"the header {name.decode()} comes {len(found)} times")
    return found[0] if found else None


async def _body(scope: Message, receive: Receive, most: int) -> bytes:
    """The whole body, which must be JSON. Raises Refused for one that is too large before all of it is here."""
    length = _header(scope, b"content-length")
    if length is not None and (not length.isdigit() or len(length) > 12 or int(length) > most):
        raise Refused(413, "InputError", f"request: the body is larger than {most} bytes")
    found, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "Refused", "the request broke off")
        found += message.get("body", b"")
        more = bool(message.get("more_body", False))
        if len(found) > most:
            raise Refused(413, "InputError", f"request: the body is larger than {most} bytes")
    kind = (_header(scope, b"content-type") or b"").split(b";")[0].strip().lower()
    if found and kind != b"application/json":
        raise Refused(415, "InputError", "request: the body must be JSON, with the header Content-Type: application/json")
    return bytes(found)


def _once(body: bytes, receive: Receive) -> Receive:
    """The body that has been read, then what comes behind it."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _refuse(refused: Refused, send: Send) -> None:
    body = json.dumps({"kind": refused.kind, "message": refused.why}).encode()
    length = str(len(body)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", length), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
