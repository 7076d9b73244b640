"""What befalls an ingest: killed drivers and workers, full disks, an S3 that fails, a byte that flips.

Each ends with the very bytes of an ingest that nothing befell, or with an error that names what failed.
"""

import http.client
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest

from aecore.faces import draw_face
from aecore.files import read_bytes
from aecore.images import encode_image
from cluster.storage import open_uri
from jobs.data import verify
from jobs.ingest import ingest

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
        if line.startswith(b"ray::Map(make_shard"):
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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes a disk of a few kilobytes, or gives it another size; gives its folder."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    place = tmp_path / "disk"
    place.mkdir()

    def resize(size: str) -> Path:
        again = ["remount,"] if os.path.ismount(place) else [""]
        command = ["mount", "-t", "tmpfs", "-o", f"{again[0]}size={size}", "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"this machine lets nobody mount a disk: {done.stderr.strip()}")
        return place

    yield resize
    if os.path.ismount(place):
        subprocess.run(["umount", "-l", str(place)], check=True)


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


class Unreliable(ThreadingHTTPServer):
    """Stands before an S3 server and spoils some of its answers, as `mood` and chance want it."""

    daemon_threads = True

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", 0), Spoiler)
        self.behind = urlsplit(behind).netloc
        self.mood, self.share, self.chance = "well", 0.0, random.Random(0)
        self.spoiled = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Spoiler(BaseHTTPRequestHandler):
    """One request: handed on, and its answer handed back, whole or spoiled."""

    server: Unreliable
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        spoil = self.server.mood if self.server.chance.random() < self.server.share else "well"
        if spoil == "half" and self.command != "GET":
            spoil = "well"
        self.server.spoiled += spoil != "well"
        if spoil == "busy":
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if spoil == "slow":
            time.sleep(1.5)
        link = http.client.HTTPConnection(self.server.behind, timeout=30)
        link.request(self.command, self.path, body, dict(self.headers.items()))
        got = link.getresponse()
        data = got.read()
        self.send_response(got.status)
        for name, value in got.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = got.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if spoil == "half" else data)
        link.close()
        if spoil == "half":
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def unreliable(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Unreliable]:
    server = Unreliable(os.environ["AWS_ENDPOINT_URL"])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.s3
@pytest.mark.parametrize(("mood", "share"), [("busy", 0.2), ("slow", 0.1), ("half", 0.2)])
def test_an_s3_that_fails_now_and_then(mood: str, share: float, s3: str, unreliable: Unreliable, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for i in range(60):
            archive.writestr(f"{i:02d}.png", encode_image(draw_face(0, i, 32)[0], "png"))
    boto3.client("s3").upload_file(str(tmp_path / "set.zip"), s3[5:], "set.zip")
    options = {"size": 24, "shard_rows": 10}
    ingest("folder", str(tmp_path / "set.zip"), str(tmp_path / "here"), **options)
    unreliable.mood, unreliable.share = mood, share
    for _ in range(8):
        try:
            result = ingest("folder", f"{s3}/set.zip", f"{s3}/to", **options)
            break
        except ValueError as error:  # some shard, or the list of the source, or the manifest
            assert any(word in str(error) for word in ("shard ", f"{s3}/to", f"{s3}/set.zip")), error  # noqa: PT017
    else:
        pytest.fail("eight times the same command, and still not whole")
    assert unreliable.spoiled >= 3
    assert result["rejects"] == 0
    assert sum(result["counts"].values()) == 60
    unreliable.mood = "well"
    fs, root = open_uri(f"{s3}/to")
    for path in (tmp_path / "here").iterdir():
        assert read_bytes(fs, f"{root}/{path.name}") == path.read_bytes()
