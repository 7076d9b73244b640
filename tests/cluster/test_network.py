"""Loopback never goes through a proxy, other hosts heed NO_PROXY, and nothing phones home."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from cluster.network import accepts_connections, configure_libraries, find_interface, has_unix_socket
from serving.client import AsyncClient, Client, EndpointError
from tests.proxy import counting_proxy
from tests.serving.app_server import make_slot, serve_app

PROXY_VARIABLES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXY_VARIABLES, "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")  # restored after the test, whatever sets it meanwhile
        monkeypatch.delenv(name)


@pytest.fixture
def proxy(no_proxies: None, monkeypatch: pytest.MonkeyPatch):
    """A proxy that every variable of the environment names."""
    with counting_proxy() as server:
        for name in PROXY_VARIABLES:
            monkeypatch.setenv(name, server.url)
        monkeypatch.setattr(urllib.request, "_opener", None)  # urlopen keeps the proxies of its first call
        yield server


@pytest.fixture(scope="module")
def endpoint():
    with serve_app(make_slot()) as url:
        yield url


@pytest.fixture
def json_server():
    """A server that stands for MLflow and Ray's dashboard: it answers `answers` by path, {} to any other."""

    class Handler(BaseHTTPRequestHandler):
        answers: ClassVar = {
            "/api/version": {"version": "4", "ray_version": "2.60.0", "ray_commit": "x", "session_name": "s"},
            "/api/jobs/": [],
        }

        def log_message(self, *_):
            pass

        def do_GET(self):
            body = json.dumps(self.answers.get(self.path.partition("?")[0], {})).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_the_clients_reach_loopback_directly(proxy, endpoint):
    for url in (endpoint, endpoint.replace("127.0.0.1", "localhost")):
        with Client(url) as client:
            assert client.model()["version"] == "7"

        async def version(url=url):
            async with AsyncClient(url) as client:
                return (await client.model())["version"]

        assert asyncio.run(version()) == "7"
    assert proxy.requests == []


def test_the_health_check_of_serve_reaches_any_own_address_directly(proxy, endpoint, monkeypatch: pytest.MonkeyPatch):
    from serving.runtime import deployment

    monkeypatch.setattr(deployment, "START_TIMEOUT_S", 5)
    deployment._wait_until_ready(endpoint)
    assert proxy.requests == []


def test_mlflow_on_loopback_is_reached_directly(proxy, json_server, monkeypatch: pytest.MonkeyPatch):
    from cluster import tracking

    monkeypatch.setenv("MLFLOW_TRACKING_URI", json_server)
    assert tracking.find_runs() == []
    assert proxy.requests == []


def test_the_jobs_api_on_loopback_is_reached_directly(proxy, json_server):
    from jobs.commands.submit import list_jobs

    assert list_jobs(json_server) == []
    assert proxy.requests == []


def test_s3_on_loopback_is_reached_directly(s3, no_proxies, monkeypatch: pytest.MonkeyPatch):
    import boto3

    from cluster.storage import check_uri

    with counting_proxy() as server:
        for name in PROXY_VARIABLES:
            monkeypatch.setenv(name, server.url)
        configure_libraries()
        check_uri(s3)
        assert boto3.client("s3").list_buckets()["Buckets"]
        assert server.requests == []


def test_a_child_process_reaches_loopback_directly(proxy, json_server):
    configure_libraries()
    code = f"from urllib.request import urlopen; print(urlopen({json_server + '/api/version'!r}).status)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (process.stdout, proxy.requests) == ("200\n", [])


def test_another_host_goes_through_the_proxy_unless_no_proxy_lists_it(proxy, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("serving.client.client.MAX_CONNECT_ATTEMPTS", 1)
    configure_libraries()
    for host in ("endpoint.example", "192.0.2.7"):
        with Client(f"http://{host}:8000") as client, pytest.raises(EndpointError, match=r"proxy of http_proxy.* 418"):
            client.model()
    assert proxy.requests == [f"GET http://{host}:8000/v1/model" for host in ("endpoint.example", "192.0.2.7")]
    assert urllib.request.getproxies()["http"] == proxy.url


def test_the_answer_of_a_proxy_is_not_blamed_on_the_cluster_alone(proxy, monkeypatch: pytest.MonkeyPatch):
    from jobs.commands.submit import list_jobs

    with pytest.raises(ValueError, match=r"http://cluster.example:8265 \(through the proxy of .*NO_PROXY.*HTTP 418"):
        list_jobs("http://cluster.example:8265")
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(ValueError, match=r"no proxy for http://cluster.example:8265: http_proxy=socks5"):
        list_jobs("http://cluster.example:8265")


def test_mlflow_behind_an_unusable_proxy_names_it(no_proxies, monkeypatch: pytest.MonkeyPatch):
    from cluster import tracking

    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    with pytest.raises(ValueError, match=r"no proxy for http://mlflow.example:5000: ALL_PROXY=socks5"):
        tracking.find_runs()


@pytest.mark.parametrize(
    ("no_proxy", "url", "direct"),
    [
        ("", "http://localhost:8000", True),
        ("", "http://127.0.1.1:8000", True),
        ("", "http://[::1]:8000", True),
        ("", "http://0.0.0.0:8000", True),
        ("", "http://zpoint.localhost", True),
        ("", "http://endpoint.example", False),
        ("", "http://localhost.example", False),
        ("endpoint.example", "http://endpoint.example:8000", True),
        ("example, other", "https://endpoint.example", True),
        (".example", "https://endpoint.example", True),
        ("point.example", "https://endpoint.example", False),
        ("endpoint.example:9000", "http://endpoint.example:8000", False),
        ("endpoint.example:8000", "http://user:secret@endpoint.example:8000", True),
        ("10.0.0.0/8", "http://10.1.2.3:8000", True),
        ("10.0.0.0/8", "http://11.1.2.3:8000", False),
        ("fd00::/8", "http://[fd00::1]:8000", True),
        ("10.0.0.0/99", "http://10.1.2.3:8000", False),
        ("*", "http://endpoint.example", True),
    ],
)
def test_hosts_without_proxy(no_proxies, monkeypatch: pytest.MonkeyPatch, no_proxy: str, url: str, direct: bool):
    from cluster.network import bypasses_proxies

    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, no_proxy)
        assert bypasses_proxies(url) is direct
        monkeypatch.delenv(name)


def test_no_proxy_keeps_its_names_and_is_set_only_beside_a_proxy(no_proxies, monkeypatch: pytest.MonkeyPatch):
    configure_libraries()
    assert "NO_PROXY" not in os.environ
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "corp.example, 10.0.0.0/8")
    configure_libraries()
    configure_libraries()
    expected = "corp.example,10.0.0.0/8,localhost,127.0.0.1,127.0.0.0/8,::1,[::1]"
    assert (os.environ["no_proxy"], os.environ["NO_PROXY"]) == (expected, expected)
    monkeypatch.setenv("no_proxy", "*")
    configure_libraries()
    assert os.environ["no_proxy"] == "*"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "ALL_PROXY",
            "socks5://me:secret@127.0.0.1:1080",
            "ALL_PROXY=socks5://***@127.0.0.1:1080 needs a SOCKS package",
        ),
        ("https_proxy", "ftp://proxy:21", "https_proxy=ftp://proxy:21 has the unknown scheme 'ftp'"),
        ("HTTP_PROXY", "http://", "HTTP_PROXY=http:// names no host"),
        ("HTTP_PROXY", "http://proxy:port", "HTTP_PROXY=http://proxy:port names no host"),
    ],
)
def test_an_unusable_proxy_is_named_without_its_password(
    no_proxies, monkeypatch: pytest.MonkeyPatch, endpoint, name: str, value: str, message: str
):
    from cluster.network import describe_proxy_error

    monkeypatch.setenv(name, value)
    assert describe_proxy_error().startswith(message)
    if value != "http://":  # the HTTP library takes it for none
        with pytest.raises(EndpointError, match=name) as error:
            Client("http://endpoint.example:8000").model()
        assert "secret" not in str(error.value)
    with Client(endpoint) as client:  # loopback needs no proxy
        assert client.model()["version"] == "7"


@pytest.mark.parametrize("value", ["http://proxy:3128", "proxy:3128", "proxy", "https://me:secret@proxy"])
def test_usable_proxies(no_proxies, monkeypatch: pytest.MonkeyPatch, value: str):
    from cluster.network import describe_proxy_error

    monkeypatch.setenv("HTTP_PROXY", value)
    assert describe_proxy_error() == ""
    Client("http://endpoint.example:8000")


def test_the_interface_of_an_address_is_found():
    assert find_interface("127.0.0.1") == "lo"
    assert find_interface("192.0.2.1") == ""


def test_telemetry_is_off_unless_the_user_has_set_it(monkeypatch: pytest.MonkeyPatch):
    names = ("RAY_USAGE_STATS_ENABLED", "MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    for name in names:
        monkeypatch.setenv(name, "")  # restored after the test
        monkeypatch.delenv(name)
    configure_libraries()
    assert [os.environ[name] for name in names] == ["0", "true", "true"]
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    configure_libraries()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"


def test_a_unix_socket_counts_while_its_path_exists():
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as server:  # a short path
        path = f"{folder}/a socket"
        server.bind(path)
        assert has_unix_socket(f"{folder}/")
        os.rename(path, f"{folder}/another")  # as in a container that shares the network, not the files
        assert not has_unix_socket(f"{folder}/")


def test_a_port_accepts_connections_while_a_server_listens_there():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert accepts_connections("127.0.0.1", port, timeout_s=1)
    assert not accepts_connections("127.0.0.1", port, timeout_s=1)
