"""Faults of an S3 server: 503 responses, stalls, truncated bodies, corrupted bodies.

If the fault passes in time, every image arrives exactly once, with the bytes of an undisturbed run. If it stays, the
error names the shard within a bounded time, and no image is counted as bad because of it.
"""

import json
import os
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest

from aecore.data.dataset import Dataset
from aecore.data.images import encode_image
from aecore.data.node_cache import open_cache
from aecore.data.shards import UnreadShardError
from aecore.data.synthetic_faces import draw_face
from cluster import storage
from cluster.storage import open_uri
from jobs.commands.data import verify
from jobs.ingest.job import ingest
from jobs.ingest.shard_task import IngestSpec, ShardError, ShardResult, ShardTask
from tests.faults.bad_proxy import BadProxy, Fault
from tests.jobs.ingest import in_process
from tests.synthetic_dataset import make_dataset, noise_images

IMAGES, SIZE, ROWS = 24, 32, 10
TIMEOUT_S = 1  # of a request, in place of 30
LOSSES = ["503", "stall", "half", "short"]
SHARDS, SHARD_ROWS = 4, 16
ALWAYS = 1e9


@pytest.fixture
def proxy(s3: str, s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[BadProxy]:
    """Route all S3 traffic through a proxy, with a short timeout of requests."""
    proxy, open_s3 = BadProxy(s3_server["AWS_ENDPOINT_URL"]), storage._open_s3
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setattr(storage, "_open_s3", lambda timeout_s=0, attempts=3: open_s3(TIMEOUT_S, attempts))
    yield proxy
    proxy.stop()


@pytest.fixture
def before_write(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """Run ingest's tasks in this process, one by one; return a list of functions to call before the first task."""
    callbacks: list[Callable[[], None]] = []

    def write_shards(spec: IngestSpec, queue: deque[ShardTask]) -> Iterator[ShardResult | ShardError | None]:
        for callback in callbacks:
            callback()
        yield from in_process.write_shards(spec, queue)

    in_process.patch_ingest(monkeypatch)
    monkeypatch.setattr("jobs.ingest.job.write_shards", write_shards)
    return callbacks


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the same images to a folder and to a zip."""
    base = tmp_path_factory.mktemp("images")
    (base / "folder").mkdir()
    with zipfile.ZipFile(base / "images.zip", "w") as archive:
        for i in range(IMAGES):
            data, path = encode_image(draw_face(0, i, SIZE)[0], "jpeg"), base / "folder" / f"{i:03d}.jpg"
            path.write_bytes(data)
            # S3 cuts the time of a shard to seconds: a younger file could seem edited after its shard was written.
            os.utime(path, (0, path.stat().st_mtime - 10))
            archive.writestr(f"{i:03d}.jpg", data, zipfile.ZIP_DEFLATED if i % 2 else zipfile.ZIP_STORED)
    return base


def upload(folder: Path, uri: str) -> None:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    for path in folder.rglob("*"):
        if path.is_file():
            boto3.client("s3").upload_file(str(path), bucket, f"{prefix}/{path.relative_to(folder).as_posix()}")


def read_objects(uri: str) -> dict[str, bytes]:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    keys = [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/").get("Contents", [])]
    return {
        key.removeprefix(f"{prefix}/"): client.get_object(Bucket=bucket, Key=key)["Body"].read()
        for key in keys
        if not key.endswith("/")
    }


def read_files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def ingest_images(source: str | Path, to: str | Path, **options: Any) -> dict[str, Any]:
    """Ingest with max_bad of all images, so that an image wrongly counted as bad would go unnoticed by ingest."""
    defaults = {"size": SIZE, "shard_rows": ROWS, "max_bad": IMAGES, "split": "hash", "encoding": "png"}
    return ingest("folder", str(source), str(to), **(defaults | options))


@pytest.fixture
def undisturbed(
    images: Path, tmp_path: Path, before_write: list[Callable[[], None]]
) -> Callable[[str], dict[str, bytes]]:
    """Return a function that ingests a local source without faults and returns the files."""

    def run(source: str) -> dict[str, bytes]:
        ingest_images(images / source, tmp_path / "undisturbed")
        return read_files(tmp_path / "undisturbed")

    return run


@pytest.mark.parametrize("source", ["images.zip", "folder"])
@pytest.mark.parametrize("kind", LOSSES)
def test_ingest_survives_passing_faults_of_the_source(kind, source, proxy, s3, images, tmp_path, undisturbed):
    expected = undisturbed(source)
    upload(images, f"{s3}/in")
    proxy.faults = [Fault(kind, r"(GET|HEAD) .*/in/(images.zip|folder/00\d.jpg)")]
    result = ingest_images(f"{s3}/in/{source}", tmp_path / "to")
    assert proxy.injected[kind] >= (10 if source == "folder" else 2)  # the zip is one HEAD and one block
    assert result["rejects"] == 0
    assert read_files(tmp_path / "to") == expected


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("source", ["images.zip", "folder"])
def test_ingest_names_the_shard_if_a_fault_of_the_source_stays(
    source, kind, proxy, s3, images, tmp_path, undisturbed, before_write
):
    expected = undisturbed(source)
    upload(images, f"{s3}/in")
    path = source if source == "images.zip" else "folder/013.jpg"
    before_write.append(lambda: setattr(proxy, "faults", [Fault(kind, f"GET .*/in/{path}", ALWAYS)]))
    shard = next(name for name, data in expected.items() if name.endswith(".parquet") and b"013.jpg" in data)
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"^cannot write shard \S+: ") as caught:
        ingest_images(f"{s3}/in/{source}", tmp_path / "to")
    assert time.monotonic() - started < 30
    assert source == "images.zip" or shard in str(caught.value)
    assert proxy.injected[kind] >= 3  # retries
    assert not {"manifest.json", "rejects.jsonl"} & read_files(tmp_path / "to").keys()
    before_write.clear()
    proxy.faults.clear()
    assert ingest_images(f"{s3}/in/{source}", tmp_path / "to")["rejects"] == 0
    assert read_files(tmp_path / "to") == expected


def test_source_that_cannot_be_listed_is_reported_in_one_line(proxy, s3, images, tmp_path, before_write):
    upload(images, f"{s3}/in")
    for kind, pattern in (("503", "HEAD .*/in/images.zip"), ("stall", "GET .*/in/images.zip"), ("short", "GET .*/in/")):
        proxy.faults = [Fault(kind, pattern, ALWAYS)]
        with pytest.raises(ValueError, match=r"^cannot read s3://.*/in/images.zip: .*(5xx|cut short|no answer)"):
            ingest_images(f"{s3}/in/images.zip", tmp_path / "to")
        assert proxy.injected[kind]
    assert not (tmp_path / "to").exists()


def test_image_corrupted_in_transit_is_read_again_and_image_corrupted_on_storage_is_bad(
    proxy, s3, images, tmp_path, undisturbed
):
    expected = undisturbed("images.zip")
    upload(images, f"{s3}/in")
    proxy.faults = [Fault("flip", "GET .*/in/images.zip bytes=0-")]
    assert ingest_images(f"{s3}/in/images.zip", tmp_path / "to")["rejects"] == 0
    assert proxy.injected["flip"] == 1
    assert read_files(tmp_path / "to") == expected
    proxy.faults.clear()
    data = bytearray((images / "images.zip").read_bytes())
    data[data.index(b"004.jpg") + 300] ^= 1  # an even index: stored without compression
    boto3.client("s3").put_object(Bucket=s3[5:], Key="in/bad.zip", Body=bytes(data))
    assert ingest_images(f"{s3}/in/bad.zip", tmp_path / "bad")["rejects"] == 1
    assert json.loads((tmp_path / "bad/rejects.jsonl").read_text())["name"] == "004.jpg"


def test_ingest_survives_passing_503_of_the_target(proxy, s3, images, undisturbed):
    expected = undisturbed("folder")
    proxy.faults = [Fault("503", r"(PUT|POST) .*/to/(.ingest/)?train-00000.parquet")]
    ingest_images(images / "folder", f"{s3}/to")
    assert proxy.injected["503"] >= 3  # a multipart upload has several requests
    proxy.faults.clear()
    assert read_objects(f"{s3}/to") == expected


@pytest.mark.parametrize("kind", ["503", "stall"])
def test_ingest_names_the_shard_if_a_fault_of_the_target_stays(kind, proxy, s3, images, undisturbed):
    expected = undisturbed("folder")
    proxy.faults = [Fault(kind, r"(PUT|POST) .*/to/train-00001.parquet", ALWAYS)]
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"^cannot write shard train-00001.parquet: "):
        ingest_images(images / "folder", f"{s3}/to")
    assert time.monotonic() - started < 30
    proxy.faults.clear()
    assert "train-00001.parquet" not in read_objects(f"{s3}/to")
    assert ingest_images(images / "folder", f"{s3}/to")["skipped_shards"] >= 1
    assert read_objects(f"{s3}/to") == expected


@pytest.mark.parametrize("kind", LOSSES)
def test_resume_survives_passing_faults_of_records_and_shards(kind, proxy, s3, images, undisturbed):
    expected = undisturbed("folder")

    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest_images(images / "folder", f"{s3}/to", progress=interrupt)
    proxy.faults = [Fault(kind, "GET .*/to/.*parquet")]
    assert ingest_images(images / "folder", f"{s3}/to")["skipped_shards"] == 1
    assert proxy.injected[kind] >= 2
    proxy.faults.clear()
    assert read_objects(f"{s3}/to") == expected


@pytest.fixture
def dataset(proxy: BadProxy, s3: str, tmp_path: Path) -> str:
    """Upload a dataset of four train shards and return its URI."""
    make_dataset(tmp_path / "data", {"train": [SHARD_ROWS] * SHARDS, "valid": [1], "test": [1]}, SIZE)
    upload(tmp_path / "data", f"{s3}/data")
    return f"{s3}/data"


def fill_cache(uri: str, folder: Path) -> np.ndarray:
    fs, root = open_uri(uri)
    return open_cache(folder, Dataset.open(fs, root), "train")


@pytest.mark.parametrize("kind", [*LOSSES, "flip"])
def test_node_cache_fill_survives_passing_faults(kind, proxy, dataset, tmp_path):
    proxy.faults = [Fault(kind, "GET .*/data/train")]
    assert np.array_equal(fill_cache(dataset, tmp_path / "cache"), noise_images(SHARDS * SHARD_ROWS, SIZE))
    assert proxy.injected[kind] >= SHARDS


@pytest.mark.parametrize("kind", [*LOSSES, "flip"])
def test_node_cache_fill_names_the_shard_if_a_fault_stays(kind, proxy, dataset, tmp_path):
    proxy.faults = [Fault(kind, "GET .*/data/train-00002.parquet", ALWAYS)]
    started = time.monotonic()
    expected = ValueError if kind == "flip" else UnreadShardError
    with pytest.raises(expected, match=r"^shard train-00002.parquet (cannot be read: |is damaged: its sha256)"):
        fill_cache(dataset, tmp_path / "cache")
    assert time.monotonic() - started < 30
    assert proxy.injected[kind] == 3
    proxy.faults.clear()
    assert np.array_equal(fill_cache(dataset, tmp_path / "cache"), noise_images(SHARDS * SHARD_ROWS, SIZE))


@pytest.mark.parametrize("kind", [*LOSSES, "flip"])
def test_verify_names_only_the_shards_that_it_cannot_read(kind, proxy, dataset):
    proxy.faults = [Fault(kind, "GET .*/data/train")]
    assert verify(dataset)["bad"] == []
    assert proxy.injected[kind] >= SHARDS
    proxy.faults = [Fault(kind, "GET .*/data/train-00001.parquet", ALWAYS)]
    result = verify(dataset)
    assert [entry["shard"] for entry in result["bad"]] == ["train-00001.parquet"]
    assert result["exit_status"] == 1


@pytest.mark.ray
def test_ingest_on_ray_from_s3_to_s3_survives_all_faults_at_once(ray_cluster, proxy, s3, images, tmp_path):
    upload(images, f"{s3}/in")
    ingest_images(images / "images.zip", tmp_path / "local")
    proxy.faults = [
        Fault("short", "GET .*/in/images.zip"),
        Fault("half", "GET .*/to/"),
        Fault("stall", r"PUT .*/to/train-00001"),
        Fault("503", r"(PUT|POST|HEAD) .*/to/\w+-\d+"),
    ]
    assert ingest_images(f"{s3}/in/images.zip", f"{s3}/to")["rejects"] == 0
    assert proxy.injected.keys() >= {"short", "stall", "503"}
    proxy.faults.clear()
    assert read_objects(f"{s3}/to") == read_files(tmp_path / "local")
