"""Sources of images: one function per dataset, listed in SOURCES at the end. Add a dataset there.

Such a function returns a `SourceListing`; `open_source` makes a `Source` of it that lists the items of each split.
Its reader is pickled to other processes, which read the items.
"""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from aecore.data.download import check_downloadable, download
from aecore.data.io import sha256
from aecore.data.readers import (
    ArrayReader,
    FaceReader,
    FileReader,
    Item,
    Reader,
    ZipReader,
    load_cifar,
    load_idx,
    open_zip,
)
from aecore.data.remote_path import RemotePath
from aecore.data.splits import SPLITS, sample_splits, split_table
from aecore.data.synthetic_faces import face_factors

SPLIT_BY_FOLDER = {"training": "train", "val": "valid", "validation": "valid", "testing": "test"} | {
    split: split for split in SPLITS
}
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
DEFAULT_NUM_FACES = 4000  # generated without a limit
CELEBA_LISTS = ("list_eval_partition.txt", "identity_CelebA.txt", "list_attr_celeba.txt")


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


@dataclass(frozen=True)
class SourceListing:
    """All items of a dataset: column `name`, then the attributes of each item, and their reader."""

    items: pa.Table
    official_splits: Sequence[str] | None  # of each item, if the source has splits
    reader: Reader
    channels: int
    size: int  # edge in pixels of the square images made by default
    fingerprint: str  # equal for equal content, whatever its path


@dataclass(frozen=True)
class Source:
    """The items of each split, and their reader."""

    splits: dict[str, pa.Table]  # all of SPLITS, in order; columns as in SourceListing
    rule: str  # of splits.RULES, as applied
    reader: Reader
    channels: int
    size: int  # edge in pixels of the square images to make
    fingerprint: str  # as in SourceListing

    def read(self, split: str, indices: Sequence[int]) -> Iterator[Item]:
        """Yield the items of `split` at `indices`: files' bytes, or pixels as uint8 (H, W, 1 or 3)."""
        names = self.splits[split]["name"]
        return (self.reader.read(names[index].as_py()) for index in indices)


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
    size = options.size or listing.size
    return Source(splits, rule, listing.reader, listing.channels, size, listing.fingerprint)


def _source_path(options: SourceOptions, expected: str, *, must_exist: bool = True) -> RemotePath:
    if not options.path:
        raise ValueError(f"--source is missing: it takes {expected}")
    path = RemotePath(options.fs, options.path)
    if path.is_local:  # absolute, because workers have other working directories
        path = RemotePath(options.fs, str(Path(options.path).expanduser().absolute()))
    if must_exist and not path.exists():
        raise ValueError(f"{path} does not exist; --source takes {expected}")
    return path


def _list_images(path: RemotePath, expected: str, keep: set[str] | None = None) -> tuple[dict[str, int], Reader]:
    """List the images in a folder or zip: sorted names, each with its length or CRC-32, and their reader.

    A folder that holds all of them is left out of the names, unless it is in `keep`.
    """
    is_zip = not path.is_dir()
    mtime_ns = path.mtime_ns() if is_zip else 0
    contents = _list_zip(path, mtime_ns) if is_zip else path.file_sizes()
    images = {name: content for name, content in sorted(contents.items()) if _is_image(name)}
    if not images:
        raise ValueError(f"{path} holds no images; --source takes {expected}")
    prefix = _common_folder(list(images), keep or set())
    reader = ZipReader(path, mtime_ns, prefix) if is_zip else FileReader(path / prefix)
    return {name.removeprefix(prefix): content for name, content in images.items()}, reader


def _list_zip(path: RemotePath, mtime_ns: int) -> dict[str, int]:
    try:
        archive = open_zip(path, mtime_ns)
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path} is not a complete zip file ({path.size():,} bytes): {error}; fetch it again"
        ) from error
    return {member.filename: member.CRC for member in archive.infolist() if not member.is_dir()}


def _is_image(name: str) -> bool:
    path = Path(name)
    hidden = any(folder.startswith((".", "__MACOSX")) for folder in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden


def _common_folder(names: list[str], keep: set[str]) -> str:
    prefix = ""
    for folder in Path(names[0]).parts[:-1]:
        if folder.lower() in keep or not all(name.startswith(f"{prefix}{folder}/") for name in names):
            break
        prefix += f"{folder}/"
    return prefix


def _fingerprint(*contents: object) -> str:
    return sha256(repr(contents).encode())


def celeba(options: SourceOptions) -> SourceListing:
    """List CelebA's aligned faces in the official layout, with identity and attributes (1 or 0) if present."""
    expected = "CelebA's folder with img_align_celeba.zip and list_eval_partition.txt, or that zip"
    base = _source_path(options, expected)
    layouts = ("img_align_celeba.zip", "Img/img_align_celeba.zip", "img_align_celeba", "Img/img_align_celeba")
    candidates = [base / folder / layout for folder in ("", "celeba") for layout in layouts]
    images = next((path for path in candidates if path.exists()), base)
    crc_by_name, reader = _list_images(images, expected)
    folders = [p / name for p in (images, images.parent, images.parent.parent) for name in ("", "Eval", "Anno")]
    lists = {name: next((p / name for p in folders if (p / name).is_file()), None) for name in CELEBA_LISTS}
    names = list(crc_by_name)
    columns: dict[str, pa.Array] = {"name": pa.array(names)}
    texts = {name: path.read().decode(errors="replace") for name, path in lists.items() if path is not None}
    splits = None
    if (text := texts.get("list_eval_partition.txt")) is not None:
        partition = _integer_columns(text.splitlines(), names, "list_eval_partition.txt")[:, 0]
        if not np.isin(partition, [0, 1, 2]).all():
            raise ValueError(f"{lists['list_eval_partition.txt']}: a split must be 0, 1 or 2")
        splits = [SPLITS[i] for i in partition]
    if (text := texts.get("identity_CelebA.txt")) is not None:
        columns["identity"] = pa.array(_integer_columns(text.splitlines(), names, "identity_CelebA.txt")[:, 0])
    if (text := texts.get("list_attr_celeba.txt")) is not None:
        lines = text.splitlines()
        values = _integer_columns(lines[2:], names, "list_attr_celeba.txt")
        if len(attributes := lines[1].split()) != values.shape[1]:
            raise ValueError(f"{lists['list_attr_celeba.txt']} must have as many attribute names as columns")
        for i, attribute in enumerate(attributes):
            columns[attribute] = pa.array((values[:, i] > 0).astype(np.int8))
    fingerprint = _fingerprint("celeba", crc_by_name, texts)
    return SourceListing(pa.table(columns), splits, reader, channels=3, size=96, fingerprint=fingerprint)


def _integer_columns(lines: list[str], names: list[str], file: str) -> np.ndarray:
    """Return the integers that follow each of `names` in lines such as `000001.jpg 0`: int64 (n, columns)."""
    rows = {words[0]: words[1:] for line in lines if len(words := line.split()) > 1}
    missing = next((name for name in names if name not in rows), None)
    if missing is not None:
        raise ValueError(f"{file} does not list the image {missing}; is it the list of this dataset?")
    try:
        return np.array([rows[name] for name in names], np.int64)
    except ValueError as error:
        raise ValueError(f"{file} must have the same number of integers for each image") from error


def folder(options: SourceOptions) -> SourceListing:
    """List images in a folder or zip, with or without split folders and class folders: SPLIT/CLASS/NAME.png."""
    expected = f"a folder or zip of images ({' '.join(sorted(IMAGE_SUFFIXES))})"
    content_by_name, reader = _list_images(_source_path(options, expected), expected, keep=set(SPLIT_BY_FOLDER))
    names = list(content_by_name)
    paths = [name.split("/") for name in names]
    splits = None
    if all(len(path) > 1 and path[0].lower() in SPLIT_BY_FOLDER for path in paths):
        splits = [SPLIT_BY_FOLDER[path[0].lower()] for path in paths]
        paths = [path[1:] for path in paths]
    columns = {"name": pa.array(names)}
    if all(len(path) > 1 for path in paths):
        classes = [path[0] for path in paths]
        labels = {name: i for i, name in enumerate(sorted(set(classes)))}
        columns |= {"label": pa.array([labels[name] for name in classes]), "class": pa.array(classes)}
    fingerprint = _fingerprint("folder", content_by_name)
    return SourceListing(pa.table(columns), splits, reader, channels=3, size=96, fingerprint=fingerprint)


def mnist(options: SourceOptions) -> SourceListing:
    """List MNIST in torchvision's layout: 1 channel, 28 x 28, with labels."""
    return _list_arrays(options, "idx", ("MNIST/raw", "raw", ""), "train-labels-idx1-ubyte", channels=1, size=28)


def fashion_mnist(options: SourceOptions) -> SourceListing:
    """List Fashion-MNIST in torchvision's layout: 1 channel, 28 x 28, with labels."""
    layouts = ("FashionMNIST/raw", "raw", "")
    return _list_arrays(options, "idx", layouts, "train-labels-idx1-ubyte", channels=1, size=28)


def cifar10(options: SourceOptions) -> SourceListing:
    """List CIFAR10 in torchvision's layout (cifar-10-batches-py): 3 channels, 32 x 32, with labels."""
    return _list_arrays(options, "cifar", ("cifar-10-batches-py", ""), "test_batch", channels=3, size=32)


def _list_arrays(
    options: SourceOptions, kind: str, layouts: tuple[str, ...], marker: str, *, channels: int, size: int
) -> SourceListing:
    """List the images of the first of the folders `layouts` that holds the file `marker`."""
    expected = f"torchvision's root folder, or the folder that holds {marker}"
    base = _source_path(options, expected)
    folders = (base / layout for layout in layouts)
    data_folder = next((p for p in folders if (p / marker).is_file() or (p / f"{marker}.gz").is_file()), None)
    if data_folder is None:
        raise ValueError(f"{base} holds no {marker}; --source takes {expected}")
    names, labels, splits, digests = [], [], [], []
    for split in ("train", "test"):
        split_images, split_labels = (load_idx if kind == "idx" else load_cifar)(data_folder, split)
        names += [f"{split}-{i:05d}" for i in range(len(split_images))]
        labels += split_labels.tolist()
        splits += [split] * len(split_images)
        digests.append(sha256(split_images.tobytes() + split_labels.tobytes()))
    table = pa.table({"name": names, "label": pa.array(labels, pa.int64())})
    fingerprint = _fingerprint(kind, digests)
    reader = ArrayReader(kind, data_folder, fingerprint)
    return SourceListing(table, splits, reader, channels=channels, size=size, fingerprint=fingerprint)


def generated(options: SourceOptions) -> SourceListing:
    """List drawn faces, as many as the limit, with their factors as columns."""
    if options.path:
        raise ValueError("generated faces are drawn, not read: leave --source out")
    count, size = options.limit or DEFAULT_NUM_FACES, options.size or 96
    factors = [face_factors(options.seed, index) for index in range(count)]
    columns = {name: pa.array([face[name] for face in factors], pa.float32()) for name in factors[0]}
    table = pa.table({"name": [f"{index:08d}" for index in range(count)], **columns})
    fingerprint = _fingerprint("generated", options.seed, 1)  # 1: version of the drawing
    return SourceListing(table, None, FaceReader(options.seed, size), channels=3, size=size, fingerprint=fingerprint)


SOURCES: dict[str, Callable[[SourceOptions], SourceListing]] = {
    "celeba": celeba,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "folder": folder,
    "generated": generated,
}
