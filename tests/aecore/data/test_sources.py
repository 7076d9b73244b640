import gzip
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from aecore.data.images import decode_image, encode_image
from aecore.data.sources import Source, SourceOptions, open_source
from aecore.data.splits import SPLITS
from aecore.data.synthetic_faces import draw_face

REAL = Path(os.environ.get("ZPOINT_TEST_DATA", Path(__file__).parents[4] / "shared" / "data"))
needs_real = pytest.mark.skipif(not REAL.exists(), reason=f"no real data at {REAL} (ZPOINT_TEST_DATA)")


def counts(source: Source) -> tuple[int, ...]:
    assert tuple(source.splits) == SPLITS
    return tuple(table.num_rows for table in source.splits.values())


def names(source: Source, split: str) -> list[str]:
    return source.splits[split]["name"].to_pylist()


def write_celeba(folder: Path, count: int = 12) -> None:
    with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as archive:
        for i in range(count):
            archive.writestr(f"img_align_celeba/{i:06d}.jpg", encode_image(draw_face(0, i)[0], "jpeg"))
    lines = [f"{i:06d}.jpg {i % 3}" for i in range(count)]
    (folder / "list_eval_partition.txt").write_text("\n".join(lines))
    (folder / "identity_CelebA.txt").write_text("\n".join(f"{i:06d}.jpg {i * 7}" for i in range(count)))
    attributes = [f"{i:06d}.jpg  {1 if i % 2 else -1} -1" for i in range(count)]
    (folder / "list_attr_celeba.txt").write_text("\n".join([str(count), "Smiling Young ", *attributes]))


def test_celeba_in_its_official_layout(tmp_path: Path):
    write_celeba(tmp_path)
    source = open_source("celeba", SourceOptions(str(tmp_path)))
    assert counts(source) == (4, 4, 4)
    assert names(source, "valid") == ["000001.jpg", "000004.jpg", "000007.jpg", "000010.jpg"]
    table = source.splits["valid"]
    assert table["identity"].to_pylist() == [7, 28, 49, 70]
    assert table["Smiling"].to_pylist() == [1, 0, 1, 0]
    data = source.reader.read("000007.jpg")
    assert isinstance(data, bytes)
    assert np.abs(decode_image(data).astype(int) - draw_face(0, 7)[0]).mean() < 5
    assert pickle.loads(pickle.dumps(source.reader)).read("000007.jpg") == data


def test_celeba_zip_folder_and_torchvision_root_are_equal(tmp_path: Path):
    folder = tmp_path / "celeba"
    folder.mkdir()
    write_celeba(folder)
    by_root = open_source("celeba", SourceOptions(str(tmp_path)))
    by_zip = open_source("celeba", SourceOptions(str(folder / "img_align_celeba.zip")))
    assert by_root.fingerprint == by_zip.fingerprint
    with zipfile.ZipFile(folder / "img_align_celeba.zip") as archive:
        archive.extractall(folder)
    by_folder = open_source("celeba", SourceOptions(str(folder / "img_align_celeba")))
    assert by_folder.splits == by_zip.splits
    assert by_folder.reader.read("000002.jpg") == by_zip.reader.read("000002.jpg")


def test_the_split_rule_can_be_chosen(tmp_path: Path):
    write_celeba(tmp_path, 40)
    lines = [f"{i:06d}.jpg {i // 3}" for i in range(40)]  # three images per person
    (tmp_path / "identity_CelebA.txt").write_text("\n".join(lines))
    by_identity = open_source("celeba", SourceOptions(str(tmp_path), split="identity"))
    assert by_identity.rule == "identity"
    identities = [set(table["identity"].to_pylist()) for table in by_identity.splits.values()]
    assert sum(map(len, identities)) == len(set.union(*identities)) == 14
    official = open_source("celeba", SourceOptions(str(tmp_path)))
    assert official.rule == "official"
    assert official.fingerprint == by_identity.fingerprint
    assert open_source("celeba", SourceOptions(str(tmp_path), split="hash")).splits["test"] != official.splits["test"]
    (tmp_path / "identity_CelebA.txt").unlink()
    (tmp_path / "list_eval_partition.txt").unlink()
    with pytest.raises(ValueError, match="has no identities"):
        open_source("celeba", SourceOptions(str(tmp_path), split="identity"))
    with pytest.raises(ValueError, match="has no official splits"):
        open_source("celeba", SourceOptions(str(tmp_path), split="official"))


def test_celeba_lists_of_other_images_are_refused(tmp_path: Path):
    write_celeba(tmp_path)
    (tmp_path / "list_eval_partition.txt").write_text("000000.jpg 0\n")
    with pytest.raises(ValueError, match=r"list_eval_partition.txt does not list the image 000001.jpg"):
        open_source("celeba", SourceOptions(str(tmp_path)))


def write_idx(folder: Path, count: int, *, packed: bool = False) -> None:
    folder.mkdir(parents=True)
    for stem in ("train", "t10k"):
        pixels = np.arange(count * 784, dtype=np.uint32).astype(np.uint8).tobytes()
        images = struct.pack(">4sIII", b"\0\0\x08\x03", count, 28, 28) + pixels
        labels = struct.pack(">4sI", b"\0\0\x08\x01", count) + bytes(i % 10 for i in range(count))
        for name, data in ((f"{stem}-images-idx3-ubyte", images), (f"{stem}-labels-idx1-ubyte", labels)):
            path = folder / (f"{name}.gz" if packed else name)
            path.write_bytes(gzip.compress(data) if packed else data)


@pytest.mark.parametrize(
    ("name", "header", "shapes"),
    [
        ("train-images-idx3-ubyte", struct.pack(">4sII", b"\0\0\x08\x02", 20, 784), r"\(20, 784\) and labels \(20,\)"),
        ("train-labels-idx1-ubyte", struct.pack(">4sI", b"\0\0\x08\x01", 19), r"\(20, 28, 28\) and labels \(19,\)"),
    ],
)
def test_idx_files_of_other_shapes_are_refused(tmp_path: Path, name: str, header: bytes, shapes: str):
    write_idx(tmp_path / "raw", 20)
    count = 20 * 784 if "images" in name else 19
    (tmp_path / "raw" / name).write_bytes(header + bytes(count))
    with pytest.raises(ValueError, match=f"shapes of train images {shapes} do not match"):
        open_source("mnist", SourceOptions(str(tmp_path)))


@pytest.mark.parametrize("packed", [False, True])
def test_mnist_from_root_or_folder(tmp_path: Path, packed: bool):
    write_idx(tmp_path / "MNIST" / "raw", 40, packed=packed)
    source = open_source("mnist", SourceOptions(str(tmp_path)))
    assert (source.channels, source.size) == (1, 28)
    assert counts(source)[2] == 40
    assert sum(counts(source)[:2]) == 40
    assert counts(source)[1] >= 1
    assert source.fingerprint == open_source("mnist", SourceOptions(str(tmp_path / "MNIST"))).fingerprint
    pixels = source.reader.read(names(source, "test")[3])
    assert isinstance(pixels, np.ndarray)
    assert pixels.shape == (28, 28, 1)
    assert pixels[0, 0, 0] == 3 * 784 % 256
    assert source.splits["test"]["label"][13].as_py() == 3


def test_mnist_cut_short_is_refused(tmp_path: Path):
    write_idx(tmp_path / "raw", 5)
    path = tmp_path / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="cut short"):
        open_source("mnist", SourceOptions(str(tmp_path)))


def write_cifar(folder: Path, extra: object = None) -> None:
    folder.mkdir()
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        batch = {b"data": np.full((4, 3072), 7, np.uint8), b"labels": [1, 2, 3, 4], b"extra": extra}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))


def test_cifar10_is_read_and_a_pickle_with_code_is_refused(tmp_path: Path):
    write_cifar(tmp_path / "cifar-10-batches-py")
    source = open_source("cifar10", SourceOptions(str(tmp_path)))
    assert counts(source)[2] == 4
    assert (source.channels, source.size) == (3, 32)
    pixels = source.reader.read(names(source, "test")[0])
    assert isinstance(pixels, np.ndarray)
    assert pixels.shape == (32, 32, 3)
    write_cifar(tmp_path / "evil", extra=os.getcwd)
    with pytest.raises(ValueError, match=r"it would run posix.getcwd"):
        open_source("cifar10", SourceOptions(str(tmp_path / "evil")))


@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_5", "test_batch"])
def test_cifar10_without_one_of_its_batches_is_refused(tmp_path: Path, name: str):
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing|holds no {name}"):
        open_source("cifar10", SourceOptions(str(tmp_path)))


def write_images(folder: Path, paths: list[str]) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(encode_image(np.zeros((4, 4, 3), np.uint8), "png"))


def test_folder_with_splits_and_classes(tmp_path: Path):
    write_images(tmp_path, [f"set/{s}/{c}/{i}.png" for s in ("train", "val", "test") for c in "ba" for i in "12"])
    write_images(tmp_path, ["__MACOSX/set/x.png", "set/.hidden.png"])
    source = open_source("folder", SourceOptions(str(tmp_path)))
    assert counts(source) == (4, 4, 4)
    assert names(source, "valid")[0] == "val/a/1.png"
    assert source.splits["train"]["class"].to_pylist() == ["a", "a", "b", "b"]
    assert source.splits["train"]["label"].to_pylist() == [0, 0, 1, 1]


def test_a_folder_without_splits_is_split_by_name(tmp_path: Path):
    write_images(tmp_path / "photos", [f"{i}.png" for i in range(200)])
    source = open_source("folder", SourceOptions(str(tmp_path)))
    assert sum(counts(source)) == 200
    assert 8 <= counts(source)[1] <= 32
    assert 8 <= counts(source)[2] <= 32
    assert "label" not in source.splits["train"].column_names
    (tmp_path / "photos" / "0.png").unlink()  # the others keep their split
    fewer = open_source("folder", SourceOptions(str(tmp_path)))
    assert set(names(fewer, "valid")) == set(names(source, "valid")) - {"0.png"}


def test_a_tiny_folder_has_every_split(tmp_path: Path):
    write_images(tmp_path, [f"{i}.png" for i in range(5)])
    assert min(counts(open_source("folder", SourceOptions(str(tmp_path))))) >= 1


def test_a_limit_keeps_the_proportions_of_the_splits(tmp_path: Path):
    write_images(tmp_path, [f"train/{i:03d}.png" for i in range(60)] + [f"test/{i}.png" for i in range(20)])
    full = open_source("folder", SourceOptions(str(tmp_path)))
    limited = open_source("folder", SourceOptions(str(tmp_path), limit=20))
    assert sum(counts(limited)) == 20
    assert counts(limited)[2] == 5
    assert set(names(limited, "train")) < set(names(full, "train"))
    assert names(limited, "train") == sorted(names(limited, "train"))


def test_generated_faces():
    source = open_source("generated", SourceOptions(limit=50, seed=5, size=32))
    assert sum(counts(source)) == 50
    name = names(source, "valid")[0]
    pixels = source.reader.read(name)
    np.testing.assert_array_equal(pixels, draw_face(5, int(name), 32)[0])
    assert 0 <= source.splits["valid"]["skin"][0].as_py() <= 1


@pytest.mark.parametrize(
    ("dataset", "content", "match"),
    [
        ("nothing", None, "unknown dataset 'nothing'; it is one of celeba"),
        ("celeba", None, "does not exist; --source takes CelebA's folder"),
        ("celeba", b"PK\x03\x04 cut", "is not a complete zip file"),
        ("folder", b"", "is not a complete zip file"),
        ("mnist", b"x", "holds no train-labels-idx1-ubyte"),
    ],
)
def test_a_wrong_source_is_refused(tmp_path: Path, dataset: str, content: bytes | None, match: str):
    path = tmp_path / "source.zip"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=match):
        open_source(dataset, SourceOptions(str(path)))


def test_wrong_options_are_refused(tmp_path: Path):
    for options, match in (
        (SourceOptions(), "--source is missing"),
        (SourceOptions(str(tmp_path / "no")), "does not exist"),
        (SourceOptions(str(tmp_path)), "holds no images"),
        (SourceOptions(str(tmp_path), limit=0), "limit must be at least 1"),
    ):
        with pytest.raises(ValueError, match=match):
            open_source("folder", options)
    with pytest.raises(ValueError, match="leave --source out"):
        open_source("generated", SourceOptions(str(tmp_path)))


def test_a_damaged_zip_member_is_a_bad_image(tmp_path: Path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", b"0123456789" * 100)
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    source = open_source("folder", SourceOptions(str(path)))
    with pytest.raises(ValueError, match=r"the zip member cannot be read: Bad CRC-32"):
        source.reader.read("a.png")


def test_an_encrypted_or_lzma_zip_member_is_a_bad_image(tmp_path: Path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", b"0123456789" * 100, zipfile.ZIP_LZMA)
        archive.writestr("b.png", b"0123456789" * 100)
        archive.writestr("c.png", b"0123456789" * 100, zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2", data.index(b"PK\1\2") + 1) + 8] |= 1  # flags of the second member in the zip's list
    path.write_bytes(data)
    reader = open_source("folder", SourceOptions(str(path))).reader
    for name, match in (("a.png", "compression 14 is neither stored nor deflate"), ("b.png", "is encrypted")):
        with pytest.raises(ValueError, match=f"the zip member.*{match}"):
            reader.read(name)
    assert reader.read("c.png") == b"0123456789" * 100


def test_a_pickled_zip_reader_is_small_and_reads(tmp_path: Path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(1000):
            archive.writestr(f"{i:03d}.png", bytes([i % 256]) * i)
    reader = open_source("folder", SourceOptions(str(path))).reader
    packed = pickle.dumps(reader)
    assert len(packed) < 1000
    assert pickle.loads(packed).read("400.png") == bytes([400 % 256]) * 400


@pytest.mark.real
@needs_real
@pytest.mark.parametrize(
    ("dataset", "path", "total"),
    [
        ("celeba", "celeba", 6000),
        ("mnist", "", 12000),
        ("fashion_mnist", "FashionMNIST", 12000),
        ("folder", "cifar10-folder.zip", 3000),
    ],
)
def test_real_sets(dataset: str, path: str, total: int):
    source = open_source(dataset, SourceOptions(str(REAL / path)))
    assert sum(counts(source)) == total
    first = source.reader.read(names(source, "train")[0])
    assert (decode_image(first) if isinstance(first, bytes) else first).shape[2] == source.channels
