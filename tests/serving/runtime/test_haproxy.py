"""The edits of Ray's HAProxy configuration, and the wrapped process."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import ANY

import pytest

from serving.runtime import haproxy


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
