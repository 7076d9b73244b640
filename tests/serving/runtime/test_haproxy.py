"""The edits of Ray's HAProxy configuration, and the wrapped process."""

import json
import os
import re
import signal
import ssl
import subprocess
import sys
from pathlib import Path
from unittest.mock import ANY

import httpx2
import pytest

from cluster.ray_compat import haproxy_binary
from serving.runtime import haproxy
from tests.conftest import free_port
from tests.serving.app_server import make_slot, serve_app
from tests.sockets import listening_addresses

REPO = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def template():
    from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE

    return HAPROXY_CONFIG_TEMPLATE


def test_haproxy_answers_503_with_retry_after_if_no_replica_does(tmp_path):
    haproxy.write_error_files(tmp_path)
    head, _, body = (tmp_path / "504.http").read_bytes().decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 503 ")
    assert "Retry-After: 2" in head
    assert f"Content-Length: {len(body)}" in head
    assert json.loads(body) == {"status": 503, "title": "Service Unavailable", "detail": ANY}


def test_every_edit_of_the_configuration_happens_once(template, tmp_path):
    edited = haproxy.edit_config(template, tmp_path)
    assert edited.count(f"{tmp_path}/50") == 3
    assert "{{ config.error_file_path }}\n" not in edited
    assert edited.count("timeout http-request 10s") == edited.count("option http-buffer-request") == 1
    assert edited.count("return status 404 if { path_beg /-/ }") == 1
    assert edited.count("http-response set-header x-zpoint-fallback ") == 1
    assert edited.count("http-response return status 503 default-errorfiles if { status 404 }") == 1
    assert "    http-request return status 503 default-errorfiles\n" in edited
    assert "for available routes" not in edited
    assert haproxy.edit_config(edited, tmp_path) == edited


@pytest.mark.parametrize("line", ["frontend prometheus", "listen stats", "frontend http_frontend", "defaults"])
def test_a_changed_template_of_ray_raises(template, tmp_path, line):
    with pytest.raises(RuntimeError, match=rf"contains .*{line}.* 0 times, not 1"):
        haproxy.edit_config(template.replace(f"{line}\n", f"{line} renamed\n"), tmp_path)
    with pytest.raises(RuntimeError, match=r"errorfile.* 2 times, not 3"):
        haproxy.edit_config(template.replace("    errorfile 504 ", "    # "), tmp_path)


def test_haproxy_statistics_listen_on_loopback(template):
    edited = haproxy.listen_on_loopback(template)
    binds = [line.strip() for line in edited.splitlines() if line.strip().startswith("bind ")]
    assert "bind 127.0.0.1:{{ config.metrics_port }}" in binds
    assert "bind 127.0.0.1:{{ config.stats_port }}" in binds
    assert "bind {{ config.frontend_host }}:{{ config.frontend_port }}" in binds
    assert haproxy.listen_on_loopback(edited) == edited


def test_the_documented_configuration_for_tls_serves_https(tmp_path, wait_until):
    [config] = re.findall(r"(?s)```haproxy\n(.*?)```", (REPO / "docs" / "serving.md").read_text())
    certificate, key, pem = (tmp_path / name for name in ("a.crt", "a.key", "zpoint.pem"))
    request = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    subprocess.run([*request.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    pem.write_text(certificate.read_text() + key.read_text())
    https_port, http_port = free_port(), free_port()
    with serve_app(make_slot(), token="secret") as url:
        replacements = {
            "/etc/haproxy/zpoint.pem": str(pem), ":443": f"127.0.0.1:{https_port}", ":80\n": f"127.0.0.1:{http_port}\n",
            "127.0.0.1:8000": url.removeprefix("http://"),
        }  # fmt: skip
        for documented, actual in replacements.items():
            assert config.count(documented) == 1
            config = config.replace(documented, actual)
        file = tmp_path / "haproxy.cfg"
        file.write_text(config)
        checked = subprocess.run([haproxy_binary(), "-c", "-f", file], capture_output=True, text=True)
        assert (checked.returncode, checked.stderr) == (0, "")
        with subprocess.Popen([haproxy_binary(), "-db", "-f", file]) as proxy:
            try:
                wait_until(lambda: listening_addresses([proxy.pid]))
                trusted, headers = ssl.create_default_context(cafile=certificate), {"Authorization": "Bearer secret"}
                answer = httpx2.get(f"https://localhost:{https_port}/v1/model", verify=trusted, headers=headers)
                assert (answer.status_code, answer.headers["x-zpoint-model"]) == (200, "zpoint/7")
                redirect = httpx2.get(f"http://localhost:{http_port}/v1/model")
                assert redirect.headers["location"].startswith("https://")
            finally:
                proxy.terminate()


def test_haproxy_ends_with_its_parent(tmp_path, wait_until):
    script = haproxy.write_wrapper(tmp_path, "/bin/sleep")
    start = f"print(subprocess.Popen([{str(script)!r}, '600']).pid, flush=True)"
    code = f"import subprocess, time; {start}; time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        wait_until(lambda: b"sleep" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0])
        os.kill(parent.pid, signal.SIGKILL)
    wait_until(lambda: has_ended(child))


def has_ended(pid):
    """Return true if the process is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
