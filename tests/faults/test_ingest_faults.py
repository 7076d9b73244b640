"""Faults during an ingest: killed drivers, killed workers, full disks, a flipped bit.

Each test ends with the bytes of an undisturbed ingest, or with an error that names what failed.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.commands.data import verify
from jobs.ingest.job import ingest

REPO = Path(__file__).parents[2]
FACES: dict[str, Any] = {"limit": 480, "size": 64, "shard_rows": 24}

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def read_files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def ingest_faces(root: Path, **options: Any) -> dict[str, Any]:
    return ingest("generated", None, str(root), **(FACES | options))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> dict[str, bytes]:
    """Return the files of an ingest without faults."""
    root = tmp_path_factory.mktemp("undisturbed") / "to"
    ingest_faces(root)
    return read_files(root)


# The driver stops itself at the third shard, so that it is killed before the last one; the actors write on meanwhile.
PAUSED_INGEST = """
import os, signal, sys
from jobs.cli import main
from jobs.ingest import job
write_shards = job.write_shards
def write_and_pause(*arguments):
    num_written = 0
    for result in write_shards(*arguments):
        yield result
        num_written += result is not None
        if num_written == 3:
            os.kill(os.getpid(), signal.SIGSTOP)
job.write_shards = write_and_pause
main(sys.argv[1:])
"""


@pytest.mark.parametrize("cpus", [1, 2])
def test_ingest_resumes_after_its_driver_is_killed(cpus: int, tmp_path: Path, undisturbed: dict[str, bytes]):
    root = tmp_path / "to"
    argv = ["ingest", "generated", "--to", str(root), "--limit", "480", "--size", "64", "--shard-rows", "24"]
    env = os.environ | {"ZPOINT_CPUS": str(cpus), "PYTHONPATH": str(REPO), "ZPOINT_HOME": str(tmp_path)}
    output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    driver = subprocess.Popen([sys.executable, "-c", PAUSED_INGEST, *argv], env=env, **output)
    stopped = os.waitid(os.P_PID, driver.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    driver.send_signal(signal.SIGKILL)
    assert stopped
    assert stopped.si_code == os.CLD_STOPPED, driver.communicate()
    driver.communicate()
    assert len(list(root.glob(".ingest/*.parquet.json"))) >= 3
    assert not (root / "manifest.json").exists()
    resumed = subprocess.run([sys.executable, "-m", "jobs.cli", *argv], env=env, timeout=180, **output)
    assert resumed.returncode == 0, resumed.stderr
    assert read_files(root) == undisturbed


def find_shard_writers() -> list[int]:
    """Return the PIDs of the processes below this one in which Ray writes a shard."""
    writers, parents = [], {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command_line = (folder / "cmdline").read_bytes()
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if command_line.startswith(b"ray::ShardWriter"):
            writers.append(int(folder.name))
    return [pid for pid in writers if os.getpid() in (parents.get(pid), parents.get(parents.get(pid, 0)))]


def test_ingest_survives_killed_workers(tmp_path: Path, undisturbed: dict[str, bytes]):
    killed = []

    def kill(done: int, total: int) -> None:
        for pid in find_shard_writers()[: 2 - len(killed)]:
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    result = ingest_faces(tmp_path / "to", progress=kill)
    assert killed
    assert sum(result["counts"].values()) == 480
    assert read_files(tmp_path / "to") == undisturbed


def test_full_disk_leaves_complete_shards_and_ingest_resumes(small_disk, undisturbed: dict[str, bytes]):
    root = small_disk("600k") / "to"
    with pytest.raises(
        ValueError, match=r"cannot write shard (\w+-\d+.parquet): .*No space.*: '.*/disk/to/(\1|.ingest)"
    ):
        ingest_faces(root)
    shards = {name: data for name, data in read_files(root).items() if name.endswith(".parquet")}
    assert shards
    assert shards.items() <= undisturbed.items()
    assert not [name for name in read_files(root) if name.endswith(".tmp") or name == "manifest.json"]
    small_disk("16m")
    result = ingest_faces(root)
    assert result["skipped_shards"] >= 1
    assert read_files(root) == undisturbed


def test_verify_finds_a_flipped_bit_and_ingest_repairs_it(tmp_path: Path, undisturbed: dict[str, bytes]):
    root = tmp_path / "to"
    ingest_faces(root)
    shard = root / "train-00003.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 0x10
    shard.write_bytes(data)
    assert [entry["shard"] for entry in verify(str(root))["bad"]] == ["train-00003.parquet"]
    repaired = ingest_faces(root)
    assert repaired["shards"] - repaired["skipped_shards"] == 1
    assert verify(str(root))["bad"] == []
    assert read_files(root) == undisturbed
