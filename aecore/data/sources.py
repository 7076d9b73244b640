"""Sources of images: one function per dataset, listed in SOURCES at the end. Add a dataset there.

Such a function returns a `SourceListing`; `open_source` makes a `Source` of it that lists the items of each split.
Its reader is pickled to other processes, which read the items.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from aecore.data.celeba import check_numbering, find_celeba, parse_list
from aecore.data.download import check_downloadable, download
from aecore.data.file_tree import FileTree, list_tree
from aecore.data.io import sha256
from aecore.data.layout import read_layout
from aecore.data.parquet import read_parquet_columns
from aecore.data.readers import ARRAY_LOADERS, CSV_FILES, ArrayReader, FaceReader, ParquetReader, Reader
from aecore.data.remote_path import RemotePath
from aecore.data.splits import SPLITS, sample_splits, split_table
from aecore.data.synthetic_faces import face_factors
from aecore.errors import list_names

ARCHIVE_SUFFIXES = (".zip", ".7z", ".rar", ".tar", ".tar.gz", ".tgz")
NUM_CELEBA = 202_599
DEFAULT_NUM_FACES = 4000  # generated without a limit


@dataclass(frozen=True)
class SourceOptions:
    """The options of `zpoint ingest` that choose a source's items."""

    path: str | None = None
    limit: int | None = None
    seed: int = 0
    size: int | None = None
    split: str | None = None  # one of splits.RULES
    download: bool = False
    fs: pafs.FileSystem = field(default_factory=pafs.LocalFileSystem)  # of `path`


@dataclass(frozen=True, kw_only=True)
class SourceInfo:
    """The reader of a dataset's items, and facts about them."""

    reader: Reader
    channels: int
    size: int  # edge in pixels of the square images to make; in a listing, by default
    fingerprint: str  # equal for equal content, whatever its path
    notes: list[str] = field(default_factory=list)  # what a reader of the dataset should know
    passed_over: dict[str, list[str]] = field(default_factory=dict)  # entries of the source, by reason
    modified_ns: Callable[[str], int] = lambda name: 0  # of an item's file; 0 if the fingerprint has its content


@dataclass(frozen=True)
class SourceListing(SourceInfo):
    """All items of a dataset: column `name`, then the attributes of each item."""

    items: pa.Table
    official_splits: Sequence[str] | None  # of each item, if the source has splits
    split_origin: str = ""  # of the official splits: the folders or list that give them


@dataclass(frozen=True)
class Source(SourceInfo):
    """The items of each split."""

    splits: dict[str, pa.Table]  # all of SPLITS, in order; columns as in SourceListing
    rule: str  # of splits.RULES, as applied
    split_text: str  # the rule, and what gave the splits


def open_source(dataset: str, options: SourceOptions) -> Source:
    """List the items of `dataset`; with a limit, a fixed sample that keeps the proportions of the splits.

    Raises ValueError when the dataset is unknown, or its files are missing, damaged or empty.
    """
    if dataset not in SOURCES:
        raise ValueError(f"unknown dataset {dataset!r}; it is one of {', '.join(SOURCES)}")
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"limit must be at least 1, not {options.limit}")
    if options.download:
        check_downloadable(dataset)
        download(dataset, _source_path(options, "the folder to download to", must_exist=False))
    listing = SOURCES[dataset](options)
    rule, splits = split_table(listing.items, listing.official_splits, options.split)
    if options.limit is not None:
        splits = sample_splits(splits, options.limit)
    return Source(
        splits,
        rule,
        _describe_split(rule, listing, splits),
        reader=listing.reader,
        channels=listing.channels,
        size=options.size or listing.size,
        fingerprint=listing.fingerprint,
        notes=listing.notes + ([] if splits["train"].num_rows else ["no images to train on"]),
        passed_over={reason: sorted(names) for reason, names in listing.passed_over.items() if names},
        modified_ns=listing.modified_ns,
    )


def _describe_split(rule: str, listing: SourceListing, splits: dict[str, pa.Table]) -> str:
    """Return how the splits were made: by the folders or list of the source, or drawn by a hash."""
    if rule != "official":
        key = "the identities, so that no person is in two splits" if rule == "identity" else "the names"
        return f"{rule}: 80/10/10, drawn by a hash of {key}"
    official = set(listing.official_splits or ())
    from_train = [split for split, table in splits.items() if table.num_rows and split not in official]
    text = f"official: {listing.split_origin}"
    return f"{text}; {' and '.join(from_train)} drawn from train, a tenth of it each" if from_train else text


def _source_path(options: SourceOptions, expected: str, *, must_exist: bool = True) -> RemotePath:
    if not options.path:
        raise ValueError(f"--source is missing: it takes {expected}")
    path = RemotePath(options.fs, options.path)
    if path.is_local:  # absolute, because workers have other working directories
        path = RemotePath(options.fs, str(Path(options.path).absolute()))
    if must_exist and not path.exists():
        raise ValueError(f"{path} does not exist; --source takes {expected}")
    return path


def _list_images(path: RemotePath, expected: str) -> tuple[FileTree, dict[str, int]]:
    """List the images in a folder or zip: sorted names, each with its length or CRC-32."""
    tree = list_tree(path)
    images = tree.find_images()
    if not images:
        raise _no_images(tree, expected)
    return tree, images


def _no_images(tree: FileTree, expected: str) -> ValueError:
    contents = _describe_passed_over(tree.passed_over)
    passed_over = f" (passed over: {contents})" if contents else ""
    return ValueError(f"{tree.path} holds no images{passed_over}; --source takes {expected}{_other_command(tree)}")


def _other_command(tree: FileTree) -> str:
    """Return the hint that fits files of another kind in `tree`."""
    names = [*tree.files]
    if any(name.endswith(".parquet") for name in names):
        return "; read Parquet files with `zpoint ingest parquet`"
    if any("data_batch_1" in name for name in names):
        return "; read CIFAR10's batches with `zpoint ingest cifar10`"
    if any("-ubyte" in name for name in names):
        return "; read IDX files with `zpoint ingest mnist` or `fashion_mnist`"
    if archives := [name for name in names if name.endswith(ARCHIVE_SUFFIXES)]:
        return f"; {list_names(sorted(archives))}: name one zip as --source, or unpack other archives"
    return ""


def _describe_passed_over(passed_over: dict[str, list[str]]) -> str:
    """Return the number of entries and the first names by reason: `2 hidden (.DS_Store, Thumbs.db), 1 text (a.md)`."""
    return ", ".join(f"{len(names):,} {reason} ({list_names(names)})" for reason, names in passed_over.items() if names)


def _fingerprint(*contents: object) -> str:
    return sha256(repr(contents).encode())


def celeba(options: SourceOptions) -> SourceListing:
    """List CelebA's faces with the official split, and identity and attributes (1 or 0) if their lists are there."""
    expected = "CelebA's folder or Kaggle's zip, with img_align_celeba and list_eval_partition"
    files = find_celeba(_source_path(options, expected))
    if not files.content_by_name:
        raise _no_images(files.tree, expected)
    names = list(files.content_by_name)
    columns: dict[str, pa.Array] = {"name": pa.array(names)}
    splits, notes = None, []
    if (file := files.list_file("list_eval_partition")) is None:
        check_numbering(files)
        if options.split in (None, "official"):
            raise ValueError(
                f"{files.tree.path} has no official splits: list_eval_partition.txt or .csv is missing; put it beside "
                "the images, or choose --split hash"
            )
    else:
        try:
            _, values = parse_list(files.lists[file], names, file)
        except ValueError:
            check_numbering(files)
            raise
        if values.shape[1] != 1 or not np.isin(values, [0, 1, 2]).all():
            raise ValueError(f"{file}: a split must be 0, 1 or 2")
        splits = [SPLITS[i] for i in values[:, 0]]
    if (identity_file := files.list_file("identity_CelebA")) is not None:
        columns["identity"] = pa.array(parse_list(files.lists[identity_file], names, identity_file)[1][:, 0])
    if (attribute_file := files.list_file("list_attr_celeba")) is not None:
        attributes, values = parse_list(files.lists[attribute_file], names, attribute_file)
        if len(attributes) != values.shape[1]:
            raise ValueError(f"{attribute_file} must have as many attribute names as columns")
        for i, attribute in enumerate(attributes):
            columns[attribute] = pa.array((values[:, i] > 0).astype(np.int8))
    if "img_celeba" in f"{files.tree.path}/{files.prefix}".split("/"):
        notes.append("img_celeba: the photos before their alignment")
    if len(names) < NUM_CELEBA:
        notes.append(f"{len(names):,} of CelebA's {NUM_CELEBA:,} images")
    return SourceListing(
        pa.table(columns),
        splits,
        reader=files.tree.reader(files.prefix),
        channels=3,
        size=96,
        fingerprint=_fingerprint("celeba", files.content_by_name, files.lists),
        split_origin=file or "",
        notes=notes,
        passed_over=files.tree.passed_over,
        modified_ns=lambda name: files.tree.modified_ns.get(files.prefix + name, 0),
    )


def folder(options: SourceOptions) -> SourceListing:
    """List images in a folder or zip, with or without split folders and class folders: SPLIT/CLASS/NAME.png."""
    expected = "a folder or zip of images"
    path = _source_path(options, expected)
    tree, content_by_name = _list_images(path, expected)
    try:
        layout = read_layout(list(content_by_name), tree.folders)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    columns = {"name": pa.array(layout.names)}
    if layout.classes is not None:
        labels = {name: i for i, name in enumerate(sorted(set(layout.classes)))}
        columns |= {"label": pa.array([labels[name] for name in layout.classes]), "class": pa.array(layout.classes)}
    contents = {name: content_by_name[layout.prefix + name] for name in layout.names}
    repeated = [f"{list_names(sorted(tree.repeated))} are one folder by a link, read twice"] if tree.repeated else []
    return SourceListing(
        pa.table(columns),
        layout.splits,
        reader=tree.reader(layout.prefix),
        channels=3,
        size=96,
        fingerprint=_fingerprint("folder", contents),
        split_origin=f"the folders {list_names((f'{name}/' for name in layout.split_folders), limit=9)}",
        notes=layout.notes + repeated,
        passed_over={**tree.passed_over, **layout.passed_over},
        modified_ns=lambda name: tree.modified_ns.get(layout.prefix + name, 0),
    )


def mnist(options: SourceOptions) -> SourceListing:
    """List MNIST: 1 channel, 28 x 28, with labels; torchvision's files, Kaggle's CSV, or images in folders 0 to 9."""
    return _list_digits(options, ("MNIST/raw", "raw", ""))


def fashion_mnist(options: SourceOptions) -> SourceListing:
    """List Fashion-MNIST in the forms of MNIST."""
    return _list_digits(options, ("FashionMNIST/raw", "raw", ""))


def _has_images(base: RemotePath) -> bool:
    try:
        return bool(list_tree(base).find_images())
    except ValueError:  # a file that is no zip
        return False


def _list_digits(options: SourceOptions, layouts: tuple[str, ...]) -> SourceListing:
    base = _source_path(options, "torchvision's root folder")
    if any((base / name).is_file() for name in CSV_FILES["train"]):
        return _list_arrays(options, "csv", ("",), CSV_FILES["train"], channels=1, size=28)
    markers = ("train-labels-idx1-ubyte", "train-labels.idx1-ubyte")
    try:
        return _list_arrays(options, "idx", layouts, markers, channels=1, size=28)
    except _NoArraysError:
        if not _has_images(base):
            raise
    listing = folder(options)
    classes = listing.items["class"].to_pylist() if "class" in listing.items.column_names else []
    if not classes or set(classes) - set("0123456789"):
        names = list_names(sorted(set(classes)) or listing.items["name"].to_pylist())
        raise ValueError(f"{base}: the class folders must be 0 to 9, not {names}; use `zpoint ingest folder --size 28`")
    labels = pa.array([int(name) for name in classes])
    items = listing.items.set_column(listing.items.column_names.index("label"), "label", labels).drop_columns("class")
    return replace(listing, items=items, channels=1, size=28)


def cifar10(options: SourceOptions) -> SourceListing:
    """List CIFAR10 in torchvision's layout (cifar-10-batches-py): 3 channels, 32 x 32, with labels."""
    return _list_arrays(options, "cifar", ("cifar-10-batches-py", ""), ("test_batch",), channels=3, size=32)


class _NoArraysError(ValueError):
    """A source has none of the files that mark a dataset of arrays."""


def _list_arrays(
    options: SourceOptions, kind: str, layouts: tuple[str, ...], markers: tuple[str, ...], *, channels: int, size: int
) -> SourceListing:
    """List the images of the first of the folders `layouts` that holds one of the files `markers`."""
    expected = f"torchvision's root folder, or the folder that holds {markers[0]}"
    base = _source_path(options, expected)
    folders = (base / layout for layout in layouts)
    files = [f"{marker}{ending}" for marker in markers for ending in ("", ".gz")]
    data_folder = next((p for p in folders if any((p / file).is_file() for file in files)), None)
    if data_folder is None:
        hint = "; read CIFAR10 as image folders with `zpoint ingest folder --size 32`" if kind == "cifar" else ""
        raise _NoArraysError(f"{base} holds no {markers[0]}; --source takes {expected}{hint}")
    names, labels, splits, digests = [], [], [], []
    for split in ("train", "test"):
        split_images, split_labels = ARRAY_LOADERS[kind](data_folder, split)
        names += [f"{split}-{i:05d}" for i in range(len(split_images))]
        labels += split_labels.tolist()
        splits += [split] * len(split_images)
        digests.append(sha256(split_images.tobytes() + split_labels.tobytes()))
    table = pa.table({"name": names, "label": pa.array(labels, pa.int64())})
    fingerprint = _fingerprint(kind, digests)
    return SourceListing(
        table, splits, "the files of train and test", reader=ArrayReader(kind, data_folder, fingerprint),
        channels=channels, size=size, fingerprint=fingerprint,
    )  # fmt: skip


def parquet(options: SourceOptions) -> SourceListing:
    """List the images of Hugging Face's Parquet files, with their labels and numbers; splits by the files' names."""
    expected = "a folder of Parquet files with a column of images, such as data/train-00000-of-00001.parquet"
    base = _source_path(options, expected)
    tree = list_tree(base) if base.is_dir() else None
    files = sorted(name for name in tree.files if name.endswith(".parquet")) if tree else []
    if tree is None or not files:
        raise ValueError(f"{base} holds no Parquet files; --source takes {expected}")
    items, splits, column, notes = read_parquet_columns(tree.path, files)
    fingerprint = _fingerprint("parquet", {name: tree.files[name] for name in files})
    reader_key = _fingerprint(fingerprint, [tree.modified_ns[name] for name in files])
    return SourceListing(
        items,
        splits,
        reader=ParquetReader(tree.path, column, reader_key),
        channels=3,
        size=96,
        fingerprint=fingerprint,
        split_origin="the names of the Parquet files",
        notes=notes,
        passed_over=tree.passed_over | {"not Parquet": sorted(tree.files.keys() - set(files))},
        modified_ns=lambda name: tree.modified_ns[f"{name.rpartition('/')[0]}.parquet"],
    )


def generated(options: SourceOptions) -> SourceListing:
    """List drawn faces, as many as the limit, with their factors as columns."""
    if options.path:
        raise ValueError("generated faces are drawn, not read: leave --source out")
    count, size = options.limit or DEFAULT_NUM_FACES, options.size or 96
    factors = [face_factors(options.seed, index) for index in range(count)]
    columns = {name: pa.array([face[name] for face in factors], pa.float32()) for name in factors[0]}
    table = pa.table({"name": [f"{index:08d}" for index in range(count)], **columns})
    fingerprint = _fingerprint("generated", options.seed, 1)  # 1: version of the drawing
    reader = FaceReader(options.seed, size)
    return SourceListing(table, None, reader=reader, channels=3, size=size, fingerprint=fingerprint)


SOURCES: dict[str, Callable[[SourceOptions], SourceListing]] = {
    "celeba": celeba,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "folder": folder,
    "parquet": parquet,
    "generated": generated,
}
