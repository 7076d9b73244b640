"""Sources on S3: the same items and bytes as from a local disk, read in ranges, with clear errors."""

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import boto3
import numpy as np
import pytest

from aecore.data import remote_path
from aecore.data.images import encode_image
from aecore.data.io import read_bytes
from aecore.data.readers import read_ahead
from aecore.data.sources import Source, SourceOptions, open_source
from aecore.data.synthetic_faces import draw_face
from cluster.storage import open_uri
from jobs.ingest.job import ingest


def upload(folder: Path, uri: str) -> None:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    for path in folder.rglob("*"):
        if path.is_file():
            boto3.client("s3").upload_file(str(path), bucket, f"{prefix}/{path.relative_to(folder).as_posix()}")


def open_remote(dataset: str, uri: str) -> Source:
    fs, path = open_uri(uri)
    return open_source(dataset, SourceOptions(path=path, fs=fs))


def write_celeba(folder: Path, count: int = 40) -> Path:
    folder.mkdir()
    with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as archive:
        for i in range(count):
            archive.writestr(f"img_align_celeba/{i:06d}.jpg", encode_image(draw_face(0, i, 32)[0], "jpeg"))
    (folder / "list_eval_partition.txt").write_text("\n".join(f"{i:06d}.jpg {i % 3}" for i in range(count)))
    (folder / "identity_CelebA.txt").write_text("\n".join(f"{i:06d}.jpg {i // 4}" for i in range(count)))
    return folder


def assert_same_source(remote: Source, local: Source) -> None:
    assert remote.fingerprint == local.fingerprint
    assert remote.splits == local.splits
    reader = pickle.loads(pickle.dumps(remote.reader))  # as Ray sends it to a worker
    for table in local.splits.values():
        names = table["name"].to_pylist()
        for name, item in zip(names, read_ahead(reader, names), strict=True):
            assert isinstance(item, bytes | np.ndarray)
            assert bytes(item) == bytes(local.reader.read(name))


def test_celeba_on_s3_as_folder_zip_and_extracted_images(s3: str, tmp_path: Path):
    folder = write_celeba(tmp_path / "celeba")
    upload(folder, f"{s3}/sets/celeba")
    local = open_source("celeba", SourceOptions(str(folder)))
    assert_same_source(open_remote("celeba", f"{s3}/sets/celeba/"), local)
    assert_same_source(open_remote("celeba", f"{s3}/sets"), local)  # torchvision's root
    assert_same_source(open_remote("celeba", f"{s3}/sets/celeba/img_align_celeba.zip"), local)
    (folder / "img_align_celeba.zip").unlink()
    with zipfile.ZipFile(folder.with_name("x.zip"), "w") as archive:
        for i in range(20):
            archive.writestr(f"img_align_celeba/{i:06d}.jpg", encode_image(draw_face(0, i, 32)[0], "jpeg"))
        archive.extractall(folder)
    upload(folder, f"{s3}/flat")
    assert_same_source(open_remote("celeba", f"{s3}/flat"), open_source("celeba", SourceOptions(str(folder))))


def test_class_folders_and_torchvision_arrays_on_s3(s3: str, tmp_path: Path):
    for i in range(40):
        path = tmp_path / "set" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_image(draw_face(0, i, 16)[0], "png"))
    upload(tmp_path / "set", f"{s3}/set")
    assert_same_source(open_remote("folder", f"{s3}/set"), open_source("folder", SourceOptions(str(tmp_path / "set"))))
    from tests.aecore.data.test_sources import write_cifar, write_idx

    write_idx(tmp_path / "idx" / "MNIST" / "raw", 20, packed=True)
    write_cifar(tmp_path / "idx" / "cifar-10-batches-py")
    upload(tmp_path / "idx", f"{s3}/idx")
    for dataset in ("mnist", "cifar10"):
        assert_same_source(
            open_remote(dataset, f"{s3}/idx"), open_source(dataset, SourceOptions(str(tmp_path / "idx")))
        )


def test_zip_on_s3_is_read_in_ranges_that_hold_neighbouring_members(s3: str, tmp_path: Path, monkeypatch):
    names = [f"{i:03d}.jpg" for i in range(400)]
    with zipfile.ZipFile(tmp_path / "big.zip", "w") as archive:
        for i, name in enumerate(names):
            archive.writestr(name, np.random.default_rng(i).bytes(20_000))
    upload(tmp_path, f"{s3}/x")
    source, request_bytes = open_remote("folder", f"{s3}/x/big.zip"), []
    read_range = remote_path.read_range

    def count_and_read(file, start, buffer, name) -> None:
        request_bytes.append(len(buffer))
        read_range(file, start, buffer, name)

    monkeypatch.setattr(remote_path, "read_range", count_and_read)
    items = list(read_ahead(source.reader, names[150:200]))
    assert items == [np.random.default_rng(i).bytes(20_000) for i in range(150, 200)]
    assert len(request_bytes) <= 6  # two or three for the list of members, as many for 1 MB of images
    assert sum(request_bytes) < 4 * remote_path.BLOCK_BYTES < 8_000_000
    request_bytes.clear()
    # As in a worker with two tasks: the images of one shard are far from those of the other.
    streams = [read_ahead(source.reader, shard) for shard in (names[:50], names[300:350])]
    for i, items in enumerate(zip(*streams, strict=True)):
        assert items == (np.random.default_rng(i).bytes(20_000), np.random.default_rng(300 + i).bytes(20_000))
    assert len(request_bytes) <= 6


@pytest.mark.ray
def test_ingest_from_s3_to_s3_gives_the_same_bytes_as_on_local_disk(s3: str, tmp_path: Path, ray_cluster: None):
    folder = write_celeba(tmp_path / "celeba")
    upload(folder, f"{s3}/celeba")
    local = ingest("celeba", str(folder), str(tmp_path / "to"), size=24, shard_rows=8, split="identity")
    remote = ingest("celeba", f"{s3}/celeba/", f"{s3}/to", size=24, shard_rows=8, split="identity")
    assert remote["digest"] == local["digest"]
    fs, root = open_uri(f"{s3}/to")
    for path in (tmp_path / "to").iterdir():
        assert read_bytes(fs, f"{root}/{path.name}") == path.read_bytes()


def test_unusable_remote_source_is_reported_in_one_line(s3: str, tmp_path: Path, refused: Callable[..., str]):
    client, root = boto3.client("s3"), tmp_path / "to"
    client.put_object(Bucket=s3[5:], Key="cut.zip", Body=b"PK\x03\x04 cut in half")
    client.put_object(Bucket=s3[5:], Key="texts/a.txt", Body=b"hello")
    for source, message in (
        (f"{s3}/nothing", "does not exist; --source takes a folder or zip"),
        (f"{s3}/cut.zip", "is not a complete zip file (16 bytes)"),
        (f"{s3}/texts", "holds no images"),
        ("s3://no-such-bucket/x", "the bucket 'no-such-bucket' does not exist"),
        ("gs://bucket/x", "unknown scheme"),
    ):
        assert message in refused("ingest", "folder", "--source", source, "--to", root)
    assert "--download needs a local folder" in refused(
        "ingest", "mnist", "--source", f"{s3}/x", "--to", root, "--download"
    )
