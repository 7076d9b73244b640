"""CelebA as people have it: each form is read with the official split and attributes, or refused by name."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from aecore.data.images import encode_image
from aecore.data.sources import Source, SourceOptions, open_source

JPEG = encode_image(np.zeros((8, 8, 3), np.uint8), "jpeg")
COUNT = 6
ATTRIBUTES = ("5_o_Clock_Shadow", "Smiling", "Young")


def numbers() -> list[str]:
    return [f"{i + 1:06d}" for i in range(COUNT)]


def signs(index: int) -> list[str]:
    return ["1" if (index >> bit) & 1 else "-1" for bit in range(3)]


def txt_lists() -> dict[str, str]:
    rows = list(enumerate(numbers()))
    attributes = [f"{number}.jpg {' '.join(f'{sign:>2}' for sign in signs(i))}" for i, number in rows]
    return {
        "list_eval_partition.txt": "".join(f"{number}.jpg {i % 3}\n" for i, number in rows),
        "list_attr_celeba.txt": "\n".join([str(COUNT), " ".join(ATTRIBUTES) + " ", *attributes, ""]),
        "identity_CelebA.txt": "".join(f"{number}.jpg {i // 2}\n" for i, number in rows),
    }


def csv_lists(newline: str = "\n") -> dict[str, str]:
    rows = list(enumerate(numbers()))
    partition = ["image_id,partition", *(f"{number}.jpg,{i % 3}" for i, number in rows)]
    attributes = [",".join(["image_id", *ATTRIBUTES]), *(",".join([f"{n}.jpg", *signs(i)]) for i, n in rows)]
    return {
        "list_eval_partition.csv": newline.join(partition),
        "list_attr_celeba.csv": newline.join(attributes),
        "list_bbox_celeba.csv": "image_id,x_1,y_1,width,height",
    }


def write(root: Path, images: str, lists: dict[str, str], suffix: str = "jpg") -> Path:
    """Write images into the folder `images` of `root`, and `lists` by their paths below `root`."""
    for number in numbers():
        path = root / images / f"{number}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(JPEG)
    for name, text in lists.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def pack(folder: Path, path: Path) -> Path:
    files = sorted(folder.rglob("*"))
    with zipfile.ZipFile(path, "w") as archive:
        for file in files:
            archive.write(file, file.relative_to(folder))
    return path


def kaggle_folder(root: Path) -> Path:
    return write(root, "img_align_celeba/img_align_celeba", csv_lists())


def kaggle_zip(root: Path) -> Path:
    return pack(kaggle_folder(root / "unpacked"), root / "archive.zip")


def kaggle_inner_folder(root: Path) -> Path:
    return kaggle_folder(root) / "img_align_celeba" / "img_align_celeba"


def kaggle_windows(root: Path) -> Path:
    return write(root, "img_align_celeba/img_align_celeba", {k: "\ufeff" + v for k, v in csv_lists("\r\n").items()})


def edited_on_windows(root: Path) -> Path:
    lists = {name: "\ufeff" + text.replace("\n", "\r\n") for name, text in txt_lists().items()}
    return write(root / "My Data (1)", "img_align_celeba", lists)


def torchvision_root(root: Path) -> Path:
    write(root / "celeba", "img_align_celeba", txt_lists())
    (root / "MNIST").mkdir()
    return root


def official(root: Path) -> Path:
    folders = {"list_eval_partition.txt": "Eval/", "list_attr_celeba.txt": "Anno/", "identity_CelebA.txt": "Anno/"}
    write(root, "Img/img_align_celeba", {folders[name] + name: text for name, text in txt_lists().items()})
    pack(root / "Img", root / "Img" / "img_align_celeba.zip")
    return root


def aligned_png(root: Path) -> Path:
    return write(root, "Img/img_align_celeba_png.7z/img_align_celeba_png", txt_lists(), "png")


def in_the_wild(root: Path) -> Path:
    return write(root, "img_celeba", txt_lists())


def zipped_root(root: Path) -> Path:
    return pack(torchvision_root(root / "unpacked"), root / "celeba.zip")


def aligned_and_in_the_wild(root: Path) -> Path:
    write(root / "all", "celeba/img_celeba", {})
    return pack(torchvision_root(root / "all"), root / "all.zip")


def linked(root: Path) -> Path:
    kaggle_folder(root / "store")
    (root / "celeba").symlink_to("store")
    return root


def renamed_folder(root: Path) -> Path:
    return write(root, "faces", txt_lists()) / "faces"


FORMS = [
    kaggle_folder, kaggle_zip, kaggle_inner_folder, kaggle_windows, edited_on_windows, torchvision_root, official,
    aligned_png, in_the_wild, zipped_root, aligned_and_in_the_wild, linked, renamed_folder,
]  # fmt: skip


def open_celeba(path: Path, **options) -> Source:
    return open_source("celeba", SourceOptions(str(path), **options))


@pytest.mark.parametrize("form", FORMS)
def test_each_form_has_the_official_split_and_the_attributes(tmp_path: Path, form: Callable[[Path], Path]):
    source = open_celeba(form(tmp_path))
    assert source.rule == "official"
    assert source.split_text.startswith("official: list_eval_partition.")
    for index, table in enumerate(source.splits.values()):
        assert [Path(name).stem for name in table["name"].to_pylist()] == numbers()[index::3]
        for bit, attribute in enumerate(ATTRIBUTES):
            assert table[attribute].to_pylist() == [(i >> bit) & 1 for i in range(index, COUNT, 3)]
    assert [source.reader.read(name) for name in source.splits["test"]["name"].to_pylist()] == [JPEG] * (COUNT // 3)
    assert ("identity" in source.splits["train"].column_names) == ("kaggle" not in form.__name__ and form != linked)


def test_what_is_read_is_noted(tmp_path: Path):
    assert open_celeba(in_the_wild(tmp_path / "a")).notes == [
        "img_celeba: the photos before their alignment", "6 of CelebA's 202,599 images",
    ]  # fmt: skip
    assert open_celeba(torchvision_root(tmp_path / "b")).notes == ["6 of CelebA's 202,599 images"]
    assert len(open_celeba(aligned_and_in_the_wild(tmp_path / "c")).passed_over["not in img_align_celeba"]) == COUNT


def write_files(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(JPEG if name.endswith((".jpg", ".png")) else b"PK\3\4")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("holiday.jpg", "cat/x.png"), "holds no CelebA: no img_align_celeba, but .*holiday.jpg|cat/x.png"),
        (("CelebA-HQ-img/0.jpg", "CelebA-HQ-img/29999.jpg"), "holds CelebA-HQ .*ingest folder"),
        (("00000.jpg", "00001.jpg"), "holds CelebA-HQ"),
        (("celeba_hq/train/female/000016.jpg", "celeba_hq/val/male/000004.jpg"), "holds CelebA-HQ"),
        (("img_align_celeba/000001.jpg",), r"no official splits: list_eval_partition.txt or .csv is missing.*--split"),
        (("data/train-00000-of-00019.parquet",), "holds no images .*ingest parquet"),
        (("Img/img_celeba.7z/img_celeba.7z.001", "archive.zip"), "holds no images .*archive.zip: name one zip"),
        ((), "holds no images"),
    ],
)
@pytest.mark.parametrize("with_list", [False, True])
def test_other_sets_are_refused_by_name(tmp_path: Path, files: tuple[str, ...], message: str, with_list: bool):
    write_files(tmp_path, *files)
    if with_list and "partition" not in message:
        (tmp_path / "list_eval_partition.txt").write_text("000001.jpg 0\n000002.jpg 1\n")
        message = message.replace("holds no CelebA", "(holds no CelebA|does not list the image)")
    with pytest.raises(ValueError, match=message) as caught:
        open_celeba(tmp_path)
    assert "\n" not in str(caught.value)


def test_images_outside_of_the_image_folder_are_passed_over(tmp_path: Path):
    folder = kaggle_folder(tmp_path / "unpacked")
    write_files(folder, "overview.jpg")
    source = open_celeba(pack(folder, tmp_path / "archive.zip"))
    assert sum(table.num_rows for table in source.splits.values()) == COUNT
    assert source.passed_over == {"not in img_align_celeba": ["overview.jpg"], "text": ["list_bbox_celeba.csv"]}


def test_without_the_list_a_split_must_be_chosen(tmp_path: Path):
    write(tmp_path, "img_align_celeba", {})
    assert open_celeba(tmp_path, split="hash").split_text == "hash: 80/10/10, drawn by a hash of the names"
    os.rename(tmp_path / "img_align_celeba", tmp_path / "img_align_celeba_png")
    assert open_celeba(tmp_path, split="hash").rule == "hash"


def csv(header: str, value: str) -> str:
    return "\n".join([header, *(f"{number}.jpg,{value}" for number in numbers())])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list_eval_partition.csv", "image_id,partition\n000001.jpg,0", r"the image 000002.jpg \(5 of 6 are missing\)"),
        ("list_eval_partition.csv", csv("", "3"), "a split must be 0, 1 or 2"),
        ("list_attr_celeba.csv", csv("image_id,a,b", "1"), "as many attribute names as columns"),
        ("list_attr_celeba.csv", csv("", "1"), "as many attribute names as columns"),
        ("list_attr_celeba.csv", csv("image_id,a", "yes"), "same number of integers"),
    ],
)
def test_wrong_lists_are_refused(tmp_path: Path, name: str, text: str, message: str):
    (kaggle_folder(tmp_path) / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        open_celeba(tmp_path)
