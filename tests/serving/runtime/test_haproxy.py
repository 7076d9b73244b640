"""What is mended of Ray's HAProxy."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import ANY

from serving.runtime import haproxy


def test_haproxy_says_503_where_no_replica_answers(tmp_path):
    from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE as template

    haproxy.write_errors(tmp_path)
    head, _, body = (tmp_path / "504.http").read_bytes().decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 503 ")
    assert "Retry-After: 2" in head
    assert f"Content-Length: {len(body)}" in head
    assert json.loads(body) == {"status": 503, "title": "Service Unavailable", "detail": ANY}
    changed = haproxy.mend(template, tmp_path)
    assert changed.count(f"{tmp_path}/50") == 3
    assert "{{ config.error_file_path }}\n" not in changed
    assert changed.count("timeout http-request 10s") == changed.count("option http-buffer-request") == 1
    assert changed.count("return status 404 if { path_beg /-/ }") == 1
    assert haproxy.mend(changed, tmp_path) == changed


def test_haproxy_statistics_stay_on_loopback():
    from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE as template

    changed = haproxy.on_loopback(template)
    binds = [line.strip() for line in changed.splitlines() if line.strip().startswith("bind ")]
    assert "bind 127.0.0.1:{{ config.metrics_port }}" in binds
    assert "bind 127.0.0.1:{{ config.stats_port }}" in binds
    assert "bind {{ config.frontend_host }}:{{ config.frontend_port }}" in binds
    assert haproxy.on_loopback(changed) == changed


def test_haproxy_ends_with_its_parent(tmp_path):
    script = haproxy.wrap(tmp_path, "/bin/sleep")
    start = f"print(subprocess.Popen([{str(script)!r}, '60']).pid, flush=True)"
    code = f"import subprocess, time; {start}; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        deadline = time.monotonic() + 5
        while b"sleep" not in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(parent.pid, signal.SIGKILL)
    while Path(f"/proc/{child}/stat").exists() and Path(f"/proc/{child}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)
