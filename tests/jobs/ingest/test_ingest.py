import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import pytest

from aecore.data.images import decode_rows, encode_image
from aecore.data.shards import load_manifest, read_shard
from aecore.data.synthetic_faces import draw_face
from jobs.ingest.job import ingest

REAL = Path(os.environ.get("ZPOINT_TEST_DATA", Path(__file__).parents[4] / "shared" / "data"))
FS = pafs.LocalFileSystem()

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def faces(to: Path, **options: Any) -> dict[str, Any]:
    chosen: dict[str, Any] = {"limit": 120, "size": 32, "shard_rows": 16}
    return ingest("generated", None, str(to), **(chosen | options))


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_same_source_gives_the_same_bytes_and_the_right_pixels(tmp_path: Path):
    seen = []
    result = faces(tmp_path / "a", progress=lambda done, total: seen.append((done, total)))
    assert faces(tmp_path / "b")["digest"] == result["digest"]
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert seen[-1] == (120, 120)
    assert seen[0] == (0, 120)  # once a worker is ready
    assert len(set(seen)) == 1 + result["shards"] > 4
    manifest = load_manifest(FS, str(tmp_path / "a"))
    assert manifest.digest == result["digest"]
    assert sum(result["counts"].values()) == 120
    table = read_shard(FS, str(tmp_path / "a"), manifest.splits["train"][0])
    out = np.empty((table.num_rows, 32, 32, 3), np.uint8)
    decode_rows(table["image"].to_pylist(), manifest.encoding, 32, 3, out)
    for pixels, name in zip(out, table["name"].to_pylist(), strict=True):
        assert (pixels == draw_face(0, int(name), 32)[0]).all()  # png: exact


def test_a_second_run_has_nothing_to_do_and_mends_a_damaged_shard(tmp_path: Path):
    first = faces(tmp_path)
    before = files(tmp_path)
    again = faces(tmp_path)
    assert again["unchanged"]
    assert again["skipped_shards"] == again["shards"]
    (tmp_path / "train-00001.parquet").write_bytes(b"damage")
    mended = faces(tmp_path)
    assert mended["skipped_shards"] == mended["shards"] - 1
    assert mended["digest"] == first["digest"]
    assert files(tmp_path) == before


def test_other_options_are_refused_and_change_nothing(tmp_path: Path):
    faces(tmp_path)
    before = files(tmp_path)
    with pytest.raises(ValueError, match=r"already holds another dataset \(generated, of another size\)"):
        faces(tmp_path, size=28)
    with pytest.raises(ValueError, match=r"of another source"):
        faces(tmp_path, seed=1)
    assert files(tmp_path) == before


def test_each_option_is_kept_in_the_manifest_and_another_choice_is_refused(tmp_path: Path):
    chosen = {"crop": "0.50", "encoding": "jpeg", "quality": 80, "split": "hash"}
    result = faces(tmp_path, **chosen)
    options = load_manifest(FS, str(tmp_path)).options
    assert (options["crop"], options["quality"], options["split"], options["encoding"]) == ("0.5", 80, "hash", "jpeg")
    assert faces(tmp_path, **chosen | {"crop": ".5", "split": None})["digest"] == result["digest"]  # the same choices
    before = files(tmp_path)
    for key, other in (("crop", "square"), ("crop", "1,2,20,20"), ("quality", 81), ("encoding", "raw")):
        wanted = chosen | {key: other} | ({"quality": None} if other == "raw" else {})
        with pytest.raises(ValueError, match=f"of another .*{key}"):
            faces(tmp_path, **wanted)
    assert files(tmp_path) == before


@pytest.mark.parametrize("encoding", ["jpeg", "png", "raw"])
@pytest.mark.parametrize(("crop", "part"), [("0.5", slice(8, 24)), ("4,4,16,16", slice(4, 20))])
def test_what_is_kept_is_what_the_crop_names(tmp_path: Path, encoding: str, crop: str, part: slice):
    write_bad_zip(tmp_path / "set.zip")
    options = {"size": 16, "crop": crop, "encoding": encoding, "max_bad": 2}
    ingest("folder", str(tmp_path / "set.zip"), str(tmp_path / "to"), **options)
    manifest = load_manifest(FS, str(tmp_path / "to"))
    table = read_shard(FS, str(tmp_path / "to"), manifest.splits["train"][0])
    out = np.empty((table.num_rows, 16, 16, 3), np.uint8)
    decode_rows(table["image"].to_pylist(), encoding, 16, 3, out)
    for pixels, name in zip(out, table["name"].to_pylist(), strict=True):
        wanted = draw_face(0, int(name[:2]), 32)[0][part, part]
        assert np.abs(pixels.astype(int) - wanted).mean() < (5 if encoding == "jpeg" else 1e-9)


def test_a_box_that_leaves_the_images_names_them(tmp_path: Path):
    with pytest.raises(ValueError, match=r"bad images, 0 allowed .*the crop 0,0,33,33 leaves its 32 x 32 pixels"):
        faces(tmp_path / "to", crop="0,0,33,33")
    assert not (tmp_path / "to").exists()


def stop_after_two(done: int, total: int) -> None:
    if done > 16:
        raise KeyboardInterrupt


def test_an_interrupted_run_goes_on(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        faces(tmp_path / "a", progress=stop_after_two)
    assert not (tmp_path / "a" / "manifest.json").exists()
    result = faces(tmp_path / "a")
    assert result["skipped_shards"] >= 2
    faces(tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_an_interrupted_run_with_other_options_is_dropped(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        faces(tmp_path / "a", shard_rows=8, progress=stop_after_two)
    faces(tmp_path / "a")
    faces(tmp_path / "b")
    assert set(files(tmp_path / "b")) <= set(files(tmp_path / "a"))
    assert (tmp_path / "a/manifest.json").read_bytes() == (tmp_path / "b/manifest.json").read_bytes()


def write_bad_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(40):
            archive.writestr(f"{i:02d}.png", encode_image(draw_face(0, i, 32)[0], "png"))
        archive.writestr("05.png.jpg", b"<html>")
        archive.writestr("empty.png", b"")


def test_bad_images_are_named_and_leave_nothing(tmp_path: Path):
    write_bad_zip(tmp_path / "bad.zip")
    to = tmp_path / "to"
    with pytest.raises(ValueError, match=r"bad images?, 0 allowed .*(05.png.jpg: it is not|empty.png: it is emp)"):
        ingest("folder", str(tmp_path / "bad.zip"), str(to), size=32, shard_rows=8)
    assert not to.exists()


def test_bad_images_up_to_max_bad_are_skipped_and_listed(tmp_path: Path):
    write_bad_zip(tmp_path / "bad.zip")
    to = tmp_path / "to"
    results = [ingest("folder", str(tmp_path / "bad.zip"), str(to), size=32, shard_rows=8, max_bad=2) for _ in range(2)]
    assert results[0]["rejects"] == results[1]["rejects"] == 2
    assert results[0]["digest"] == results[1]["digest"]
    assert results[1]["unchanged"]
    assert sum(results[0]["counts"].values()) == 40
    listed = (to / "rejects.jsonl").read_text()
    assert "05.png.jpg" in listed
    assert "it is empty (0 bytes)" in listed


def test_storage_that_fails_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write to"):
        faces(tmp_path / "file" / "set")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"size": 4}, "size must be 8 to 2048"),
        ({"shard_rows": 0}, "shard_rows"),
        ({"max_bad": -1}, "max_bad"),
        ({"encoding": "webp"}, "jpeg, png, raw"),
        ({"quality": 0}, "quality must be 1 to 100"),
        ({"quality": 101}, "quality must be 1 to 100"),
        ({"quality": 90, "encoding": "png"}, "quality is jpeg's, and these images become png"),
        ({"quality": 90}, "become png: leave it out or choose jpeg"),  # the default at 32 pixels
        ({"crop": "round"}, "crop takes square, a fraction over 0 up to 1, or left,top,width,height"),
        ({"split": "random"}, "one of official, identity, hash"),
        ({"split": "identity"}, "does not say who is on an image"),
        ({"split": "official"}, "names no split of its own"),
        ({"download": True}, "--download takes mnist"),
    ],
)
def test_wrong_options_are_refused(tmp_path: Path, options: dict, match: str):
    with pytest.raises(ValueError, match=match):
        faces(tmp_path / "to", **options)
    assert not (tmp_path / "to").exists()


@pytest.mark.real
@pytest.mark.skipif(not REAL.exists(), reason=f"no real data at {REAL} (ZPOINT_TEST_DATA)")
def test_real_faces(tmp_path: Path):
    result = ingest("celeba", str(REAL / "celeba"), str(tmp_path), limit=300)
    assert result["counts"] == {"train": 239, "valid": 29, "test": 32}
    assert "identity" in read_shard(FS, str(tmp_path), load_manifest(FS, str(tmp_path)).splits["train"][0]).column_names
