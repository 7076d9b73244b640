"""What every request passes: token or loopback, the limits of time and memory, the model's name, the counters."""

import asyncio
import hmac
import logging
import time
from collections.abc import Mapping
from functools import lru_cache
from http import HTTPStatus
from ipaddress import ip_address
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.http.decoding import Limits
from serving.runtime.batching import Overloaded
from serving.runtime.metrics import EndpointMetrics
from serving.runtime.model_slot import ModelSlot

log = logging.getLogger(__name__)
GONE = 499  # nginx's status for a client that went away before it had sent its request
# These and /static/, the page's files, need no token, but none that is wrong. A browser can show none where a link is
# followed; the docs tell of the model no more than its z_dim.
OPEN = frozenset({"/", "/docs", "/healthz", "/openapi.json", "/readyz"})


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An RFC 9457 problem: status, title and detail, as application/problem+json."""
    readable = detail.encode("utf-8", "backslashreplace").decode()  # it may quote half a character of the client's
    body = {"status": status, "title": HTTPStatus(status).phrase, "detail": readable}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


class GatewayMiddleware:
    """ASGI middleware. It takes `slot.current` once: a request is answered by one model, whatever the alias does.

    Routes find that model as `request.state.model`.
    """

    def __init__(self, app: ASGIApp, slot: ModelSlot, token: str, limits: Limits, metrics: EndpointMetrics):
        self._app, self._slot, self._token = app, slot, token.encode()
        self._limits, self._metrics = limits, metrics
        self._held = 0  # bytes of bodies of requests that are not answered yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        model, status, held, began = self._slot.current, 0, 0, time.perf_counter()
        scope["state"] = {"model": model}
        named = (b"x-zpoint-model", model.info.label.encode())

        async def take() -> Message:
            nonlocal held
            message = await receive()
            size = len(message.get("body", b""))
            held += size
            self._held += size
            if self._held > self._limits.held:
                raise Overloaded(1.0)
            return message

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], named, (b"x-content-type-options", b"nosniff")]
            await send(message)

        try:
            async with asyncio.timeout(self._limits.seconds):
                await (self._refusal(scope) or self._app)(scope, take, answer)
        except TimeoutError:
            if status:
                raise
            late = problem(503, f"this took longer than {self._limits.seconds:g} s; ask for less", {"Retry-After": "5"})
            await late(scope, receive, answer)
        except ClientDisconnect:
            status = GONE
        except Exception:
            log.exception("a request to %s failed", scope["path"])
            if status:
                raise
            await problem(500, "this is the endpoint's own fault; its log says more")(scope, receive, answer)
        finally:
            # The server keeps the scope of a connection's last request: an idle one would keep a replaced model.
            scope["state"].clear()
            self._held -= held
            self._metrics.observe_request(_route(scope), status, time.perf_counter() - began)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        headers = dict(scope["headers"])
        if not self._token:
            # Else a web site whose name leads to 127.0.0.1 could use it through a visitor's browser (DNS rebinding).
            return None if _is_here(headers.get(b"host", b"localhost")) else STRANGE_HOST
        given = headers.get(b"authorization")
        if given is None:
            return None if scope["path"] in OPEN or scope["path"].startswith("/static/") else NO_TOKEN
        kind, _, token = given.partition(b" ")
        return None if hmac.compare_digest(token.strip(), self._token) and kind.lower() == b"bearer" else NO_TOKEN


NO_TOKEN = problem(401, "this endpoint wants 'Authorization: Bearer TOKEN'", {"WWW-Authenticate": "Bearer"})
STRANGE_HOST = problem(421, "without a token this endpoint answers to localhost alone: set ZPOINT_TOKEN")


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@lru_cache(64)
def _is_here(host: bytes) -> bool:
    try:
        return is_loopback(urlsplit("//" + host.decode()).hostname or "")  # without the port
    except ValueError:
        return False


def _route(scope: Scope) -> str:
    # Paths that nobody has made up: whatever is asked for, there are only so many of them.
    return getattr(scope.get("route"), "path", "other")
