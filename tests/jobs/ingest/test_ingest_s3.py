"""Sources that lie on S3: the same items and bytes as from a disk, read in ranges, with clear errors."""

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


def upload(folder: Path, to: str) -> None:
    bucket, _, prefix = to.removeprefix("s3://").partition("/")
    for path in folder.rglob("*"):
        if path.is_file():
            boto3.client("s3").upload_file(str(path), bucket, f"{prefix}/{path.relative_to(folder).as_posix()}")


def opened(dataset: str, uri: str) -> Source:
    fs, path = open_uri(uri)
    return open_source(dataset, SourceOptions(path=path, fs=fs))


def celeba(folder: Path, count: int = 40) -> Path:
    folder.mkdir()
    with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as archive:
        for i in range(count):
            archive.writestr(f"img_align_celeba/{i:06d}.jpg", encode_image(draw_face(0, i, 32)[0], "jpeg"))
    (folder / "list_eval_partition.txt").write_text("\n".join(f"{i:06d}.jpg {i % 3}" for i in range(count)))
    (folder / "identity_CelebA.txt").write_text("\n".join(f"{i:06d}.jpg {i // 4}" for i in range(count)))
    return folder


def assert_same(there: Source, here: Source) -> None:
    assert there.fingerprint == here.fingerprint
    assert there.splits == here.splits
    reader = pickle.loads(pickle.dumps(there.reader))  # as it travels to a worker
    for table in here.splits.values():
        names = table["name"].to_pylist()
        for name, found in zip(names, read_ahead(reader, names), strict=True):
            assert isinstance(found, bytes | np.ndarray)
            assert bytes(found) == bytes(here.reader.read(name))


def test_celeba_as_folder_zip_and_extracted(s3: str, tmp_path: Path):
    folder = celeba(tmp_path / "celeba")
    upload(folder, f"{s3}/sets/celeba")
    here = open_source("celeba", SourceOptions(str(folder)))
    assert_same(opened("celeba", f"{s3}/sets/celeba/"), here)
    assert_same(opened("celeba", f"{s3}/sets"), here)  # torchvision's root
    assert_same(opened("celeba", f"{s3}/sets/celeba/img_align_celeba.zip"), here)
    (folder / "img_align_celeba.zip").unlink()
    with zipfile.ZipFile(folder.with_name("x.zip"), "w") as archive:
        for i in range(20):
            archive.writestr(f"img_align_celeba/{i:06d}.jpg", encode_image(draw_face(0, i, 32)[0], "jpeg"))
        archive.extractall(folder)
    upload(folder, f"{s3}/flat")
    assert_same(opened("celeba", f"{s3}/flat"), open_source("celeba", SourceOptions(str(folder))))


def test_a_folder_of_classes_and_torchvisions_arrays(s3: str, tmp_path: Path):
    for i in range(40):
        path = tmp_path / "set" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_image(draw_face(0, i, 16)[0], "png"))
    upload(tmp_path / "set", f"{s3}/set")
    assert_same(opened("folder", f"{s3}/set"), open_source("folder", SourceOptions(str(tmp_path / "set"))))
    from tests.aecore.data.test_sources import write_cifar, write_idx

    write_idx(tmp_path / "idx" / "MNIST" / "raw", 20, packed=True)
    write_cifar(tmp_path / "idx" / "cifar-10-batches-py")
    upload(tmp_path / "idx", f"{s3}/idx")
    for dataset in ("mnist", "cifar10"):
        assert_same(opened(dataset, f"{s3}/idx"), open_source(dataset, SourceOptions(str(tmp_path / "idx"))))


def test_a_zip_is_read_in_ranges_and_neighbours_come_together(s3: str, tmp_path: Path, monkeypatch):
    names = [f"{i:03d}.jpg" for i in range(400)]
    with zipfile.ZipFile(tmp_path / "big.zip", "w") as archive:
        for i, name in enumerate(names):
            archive.writestr(name, np.random.default_rng(i).bytes(20_000))
    upload(tmp_path, f"{s3}/x")
    source, lengths = opened("folder", f"{s3}/x/big.zip"), []
    real = remote_path._Ranges.readinto

    def readinto(self, buffer) -> int:
        lengths.append(real(self, buffer))
        return lengths[-1]

    monkeypatch.setattr(remote_path._Ranges, "readinto", readinto)
    found = list(read_ahead(source.reader, names[150:200]))
    assert found == [np.random.default_rng(i).bytes(20_000) for i in range(150, 200)]
    assert len(lengths) <= 6  # two or three for the list of members, as many for 1 MB of images
    assert sum(lengths) < 4 * remote_path.AHEAD < 8_000_000
    lengths.clear()
    # As in a worker with two shards at once, where the images of one lie far from those of the other.
    ways = [read_ahead(source.reader.only(part), part) for part in (names[:50], names[300:350])]
    for i, both in enumerate(zip(*ways, strict=True)):
        assert both == (np.random.default_rng(i).bytes(20_000), np.random.default_rng(300 + i).bytes(20_000))
    assert len(lengths) <= 6


@pytest.mark.ray
def test_ingest_from_s3_to_s3_gives_the_bytes_of_ingest_from_disk_to_disk(s3: str, tmp_path: Path, ray_cluster: None):
    folder = celeba(tmp_path / "celeba")
    upload(folder, f"{s3}/celeba")
    here = ingest("celeba", str(folder), str(tmp_path / "to"), size=24, shard_rows=8, split="identity")
    there = ingest("celeba", f"{s3}/celeba/", f"{s3}/to", size=24, shard_rows=8, split="identity")
    assert there["digest"] == here["digest"]
    fs, root = open_uri(f"{s3}/to")
    for path in (tmp_path / "to").iterdir():
        assert read_bytes(fs, f"{root}/{path.name}") == path.read_bytes()


def test_what_is_wrong_with_a_remote_source_is_one_line(s3: str, tmp_path: Path, refused: Callable[..., str]):
    client, to = boto3.client("s3"), tmp_path / "to"
    client.put_object(Bucket=s3[5:], Key="cut.zip", Body=b"PK\x03\x04 and no more")
    client.put_object(Bucket=s3[5:], Key="texts/a.txt", Body=b"hello")
    for source, text in (
        (f"{s3}/nothing", "does not exist; --source takes a folder or zip"),
        (f"{s3}/cut.zip", "is not a whole zip file (16 bytes)"),
        (f"{s3}/texts", "holds no images"),
        ("s3://no-such-bucket/x", "the bucket 'no-such-bucket' does not exist"),
        ("gs://bucket/x", "unknown scheme"),
    ):
        assert text in refused("ingest", "folder", "--source", source, "--to", to)
    assert "--download needs a local folder" in refused(
        "ingest", "mnist", "--source", f"{s3}/x", "--to", to, "--download"
    )
