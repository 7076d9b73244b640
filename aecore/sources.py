"""Where images come from: one function per dataset, listed in SOURCES at the end. Add a dataset there.

A `Source` lists the items of each split; its reader travels to other processes and reads them there. Where a
set has no valid or no test split, a tenth of train becomes it, chosen by a hash of the names.
"""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from aecore.faces import face_factors
from aecore.files import sha256
from aecore.readers import ArrayReader, FaceReader, FileReader, Reader, ZipReader, load_cifar, load_idx

SPLITS = ("train", "valid", "test")
SPLIT_FOLDERS = {"training": "train", "val": "valid", "validation": "valid", "testing": "test"} | {
    split: split for split in SPLITS
}
IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
GENERATED = 4000  # faces, where no limit is given


@dataclass(frozen=True)
class Request:
    """What a user asks of a source."""

    path: str | None = None
    limit: int | None = None
    seed: int = 0
    size: int | None = None


@dataclass(frozen=True)
class Source:
    """Named items in splits, and how to read one."""

    splits: dict[str, pa.Table]  # all of SPLITS, in order; column `name`, then what is known of each item
    reader: Reader
    channels: int
    size: int  # the edge of the square images to make
    fingerprint: str  # equal for equal content, wherever it lies

    def read(self, split: str, indices: Sequence[int]) -> Iterator[bytes | np.ndarray]:
        """Give the items of `split` at `indices`: files' bytes, or pixels as uint8 (H, W, 1 or 3)."""
        names = self.splits[split]["name"]
        return (self.reader.read(names[index].as_py()) for index in indices)


def open_source(dataset: str, request: Request) -> Source:
    """List the items of `dataset`. With a limit, a fixed sample in which each split has its share.

    Raises ValueError when the dataset is unknown, or its files are missing, damaged or empty.
    """
    if dataset not in SOURCES:
        raise ValueError(f"unknown dataset {dataset!r}; it is one of {', '.join(SOURCES)}")
    if request.limit is not None and request.limit < 1:
        raise ValueError(f"limit must be at least 1, not {request.limit}")
    source = SOURCES[dataset](request)
    if request.size is not None:
        source = replace(source, size=request.size)
    return source if request.limit is None else replace(source, splits=_sample(source.splits, request.limit))


def _sample(splits: dict[str, pa.Table], limit: int) -> dict[str, pa.Table]:
    ends = np.cumsum([0] + [table.num_rows for table in splits.values()])
    shares = np.diff(np.minimum(limit, ends[-1]) * ends // ends[-1])
    sampled = {}
    for (split, table), share in zip(splits.items(), shares.tolist(), strict=True):
        chosen = np.sort(np.argsort(_hashes(table["name"].to_pylist()), kind="stable")[:share])
        sampled[split] = table.take(chosen)
    return sampled


def _hashes(names: list[str]) -> np.ndarray:
    """Give a number in [0, 1) for each name, float64 (n,), the same everywhere."""
    return np.array([int(sha256(name.encode())[:12], 16) for name in names], np.float64) / 16**12


def _split(table: pa.Table, official: Sequence[str] | None = None) -> dict[str, pa.Table]:
    """Split `table` as `official` says row by row, and carve a missing valid or test split off train."""
    assigned = np.array(official if official is not None else ["train"] * table.num_rows, dtype="U5")
    draws = _hashes(table["name"].to_pylist())
    for start, split in ((0.0, "valid"), (0.1, "test")):
        train = assigned == "train"
        if not (assigned == split).any() and train.sum() > 2:
            chosen = train & (draws >= start) & (draws < start + 0.1)
            if not chosen.any():  # a tiny set
                chosen[np.flatnonzero(train)[draws[train].argmin()]] = True
            assigned[chosen] = split
    return {split: table.filter(pa.array(assigned == split)) for split in SPLITS}


def _place(request: Request, expected: str) -> Path:
    if not request.path:
        raise ValueError(f"--source is missing: it takes {expected}")
    if "://" in request.path and not request.path.startswith("file://"):
        raise ValueError(f"{request.path}: a source must lie on a local or mounted disk; it takes {expected}")
    place = Path(request.path.removeprefix("file://")).expanduser()
    if not place.exists():
        raise ValueError(f"{place} does not exist; --source takes {expected}")
    return place.absolute()  # workers run in other folders


def _list_images(place: Path, expected: str, keep: set[str] | None = None) -> tuple[dict[str, int], Reader]:
    """List the images in a folder or zip: sorted names with a number for the content, and their reader.

    Folders round everything are left out of the names, unless one is named in `keep`.
    """
    stamp = place.stat().st_mtime_ns
    if place.is_dir():
        found = {p.relative_to(place).as_posix(): p.stat().st_size for p in place.rglob("*") if p.is_file()}
    else:
        if not zipfile.is_zipfile(place):
            raise ValueError(f"{place} is not a whole zip file ({place.stat().st_size:,} bytes); fetch it again")
        try:
            with zipfile.ZipFile(place) as archive:
                found = {m.filename: m.CRC for m in archive.infolist() if not m.is_dir()}
        except (zipfile.BadZipFile, OSError) as error:
            raise ValueError(f"{place} is a damaged zip file: {error}; fetch it again") from error
    images = {name: content for name, content in sorted(found.items()) if _is_image(name)}
    if not images:
        raise ValueError(f"{place} holds no images; --source takes {expected}")
    prefix = _shared_folder(list(images), keep or set())
    listed = {name[len(prefix) :]: content for name, content in images.items()}
    return listed, FileReader(f"{place}/{prefix}") if place.is_dir() else ZipReader(str(place), stamp, prefix)


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


def celeba(request: Request) -> Source:
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
    texts = {name: path.read_text(errors="replace") for name, path in lists.items() if path is not None}
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
    return Source(_split(pa.table(columns), official), reader, channels=3, size=96, fingerprint=fingerprint)


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


def folder(request: Request) -> Source:
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
    splits = _split(pa.table(columns), official)
    return Source(splits, reader, channels=3, size=96, fingerprint=_fingerprint("folder", listed))


def mnist(request: Request) -> Source:
    """MNIST as torchvision keeps it; channels 1, 28 x 28, with labels."""
    return _arrays(request, "idx", ("MNIST/raw", "raw", ""), "train-labels-idx1-ubyte", channels=1, size=28)


def fashion_mnist(request: Request) -> Source:
    """Fashion-MNIST as torchvision keeps it; channels 1, 28 x 28, with labels."""
    return _arrays(request, "idx", ("FashionMNIST/raw", "raw", ""), "train-labels-idx1-ubyte", channels=1, size=28)


def cifar10(request: Request) -> Source:
    """CIFAR10 as torchvision keeps it (cifar-10-batches-py); 32 x 32, with labels."""
    return _arrays(request, "cifar", ("cifar-10-batches-py", ""), "test_batch", channels=3, size=32)


def _arrays(request: Request, kind: str, layouts: tuple[str, ...], sign: str, *, channels: int, size: int) -> Source:
    expected = f"torchvision's root folder, or the folder that holds {sign}"
    base = _place(request, expected)
    places = (base / layout for layout in layouts)
    place = next((p for p in places if (p / sign).exists() or (p / f"{sign}.gz").exists()), None)
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
    reader = ArrayReader(kind, str(place), fingerprint)
    return Source(_split(table, official), reader, channels=channels, size=size, fingerprint=fingerprint)


def generated(request: Request) -> Source:
    """Drawn faces, as many as the limit says, with their factors as columns."""
    if request.path:
        raise ValueError("generated faces are drawn, not read: leave --source out")
    count, size = request.limit or GENERATED, request.size or 96
    factors = [face_factors(request.seed, index) for index in range(count)]
    columns = {key: pa.array([each[key] for each in factors], pa.float32()) for key in factors[0]}
    table = pa.table({"name": [f"{index:08d}" for index in range(count)], **columns})
    fingerprint = _fingerprint("generated", request.seed, 1)  # 1: the drawing's version
    return Source(_split(table), FaceReader(request.seed, size), channels=3, size=size, fingerprint=fingerprint)


SOURCES: dict[str, Callable[[Request], Source]] = {
    "celeba": celeba,
    "mnist": mnist,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "folder": folder,
    "generated": generated,
}
