import json
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from aecore.data.io import read_json, write_atomic, write_json
from aecore.data.shards import (
    Manifest,
    Shard,
    load_manifest,
    read_shard_bytes,
    save_manifest,
    shard_table,
    write_shard,
)

FS = pafs.LocalFileSystem()


def table(count: int = 3) -> pa.Table:
    rows = pa.table({"name": [f"{i}.png" for i in range(count)], "label": list(range(count))})
    return shard_table(rows, [bytes([i]) * 10 for i in range(count)])


def write_dataset(root: Path) -> Manifest:
    shard = write_shard(FS, str(root), "train-00000.parquet", table())
    splits = {"train": (shard,), "valid": ()}
    manifest = Manifest(dataset="x", options={"limit": None}, size=8, channels=3, encoding="raw", splits=splits)
    save_manifest(FS, str(root), manifest)
    return manifest


def test_a_shard_round_trips_and_its_bytes_are_reproducible(tmp_path: Path):
    first = write_shard(FS, str(tmp_path / "a"), "train-00000.parquet", table())
    second = write_shard(FS, str(tmp_path / "b"), "train-00000.parquet", table())
    assert first == second
    assert pq.read_table(pa.BufferReader(read_shard_bytes(FS, str(tmp_path / "a"), first))).equals(table())
    assert first.bytes == (tmp_path / "a" / first.path).stat().st_size
    assert write_shard(FS, str(tmp_path / "c"), "e.parquet", table(0)).rows == 0


def test_a_damaged_or_missing_shard_is_named(tmp_path: Path):
    shard = write_dataset(tmp_path).splits["train"][0]
    path = tmp_path / shard.path
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"train-00000.parquet is damaged: .* re-run `zpoint ingest`"):
        read_shard_bytes(FS, str(tmp_path), shard)
    path.write_bytes(data[:-1])
    with pytest.raises(ValueError, match=r"train-00000.parquet has \d+ bytes, not \d+"):
        read_shard_bytes(FS, str(tmp_path), shard)
    path.unlink()
    with pytest.raises(ValueError, match=r"train-00000.parquet is missing"):
        read_shard_bytes(FS, str(tmp_path), shard)


def test_the_manifest_round_trips_with_its_digest(tmp_path: Path):
    manifest = write_dataset(tmp_path)
    loaded = load_manifest(FS, str(tmp_path))
    assert loaded == manifest
    assert loaded.digest == manifest.digest
    assert (loaded.count("train"), loaded.count("valid")) == (3, 0)
    with pytest.raises(ValueError, match="no split 'test'; it has train, valid"):
        loaded.count("test")
    other = manifest.model_copy(update={"dataset": "y"})
    assert other.digest != manifest.digest
    options = ({"crop": 64, "seed": 1}, {"seed": 1, "crop": 64})  # the order of JSON's keys means nothing
    assert len({manifest.model_copy(update={"options": values}).digest for values in options}) == 1


def test_a_missing_or_damaged_manifest_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no dataset at .*: manifest.json is missing"):
        load_manifest(FS, str(tmp_path))
    write_dataset(tmp_path)
    path = tmp_path / "manifest.json"
    content = json.loads(path.read_text())
    for damaged in ("", "[]", '{"a": 1}', path.read_text().replace('"rows": 3', '"rows": 4')):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=r"manifest.json"):
            load_manifest(FS, str(tmp_path))
    content["splits"]["train"][0]["path"] = "../../etc/passwd"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="below its manifest"):
        load_manifest(FS, str(tmp_path))


def test_a_shard_is_immutable():
    shard = Shard(path="a", rows=1, bytes=1, sha256="0" * 64)
    with pytest.raises(ValueError, match="frozen"):
        shard.rows = 2  # pyright: ignore[reportAttributeAccessIssue]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "deep" / "file"
    write_atomic(FS, str(path), b"old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        write_atomic(FS, str(path), b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_json_files_round_trip(tmp_path: Path):
    path = str(tmp_path / "a.json")
    write_json(FS, path, {"b": 1, "a": "é"})
    assert read_json(FS, path) == {"a": "é", "b": 1}
    with pytest.raises(FileNotFoundError):
        read_json(FS, str(tmp_path / "none.json"))
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a.json is not valid JSON"):
        read_json(FS, path)
    with pytest.raises(ValueError, match="JSON"):
        write_json(FS, path, {"a": float("nan")})
