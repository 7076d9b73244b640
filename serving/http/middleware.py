"""Bracket every request: authentication, limits of time and memory, one model version, errors and metrics."""

import asyncio
import hmac
import logging
import re
import time
from collections.abc import Collection, Mapping
from functools import lru_cache
from http import HTTPStatus
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.network import is_loopback
from serving.http.access_log import AccessLog
from serving.http.decoding import Limits
from serving.http.schemas import Problem
from serving.runtime.admission import Overloaded
from serving.runtime.metrics import EndpointMetrics
from serving.runtime.model_slot import ModelSlot

log = logging.getLogger(__name__)
CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that disconnected before it was answered
GZIP_REFUSED = re.compile(rb"gzip\s*;\s*q=0(\.0*)?\s*(,|$)", re.IGNORECASE)
MAX_REQUEST_ID = 128  # characters of a client's X-Request-Id in the access log
STATIC_PREFIX, API_PREFIX, ALIAS_PREFIX = "/static/", "/v1/", "/v1/models/"
# These paths and the static files need no token, since a browser sends none when it follows a link; a wrong token is
# refused here too. They reveal the aliases, in the OpenAPI, and the first one's model and version; OPTIONS of a path
# reveals no more.
PUBLIC_PATHS = frozenset({"/", "/docs", "/healthz", "/openapi.json", "/readyz"})


def problem_response(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return an RFC 9457 problem: status, title and detail, as application/problem+json."""
    detail = detail.encode("utf-8", "backslashreplace").decode()  # it may quote a lone surrogate of the request
    problem = Problem(status=status, title=HTTPStatus(status).phrase, detail=detail)
    return JSONResponse(problem.model_dump(), status, headers, media_type="application/problem+json")


class CompressionMiddleware(GZipMiddleware):
    """Starlette's GZipMiddleware, but heed `gzip;q=0` of clients that refuse gzip."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":  # changed in place: the gateway reads the route that the app sets in it
            scope["headers"] = [
                (name, value)
                for name, value in scope["headers"]
                if not (name == b"accept-encoding" and GZIP_REFUSED.search(value))
            ]
        await super().__call__(scope, receive, send)


class GatewayMiddleware:
    """ASGI middleware around all routes.

    It reads the `current` of the path's slot once per request, so that one model version answers it while the alias
    moves. Routes get the slot as `request.state.slot` and the model as `request.state.model`. Paths without an alias
    have the first of `slots`, by alias.
    """

    def __init__(
        self, app: ASGIApp, slots: Mapping[str, ModelSlot], token: str, limits: Limits, metrics: EndpointMetrics,
        access_log: AccessLog | None, cors_origins: Collection[str],
    ):  # fmt: skip
        self._app, self._slots, self._token, self._access_log = app, slots, token.encode(), access_log
        self._first_slot = next(iter(slots.values()))
        self._limits, self._metrics, self._cors_origins = limits, metrics, cors_origins
        self._buffered_bytes = 0  # of the bodies of all unanswered requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        method = scope["method"]
        is_head = method == "HEAD"
        if is_head:  # every GET route answers it; RFC 9110, 9.3.2: the same headers without the content
            scope = {**scope, "method": "GET"}
        status, body_bytes, start = 0, 0, time.perf_counter()
        slot = self._find_slot(scope["path"])
        model = (slot or self._first_slot).current  # an unknown alias is refused
        scope["state"] = {"slot": slot, "model": model}
        headers = [
            (b"x-zpoint-model", model.info.label.encode()), (b"x-content-type-options", b"nosniff"),
            (b"cross-origin-resource-policy", b"same-origin"),  # fetch() of `cors_origins` is not subject to it
        ]  # fmt: skip

        async def receive_bounded() -> Message:
            nonlocal body_bytes
            message = await receive()
            chunk_bytes = len(message.get("body", b""))
            body_bytes += chunk_bytes
            self._buffered_bytes += chunk_bytes
            if self._buffered_bytes > self._limits.max_buffered_bytes:
                raise Overloaded(1.0)
            return message

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *headers]
            elif is_head:
                message = {**message, "body": b""}
            await send(message)

        try:
            async with asyncio.timeout(self._limits.timeout_s):
                refusal = self._refuse_unauthorized(scope) or (None if slot else self._refuse_alias(scope["path"]))
                app = refusal or _refuse_other_version(scope, model.info.label) or self._app
                await app(scope, receive_bounded, send_with_headers)
        except TimeoutError:
            if status:
                raise
            # Without Retry-After: the same request would take as long again.
            detail = f"the request took longer than {self._limits.timeout_s:g} s; request fewer images"
            await problem_response(503, detail)(scope, receive, send_with_headers)
        except ClientDisconnect:
            status = CLIENT_CLOSED_REQUEST
        except asyncio.CancelledError:  # Ray Serve cancels the request of a client that disconnects
            status = CLIENT_CLOSED_REQUEST
            raise
        except Exception:
            log.exception("request to %s failed", scope["path"])
            if status:
                raise
            await problem_response(500, "internal error; see the endpoint's log")(scope, receive, send_with_headers)
        finally:
            # The server keeps the scope of an idle connection's last request, which would keep a replaced model.
            scope["state"].clear()
            self._buffered_bytes -= body_bytes
            route, seconds = _route_label(scope), time.perf_counter() - start
            self._metrics.observe_request(route, status, seconds)
            if self._access_log:
                request_id = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")  # Serve sets it
                self._access_log.write(
                    request_id=request_id[:MAX_REQUEST_ID], method=method, route=route, status=status,
                    seconds=seconds, model=model.info.label,
                )  # fmt: skip

    def _find_slot(self, path: str) -> ModelSlot | None:
        """Return the slot of the alias in `path`, the first one if there is none in it, None for an unknown alias."""
        return self._slots.get(path.split("/", 4)[3]) if path.startswith(ALIAS_PREFIX) else self._first_slot

    def _refuse_alias(self, path: str) -> ASGIApp:
        alias, aliases = path.split("/", 4)[3][:100], ", ".join(self._slots)
        return problem_response(404, f"the alias '{alias}' is not served here: use one of {aliases}")

    def _refuse_unauthorized(self, scope: Scope) -> ASGIApp | None:
        """Return the response to a request without the token, or of a foreign host name or page, else None."""
        headers = dict(scope["headers"])
        if not self._token:
            # DNS rebinding: a web site whose name resolves to 127.0.0.1 could use the endpoint through a browser.
            if not _is_loopback_host(headers.get(b"host", b"localhost")):
                return FOREIGN_HOST
            return FOREIGN_PAGE if self._is_of_foreign_page(scope, headers) else None
        authorization = headers.get(b"authorization")
        if authorization is None:
            is_public = scope["path"] in PUBLIC_PATHS or scope["path"].startswith(STATIC_PREFIX)
            # A browser's preflight has no token either, and gets the route's methods alone.
            return None if is_public or scope["method"] == "OPTIONS" else UNAUTHORIZED
        auth_scheme, _, token = authorization.partition(b" ")
        is_valid = hmac.compare_digest(token.strip(), self._token) and auth_scheme.lower() == b"bearer"
        return None if is_valid else UNAUTHORIZED

    def _is_of_foreign_page(self, scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
        """Return True if a browser sends the request for a page of another site, unless it follows a link."""
        if headers.get(b"sec-fetch-site") not in (b"cross-site", b"same-site"):
            return False
        if headers.get(b"sec-fetch-mode") == b"navigate" and scope["path"] in PUBLIC_PATHS:
            return False
        return headers.get(b"origin", b"").decode("latin-1") not in self._cors_origins


UNAUTHORIZED = problem_response(
    401, "missing or wrong token: send 'Authorization: Bearer TOKEN'", {"WWW-Authenticate": "Bearer"}
)
FOREIGN_HOST = problem_response(
    421, "an endpoint without a token responds only at localhost: set ZPOINT_TOKEN where it is started"
)
FOREIGN_PAGE = problem_response(
    403,
    "an endpoint without a token refuses pages of other sites: start it with --cors ORIGIN, or set ZPOINT_TOKEN",
)


def _refuse_other_version(scope: Scope, served: str) -> ASGIApp | None:
    """Return the response to a request of the API that names another version in X-Zpoint-Model, else None."""
    requested = dict(scope["headers"]).get(b"x-zpoint-model", b"").decode("latin-1").strip()
    if not requested or requested in (served, served.rpartition("/")[2]) or not scope["path"].startswith(API_PREFIX):
        return None
    detail = f"the endpoint serves {served}, not {requested[:100]}: encode again, or leave out X-Zpoint-Model"
    return problem_response(409, detail)


@lru_cache(64)
def _is_loopback_host(host_header: bytes) -> bool:
    try:
        return is_loopback(urlsplit("//" + host_header.decode()).hostname or "")  # without the port
    except ValueError:
        return False


def _route_label(scope: Scope) -> str:
    # Paths that clients invent must not become labels without bound; those of routes vary by the served alias alone.
    if scope["path"].startswith(STATIC_PREFIX):
        return STATIC_PREFIX
    return scope["path"] if "route" in scope else "other"
