"""`zpoint data`: the statistics and pictures of a dataset, and the verification of its shards."""

import json
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from PIL import Image

from aecore.data.images import encode_image
from aecore.data.shards import Manifest, save_manifest, shard_table, write_shard
from aecore.data.synthetic_faces import draw_face
from jobs.cli import main
from jobs.commands.data import show, verify

FS = pafs.LocalFileSystem()
FACES = np.stack([draw_face(0, i, 16)[0] for i in range(80)])  # the images of the fixture `faces`


def test_show_returns_exact_statistics_and_writes_two_pictures(faces: Path, tmp_path: Path, zpoint):
    out = tmp_path / "deep" / "pictures"
    facts = zpoint("data", "show", faces, "--out", out)
    assert [facts["splits"][split]["images"] for split in ("train", "valid", "test")] == [48, 16, 16]
    assert facts["splits"]["train"]["bytes"] == sum(p.stat().st_size for p in faces.glob("train*"))
    assert (facts["size"], facts["channels"], facts["encoding"]) == (16, 3, "png")
    assert facts["digest"] == json.loads((faces / "manifest.json").read_text())["digest"]
    assert facts["mean"] == pytest.approx(FACES.mean((0, 1, 2)), abs=1e-3)
    assert facts["sd"] == pytest.approx(FACES.std((0, 1, 2)), abs=1e-3)
    mean = np.asarray(Image.open(out / "mean-image.png"))
    assert (mean == np.rint(FACES.mean(0))).all()
    sheet = np.asarray(Image.open(out / "contact-sheet.png"))
    for first, row in ((0, 0), (47, 2)):  # all of train, 16 per row
        left, top = 8 + 18 * (first % 16), 22 + 18 * row
        assert (sheet[top : top + 16, left : left + 16] == FACES[first]).all()


def test_show_writes_its_pictures_to_s3(faces: Path, zpoint, s3: str):
    facts = zpoint("data", "show", faces, "--out", f"{s3}/pictures")
    assert facts["contact_sheet"] == f"{s3}/pictures/contact-sheet.png"
    for key in ("contact-sheet.png", "mean-image.png"):
        png = boto3.client("s3").get_object(Bucket=s3[5:], Key=f"pictures/{key}")["Body"].read()
        assert png.startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="the bucket 'no-such-bucket' does not exist"):
        show(str(faces), "s3://no-such-bucket/pictures")


def test_show_of_gray_images(tmp_path: Path):
    gray = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((40, 8, 8, 1), np.uint8)
    table = shard_table(pa.table({"name": [str(i) for i in range(40)]}), [encode_image(g, "raw") for g in gray])
    splits = {"train": (write_shard(FS, str(tmp_path), "train-00000.parquet", table),), "valid": (), "test": ()}
    manifest = Manifest(dataset="x", options={}, size=8, channels=1, encoding="raw", splits=splits)
    save_manifest(FS, str(tmp_path), manifest)
    facts = show(str(tmp_path), str(tmp_path))
    assert facts["mean"] == [19.5]
    assert facts["sd"] == [round(float(gray.std()), 3)]
    assert Image.open(facts["mean_image"]).size == (8, 8)


def test_an_intact_dataset_verifies(faces: Path, zpoint):
    calls = []
    assert verify(str(faces), progress=lambda done, total: calls.append((done, total)))["bad"] == []
    assert calls == [(16, 80), (32, 80), (48, 80), (64, 80), (80, 80)]
    result = zpoint("data", "verify", faces)
    assert (result["shards"], result["images"], result["exit_status"]) == (5, 80, 0)


def damage(faces: Path) -> None:
    changed = bytearray((faces / "train-00001.parquet").read_bytes())
    changed[len(changed) // 2] ^= 1
    (faces / "train-00001.parquet").write_bytes(changed)
    (faces / "train-00002.parquet").write_bytes(b"short")
    (faces / "test-00000.parquet").unlink()


def test_each_bad_shard_is_listed_and_the_exit_status_is_one(faces: Path, capsys: pytest.CaptureFixture[str]):
    damage(faces)
    with pytest.raises(SystemExit) as caught:
        main(["data", "verify", str(faces)])
    assert caught.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    for name, reason in (
        ("train-00001.parquet", "is damaged: its sha256 differs"),
        ("train-00002.parquet", "has 5 bytes, not"),
        ("test-00000.parquet", "is missing"),
    ):
        assert any(name in line and reason in line for line in lines), (name, lines)
    assert lines[-1].endswith("5 shards, 80 images: 3 bad")


def test_show_names_a_damaged_shard_and_writes_nothing(faces: Path, tmp_path: Path):
    damage(faces)
    with pytest.raises(ValueError, match=r"train-00001.parquet is damaged"):
        show(str(faces), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def replace_shard(faces: Path, images: list[bytes], rows: int) -> None:
    """Replace a shard by one with a correct digest and wrong content."""
    content = json.loads((faces / "manifest.json").read_text())
    content.pop("digest")
    manifest = Manifest.model_validate(content)
    table = shard_table(pa.table({"name": [str(i) for i in range(len(images))]}), images)
    shard = write_shard(FS, str(faces), "valid-00000.parquet", table).model_copy(update={"rows": rows})
    save_manifest(FS, str(faces), manifest.model_copy(update={"splits": manifest.splits | {"valid": (shard,)}}))


def test_rows_that_are_missing_or_do_not_decode_are_reported(faces: Path):
    face = encode_image(FACES[0], "png")
    replace_shard(faces, [face] * 15, 16)
    assert verify(str(faces))["bad"][0]["reason"] == "shard valid-00000.parquet has 15 rows, not 16"
    replace_shard(faces, [face] * 15 + [b"rubbish"], 16)
    assert "row 15 does not decode" in verify(str(faces))["bad"][0]["reason"]


def test_a_damaged_manifest_is_bad_and_a_missing_one_is_refused(faces: Path, refused, tmp_path: Path):
    text = (faces / "manifest.json").read_text()
    (faces / "manifest.json").write_text(text.replace('"rows": 16', '"rows": 17', 1))
    result = verify(str(faces))
    assert result["exit_status"] == 1
    assert "its digest does not match" in result["bad"][0]["reason"]
    for command in ("show", "verify"):
        assert "manifest.json is missing" in refused("data", command, tmp_path / "nothing")


def test_show_and_verify_on_s3(faces: Path, s3: str, tmp_path: Path):
    client = boto3.client("s3")
    for path in faces.iterdir():
        client.upload_file(str(path), s3[5:], f"sets/faces/{path.name}")
    local = show(str(faces), str(tmp_path / "a"))
    remote = show(f"{s3}/sets/faces", str(tmp_path / "b"))
    assert (remote["digest"], remote["mean"]) == (local["digest"], local["mean"])
    assert (tmp_path / "a/contact-sheet.png").read_bytes() == (tmp_path / "b/contact-sheet.png").read_bytes()
    assert verify(f"{s3}/sets/faces")["bad"] == []
    client.delete_object(Bucket=s3[5:], Key="sets/faces/train-00000.parquet")
    assert [file["shard"] for file in verify(f"{s3}/sets/faces")["bad"]] == ["train-00000.parquet"]
