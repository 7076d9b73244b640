"""A local Ray whose node process stalls while it starts, as on a busy machine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.ray_compat import SLOW_START_S
from tests.sockets import command_line, descendants

REPO = Path(__file__).parents[2]


def find_raylet(pid: int) -> int | None:
    return next((child for child in descendants(pid) if "/raylet\0" in command_line(child)), None)


@pytest.mark.ray
def test_job_waits_for_a_ray_that_starts_slowly(tmp_path: Path):
    """Stop the raylet as soon as it runs, for longer than Ray itself waits for it."""
    command = [sys.executable, "-m", "jobs.cli", "ingest", "generated", "--limit", "16", "--size", "16", "--json"]
    environment = {**os.environ, "ZPOINT_HOME": str(tmp_path), "PYTHONPATH": str(REPO)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "--to", str(tmp_path / "faces")], env=environment, **pipes) as job:
        deadline = time.monotonic() + 120
        while (raylet := find_raylet(job.pid)) is None:
            assert job.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(raylet, signal.SIGSTOP)
        time.sleep(SLOW_START_S + 5)
        os.kill(raylet, signal.SIGCONT)
        stdout, stderr = job.communicate(timeout=200)
    assert job.returncode == 0, stderr
    assert sum(json.loads(stdout)["counts"].values()) == 16
    assert stderr.count("Ray has not started after 30 s; waiting up to 180 s") == 1
