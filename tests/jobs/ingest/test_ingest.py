import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from aecore.data.dataset import Dataset
from aecore.data.images import encode_image
from aecore.data.shards import Manifest, load_manifest
from aecore.data.sources import SourceOptions, open_source
from aecore.data.synthetic_faces import draw_face
from cluster.lock import LockedError
from jobs.cli import main
from jobs.ingest import job
from jobs.ingest.job import ingest
from tests.jobs.ingest.in_process import patch_ingest

TEST_DATA = Path(os.environ.get("ZPOINT_TEST_DATA", Path(__file__).parents[4] / "shared" / "data"))
FS = pafs.LocalFileSystem()


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run ingest without Ray: for tests of what is written, not of the actors that write it."""
    patch_ingest(monkeypatch)


def ingest_faces(root: Path, **options: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {"limit": 120, "size": 32, "shard_rows": 16}
    return ingest("generated", None, str(root), **(defaults | options))


def read_files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ingest faces once, without Ray, for the tests that compare with them."""
    root = tmp_path_factory.mktemp("dataset")
    with pytest.MonkeyPatch.context() as patch:
        patch_ingest(patch)
        ingest_faces(root)
    return root


def read_train_images(root: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and pixels of each train image."""
    dataset = Dataset.open(FS, str(root))
    names = [name for shard in dataset.shards("train") for name in dataset.read_shard(shard)["name"].to_pylist()]
    yield from zip(names, dataset.images("train"), strict=True)


@pytest.mark.usefixtures("ray_cluster")
def test_actors_write_the_same_bytes_as_one_process_and_exact_pixels(tmp_path: Path, dataset: Path):
    updates = []
    result = ingest_faces(tmp_path, progress=lambda done, total: updates.append((done, total)))
    assert read_files(tmp_path) == read_files(dataset)
    assert updates[-1] == (120, 120)
    assert updates[0] == (0, 120)  # when the first worker is ready
    assert len(set(updates)) == 1 + result["shards"] > 4
    assert load_manifest(FS, str(tmp_path)).digest == result["digest"]
    assert sum(result["counts"].values()) == 120
    for name, pixels in read_train_images(tmp_path):
        assert (pixels == draw_face(0, int(name), 32)[0]).all()  # png is lossless


@pytest.mark.usefixtures("in_process")
def test_second_run_writes_nothing_and_repairs_a_damaged_shard(tmp_path: Path, dataset: Path):
    root = shutil.copytree(dataset, tmp_path / "copy")
    second = ingest_faces(root)
    assert second["unchanged"]
    assert second["skipped_shards"] == second["shards"]
    (root / "train-00001.parquet").write_bytes(b"damage")
    repaired = ingest_faces(root)
    assert repaired["skipped_shards"] == repaired["shards"] - 1
    assert repaired["digest"] == second["digest"]
    assert read_files(root) == read_files(dataset)


@pytest.mark.usefixtures("in_process")
def test_changed_options_are_refused_and_leave_the_dataset_unchanged(tmp_path: Path):
    options = {"crop": "0.50", "encoding": "jpeg", "quality": 80, "split": "hash"}
    result = ingest_faces(tmp_path, **options)
    stored = load_manifest(FS, str(tmp_path)).options
    assert (stored["crop"], stored["quality"], stored["split"], stored["encoding"]) == ("0.5", 80, "hash", "jpeg")
    equal_options = options | {"crop": ".5", "split": None}
    assert ingest_faces(tmp_path, **equal_options)["digest"] == result["digest"]
    files = read_files(tmp_path)
    for option, value in (
        ("crop", "square"),
        ("crop", "1,2,20,20"),
        ("quality", 81),
        ("encoding", "raw"),
        ("size", 28),
        ("seed", 1),
    ):
        changed = options | {option: value} | ({"quality": None} if value == "raw" else {})
        key = "source" if option == "seed" else option
        with pytest.raises(ValueError, match=rf"already holds a dataset \(generated\) with another .*{key}"):
            ingest_faces(tmp_path, **changed)
    assert read_files(tmp_path) == files


@pytest.mark.parametrize("encoding", ["jpeg", "png", "raw"])
@pytest.mark.parametrize(("crop", "box"), [("0.5", slice(8, 24)), ("4,4,16,16", slice(4, 20))])
@pytest.mark.usefixtures("in_process")
def test_crop_selects_the_pixels(tmp_path: Path, encoding: str, crop: str, box: slice):
    write_zip_with_bad_images(tmp_path / "set.zip")
    options = {"size": 16, "crop": crop, "encoding": encoding, "max_bad": 2}
    ingest("folder", str(tmp_path / "set.zip"), str(tmp_path / "to"), **options)
    for name, pixels in read_train_images(tmp_path / "to"):
        expected = draw_face(0, int(name[:2]), 32)[0][box, box]
        assert np.abs(pixels.astype(int) - expected).mean() < (5 if encoding == "jpeg" else 1e-9)


@pytest.mark.usefixtures("in_process")
def test_crop_box_outside_the_images_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"bad images, 0 allowed .*0,0,33,33.* 32 x 32 pixels"):
        ingest_faces(tmp_path / "to", crop="0,0,33,33")
    assert not (tmp_path / "to").exists()


def interrupt_after_two_shards(done: int, total: int) -> None:
    if done > 16:
        raise KeyboardInterrupt


@pytest.mark.usefixtures("ray_cluster")
def test_interrupted_run_resumes(tmp_path: Path, dataset: Path):
    with pytest.raises(KeyboardInterrupt):
        ingest_faces(tmp_path, progress=interrupt_after_two_shards)
    assert not (tmp_path / "manifest.json").exists()
    assert ingest_faces(tmp_path)["skipped_shards"] >= 2
    assert read_files(tmp_path) == read_files(dataset)


@pytest.mark.usefixtures("in_process")
def test_interrupted_run_with_other_options_is_discarded(tmp_path: Path, dataset: Path):
    with pytest.raises(KeyboardInterrupt):
        ingest_faces(tmp_path, shard_rows=8, progress=interrupt_after_two_shards)
    # Killed between a shard and its record.
    next(path for path in tmp_path.glob(".ingest/*.parquet.json") if "00001" in path.name).unlink()
    (tmp_path / "train-00099.parquet").write_bytes(b"")
    ingest_faces(tmp_path)
    assert read_files(tmp_path) == read_files(dataset)


def write_images(folder: Path, value: int) -> None:
    """Write images whose files have the same length, whatever `value` their pixels have."""
    folder.mkdir(exist_ok=True)
    for i in range(40):
        (folder / f"{i:02d}.ppm").write_bytes(b"P6 16 16 255\n" + bytes([value]) * 768)


def write_parquet(folder: Path, value: int) -> None:
    folder.mkdir(exist_ok=True)
    images = [b"P6 16 16 255\n" + bytes([value]) * 768] * 40
    pq.write_table(pa.table({"image": images, "age": [value] * 40}), folder / "all.parquet", compression="none")


@pytest.mark.parametrize(("kind", "write"), [("folder", write_images), ("parquet", write_parquet)])
@pytest.mark.usefixtures("in_process")
def test_images_edited_before_an_ingest_resumes_are_read_again(tmp_path: Path, kind: str, write):
    source, root = tmp_path / "source", tmp_path / "to"
    options: dict[str, Any] = {"size": 16, "shard_rows": 8, "split": "hash"}
    write(source, 10)
    fingerprint = open_source(kind, SourceOptions(str(source))).fingerprint
    with pytest.raises(KeyboardInterrupt):
        ingest(kind, str(source), str(root), progress=interrupt_after_two_shards, **options)
    for shard in root.glob("*.parquet"):  # file systems keep times of coarse steps
        os.utime(shard, (0, shard.stat().st_mtime - 1))
    write(source, 200)
    assert open_source(kind, SourceOptions(str(source))).fingerprint == fingerprint
    assert ingest(kind, str(source), str(root), **options)["skipped_shards"] == 0
    assert {int(pixels[0, 0, 0]) for _, pixels in read_train_images(root)} == {200}


@pytest.mark.usefixtures("in_process")
def test_images_newer_than_their_dataset_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    source, root = tmp_path / "source", tmp_path / "to"
    write_images(source, 10)
    os.utime(source / "01.ppm", (2**32, 2**32))  # a wrong clock
    assert not ingest("folder", str(source), str(root), size=16)["unchanged"]
    assert ingest("folder", str(source), str(root), size=16)["unchanged"]
    assert not caplog.records
    write_images(source / "..", 0)
    os.replace(tmp_path / "07.ppm", source / "07.ppm")
    for _ in range(2):
        caplog.clear()
        assert ingest("folder", str(source), str(root), size=16)["unchanged"]
        assert "is older than 1 images of its source, such as 07.ppm; if they were edited, read them" in caplog.text


@pytest.mark.usefixtures("in_process")
def test_a_target_with_shards_of_no_ingest_is_refused(tmp_path: Path, dataset: Path):
    """Such as the source itself."""
    shutil.copy(dataset / "train-00000.parquet", tmp_path)
    files = read_files(tmp_path)
    for target in (tmp_path, f"{tmp_path}/../{tmp_path.name}/"):
        with pytest.raises(ValueError, match=r"holds train-00000.parquet, which this ingest would overwrite: choose"):
            ingest("parquet", str(tmp_path), str(target), size=32, split="hash")
    assert read_files(tmp_path) == files


@pytest.mark.usefixtures("in_process")
def test_the_lock_is_held_until_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    locked = []

    def check_lock(*arguments: Any) -> Manifest:
        manifest = finish(*arguments)
        with pytest.raises(LockedError):
            ingest_faces(tmp_path / "to")
        locked.append(True)
        return manifest

    finish = job._finish
    monkeypatch.setattr(job, "_finish", check_lock)
    ingest_faces(tmp_path / "to")
    assert locked
    assert not [path for path in (tmp_path / "to").iterdir() if path.name.startswith(".")]


def write_zip_with_bad_images(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(40):
            archive.writestr(f"{i:02d}.png", encode_image(draw_face(0, i, 32)[0], "png"))
        archive.writestr("05.png.jpg", b"<html>")
        archive.writestr("empty.png", b"")


@pytest.mark.usefixtures("ray_cluster")
def test_bad_images_are_named_and_nothing_is_written(tmp_path: Path):
    write_zip_with_bad_images(tmp_path / "bad.zip")
    root = tmp_path / "to"
    with pytest.raises(ValueError, match=r"bad images?, 0 allowed .*(05\.png\.jpg: |empty\.png: )"):
        ingest("folder", str(tmp_path / "bad.zip"), str(root), size=32, shard_rows=8)
    assert not root.exists()


@pytest.mark.usefixtures("in_process")
def test_bad_images_up_to_max_bad_are_skipped_and_listed(tmp_path: Path):
    write_zip_with_bad_images(tmp_path / "bad.zip")
    root = tmp_path / "to"
    options: dict[str, Any] = {"size": 32, "shard_rows": 8, "max_bad": 2}
    first, second = (ingest("folder", str(tmp_path / "bad.zip"), str(root), **options) for _ in range(2))
    assert first["rejects"] == second["rejects"] == 2
    assert first["digest"] == second["digest"]
    assert second["unchanged"]
    assert sum(first["counts"].values()) == 40
    rejects = (root / "rejects.jsonl").read_text()
    assert "05.png.jpg" in rejects
    assert "empty (0 bytes)" in rejects


@pytest.mark.parametrize("lost", ["rejects.jsonl", "train-00000.parquet", "rejected"])
@pytest.mark.usefixtures("in_process")
def test_repair_without_max_bad_allows_the_bad_images_that_the_dataset_lists(tmp_path: Path, lost: str):
    write_zip_with_bad_images(tmp_path / "bad.zip")
    root = tmp_path / "to"
    options: dict[str, Any] = {"size": 32, "shard_rows": 8}
    ingest("folder", str(tmp_path / "bad.zip"), str(root), max_bad=2, **options)
    files = read_files(root)
    rejected = json.loads(files["rejects.jsonl"].splitlines()[0])["shard"]
    (root / lost.replace("rejected", rejected)).unlink()
    assert ingest("folder", str(tmp_path / "bad.zip"), str(root), **options)["rejects"] == 2
    assert read_files(root) == files


@pytest.mark.usefixtures("in_process")
def test_refused_repair_deletes_no_shard_of_the_dataset(tmp_path: Path):
    """An image of the same length is no other source, but does not decode any more."""
    for i in range(40):
        (tmp_path / f"{i:02d}.png").write_bytes(encode_image(draw_face(0, i, 32)[0], "png"))
    root = tmp_path / "to"
    ingest("folder", str(tmp_path), str(root), size=32, shard_rows=8)
    shard = load_manifest(FS, str(root)).splits["train"][1]
    name = Dataset.open(FS, str(root)).read_shard(shard)["name"][0].as_py()
    (tmp_path / name).write_bytes(bytes((tmp_path / name).stat().st_size))
    (root / shard.path).write_bytes(b"damage")
    files = set(read_files(root))
    with pytest.raises(ValueError, match="1 bad images, 0 allowed"):
        ingest("folder", str(tmp_path), str(root), size=32, shard_rows=8)
    assert files <= set(read_files(root))


@pytest.mark.usefixtures("in_process")
def test_failing_storage_is_reported_in_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write to"):
        ingest_faces(tmp_path / "file" / "set")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 4}, "size must be 8 to 2048"),
        ({"shard_rows": 0}, "shard_rows"),
        ({"max_bad": -1}, "max_bad"),
        ({"encoding": "webp"}, "jpeg, png, raw"),
        ({"quality": 0}, "quality must be 1 to 100"),
        ({"quality": 101}, "quality must be 1 to 100"),
        ({"quality": 90, "encoding": "png"}, "quality applies to jpeg, but the images are encoded as png"),
        ({"quality": 90}, "encoded as png: omit it or choose jpeg"),  # the default at 32 pixels
        ({"crop": "round"}, "crop takes square, a fraction over 0 up to 1, or left,top,width,height"),
        ({"split": "random"}, "one of official, identity, hash"),
        ({"split": "identity"}, "this source has no identities"),
        ({"split": "official"}, "this source has no official splits"),
        ({"download": True}, "--download takes mnist"),
    ],
)
@pytest.mark.usefixtures("in_process")
def test_invalid_options_are_refused(tmp_path: Path, options: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ingest_faces(tmp_path / "to", **options)
    assert not (tmp_path / "to").exists()


@pytest.mark.real
@pytest.mark.skipif(not TEST_DATA.exists(), reason=f"no official data sets at {TEST_DATA} (ZPOINT_TEST_DATA)")
@pytest.mark.usefixtures("ray_cluster")
def test_celeba_has_the_official_split_and_identities(tmp_path: Path):
    result = ingest("celeba", str(TEST_DATA / "celeba"), str(tmp_path), limit=300)
    assert result["counts"] == {"train": 239, "valid": 29, "test": 32}
    dataset = Dataset.open(FS, str(tmp_path))
    assert "identity" in dataset.read_shard(dataset.shards("train")[0]).column_names


@pytest.mark.usefixtures("in_process")
def test_target_that_another_ingest_writes_is_refused(tmp_path: Path):
    """Without the lock the second would delete the first one's shards, since its options differ."""
    target, refusals = str(tmp_path / "faces"), []

    def ingest_again(done: int, total: int) -> None:
        for uri in (target, f"{target}/", f"file://{target}"):
            with pytest.raises(LockedError, match=f"is being written by pid {os.getpid()} .*, or choose another --to"):
                ingest("generated", None, uri, limit=16, size=16)
            refusals.append(uri)

    ingest("generated", None, target, limit=32, size=16, progress=ingest_again)
    assert len(refusals) >= 3
    assert not [path for path in Path(target).iterdir() if path.name.startswith(".")]


@pytest.mark.usefixtures("in_process")
def test_ingest_prints_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog):
    source, picture = tmp_path / "source", encode_image(draw_face(0, 0, 16)[0], "png")
    for name in (
        *(f"train/class {i:02d}/{'n' * 90}{j}.png" for i in range(12) for j in range(3)),
        "val/class 00/0.png",
    ):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(picture)
    for name in (".DS_Store", "README.md", *(f"train/class 00/{i}.xml" for i in range(20))):
        (source / name).write_text("text")
    arguments = ["ingest", "folder", f"--source={source}", "--to", str(tmp_path / "to"), "--size", "16"]
    with pytest.raises(SystemExit, match="0"):
        main(arguments)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines()[1:])) <= 80
    for line in (
        r"splits        train \d+, valid 1, test \d+",
        r"split rule    official: the folders train/, val/; test drawn from train",
        r"classes       12: class 00, class 01,",
        r"passed over   1 hidden: .DS_Store\n +21 text: README.md, train/class 00/0.xml",
    ):
        assert re.search(line, text), text
    with pytest.raises(SystemExit, match="0"):
        main([*arguments, "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["split_rule"].startswith("official: the folders train/, val/")
    assert result["classes"]["count"] == 12
    assert {reason: names["count"] for reason, names in result["passed_over"].items()} == {"hidden": 1, "text": 21}
    assert not caplog.records


@pytest.mark.usefixtures("in_process")
def test_classes_of_some_images_are_counted(tmp_path: Path):
    images = [encode_image(draw_face(0, i, 16)[0], "png") for i in range(12)]
    pq.write_table(pa.table({"image": images, "class": [0, 1, None] * 4}), tmp_path / "all.parquet")
    result = ingest("parquet", str(tmp_path), str(tmp_path / "to"), size=16, split="hash")
    assert result["classes"] == {"count": 2, "first": ["0", "1"]}


@pytest.mark.usefixtures("in_process")
def test_ingest_warns_if_more_is_passed_over_than_read(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(encode_image(draw_face(0, i, 16)[0], "png"))
    for i in range(9):
        (tmp_path / f"{i}.jxl").write_bytes(b"\0\0\0\x0cJXL \r\n\x87\n")
    ingest("folder", str(tmp_path), str(tmp_path / "to"), size=16)
    assert "9 entries passed over, 3 images read: no JPEG XL decoder" in caplog.text


@pytest.mark.usefixtures("in_process")
def test_ingest_warns_if_it_reads_fewer_images_than_masks(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "masks").mkdir()
    for name in ("1", "masks/a", "masks/b"):
        (tmp_path / f"{name}.png").write_bytes(encode_image(draw_face(0, 0, 16)[0], "png"))
    ingest("folder", str(tmp_path), str(tmp_path / "to"), size=16, split="hash")
    assert "2 entries passed over, 1 images read: mask" in caplog.text
