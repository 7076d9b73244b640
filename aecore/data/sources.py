"""Where images come from: one function per dataset, listed in SOURCES at the end. Add a dataset there.

Such a function gives a `SourceListing`; from that, `open_source` makes a `Source` that lists the items of each split.
Its reader travels to other processes and reads them there.
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
    Member,
    Reader,
    ZipReader,
    list_zip,
    load_cifar,
    load_idx,
)
from aecore.data.remote_path import RemotePath
from aecore.data.splits import SPLITS, sample_splits, split_table
from aecore.data.synthetic_faces import face_factors

SPLIT_FOLDERS = {"training": "train", "val": "valid", "validation": "valid", "testing": "test"} | {
    split: split for split in SPLITS
}
IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
GENERATED = 4000  # faces, where no limit is given


@dataclass(frozen=True)
class SourceOptions:
    """What a user asks of a source."""

    path: str | None = None
    limit: int | None = None
    seed: int = 0
    size: int | None = None
    split: str | None = None  # one of splits.RULES
    download: bool = False
    fs: pafs.FileSystem = field(default_factory=pafs.LocalFileSystem)  # where `path` lies


@dataclass(frozen=True)
class SourceListing:
    """All the items of a set: column `name`, then what is known of each, and how to read one."""

    items: pa.Table
    official: Sequence[str] | None  # the split that the source names for each item
    reader: Reader
    channels: int
    size: int  # the edge of its own square images
    fingerprint: str  # equal for equal content, wherever it lies


@dataclass(frozen=True)
class Source:
    """Named items in splits, and how to read one."""

    splits: dict[str, pa.Table]  # all of SPLITS, in order; columns as in Found
    rule: str  # by which they were split
    reader: Reader
    channels: int
    size: int  # the edge of the square images to make
    fingerprint: str  # as in Found

    def read(self, split: str, indices: Sequence[int]) -> Iterator[Item]:
        """Give the items of `split` at `indices`: files' bytes, or pixels as uint8 (H, W, 1 or 3)."""
        names = self.splits[split]["name"]
        return (self.reader.read(names[index].as_py()) for index in indices)


def open_source(dataset: str, request: SourceOptions) -> Source:
    """List the items of `dataset`. With a limit, a fixed sample in which each split has its share.

    Raises ValueError when the dataset is unknown, or its files are missing, damaged or empty.
    """
    if dataset not in SOURCES:
        raise ValueError(f"unknown dataset {dataset!r}; it is one of {', '.join(SOURCES)}")
    if request.limit is not None and request.limit < 1:
        raise ValueError(f"limit must be at least 1, not {request.limit}")
    if request.download:
        check_downloadable(dataset)
        download(dataset, _place(request, "the folder that shall hold it", new=True))
    found = SOURCES[dataset](request)
    rule, splits = split_table(found.items, found.official, request.split)
    if request.limit is not None:
        splits = sample_splits(splits, request.limit)
    return Source(splits, rule, found.reader, found.channels, request.size or found.size, found.fingerprint)


def _place(request: SourceOptions, expected: str, *, new: bool = False) -> RemotePath:
    if not request.path:
        raise ValueError(f"--source is missing: it takes {expected}")
    place = RemotePath(request.fs, request.path)
    if place.local:
        place = RemotePath(request.fs, str(Path(request.path).expanduser().absolute()))  # workers run in other folders
    if not new and not place.exists():
        raise ValueError(f"{place} does not exist; --source takes {expected}")
    return place


def _list_images(place: RemotePath, expected: str, keep: set[str] | None = None) -> tuple[dict[str, int], Reader]:
    """List the images in a folder or zip: sorted names with a number for the content, and their reader.

    Folders round everything are left out of the names, unless one is named in `keep`.
    """
    packed = not place.is_dir()
    members = _list_zip(place) if packed else {}
    found = {name: member.crc for name, member in members.items()} if packed else place.files()
    images = {name: content for name, content in sorted(found.items()) if _is_image(name)}
    if not images:
        raise ValueError(f"{place} holds no images; --source takes {expected}")
    prefix = _shared_folder(list(images), keep or set())
    listed = {name[len(prefix) :]: content for name, content in images.items()}
    if not packed:
        return listed, FileReader(place / prefix)
    return listed, ZipReader(place, place.stamp(), {name: members[prefix + name] for name in listed})


def _list_zip(place: RemotePath) -> dict[str, Member]:
    try:
        return list_zip(place)
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{place} is not a whole zip file ({place.size():,} bytes): {error}; fetch it again"
        ) from error


def _is_image(name: str) -> bool:
    path = Path(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in IMAGE_ENDINGS and not hidden


def _shared_folder(names: list[str], keep: set[str]) -> str:
    shared = ""
    for part in Path(names[0]).parts[:-1]:
        if part.lower() in keep or not all(name.startswith(f"{shared}{part}/") for name in names):
            break
        shared += f"{part}/"
    return shared


def _fingerprint(*parts: object) -> str:
    return sha256(repr(parts).encode())


def celeba(request: SourceOptions) -> SourceListing:
    """CelebA's aligned faces in the official layout, with identity and attributes (1 or 0) where present."""
    expected = "CelebA's folder with img_align_celeba.zip and list_eval_partition.txt, or that zip"
    base = _place(request, expected)
    layouts = ("img_align_celeba.zip", "Img/img_align_celeba.zip", "img_align_celeba", "Img/img_align_celeba")
    inside = [base / sub / name for sub in ("", "celeba") for name in layouts]
    images = next((place for place in inside if place.exists()), base)
    listed, reader = _list_images(images, expected)
    places = [p / sub for p in (images, images.parent, images.parent.parent) for sub in ("", "Eval", "Anno")]
    lists = {name: next((p / name for p in places if (p / name).is_file()), None) for name in _CELEBA_LISTS}
    names = list(listed)
    columns: dict[str, pa.Array] = {"name": pa.array(names)}
    texts = {name: path.read().decode(errors="replace") for name, path in lists.items() if path is not None}
    official = None
    if (text := texts.get("list_eval_partition.txt")) is not None:
        number = _column(text.splitlines(), names, "list_eval_partition.txt")[:, 0]
        if not np.isin(number, [0, 1, 2]).all():
            raise ValueError(f"{lists['list_eval_partition.txt']}: a split must be 0, 1 or 2")
        official = [SPLITS[i] for i in number]
    if (text := texts.get("identity_CelebA.txt")) is not None:
        columns["identity"] = pa.array(_column(text.splitlines(), names, "identity_CelebA.txt")[:, 0])
    if (text := texts.get("list_attr_celeba.txt")) is not None:
        lines = text.splitlines()
        values = _column(lines[2:], names, "list_attr_celeba.txt")
        if len(attributes := lines[1].split()) != values.shape[1]:
            raise ValueError(f"{lists['list_attr_celeba.txt']} must have as many attribute names as columns")
        for i, attribute in enumerate(attributes):
            columns[attribute] = pa.array((values[:, i] > 0).astype(np.int8))
    fingerprint = _fingerprint("celeba", listed, texts)
    return SourceListing(pa.table(columns), official, reader, channels=3, size=96, fingerprint=fingerprint)


_CELEBA_LISTS = ("list_eval_partition.txt", "identity_CelebA.txt", "list_attr_celeba.txt")


def _column(lines: list[str], names: list[str], file: str) -> np.ndarray:
    """Give the whole numbers behind each of `names` in lines such as `000001.jpg 0`: int64 (n, columns)."""
    rows = {words[0]: words[1:] for line in lines if len(words := line.split()) > 1}
    missing = next((name for name in names if name not in rows), None)
    if missing is not None:
        raise ValueError(f"{file} does not name the image {missing}; is it the list of this set?")
    try:
        return np.array([rows[name] for name in names], np.int64)
    except ValueError as error:
        raise ValueError(f"{file} must give each image the same number of whole numbers") from error


def folder(request: SourceOptions) -> SourceListing:
    """Images in a folder or zip, with or without split folders and class folders: SPLIT/CLASS/NAME.png."""
    expected = f"a folder or zip of images ({' '.join(sorted(IMAGE_ENDINGS))})"
    listed, reader = _list_images(_place(request, expected), expected, keep=set(SPLIT_FOLDERS))
    names = list(listed)
    paths = [name.split("/") for name in names]
    official = None
    if all(len(parts) > 1 and parts[0].lower() in SPLIT_FOLDERS for parts in paths):
        official = [SPLIT_FOLDERS[parts[0].lower()] for parts in paths]
        paths = [parts[1:] for parts in paths]
    columns = {"name": pa.array(names)}
    if all(len(parts) > 1 for parts in paths):
        classes = [parts[0] for parts in paths]
        numbers = {name: i for i, name in enumerate(sorted(set(classes)))}
        columns |= {"label": pa.array([numbers[name] for name in classes]), "class": pa.array(classes)}
    fingerprint = _fingerprint("folder", listed)
    return SourceListing(pa.table(columns), official, reader, channels=3, size=96, fingerprint=fingerprint)


def mnist(request: SourceOptions) -> SourceListing:
    """MNIST as torchvision keeps it; channels 1, 28 x 28, with labels."""
    return _arrays(request, "idx", ("MNIST/raw", "raw", ""), "train-labels-idx1-ubyte", channels=1, size=28)


def fashion_mnist(request: SourceOptions) -> SourceListing:
    """Fashion-MNIST as torchvision keeps it; channels 1, 28 x 28, with labels."""
    return _arrays(request, "idx", ("FashionMNIST/raw", "raw", ""), "train-labels-idx1-ubyte", channels=1, size=28)


def cifar10(request: SourceOptions) -> SourceListing:
    """CIFAR10 as torchvision keeps it (cifar-10-batches-py); 32 x 32, with labels."""
    return _arrays(request, "cifar", ("cifar-10-batches-py", ""), "test_batch", channels=3, size=32)


def _arrays(
    request: SourceOptions, kind: str, layouts: tuple[str, ...], sign: str, *, channels: int, size: int
) -> SourceListing:
    expected = f"torchvision's root folder, or the folder that holds {sign}"
    base = _place(request, expected)
    places = (base / layout for layout in layouts)
    place = next((p for p in places if (p / sign).is_file() or (p / f"{sign}.gz").is_file()), None)
    if place is None:
        raise ValueError(f"{base} holds no {sign}; --source takes {expected}")
    names, labels, official, digests = [], [], [], []
    for part in ("train", "test"):
        images, numbers = (load_idx if kind == "idx" else load_cifar)(place, part)
        names += [f"{part}-{i:05d}" for i in range(len(images))]
        labels += numbers.tolist()
        official += [part] * len(images)
        digests.append(sha256(images.tobytes() + numbers.tobytes()))
    table = pa.table({"name": names, "label": pa.array(labels, pa.int64())})
    fingerprint = _fingerprint(kind, digests)
    reader = ArrayReader(kind, place, fingerprint)
    return SourceListing(table, official, reader, channels=channels, size=size, fingerprint=fingerprint)


def generated(request: SourceOptions) -> SourceListing:
    """Drawn faces, as many as the limit says, with their factors as columns."""
    if request.path:
        raise ValueError("generated faces are drawn, not read: leave --source out")
    count, size = request.limit or GENERATED, request.size or 96
    factors = [face_factors(request.seed, index) for index in range(count)]
    columns = {key: pa.array([each[key] for each in factors], pa.float32()) for key in factors[0]}
    table = pa.table({"name": [f"{index:08d}" for index in range(count)], **columns})
    fingerprint = _fingerprint("generated", request.seed, 1)  # 1: the drawing's version
    return SourceListing(table, None, FaceReader(request.seed, size), channels=3, size=size, fingerprint=fingerprint)


SOURCES: dict[str, Callable[[SourceOptions], SourceListing]] = {
    "celeba": celeba,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "folder": folder,
    "generated": generated,
}
