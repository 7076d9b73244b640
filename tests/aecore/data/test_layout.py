"""Layouts of image folders as people have them: each is read by the stated rule or refused (tests/cases.md)."""

import os
import time
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from aecore.data import images
from aecore.data.images import decode_image, encode_image, register_heif
from aecore.data.layout import Layout, read_layout, split_of
from aecore.data.readers import Item
from aecore.data.sources import Source, SourceOptions, open_source

PNG = encode_image(np.zeros((4, 4, 3), np.uint8), "png")


def make(*folders: str, count: int = 3) -> list[str]:
    """Return sorted names of `count` images in each of `folders`."""
    return sorted(f"{folder}/{i}.png" for folder in folders for i in range(count))


def read(names: list[str], folders: tuple[str, ...] = ()) -> Layout:
    parents = {"/".join(name.split("/")[:depth]) for name in names for depth in range(1, name.count("/") + 1)}
    return read_layout(sorted(names), {*folders, *parents})


@pytest.mark.parametrize(
    ("folders", "splits", "classes"),
    [
        (("train/a", "val/a", "test/a"), {"train": 3, "valid": 3, "test": 3}, {"a": 9}),
        (("Train/a", "TEST/a"), {"train": 3, "test": 3}, {"a": 6}),
        (("set/set/train/a", "set/set/dev/b/deep", "set/set/train/b"), {"train": 6, "valid": 3}, {"a": 3, "b": 6}),
        (("seg_train/seg_train/a", "seg_test/seg_test/a"), {"train": 3, "test": 3}, {"a": 6}),  # Kaggle's Intel scenes
        (("training_set/training_set/a", "test_set/test_set/a"), {"train": 3, "test": 3}, {"a": 6}),
        (("train2017", "val2017"), {"train": 3, "valid": 3}, None),  # COCO
        (("train/images", "valid/images"), {"train": 3, "valid": 3}, None),  # Roboflow
        (("a", "b/deep/deeper"), None, {"a": 3, "b": 3}),
        (("train_station", "train_interior"), None, {"train_station": 3, "train_interior": 3}),  # Places365
        (("train/bus", "train/train", "test/train", "test/bus"), {"train": 6, "test": 6}, {"bus": 6, "train": 6}),
        (("test",), {"test": 3}, None),
        (("train/A", "train/a", "test/A"), {"train": 6, "test": 3}, {"A": 6, "a": 3}),  # letters
        (("photos/2024",), None, None),
    ],
)
def test_layouts_that_the_rule_reads(folders: tuple[str, ...], splits: dict | None, classes: dict | None):
    layout = read(make(*folders))
    assert (layout.splits and Counter(layout.splits)) == splits
    assert (layout.classes and Counter(layout.classes)) == classes


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["overview.png", *make("train", "test")], "overview.png beside the split folders test/, train/; move"),
        (["logo.png", *make("cat", "dog")], "logo.png outside of the class folders cat/, dog/; move"),
        (make("train/cat", "test"), r"test/0.png, test/1.png, test/2.png outside of the class folders train/cat/"),
        (["train/sheet.png", *make("train/cat", "test/cat")], "train/sheet.png outside of the class folders"),
        (make("train", "test", "extra"), "test/, train/ name splits, but extra/ beside them do not; move extra/ away"),
        (make("seg_train/a", "seg_test/a", "seg_pred"), "seg_test/, seg_train/ name splits, but seg_pred/"),
        (make("bus", "car", "train"), "train/ name splits, but bus/, car/ .* rename train/ if they are classes"),
        (make("train", "val", "valid"), "val/, valid/ name the same split, valid; merge"),
        (make("Train", "train", "test"), "Train/, train/ name the same split, train"),
        (make("train/Cat", "test/cat"), "Cat/, cat/ spell one class in two ways"),
        (make("train/caf\u00e9", "test/cafe\u0301"), "spell one class in two ways"),
        (make("train/cat", "train/dog", "test/unknown"), "folders of test, unknown/, are none of train's, cat/, dog/"),
        (make("cat/train", "cat/test", "dog/train"), "split folders cat/test/, cat/train/, dog/train/ lie inside"),
        (make("x/x/train", "x/train"), "train/ name splits, but x/"),
        (make("thumbs", "thumbnails"), "all images are masks or thumbnails .*: thumbnails/0.png, .* 3 more; rename"),
        (make("image_masks", "mask_images"), "all images are masks or thumbnails of others"),
        (
            ["logo.png", *make("with_mask", "without_mask")],
            "logo.png outside of the class folders with_mask/, without_m",
        ),
        (["a.png", "1.png", *make("with_mask", "without_mask", count=4)], "1.png, a.png outside of the class folders"),
        (
            ["train/0_a.png", *make("with_mask", "without_mask")],
            "train/ name splits, but with_mask/, without_mask/ beside them do not",
        ),
    ],
)
def test_ambiguous_layouts_are_refused_and_the_files_named(names: list[str], message: str):
    with pytest.raises(ValueError, match=f"ambiguous layout: .*{message}") as caught:
        read(names)
    assert "\n" not in str(caught.value)


def test_a_split_folder_without_images_is_refused_and_an_empty_class_folder_listed():
    for folder in ("val", "VAL"):
        with pytest.raises(ValueError, match=f"split folder {folder}/ holds no images; fill it or remove it"):
            read(make("train", "test"), (folder,))
    assert read(make("cat", "dog"), ("bird",)).passed_over == {"empty folder": ["bird"]}
    assert read(make("train/cat", "test/cat"), ("train/dog", "train")).passed_over == {"empty folder": ["train/dog"]}


@pytest.mark.parametrize(
    ("names", "masks", "kept"),
    [
        (make("images", "masks"), 3, 3),
        (make("train", "train_masks", "test"), 3, 6),  # Carvana
        (make("train/good", "test/good", "ground_truth/bad"), 3, 6),  # MVTec AD
        (
            [
                "CelebA-HQ-img/0.jpg",
                "CelebA-HQ-img/12.jpg",
                "CelebAMask-HQ-mask-anno/0/00000_hair.png",
                "CelebAMask-HQ-mask-anno/0/00012_hair.png",
                "CelebAMask-HQ-mask-anno/0/00012_nose.png",
            ],
            3,
            2,
        ),
        (["train/a_1.jpg", "train/a_2.jpg", "train_masks/a_1_mask.gif", "train_masks/a_2_mask.gif"], 2, 2),  # Carvana
        (["images/img_1.jpg", "images/img_2.jpg", "image_masks/mask_1.jpg"], 1, 2),
        (["1.png", "2.png", "hair_masks/1.png", "hair_masks/x.png", "hair_masks/2.png"], 3, 2),
        (["benign/1.png", "benign/1_mask.png", "benign/1_mask_1.png", "normal/2.png"], 2, 2),  # BUSI
        (make("train/images", "train/masks", "test/images"), 3, 6),
        (["1.png", "2.png", "masks/1.png", "masks/2.png"], 2, 2),
        (make("face", "face_mask"), 0, 6),  # classes
        (make("mask_images"), 0, 3),  # the set itself
        (make("mask_images/a", "mask_images/b"), 0, 6),
        (make("with_mask", "without_mask"), 0, 6),
        (make("images/face_mask", "images/face"), 0, 6),
    ],
)
def test_masks_are_passed_over(names: list[str], masks: int, kept: int):
    layout = read(names)
    assert len(layout.passed_over.get("mask", [])) == masks
    assert len(layout.names) == kept
    assert not any("mask" in name.split("/")[0] for name in layout.classes or [] if masks)


def test_many_folders_of_masks_are_passed_over_in_linear_time():
    """A folder for each person, as medical sets have it; a product of folders and images would take minutes."""
    names = sorted(f"{i:04d}/{kind}/{j}.png" for i in range(4000) for kind in ("images", "masks") for j in range(2))
    start = time.process_time()
    assert len(read(names).passed_over["mask"]) == 8000
    names = sorted(f"{i:04d}_{kind}/{i}.png" for i in range(4000) for kind in ("img", "mask"))
    assert len(read(names).passed_over["mask"]) == 4000
    assert time.process_time() - start < 4


def test_thumbnails_are_passed_over():
    layout = read(make("cat", "cat/thumbs", "dog", "thumbnails"))
    assert Counter(layout.classes) == {"cat": 3, "dog": 3}
    assert len(layout.passed_over["thumbnail"]) == 6
    assert len(read(make("thumbnails/a", "thumbnails/b")).names) == 6  # the set itself


def test_a_class_of_one_split_is_noted():
    layout = read(make("train/good", "test/good", "test/broken"))
    assert layout.notes == ["test has classes that train lacks: broken"]


def test_split_words():
    words = ("train", "Training", "VAL", "seg_train", "val2017", "test-00000-of-00001", "dev.set", "test1")
    assert [split_of(word) for word in words] == ["train", "train", "valid", "train", "valid", "test", "valid", "test"]
    assert [split_of(word) for word in ("trains", "contest", "train_test", "")] == [None] * 4


def write(root: Path, *paths: str, content: bytes = PNG) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


def counts(source: Source) -> tuple[int, ...]:
    return tuple(table.num_rows for table in source.splits.values())


def read_items(source: Source, split: str) -> list[Item]:
    return [source.reader.read(name) for name in source.splits[split]["name"].to_pylist()]


def open_folder(path: Path) -> Source:
    return open_source("folder", SourceOptions(str(path)))


LITTER = (
    ".DS_Store", "train/Thumbs.db", "train/desktop.ini", "__MACOSX/train/._0.png", "train/.ipynb_checkpoints/0.png",
    "train/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg", ".git/objects/a.png", "$RECYCLE.BIN/0.png",
)  # fmt: skip


def test_litter_is_passed_over_alike_in_folders_and_zips(tmp_path: Path):
    write(tmp_path / "set", *make("train", "test"), *LITTER)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in (*make("train", "test"), *LITTER):
            archive.writestr(f"set/{name}", PNG)
    from_folder, from_zip = open_folder(tmp_path / "set"), open_folder(tmp_path / "set.zip")
    assert counts(from_folder) == counts(from_zip)
    assert sum(counts(from_folder)) == 6
    assert len(from_folder.passed_over["hidden"]) == len(from_zip.passed_over["hidden"]) == len(LITTER)


def test_a_zip_with_backslashes_has_its_splits_and_classes(tmp_path: Path):
    names = make("train/cat", "train/dog", "val/cat", "test/dog")
    write(tmp_path / "set", *names)
    with zipfile.ZipFile(tmp_path / "windows.zip", "w") as archive:
        archive.writestr("set\\train\\", b"")
        for name in names:
            archive.writestr("set\\" + name.replace("/", "\\"), PNG)
    source = open_folder(tmp_path / "windows.zip")
    assert source.splits == open_folder(tmp_path / "set").splits
    assert read_items(source, "valid") == [PNG] * 3


def test_files_that_python_unpacked_from_a_zip_with_backslashes_are_refused(tmp_path: Path):
    for name in make("train\\cat", "train\\dog"):
        (tmp_path / name.replace("/", "\\")).write_bytes(PNG)
    with pytest.raises(ValueError, match=r"train\\cat\\0.png has backslashes.*name the zip as --source") as caught:
        open_folder(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["set.tar.gz", "set.7z", "a.png"])
def test_another_file_than_a_zip_is_refused(tmp_path: Path, name: str):
    write(tmp_path, name)
    with pytest.raises(ValueError, match=f"{name} is neither a folder nor a zip; unpack other archives"):
        open_folder(tmp_path / name)


def test_a_set_on_a_remote_store_is_read_as_a_local_one(tmp_path: Path):
    write(tmp_path / "set", *make("train/cat", "train/dog", "test/cat"), ".DS_Store")
    local = open_folder(tmp_path / "set")
    remote = open_source("folder", SourceOptions("set", fs=SubTreeFileSystem(str(tmp_path), LocalFileSystem())))
    assert remote.splits == local.splits
    assert (remote.fingerprint, remote.passed_over) == (local.fingerprint, local.passed_over)


def test_a_set_without_a_train_split_is_noted(tmp_path: Path):
    write(tmp_path, *make("test"))
    assert counts(open_folder(tmp_path)) == (0, 0, 3)
    assert open_folder(tmp_path).notes == ["no images to train on"]


@pytest.mark.parametrize("start", ["./", "/", ".\\", "C:\\data\\", "../../", "set/./", "set/../set/"])
def test_zip_names_that_are_no_plain_relative_paths(tmp_path: Path, start: str):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in make("train", "val", "test"):
            archive.writestr(start + name, PNG)
    source = open_folder(tmp_path / "a.zip")
    assert counts(source) == (3, 3, 3)
    assert read_items(source, "train") == [PNG] * 3


def test_texts_beside_the_images_are_counted_and_named(tmp_path: Path):
    write(tmp_path, *make("cat", "dog"))
    write(tmp_path, "README", "labels.csv", "metadata.jsonl", "cat/0.txt", content=b"caf\xc3\xa9\n")
    write(tmp_path, "clip.mp4", "model.onnx", content=b"\0\1\2")
    passed_over = open_folder(tmp_path).passed_over
    assert passed_over == {
        "text": ["README", "cat/0.txt", "labels.csv", "metadata.jsonl"], "ending": ["clip.mp4", "model.onnx"],
    }  # fmt: skip


def test_linked_folders_and_files_are_read(tmp_path: Path):
    write(tmp_path / "elsewhere", *make("dogs", "held_out/cat", "held_out/dog"), "lone.png")
    write(tmp_path / "set", *make("train/cat"))
    (tmp_path / "set" / "train" / "dog").symlink_to(tmp_path / "elsewhere" / "dogs")
    (tmp_path / "set" / "val").symlink_to("../elsewhere/held_out")
    (tmp_path / "set" / "train" / "cat" / "link.png").symlink_to(tmp_path / "elsewhere" / "lone.png")
    (tmp_path / "linked").symlink_to("set")
    for path in (tmp_path / "set", tmp_path / "linked"):
        source = open_folder(path)
        assert counts(source)[1] == 6
        assert Counter(source.splits["train"]["class"].to_pylist()) + Counter(
            source.splits["test"]["class"].to_pylist()
        ) == {"cat": 4, "dog": 3}
        assert read_items(source, "valid") == [PNG] * 6


def test_broken_and_circular_links_are_named_and_end(tmp_path: Path):
    write(tmp_path, *make("cat", "dog"))
    (tmp_path / "cat" / "loop").symlink_to("..")
    (tmp_path / "cat" / "self").symlink_to("self")
    (tmp_path / "dog" / "gone.png").symlink_to("/nowhere/gone.png")
    source = open_folder(tmp_path)
    assert sum(counts(source)) == 6
    assert source.passed_over["link"] == ["cat/loop", "cat/self", "dog/gone.png"]
    (tmp_path / "bird").symlink_to("/nowhere/birds")
    assert open_folder(tmp_path).passed_over["empty folder"] == ["bird"]


def test_a_folder_that_a_link_repeats_is_noted(tmp_path: Path):
    write(tmp_path / "cycle", *make("a", "c"))
    (tmp_path / "cycle" / "a" / "b").symlink_to("../c")
    (tmp_path / "cycle" / "c" / "d").symlink_to("../a")
    source = open_folder(tmp_path / "cycle")
    assert sum(counts(source)) == 12  # each image under two paths, and the walk ends
    assert source.notes == ["a and c/d, a/b and c are one folder by a link, read twice"]
    assert source.passed_over["link"] == ["a/b/d", "c/d/b"]
    write(tmp_path / "leak", *make("train/cat"))
    (tmp_path / "leak" / "test").symlink_to("train")
    assert open_folder(tmp_path / "leak").notes[0].startswith("test and train, test/cat and train/cat are one folder")
    assert open_folder(tmp_path / "leak" / "train").notes == []


def test_a_broken_split_link_is_refused(tmp_path: Path):
    write(tmp_path, *make("train", "test"))
    (tmp_path / "val").symlink_to("/nowhere/val")
    with pytest.raises(ValueError, match="the split folder val/ holds no images"):
        open_folder(tmp_path)


def test_a_link_in_a_zip_is_counted(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in make("cat", "dog"):
            archive.writestr(name, PNG)
        link = zipfile.ZipInfo("cat/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "../dog/0.png")
    source = open_folder(tmp_path / "a.zip")
    assert sum(counts(source)) == 6
    assert source.passed_over == {"link": ["cat/link.png"]}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_with_a_name_twice_has_the_last_one_and_is_noted(tmp_path: Path):
    last = encode_image(np.full((4, 4, 3), 9, np.uint8), "png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, content in (("a.png", PNG), ("b.png", PNG), ("a.png", last)):
            archive.writestr(name, content)
    source = open_folder(tmp_path / "a.zip")
    assert sum(counts(source)) == 2
    assert source.passed_over == {"duplicate": ["a.png"]}
    assert source.reader.read("a.png") == last


@pytest.fixture
def without_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "register_heif", lambda: False)


@pytest.mark.usefixtures("without_heif")
def test_images_are_found_by_content(tmp_path: Path):
    picture = Image.new("RGB", (8, 8), "red")
    names = {
        "a.jfif": "JPEG", "b.JPE": "JPEG", "c": "PNG", "d.2019.05.12": "JPEG", "e.avif": "AVIF", "f.heic": "JPEG",
        "g.webp": "WEBP", "h": "TIFF", "i.dat": "BMP", "j": "GIF", "k.JP2": "JPEG2000", "l": "PPM",
    }  # fmt: skip
    for name, kind in names.items():
        picture.save(tmp_path / name, kind)
    source = open_folder(tmp_path)
    assert sum(counts(source)) == len(names)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name in names:
            archive.write(tmp_path / name, name)
    assert sum(counts(open_folder(tmp_path / "all.zip"))) == len(names)
    write(tmp_path, "x.heic", "y", content=b"\0\0\0\x24ftypheic\0\0\0\0mif1heic")
    write(tmp_path, "z", content=bytes(range(64)))
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    source = open_folder(tmp_path)
    assert sum(counts(source)) == len(names)
    assert source.passed_over == {
        "ending": ["all.zip"], "no HEIF decoder": ["x.heic", "y"], "content": ["z"], "device": ["pipe"],
    }  # fmt: skip


def test_heic_is_found_if_its_decoder_is_installed(tmp_path: Path):
    assert register_heif()
    for name in ("a.heic", "b", "c.HEIF"):
        Image.new("RGB", (64, 64), "red").save(tmp_path / name, "HEIF")
    source = open_folder(tmp_path)
    assert (sum(counts(source)), source.passed_over) == (3, {})
    assert decode_image(source.reader.read("a.heic")).mean((0, 1)) == pytest.approx([254, 0, 0], abs=4)


@pytest.mark.usefixtures("without_heif")
def test_a_folder_without_a_decodable_image_names_what_it_holds(tmp_path: Path):
    write(tmp_path, "a.heic", "b.HEIC", content=b"\0\0\0\x24ftypheic\0\0\0\0mif1heic")
    with pytest.raises(ValueError, match=r"no images \(passed over: 2 no HEIF decoder \(a.heic, b.HEIC\)\)"):
        open_folder(tmp_path)
    for name, way in (("train.zip", "name one zip"), ("data/t.parquet", "ingest parquet"), ("data_batch_1", "cifar10")):
        write(tmp_path / "other", name, content=b"PK")
        with pytest.raises(ValueError, match=way):
            open_folder(tmp_path / "other")
        (tmp_path / "other" / name).unlink()


def test_a_name_that_is_not_utf8_is_refused_by_name(tmp_path: Path):
    write(tmp_path, "a.png")
    (tmp_path / os.fsdecode(b"b\xe4r.png")).write_bytes(PNG)
    with pytest.raises(ValueError, match=r"the file name b\\xe4r.png is not UTF-8; rename"):
        open_folder(tmp_path)
    folder = tmp_path / "classes" / os.fsdecode(b"sm\xf8r")
    folder.mkdir(parents=True)
    (folder / "c.png").write_bytes(PNG)
    write(tmp_path / "classes", "other/d.png")
    with pytest.raises(ValueError, match=r"sm\\xf8r/c.png is not UTF-8"):
        open_folder(tmp_path / "classes")


def test_a_zip_name_that_is_not_utf8_is_refused_by_name(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("b\u00e4\u00e4r.png", PNG)
    data = (tmp_path / "a.zip").read_bytes().replace("\u00e4\u00e4".encode(), b"\xe4\xe4\xe4\xe4")
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.raises(ValueError, match=r"member whose name is not UTF-8: b\\xe4\\xe4\\xe4\\xe4r.png"):
        open_folder(tmp_path / "a.zip")


def test_odd_names_are_read(tmp_path: Path):
    names = ["100%.png", "a b#1?.png", "new\nline.png", "tab\t.png", f"{'long' * 60}.png", "\u00fc\u4e16.png", "~.png"]
    write(tmp_path, *names)
    source = open_folder(tmp_path)
    assert sum(counts(source)) == len(names)
    for split, table in source.splits.items():
        assert read_items(source, split) == [PNG] * table.num_rows
    write(tmp_path / "cat", "a.png")
    with pytest.raises(ValueError, match=r"100%\.png, a b#1"):
        open_folder(tmp_path)
    for name in names[:2]:
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=r"png, new\\nline\.png, tab\\t\.png and 2 more outside") as caught:
        open_folder(tmp_path)
    assert "\n" not in str(caught.value)
