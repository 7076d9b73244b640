"""What befalls an ingest: killed drivers and workers, full disks, a byte that flips.

Each ends with the very bytes of an ingest that nothing befell, or with an error that names what failed.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.commands.data import verify
from jobs.ingest.job import ingest

REPO = Path(__file__).parents[2]
FACES: dict[str, Any] = {"limit": 480, "size": 64, "shard_rows": 24}

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def faces(to: Path, **options: Any) -> dict[str, Any]:
    return ingest("generated", None, str(to), **(FACES | options))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> dict[str, bytes]:
    """The files of an ingest that nothing befell."""
    to = tmp_path_factory.mktemp("undisturbed") / "to"
    faces(to)
    return files(to)


@pytest.mark.parametrize("cpus", [1, 2])
def test_a_killed_driver_and_the_same_command_again(cpus: int, tmp_path: Path, undisturbed: dict[str, bytes]):
    to = tmp_path / "to"
    command = [sys.executable, "-m", "jobs.cli", "ingest", "generated", "--to", str(to)]
    command += ["--limit", "480", "--size", "64", "--shard-rows", "24"]
    surroundings = os.environ | {"ZPOINT_CPUS": str(cpus), "PYTHONPATH": str(REPO), "ZPOINT_HOME": str(tmp_path)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    driver = subprocess.Popen(command, env=surroundings, **quiet)
    until = time.monotonic() + 120
    while len(list(to.glob(".ingest/*.parquet.json"))) < 3:
        assert driver.poll() is None, driver.stderr and driver.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    assert not (to / "manifest.json").exists()
    again = subprocess.run(command, env=surroundings, timeout=180, **quiet)
    assert again.returncode == 0, again.stderr
    assert files(to) == undisturbed


def tasks_of_ours() -> list[int]:
    """The processes, below this one, in which Ray runs a task of ingest."""
    found, parents = [], {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            line = (place / "cmdline").read_bytes()
            parents[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if line.startswith(b"ray::Maker"):
            found.append(int(place.name))
    return [pid for pid in found if os.getpid() in (parents.get(pid), parents.get(parents.get(pid, 0)))]


def test_a_worker_that_is_killed_in_mid_task(tmp_path: Path, undisturbed: dict[str, bytes]):
    killed = []

    def kill(done: int, total: int) -> None:
        for pid in tasks_of_ours()[: 2 - len(killed)]:
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    result = faces(tmp_path / "to", progress=kill)
    assert killed
    assert sum(result["counts"].values()) == 480
    assert files(tmp_path / "to") == undisturbed


def test_a_full_disk_leaves_whole_shards_and_the_command_goes_on(small_disk, undisturbed: dict[str, bytes]):
    to = small_disk("600k") / "to"
    with pytest.raises(ValueError, match=r"shard \w+-\d+.parquet could not be made: .*No space left on device"):
        faces(to)
    left = {name: data for name, data in files(to).items() if name.endswith(".parquet")}
    assert left
    assert left.items() <= undisturbed.items()
    assert not [name for name in files(to) if name.endswith(".tmp") or name == "manifest.json"]
    small_disk("16m")
    result = faces(to)
    assert result["skipped_shards"] >= 1
    assert files(to) == undisturbed


def test_a_flipped_byte_is_found_and_mended(tmp_path: Path, undisturbed: dict[str, bytes]):
    to = tmp_path / "to"
    faces(to)
    shard = to / "train-00003.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 0x10
    shard.write_bytes(data)
    assert [each["shard"] for each in verify(str(to))["bad"]] == ["train-00003.parquet"]
    mended = faces(to)
    assert mended["shards"] - mended["skipped_shards"] == 1
    assert verify(str(to))["bad"] == []
    assert files(to) == undisturbed
