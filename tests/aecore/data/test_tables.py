"""Images in tables: Hugging Face's Parquet, MNIST as CSV, as IDX with Kaggle's names, and as images in folders."""

import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from aecore.data import readers
from aecore.data.images import decode_image, encode_image
from aecore.data.readers import load_csv
from aecore.data.remote_path import RemotePath
from aecore.data.sources import Source, SourceOptions, open_source
from tests.aecore.data.test_sources import write_idx


def counts(source: Source) -> tuple[int, ...]:
    return tuple(table.num_rows for table in source.splits.values())


def picture(value: int, size: int = 8) -> bytes:
    return encode_image(np.full((size, size, 3), value, np.uint8), "png")


def write_parquet(path: Path, values: range, column: str = "image", **columns) -> None:
    """Write a file as Hugging Face's datasets do, three images in a row group, the label of image i being i % 2."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": picture(value), "path": f"{value}.png"} for value in values]
    table = pa.table({column: images, "label": [value % 2 for value in values], **columns})
    features = {column: {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=3)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("data/train-0000{}-of-00002.parquet", "data/validation-00000-of-00001-0a1b2c.parquet"),
        ("default/train/000{}.parquet", "default/dev/0000.parquet"),
        ("train{}.parquet", "val.parquet"),
    ],
)
def test_parquet_of_hugging_face(tmp_path: Path, train: str, test: str):
    write_parquet(tmp_path / train.format(0), range(7), Smiling=[True] * 7, celeb_id=list(range(7)), text=["x"] * 7)
    write_parquet(tmp_path / train.format(1), range(7, 9), Smiling=[False] * 2, celeb_id=[7, 8], text=["x"] * 2)
    write_parquet(tmp_path / test, range(9, 12), Smiling=[False] * 3, celeb_id=[9, 10, 11], text=["x"] * 3)
    (tmp_path / "README.md").write_text("a card")
    source = open_source("parquet", SourceOptions(str(tmp_path)))
    assert source.split_text == "official: the names of the Parquet files; test drawn from train, a tenth of it each"
    assert counts(source)[1] == 3
    reader = pickle.loads(pickle.dumps(source.reader))
    for table in source.splits.values():
        assert table.column_names == ["name", "label", "Smiling", "identity", "class"]
        for row in table.to_pylist():
            assert decode_image(reader.read(row["name"]))[0, 0, 0] == row["identity"]
            assert (row["label"], row["class"]) == (row["identity"] % 2, ["cat", "dog"][row["identity"] % 2])
            assert row["Smiling"] == (row["identity"] < 7)
    assert source.passed_over == {"not Parquet": ["README.md"]}
    assert source.notes == ["columns that are not read: text"]
    assert "ingest parquet" in refusal("folder", tmp_path)
    assert "ingest parquet" in refusal("celeba", tmp_path)


def refusal(dataset: str, path: Path) -> str:
    with pytest.raises(ValueError, match=path.name) as caught:
        open_source(dataset, SourceOptions(str(path)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_parquet_without_splits_labels_or_a_struct(tmp_path: Path):
    pq.write_table(pa.table({"img": [picture(1), picture(2), None]}), tmp_path / "all.parquet")
    source = open_source("parquet", SourceOptions(str(tmp_path), split="hash"))
    assert sum(counts(source)) == 3
    assert source.reader.read("all/000001") == picture(2)
    with pytest.raises(ValueError, match="its row holds no bytes"):
        source.reader.read("all/000002")
    pq.write_table(pa.table({"img": pa.array([picture(1)] * 3, pa.large_binary())}), tmp_path / "all.parquet")
    assert sum(counts(open_source("parquet", SourceOptions(str(tmp_path))))) == 3


def test_parquet_with_classes_as_text(tmp_path: Path):
    images, classes = [{"bytes": picture(i)} for i in range(9)], ["dog", "cat", "dog"] * 3
    pq.write_table(pa.table({"image": images, "label": classes}), tmp_path / "all.parquet")
    splits = open_source("parquet", SourceOptions(str(tmp_path))).splits
    rows = [row for table in splits.values() for row in table.to_pylist()]
    assert sorted((row["name"], row["class"], row["label"]) for row in rows) == [
        (f"all/{i:06d}", name, int(name == "dog")) for i, name in enumerate(classes)
    ]


def read_columns(path: Path, **columns) -> dict[str, list]:
    """Return the columns that `parquet` reads beside those of nine images, in the order of the images."""
    images = [{"bytes": picture(i)} for i in range(9)]
    pq.write_table(pa.table({"photo": images, **columns}), path / "all.parquet")
    tables = open_source("parquet", SourceOptions(str(path))).splits.values()
    table = pa.concat_tables(list(tables)).sort_by("name").drop_columns("name")
    assert len(set(table.column_names)) == table.num_columns
    return table.to_pydict()


CLASSES = ["dog", "cat", "dog"] * 3
LABELS = [int(name == "dog") for name in CLASSES]


@pytest.mark.parametrize("name", ["label", "class"])
@pytest.mark.parametrize(
    "column",
    [
        pa.array(CLASSES),
        pa.array(CLASSES).dictionary_encode(),  # pandas' Categorical
        pa.array(CLASSES).dictionary_encode().cast(pa.dictionary(pa.int8(), pa.large_string())),
        pa.array(CLASSES, pa.large_string()),
        pa.array(CLASSES, pa.string_view()),
    ],
    ids=lambda column: str(column.type),
)
def test_parquet_with_classes_in_each_type_of_text(tmp_path: Path, name: str, column: pa.Array):
    assert read_columns(tmp_path, **{name: column}) == {"label": LABELS, "class": CLASSES}


def test_parquet_of_zpoint_keeps_its_classes(tmp_path: Path):
    assert read_columns(tmp_path, label=LABELS, **{"class": CLASSES}) == {"label": LABELS, "class": CLASSES}
    with pytest.raises(ValueError, match="1 of 9 images have no label, such as all/000008"):
        read_columns(tmp_path, label=LABELS, **{"class": [*CLASSES[:8], None]})


@pytest.mark.parametrize(
    ("columns", "read"),
    [
        ({"label": CLASSES, "class": LABELS}, {"label": LABELS, "class": CLASSES}),
        ({"label": CLASSES, "class": ["pet"] * 9}, {"label": LABELS, "class": CLASSES}),
        ({"label": LABELS, "class": LABELS}, {"label": LABELS}),
        ({"age": LABELS, "image": LABELS, "name": LABELS}, {"age": LABELS}),
        ({"celeb_id": LABELS, "identity": list(range(9))}, {"identity": LABELS}),
        ({"age": pa.array(LABELS).dictionary_encode()}, {"age": LABELS}),
    ],
)
def test_parquet_gives_each_column_once(tmp_path: Path, columns: dict, read: dict):
    assert read_columns(tmp_path, **columns) == read


def test_parquet_with_two_columns_of_one_name_is_refused(tmp_path: Path):
    images = [{"bytes": picture(i)} for i in range(3)]
    table = pa.table([images, [1, 2, 3], [4, 5, 6]], ["image", "age", "age"])
    pq.write_table(table, tmp_path / "all.parquet")
    assert "there are two columns age; rename or remove one" in refusal("parquet", tmp_path)


def test_parquet_with_names_of_labels_that_are_no_integers(tmp_path: Path):
    write_parquet(tmp_path / "all.parquet", range(9))
    table = pq.read_table(tmp_path / "all.parquet")
    pq.write_table(table.set_column(1, "label", table["label"].cast(pa.float32())), tmp_path / "all.parquet")
    assert open_source("parquet", SourceOptions(str(tmp_path))).splits["train"].column_names == ["name", "label"]


@pytest.mark.parametrize("labels", [[0, 1, -1], [0, None, 1], ["cat", None, "dog"]])
def test_parquet_with_some_labels_is_refused(tmp_path: Path, labels: list):
    pq.write_table(
        pa.table({"image": [{"bytes": picture(i)} for i in range(3)], "label": labels}), tmp_path / "a.parquet"
    )
    missing = next(i for i, label in enumerate(labels) if label in (-1, None))
    assert f"1 of 3 images have no label, such as a/00000{missing}: move" in refusal("parquet", tmp_path)


def test_parquet_with_numbers_as_labels_is_read(tmp_path: Path):
    table = pa.table({"image": [{"bytes": picture(i)} for i in range(3)], "label": [-0.5, 0.0, 1.5]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert sum(counts(open_source("parquet", SourceOptions(str(tmp_path))))) == 3


def test_parquet_without_rows_is_refused(tmp_path: Path):
    images = pa.array([], pa.struct([("bytes", pa.binary())]))
    pq.write_table(pa.table({"image": images}), tmp_path / "train.parquet")
    assert "the Parquet files have no rows" in refusal("parquet", tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "holds no Parquet files"),
        (("train.parquet", "extra.parquet"), "extra.parquet name no split, but other files do"),
        (("digits/train/0.parquet", "numbers/train/0.parquet"), "several configurations .* such as digits, numbers"),
    ],
)
def test_ambiguous_parquet_is_refused(tmp_path: Path, files: tuple[str, ...], message: str):
    for file in files:
        write_parquet(tmp_path / file, range(3))
    with pytest.raises(ValueError, match=message):
        open_source("parquet", SourceOptions(str(tmp_path)))


def test_damaged_or_differing_parquet_is_refused(tmp_path: Path):
    write_parquet(tmp_path / "train.parquet", range(3))
    write_parquet(tmp_path / "test.parquet", range(3), column="photo")
    assert "test.parquet" in refusal("parquet", tmp_path)
    (tmp_path / "test.parquet").write_bytes(b"PAR1 cut")
    assert "damaged Parquet" in refusal("parquet", tmp_path)
    (tmp_path / "test.parquet").unlink()
    write_parquet(tmp_path / "train.parquet", range(3), mask=[{"bytes": b""}] * 3, column="photo")
    assert "one column of images is needed" in refusal("parquet", tmp_path)


def write_csv(path: Path, count: int, *, header: bool, labels: bool = True) -> None:
    names = (["label"] if labels else []) + [f"pixel{i}" for i in range(784)]
    rows = [([str(i % 10)] if labels else []) + [str((i + j) % 256) for j in range(784)] for i in range(count)]
    path.write_text("\n".join(",".join(row) for row in ([names] if header else []) + rows))


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize(("dataset", "stem"), [("mnist", "mnist_"), ("fashion_mnist", "fashion-mnist_"), ("mnist", "")])
def test_mnist_as_csv(tmp_path: Path, dataset: str, stem: str, header: bool):
    for subset, count in (("train", 30), ("test", 5)):
        write_csv(tmp_path / f"{stem}{subset}.csv", count, header=header)
    source = open_source(dataset, SourceOptions(str(tmp_path)))
    assert (source.channels, source.size, counts(source)[2], sum(counts(source))) == (1, 28, 5, 35)
    pixels = source.reader.read(source.splits["test"]["name"][3].as_py())
    assert isinstance(pixels, np.ndarray)
    assert pixels.shape == (28, 28, 1)
    assert pixels.ravel()[:3].tolist() == [3, 4, 5]
    assert source.splits["test"]["label"].to_pylist() == [0, 1, 2, 3, 4]


def test_a_missing_test_csv_is_an_empty_split_of_the_same_shape(tmp_path: Path):
    write_csv(tmp_path / "train.csv", 40, header=True)
    images, labels = load_csv(RemotePath(LocalFileSystem(), str(tmp_path)), "test")
    assert (images.shape, images.dtype, labels.shape) == ((0, 28, 28, 1), np.uint8, (0,))


def test_kaggles_csv_without_labels_is_refused_and_train_alone_is_split(tmp_path: Path):
    write_csv(tmp_path / "train.csv", 40, header=True)
    write_csv(tmp_path / "test.csv", 5, header=True, labels=False)
    assert "test.csv has 784 columns, not a label and 784 pixels; a test set without labels" in refusal(
        "mnist", tmp_path
    )
    (tmp_path / "test.csv").unlink()
    source = open_source("mnist", SourceOptions(str(tmp_path)))
    assert sum(counts(source)) == 40
    assert min(counts(source)) >= 1
    (tmp_path / "train.csv").write_text("label," + ",".join(["x"] * 784) + "\n" + ",".join(["300"] * 785))
    assert "whole numbers from 0 to 255" in refusal("mnist", tmp_path)


@pytest.mark.parametrize("field", ["", '""', "NA"])
def test_a_csv_without_a_pixel_is_refused(tmp_path: Path, field: str):
    (tmp_path / "train.csv").write_text(",".join(["1"] * 785) + "\n" + ",".join(["1"] * 784 + [field]) + "\n")
    assert "train.csv must hold whole numbers from 0 to 255" in refusal("mnist", tmp_path)


@pytest.mark.parametrize("name", ["class", "Label", " label"])
def test_csv_with_the_labels_last(tmp_path: Path, name: str):
    """As OpenML's MNIST: without a header that says so, the first column of pixels would be the labels."""
    rows = [",".join(["0"] * 784 + [str(i % 10)]) for i in range(30)]
    header = ",".join([*(f"pixel{i}" for i in range(1, 785)), name])
    (tmp_path / "mnist_train.csv").write_text("\n".join([header, *rows]))
    table = open_source("mnist", SourceOptions(str(tmp_path))).splits["train"]
    assert set(table["label"].to_pylist()) == set(range(10))
    for text in ("\n".join(rows), "\n".join([header.replace(name, "y"), *rows])):
        (tmp_path / "mnist_train.csv").write_text(text)
        assert "mnist_train.csv has the labels in its last column: put them first" in refusal("mnist", tmp_path)


def test_mnist_as_images_has_the_digits_as_labels(tmp_path: Path):
    for subset in ("training", "testing"):
        for digit in (3, 7):
            for i in range(4):
                path = tmp_path / "mnist_png" / subset / str(digit) / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encode_image(np.full((28, 28, 1), digit, np.uint8), "png"))
    source = open_source("mnist", SourceOptions(str(tmp_path)))
    assert (source.channels, source.size, counts(source)[2]) == (1, 28, 8)
    assert source.splits["test"]["label"].to_pylist() == [3] * 4 + [7] * 4
    (tmp_path / "mnist_png" / "testing" / "7").rename(tmp_path / "mnist_png" / "testing" / "seven")
    assert "must be 0 to 9, not 3, 7, seven; use `zpoint ingest folder" in refusal("mnist", tmp_path)


def test_idx_files_with_kaggles_names(tmp_path: Path):
    write_idx(tmp_path / "raw", 20)
    official = open_source("mnist", SourceOptions(str(tmp_path)))
    for path in (tmp_path / "raw").iterdir():
        path.rename(tmp_path / path.name.replace("-idx", ".idx"))
    (tmp_path / "raw").rmdir()
    assert open_source("mnist", SourceOptions(str(tmp_path))).splits == official.splits


def test_cifar_as_images_is_refused_with_the_command_that_reads_it(tmp_path: Path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "1.png").write_bytes(picture(1))
    assert "`zpoint ingest folder --size 32`" in refusal("cifar10", tmp_path)


def test_sources_over_the_limits_of_size_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also those that are small until they are read: compressed, or by the name of an S3 object."""
    limit = 100_000
    monkeypatch.setattr(readers, "MAX_FILE_BYTES", limit)
    monkeypatch.setattr(readers, "MAX_TABLE_BYTES", 3 * limit // 2)
    (tmp_path / "a.png").write_bytes(bytes(limit + 1))
    remote = RemotePath(SubTreeFileSystem(str(tmp_path), LocalFileSystem()), "")
    for folder in (RemotePath(LocalFileSystem(), str(tmp_path)), remote):
        with pytest.raises(ValueError, match="100,001 bytes, over the limit of 100,000"):
            readers.FileReader(folder).read("a.png")
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(2 * limit)))
    with pytest.raises(ValueError, match=r"train-images.*over the limit of 150,000"):
        readers.load_idx(remote, "train")
    (tmp_path / "mnist_train.csv").write_bytes(bytes(2 * limit))
    with pytest.raises(ValueError, match=r"mnist_train\.csv.*over the limit of 150,000"):
        load_csv(remote, "train")
    (tmp_path / "test_batch").write_bytes(bytes(2 * limit))
    with pytest.raises(ValueError, match=r"test_batch.*over the limit of 150,000"):
        readers.load_cifar(remote, "test")
    pq.write_table(pa.table({"image": [bytes(limit + 1), b"x"]}), tmp_path / "one.parquet", compression="zstd")
    many = pa.table({"image": [bytes(limit // 2)] * 4})
    pq.write_table(many, tmp_path / "many.parquet", compression="zstd", use_dictionary=False)
    assert (tmp_path / "one.parquet").stat().st_size < 10_000
    parquet = readers.ParquetReader(RemotePath(LocalFileSystem(), str(tmp_path)), "image", "")
    for name, reason in {"one/0": "100,001 bytes, over the limit of 100,000", "many/0": "row group.*150,000"}.items():
        with pytest.raises(ValueError, match=reason):
            parquet.read(name)
    assert parquet.read("one/1") == b"x"


@pytest.mark.parametrize("in_struct", [False, True])
def test_images_of_an_arrow_dictionary_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_struct: bool):
    """Before, the dictionary counted for each batch of rows."""
    monkeypatch.setattr(readers, "MAX_TABLE_BYTES", 100_000)
    images = [bytes([i]) * 1500 for i in range(20)]
    column: pa.Array = pa.array(images).dictionary_encode()
    if in_struct:
        column = pa.StructArray.from_arrays([column, pa.array(["x"] * 20).dictionary_encode()], ["bytes", "path"])
    pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet")
    parquet = readers.ParquetReader(RemotePath(LocalFileSystem(), str(tmp_path)), "image", "")
    assert [parquet.read(f"a/{i}") for i in range(20)] == images


@pytest.mark.parametrize("encoding", ["dictionary", "prefixes"])
@pytest.mark.parametrize("in_struct", [False, True])
def test_a_row_group_that_stores_an_image_of_many_rows_once_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str, in_struct: bool
):
    limit, image = 100_000, picture(1) * 200
    assert limit // 10 < len(image) < limit // 2
    monkeypatch.setattr(readers, "MAX_TABLE_BYTES", limit)
    column = pa.array([{"bytes": image, "path": ""}] * 2000 if in_struct else [image] * 2000)
    options = {} if encoding == "dictionary" else {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"}
    for name, rows in {"many": 2000, "few": 3}.items():
        pq.write_table(pa.table({"image": column[:rows]}), tmp_path / f"{name}.parquet", **options)
    assert (tmp_path / "many.parquet").stat().st_size < limit
    reader = readers.ParquetReader(RemotePath(LocalFileSystem(), str(tmp_path)), "image", "")
    rows: list[int] = []

    class CountingFile(pq.ParquetFile):
        def iter_batches(self, *args, **options):
            for batch in super().iter_batches(*args, **options):
                rows.append(len(batch))
                yield batch

    monkeypatch.setattr(pq, "ParquetFile", CountingFile)
    with pytest.raises(ValueError, match=r"its row group, decoded, is over the limit of 100,000 bytes"):
        reader.read("many/1999")
    assert 0 < sum(rows) * len(image) < 3 * limit
    assert reader.read("few/2") == image
