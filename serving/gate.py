"""What every request passes: the bearer token, the time limit, the model's name on the answer, the counters."""

import asyncio
import hmac
import logging
import time
from collections.abc import Mapping
from http import HTTPStatus

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.meters import Meters
from serving.served import Slot

log = logging.getLogger(__name__)
# These and /static/, the page's files, need no token, but none that is wrong. A browser can show none where a link is
# followed; the docs tell of the model no more than its z_dim.
OPEN = frozenset({"/", "/docs", "/healthz", "/openapi.json", "/readyz"})


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An RFC 9457 problem: status, title and detail, as application/problem+json."""
    body = {"status": status, "title": HTTPStatus(status).phrase, "detail": detail}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


class Gate:
    """ASGI middleware. It takes `slot.current` once: a request is answered by one model, whatever the alias does.

    Routes find that model as `request.state.model`.
    """

    def __init__(self, app: ASGIApp, slot: Slot, token: str, seconds: float, meters: Meters):
        self._app, self._slot, self._token = app, slot, token.encode()
        self._seconds, self._meters = seconds, meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        model, status, began = self._slot.current, 0, time.perf_counter()
        scope["state"] = {"model": model}
        named = (b"x-zpoint-model", model.facts.label.encode())

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], named, (b"x-content-type-options", b"nosniff")]
            await send(message)

        app = self._app if self._may_pass(scope) else REFUSAL
        try:
            async with asyncio.timeout(self._seconds):
                await app(scope, receive, answer)
        except TimeoutError:
            if status:
                raise
            late = problem(503, f"this took longer than {self._seconds:g} s; ask for less", {"Retry-After": "5"})
            await late(scope, receive, answer)
        except Exception:
            log.exception("a request to %s failed", scope["path"])
            if status:
                raise
            await problem(500, "this is the endpoint's own fault; its log says more")(scope, receive, answer)
        finally:
            self._meters.request(_route(scope), status, time.perf_counter() - began)

    def _may_pass(self, scope: Scope) -> bool:
        if not self._token:
            return True
        given = dict(scope["headers"]).get(b"authorization")
        if given is None:
            return scope["path"] in OPEN or scope["path"].startswith("/static/")
        kind, _, token = given.partition(b" ")
        return hmac.compare_digest(token.strip(), self._token) and kind.lower() == b"bearer"


REFUSAL = problem(401, "this endpoint wants 'Authorization: Bearer TOKEN'", {"WWW-Authenticate": "Bearer"})


def _route(scope: Scope) -> str:
    # Paths that nobody has made up: whatever is asked for, there are only so many of them.
    return getattr(scope.get("route"), "path", "other")
