"""Find the dashboard of a Ray cluster and connect one of Ray's clients to it, within seconds instead of minutes."""

import logging
from collections.abc import Callable
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from cluster.network import check_proxies, configure_libraries, proxy_hint
from cluster.ray_compat import fetch_dashboard_port, ray_api_address
from cluster.ray_connection import TOKEN_REFUSED, check_reachable, use_token
from cluster.settings import settings

DASHBOARD_PORT = 8265
CONNECT_TIMEOUT_S = 5


def connect_dashboard(make_client: Callable[[str], Any], address: str | None) -> tuple[Any, str]:
    """Return the client that `make_client` makes of a dashboard's URL, and the URL; `address` by default RAY_ADDRESS.

    `make_client` imports Ray, which then reads the settings made here. Raises ValueError if no dashboard answers, or if
    it refuses the token.
    """
    configure_libraries()
    url = dashboard_url(address or settings().ray_address)
    use_token(urlsplit(url).hostname or "")
    from ray.exceptions import AuthenticationError

    with ray_api_address(url):
        try:
            client = make_client(url)
        except AuthenticationError as error:
            raise ValueError(f"the cluster at {url}{proxy_hint(url)} {TOKEN_REFUSED}") from error
    for name in ("dashboard.modules.job.sdk", "dashboard.modules.dashboard_sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)  # their import sets INFO
    return client, url


def dashboard_url(address: str) -> str:
    """Return the URL of the dashboard, which takes jobs, for its URL or for the host:port of a Ray head.

    Raises ValueError unless a Ray dashboard answers there within `CONNECT_TIMEOUT_S`.
    """
    if address in ("", "auto", "local"):
        url = f"http://127.0.0.1:{DASHBOARD_PORT}"
    elif "://" in address:
        url = address
    else:
        url = _fetch_dashboard_url(address)
    if not _is_http_url(url):
        raise ValueError(f"--address and RAY_ADDRESS take http://host:8265 or host:6379, not '{address}'")
    check_proxies(url)
    derived = (f" (from {address})" if address not in ("", url) else "") + proxy_hint(url)
    fix = "give the dashboard's URL by --address or RAY_ADDRESS"
    try:
        check_answers(url)
    except HTTPError as error:
        raise ValueError(f"no Ray dashboard at {url}{derived}: HTTP {error.code}; {fix}") from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise ValueError(f"no Ray dashboard answers at {url}{derived}: {reason}; {fix}") from error
    return url


def _fetch_dashboard_url(address: str) -> str:
    """Return the URL of the dashboard of the Ray head at host:port; its host is the given one. Raises ValueError."""
    check_reachable(address)
    host = address.rpartition(":")[0]  # the head may report its loopback, or an address inside its container
    use_token(host)
    from ray.exceptions import AuthenticationError, RpcError

    try:
        port = fetch_dashboard_port(address, CONNECT_TIMEOUT_S)
    except AuthenticationError as error:
        raise ValueError(f"the Ray at {address} {TOKEN_REFUSED}") from error
    except RpcError as error:
        raise ValueError(
            f"no Ray head answers at {address}: {error}; give its host:port or its dashboard's URL"
        ) from error
    if not port:
        raise ValueError(f"the Ray at {address} has no dashboard: start its head with --include-dashboard=true")
    return f"http://{host}:{port}"


def check_answers(url: str) -> None:
    """Raise OSError unless a Ray dashboard answers at `url`, with or without the token."""
    try:
        urlopen(f"{url.rstrip('/')}/api/version", timeout=CONNECT_TIMEOUT_S).close()
    except HTTPError as error:
        if error.code not in (401, 403):  # these ask for the token
            raise
    except HTTPException as error:  # not an OSError; its text may be bytes of HTTP/2, as of port 6379 of a Ray head
        raise OSError(f"no HTTP answer: {type(error).__name__}") from error


def _is_http_url(url: str) -> bool:
    try:
        parsed = urlsplit(url)
        return parsed.scheme in ("http", "https") and bool(parsed.hostname) and parsed.port != 0
    except ValueError:  # of the port, or of brackets
        return False
