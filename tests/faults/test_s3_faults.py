"""An S3 server that answers 503, stalls, cuts its answers short or garbles them.

Where it comes to its senses in time, every image arrives exactly once, with the bytes of an undisturbed run. Where it
does not, the error names the shard, within a bounded time, and no image is called bad for it.
"""

import json
import pickle
import time
import zipfile
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
from jobs.ingest.shard_task import IngestSpec, ShardWriter
from tests.faults.bad_proxy import BadProxy, Fault
from tests.synthetic_dataset import make_dataset, pixels

IMAGES, SIZE, ROWS = 24, 32, 10
STALL_SECONDS = 1  # instead of 30: what the connections wait for a byte
LOSSES = ["503", "stall", "half", "short"]
SHARDS, SHARD_ROWS = 4, 16
ALWAYS = 1e9


@pytest.fixture
def proxy(s3: str, s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[BadProxy]:
    """All S3 traffic goes through it, with little patience."""
    proxy, real = BadProxy(s3_server["AWS_ENDPOINT_URL"]), storage._s3
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setattr(storage, "_s3", lambda seconds=0, attempts=3: real(STALL_SECONDS, attempts))
    yield proxy
    proxy.stop()


Begin = Callable[[], None]


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[Begin]:
    """Ingest's tasks run in this process, one by one, as they would on Ray; the functions given here run before."""
    begins: list[Begin] = []

    def run(work: IngestSpec, chunks: list[dict]) -> Iterator[dict]:
        for begin in begins:
            begin()
        for chunk in chunks:
            yield json.loads(ShardWriter(pickle.loads(pickle.dumps(work))).make(chunk))

    monkeypatch.setattr("jobs.ingest.job.connect", lambda: None)
    monkeypatch.setattr("jobs.ingest.job.run_makers", run)
    return begins


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images, and a zip of the same."""
    base = tmp_path_factory.mktemp("images")
    (base / "folder").mkdir()
    with zipfile.ZipFile(base / "images.zip", "w") as archive:
        for i in range(IMAGES):
            data = encode_image(draw_face(0, i, SIZE)[0], "jpeg")
            (base / "folder" / f"{i:03d}.jpg").write_bytes(data)
            archive.writestr(f"{i:03d}.jpg", data, zipfile.ZIP_DEFLATED if i % 2 else zipfile.ZIP_STORED)
    return base


def upload(folder: Path, uri: str) -> None:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    for path in folder.rglob("*"):
        if path.is_file():
            boto3.client("s3").upload_file(str(path), bucket, f"{prefix}/{path.relative_to(folder).as_posix()}")


def objects(uri: str) -> dict[str, bytes]:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    client, found = boto3.client("s3"), {}
    for each in client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/").get("Contents", []):
        if not each["Key"].endswith("/"):
            found[each["Key"][len(prefix) + 1 :]] = client.get_object(Bucket=bucket, Key=each["Key"])["Body"].read()
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def make(source: str | Path, to: str | Path, **options: Any) -> dict[str, Any]:
    """Ingest; up to all of the images may be bad, so that calling one bad would go through."""
    chosen = {"size": SIZE, "shard_rows": ROWS, "max_bad": IMAGES, "split": "hash", "encoding": "png"}
    return ingest("folder", str(source), str(to), **(chosen | options))


@pytest.fixture
def undisturbed(images: Path, tmp_path: Path, in_process: list[Begin]) -> Callable[[str], dict[str, bytes]]:
    """The files that a source gives where nothing befalls it."""

    def run(source: str) -> dict[str, bytes]:
        make(images / source, tmp_path / "undisturbed")
        return files(tmp_path / "undisturbed")

    return run


@pytest.mark.parametrize("source", ["images.zip", "folder"])
@pytest.mark.parametrize("kind", LOSSES)
def test_a_source_that_is_out_of_order_for_a_while(kind, source, proxy, s3, images, tmp_path, undisturbed):
    expected = undisturbed(source)
    upload(images, f"{s3}/in")
    proxy.faults = [Fault(kind, r"(GET|HEAD) .*/in/(images.zip|folder/00\d.jpg)")]
    result = make(f"{s3}/in/{source}", tmp_path / "to")
    assert proxy.befell[kind] >= (10 if source == "folder" else 3)
    assert result["rejects"] == 0
    assert files(tmp_path / "to") == expected


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("source", ["images.zip", "folder"])
def test_a_source_that_stays_out_of_order(source, kind, proxy, s3, images, tmp_path, undisturbed, in_process):
    expected = undisturbed(source)
    upload(images, f"{s3}/in")
    what = source if source == "images.zip" else "folder/013.jpg"
    in_process.append(lambda: setattr(proxy, "faults", [Fault(kind, f"GET .*/in/{what}", ALWAYS)]))
    shard = next(name for name, data in expected.items() if name.endswith(".parquet") and b"013.jpg" in data)
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"^shard \S+ could not be made: ") as caught:
        make(f"{s3}/in/{source}", tmp_path / "to")
    assert time.monotonic() - began < 30
    assert source == "images.zip" or shard in str(caught.value)
    assert proxy.befell[kind] >= 3  # it was tried again
    assert not {"manifest.json", "rejects.jsonl"} & files(tmp_path / "to").keys()
    in_process.clear()
    proxy.faults.clear()
    assert make(f"{s3}/in/{source}", tmp_path / "to")["rejects"] == 0
    assert files(tmp_path / "to") == expected


def test_a_source_that_cannot_be_listed_is_told_in_a_line(proxy, s3, images, tmp_path, in_process):
    upload(images, f"{s3}/in")
    for kind, where in (("503", "HEAD .*/in/images.zip"), ("stall", "GET .*/in/images.zip"), ("short", "GET .*/in/")):
        proxy.faults = [Fault(kind, where, ALWAYS)]
        with pytest.raises(ValueError, match=r"^cannot read s3://.*/in/images.zip: .*(5xx|cut short|no answer)"):
            make(f"{s3}/in/images.zip", tmp_path / "to")
        assert proxy.befell[kind]
    assert not (tmp_path / "to").exists()


def test_what_is_garbled_on_its_way_is_fetched_again_and_what_lies_garbled_is_bad(
    proxy, s3, images, tmp_path, undisturbed
):
    expected = undisturbed("images.zip")
    upload(images, f"{s3}/in")
    proxy.faults = [Fault("flip", "GET .*/in/images.zip bytes=0-")]
    assert make(f"{s3}/in/images.zip", tmp_path / "to")["rejects"] == 0
    assert proxy.befell["flip"] == 1
    assert files(tmp_path / "to") == expected
    proxy.faults.clear()
    data = bytearray((images / "images.zip").read_bytes())
    data[data.index(b"004.jpg") + 300] ^= 1  # it is stored as it is
    boto3.client("s3").put_object(Bucket=s3[5:], Key="in/bad.zip", Body=bytes(data))
    assert make(f"{s3}/in/bad.zip", tmp_path / "bad")["rejects"] == 1
    assert json.loads((tmp_path / "bad/rejects.jsonl").read_text())["name"] == "004.jpg"


def test_a_target_that_is_out_of_order_for_a_while(proxy, s3, images, undisturbed):
    expected = undisturbed("folder")
    proxy.faults = [Fault("503", r"(PUT|POST) .*/to/(.ingest/)?train-00000.parquet")]
    make(images / "folder", f"{s3}/to")
    assert proxy.befell["503"] >= 3  # for an upload is in parts
    proxy.faults.clear()
    assert objects(f"{s3}/to") == expected


@pytest.mark.parametrize("kind", ["503", "stall"])
def test_a_target_that_stays_out_of_order(kind, proxy, s3, images, undisturbed):
    expected = undisturbed("folder")
    proxy.faults = [Fault(kind, r"(PUT|POST) .*/to/train-00001.parquet", ALWAYS)]
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"^shard train-00001.parquet could not be made: "):
        make(images / "folder", f"{s3}/to")
    assert time.monotonic() - began < 30
    proxy.faults.clear()
    assert "train-00001.parquet" not in objects(f"{s3}/to")
    assert make(images / "folder", f"{s3}/to")["skipped_shards"] >= 1
    assert objects(f"{s3}/to") == expected


@pytest.mark.parametrize("kind", LOSSES)
def test_going_on_where_a_record_or_a_shard_comes_badly_for_a_while(kind, proxy, s3, images, undisturbed):
    expected = undisturbed("folder")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(images / "folder", f"{s3}/to", progress=stop)
    proxy.faults = [Fault(kind, "GET .*/to/.*parquet")]
    assert make(images / "folder", f"{s3}/to")["skipped_shards"] == 1
    assert proxy.befell[kind] >= 2
    proxy.faults.clear()
    assert objects(f"{s3}/to") == expected


@pytest.fixture
def dataset(proxy: BadProxy, s3: str, tmp_path: Path) -> str:
    """The URI of a dataset of four shards."""
    make_dataset(tmp_path / "data", {"train": [SHARD_ROWS] * SHARDS, "valid": [1], "test": [1]}, SIZE)
    upload(tmp_path / "data", f"{s3}/data")
    return f"{s3}/data"


def fill(uri: str, folder: Path) -> np.ndarray:
    fs, root = open_uri(uri)
    return open_cache(folder, Dataset.open(fs, root), "train")


@pytest.mark.parametrize("kind", [*LOSSES, "flip"])
def test_filling_the_node_cache_from_a_store_that_is_out_of_order_for_a_while(kind, proxy, dataset, tmp_path):
    proxy.faults = [Fault(kind, "GET .*/data/train")]
    assert np.array_equal(fill(dataset, tmp_path / "cache"), pixels(SHARDS * SHARD_ROWS, SIZE))
    assert proxy.befell[kind] >= SHARDS


@pytest.mark.parametrize("kind", [*LOSSES, "flip"])
def test_filling_the_node_cache_from_a_store_that_stays_out_of_order(kind, proxy, dataset, tmp_path):
    proxy.faults = [Fault(kind, "GET .*/data/train-00002.parquet", ALWAYS)]
    began = time.monotonic()
    expected = ValueError if kind == "flip" else UnreadShardError
    with pytest.raises(expected, match=r"^shard train-00002.parquet (cannot be read: |is damaged: its sha256)"):
        fill(dataset, tmp_path / "cache")
    assert time.monotonic() - began < 30
    assert proxy.befell[kind] == 3
    proxy.faults.clear()
    assert np.array_equal(fill(dataset, tmp_path / "cache"), pixels(SHARDS * SHARD_ROWS, SIZE))


@pytest.mark.parametrize("kind", [*LOSSES, "flip"])
def test_verify_names_what_it_cannot_read_and_nothing_else(kind, proxy, dataset):
    proxy.faults = [Fault(kind, "GET .*/data/train")]
    assert verify(dataset)["bad"] == []
    assert proxy.befell[kind] >= SHARDS
    proxy.faults = [Fault(kind, "GET .*/data/train-00001.parquet", ALWAYS)]
    result = verify(dataset)
    assert [each["shard"] for each in result["bad"]] == ["train-00001.parquet"]
    assert result["exit_status"] == 1


@pytest.mark.ray
def test_on_ray_from_s3_to_s3_with_all_of_it_at_once(ray_cluster, proxy, s3, images, tmp_path):
    upload(images, f"{s3}/in")
    make(images / "images.zip", tmp_path / "here")
    proxy.faults = [
        Fault("short", "GET .*/in/images.zip"),
        Fault("half", "GET .*/to/"),
        Fault("stall", r"PUT .*/to/train-00001"),
        Fault("503", r"(PUT|POST|HEAD) .*/to/\w+-\d+"),
    ]
    assert make(f"{s3}/in/images.zip", f"{s3}/to")["rejects"] == 0
    assert proxy.befell.keys() >= {"short", "stall", "503"}
    proxy.faults.clear()
    assert objects(f"{s3}/to") == files(tmp_path / "here")
