"""The rule by which the folders of an image set give splits and classes; the same for folders and zips.

1. Masks and thumbnails are passed over: a folder of MASK_FOLDERS or `train_masks` beside images, their folder or
   splits, another folder with `mask` in its name if most of its files are named as these images, a file `X_mask.png`
   beside `X`, a folder of THUMBNAIL_FOLDERS beside anything else.
2. Folders that hold all images are neither split nor class: `photos/photos/train/cat/1.png` is `train/cat/1.png`.
3. The first folders are splits if they are named so (`split_of`), else classes; below splits the next folders are
   classes. Images without such a folder have no split or no class.
4. A layout that could be read in several ways or only in part is refused, naming the files and the fix.
"""

import os
import re
import unicodedata
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from aecore.errors import list_names

# Hugging Face's keywords: https://huggingface.co/docs/hub/datasets-file-names-and-splits
SPLIT_WORDS = {
    "train": "train", "training": "train",
    "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
IMAGE_FOLDERS = {"image", "images", "img", "imgs", "jpegimages"}
MASK_FOLDERS = {
    "annotation", "annotations", "ground_truth", "groundtruth", "gt", "label", "labels", "mask", "masks",
    "segmentation", "segmentationclass", "segmentationobject", "segmentations", "trimaps",
}  # fmt: skip
MASK_WORDS = {"mask", "masks"}
THUMBNAIL_FOLDERS = {"thumbnail", "thumbnails", "thumbs"}
_SEPARATORS = re.compile(r"[-._ 0-9]+")
_MASK_STEM = re.compile(r"(.+)[_-]masks?([_-]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Layout:
    """The images of a folder or zip with their splits and classes."""

    prefix: str  # the folders that hold all images, with a slash at the end
    names: list[str]  # of the images, below `prefix`
    splits: list[str] | None  # of each image
    classes: list[str] | None  # of each image
    split_folders: list[str]  # that gave the splits
    notes: list[str]  # what a reader of the dataset should know
    passed_over: dict[str, list[str]]


def read_layout(names: list[str], folders: Iterable[str] = ()) -> Layout:
    """Give each of the images `names`, sorted relative paths, its split and class by the rule of this module.

    `folders` are the paths of all folders, also of those without images. Raises ValueError for an ambiguous layout.
    """
    names, passed_over = _pass_over_masks(names)
    if not names:
        raise _ambiguous(
            "by the names of their folders all images are masks or thumbnails of others: "
            + list_names(name for group in passed_over.values() for name in group),
            "rename the folder of the images",
        )
    prefix = common_folder(names, keep_splits=True)
    names = [name[len(prefix) :] for name in names]
    folders = {folder[len(prefix) :] for folder in folders if folder.startswith(prefix)}
    split_by_folder = _find_splits(names, folders)
    paths = _strip_split_folders(names, split_by_folder) if split_by_folder else names
    splits = [split_by_folder[_top(name)] for name in names] if split_by_folder else None
    classes, notes = _find_classes(names, paths, splits), []
    if classes is not None:
        notes = _check_classes(classes, splits)
        class_folders = {name[: len(name) - len(path)] + _top(path) for name, path in zip(names, paths, strict=True)}
        parents = {folder.rpartition("/")[0] for folder in class_folders}
        if empty := sorted(folder for folder in folders - class_folders if folder.rpartition("/")[0] in parents):
            passed_over["empty folder"] = empty
    return Layout(prefix, names, splits, classes, list(split_by_folder), notes, passed_over)


def split_of(name: str) -> str | None:
    """Return the split that a folder or file name holds as a word: `seg_train`, `val2017`, `test-00000-of-00001`."""
    splits = {SPLIT_WORDS[word] for word in _SEPARATORS.split(name.lower()) if word in SPLIT_WORDS}
    return splits.pop() if len(splits) == 1 else None


def common_folder(names: list[str], *, keep_splits: bool = False) -> str:
    """Return the folders that hold all of the sorted paths `names`, up to a split folder if `keep_splits`."""
    prefix = ""
    for first, last in zip(names[0].split("/")[:-1], names[-1].split("/")[:-1], strict=False):
        if first != last or (keep_splits and first.lower() in SPLIT_WORDS):
            break
        prefix += f"{first}/"
    return prefix


def _top(path: str) -> str:
    return path.partition("/")[0]


def _pass_over_masks(names: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the names that are neither masks nor thumbnails, and the others by reason."""
    holders = {name.rpartition("/")[0] for name in names}  # folders with images right in them
    children: dict[str, set[str]] = defaultdict(set)
    for folder in holders - {""}:
        segments = folder.split("/")
        for depth, segment in enumerate(segments):
            children["/".join(segments[:depth])].add(segment)
    reasons = {}
    for parent, siblings in children.items():
        image_folders = {name for name in siblings if _words(name) & IMAGE_FOLDERS or name.lower() in SPLIT_WORDS}
        masks = {name for name in siblings if _words(name) & MASK_WORDS and not _is_mask_folder(name)}
        if masks:
            masks = _named_as_images(_below(names, parent), masks, image_folders)
        for folder in siblings:
            beside_images = parent in holders or image_folders - {folder}
            path = f"{parent}/{folder}" if parent else folder
            if folder.lower() in THUMBNAIL_FOLDERS and (len(siblings) > 1 or parent in holders):
                reasons[path] = "thumbnail"
            elif beside_images and (_is_mask_folder(folder) or folder in masks):
                reasons[path] = "mask"
    reason_by_holder = {
        holder: next((reasons[path] for path in _folders_above(f"{holder}/") if path in reasons), None)
        for holder in holders
    }
    images, passed_over = [], defaultdict(list)
    stems = {os.path.splitext(name)[0] for name in names}
    for name in names:
        reason = reason_by_holder[name.rpartition("/")[0]]
        if reason is None and (match := _MASK_STEM.fullmatch(os.path.splitext(name)[0])) and match[1] in stems:
            reason = "mask"
        if reason is None:
            images.append(name)
        else:
            passed_over[reason].append(name)
    return images, passed_over


def _is_mask_folder(name: str) -> bool:
    """Return True for one of MASK_FOLDERS and for a name that only says whose masks it holds: `train_masks`."""
    words = _words(name)
    return name.lower() in MASK_FOLDERS or (
        bool(words & MASK_WORDS) and words <= MASK_WORDS | IMAGE_FOLDERS | SPLIT_WORDS.keys() | {""}
    )


def _named_as_images(paths: list[str], masks: set[str], image_folders: set[str]) -> set[str]:
    """Return those of the folders `masks` most of whose files are named as an image beside them.

    `paths` are of all files in the folder that holds `masks`; an image is there or in one of `image_folders`.
    `with_mask` and `without_mask` are classes: their files have names of their own.
    """
    image_folders_by_stem: dict[str, set[str]] = defaultdict(set)
    stems: dict[str, list[str]] = defaultdict(list)  # of the files in each of `masks`
    for path in paths:
        folder, stem = _top(path) if "/" in path else "", os.path.splitext(path.rpartition("/")[2])[0]
        if not folder or folder in image_folders:
            image_folders_by_stem[stem.lstrip("0")].add(folder)
        if folder in masks:
            stems[folder].append(stem)

    def is_of_image(stem: str, folder: str) -> bool:
        """Return True for the stem of an image, also with more behind it: `00012_hair` is of `12`."""
        starts = (stem[: match.start()].lstrip("0") for match in re.finditer(r"[-_. ]|$", stem))
        return any(image_folders_by_stem.get(start, set()) - {folder} for start in starts)

    return {folder for folder in masks if 2 * sum(is_of_image(s, folder) for s in stems[folder]) > len(stems[folder])}


def _below(names: list[str], folder: str) -> list[str]:
    """Return those of the sorted paths `names` that lie in `folder`, relative to it."""
    if not folder:
        return names
    first, last = (bisect_left(names, folder + end) for end in ("/", "0"))  # 0 follows the slash
    return [name[len(folder) + 1 :] for name in names[first:last]]


def _folders_above(path: str) -> Iterator[str]:
    """Yield the folders that hold `path`, the outermost first."""
    yield from (path[: match.start()] for match in re.finditer("/", path))


def _words(name: str) -> set[str]:
    return set(_SEPARATORS.split(name.lower()))


def _find_splits(names: list[str], folders: set[str]) -> dict[str, str]:
    """Return the split of each first folder, or nothing if these are no splits."""
    tops = {_top(name) for name in names if "/" in name}
    if vacant := sorted(f for f in folders - tops if f.lower() in SPLIT_WORDS):
        raise _ambiguous(f"the split folder {_list(vacant)} holds no images", "fill it or remove it")
    named = {top: split for top in sorted(tops) if (split := split_of(top)) is not None}
    if not any(top.lower() in SPLIT_WORDS for top in named) and len(set(named.values())) < 2:
        return {}
    if others := sorted(tops - named.keys()):
        raise _ambiguous(
            f"{_list(named)} name splits, but {_list(others)} beside them do not",
            f"move {_list(others)} away, or rename {_list(named)} if they are classes",
        )
    if strays := [name for name in names if "/" not in name]:
        raise _ambiguous(
            f"{list_names(strays)} beside the split folders {_list(named)}", "move them away or into one of these"
        )
    for split in set(named.values()):
        if len(same := [top for top in named if named[top] == split]) > 1:
            raise _ambiguous(f"{_list(same)} name the same split, {split}", "merge them or move one away")
    return named


def _strip_split_folders(names: list[str], split_by_folder: dict[str, str]) -> list[str]:
    """Return the paths below the split folders, without a folder inside that only repeats it: `train/train/`."""
    inner_folders = defaultdict(set)
    for name in names:
        folder, _, path = name.partition("/")
        inner_folders[folder].add(_top(path) if "/" in path else "")
    prefix_length = {}
    for folder, tops in inner_folders.items():
        top = next(iter(tops)) if len(tops) == 1 else ""
        repeats = top and (split_of(top) == split_by_folder[folder] or top.lower() in IMAGE_FOLDERS)
        prefix_length[folder] = len(folder) + 1 + (len(top) + 1 if repeats else 0)
    return [name[prefix_length[_top(name)] :] for name in names]


def _find_classes(names: list[str], paths: list[str], splits: list[str] | None) -> list[str] | None:
    """Return the class of each image, the first folder of its path below the splits, or None if there are none."""
    outside = [name for name, path in zip(names, paths, strict=True) if "/" not in path]
    if len(outside) == len(names):
        return None
    if outside:
        folders = {
            name[: len(name) - len(path)] + _top(path)
            for name, path in zip(names, paths, strict=True) if "/" in path
        }  # fmt: skip
        raise _ambiguous(
            f"{list_names(outside)} outside of the class folders {_list(sorted(folders))}",
            "move them away or into class folders",
        )
    if splits is None and (
        inner := sorted({"/".join(path.split("/")[:2]) for path in paths if _second(path).lower() in SPLIT_WORDS})
    ):
        raise _ambiguous(
            f"the split folders {_list(inner)} lie inside other folders", "put them first: SPLIT/CLASS/NAME"
        )
    return [_top(path) for path in paths]


def _second(path: str) -> str:
    segments = path.split("/", 2)
    return segments[1] if len(segments) == 3 else ""


def _check_classes(classes: list[str], splits: list[str] | None) -> list[str]:
    """Return notes on classes that not all splits have. Raises ValueError if they are other classes or spellings."""
    if splits is None:
        return []
    by_split: dict[str, set[str]] = defaultdict(set)
    for split, name in zip(splits, classes, strict=True):
        by_split[split].add(name)
    spellings: dict[str, set[str]] = defaultdict(set)
    for name in set(classes):
        spellings[unicodedata.normalize("NFKC", name).casefold().strip()].add(name)
    for same in spellings.values():  # A and a are two classes if one split has both, as sets of letters do
        if len(same) > 1 and all(len(same & names) < 2 for names in by_split.values()):
            raise _ambiguous(f"{_list(sorted(same))} spell one class in two ways", "rename the folders alike")
    train = by_split.get("train", set())
    notes = []
    for split, names in by_split.items():
        if train and not names & train:
            raise _ambiguous(
                f"the class folders of {split}, {_list(sorted(names))}, are none of train's, {_list(sorted(train))}",
                "rename them alike, or move the split away",
            )
        if train and names - train:
            notes.append(f"{split} has classes that train lacks: {list_names(sorted(names - train))}")
    return notes


def _list(folders: Iterable[str]) -> str:
    return list_names(f"{folder}/" for folder in folders)


def _ambiguous(cause: str, fix: str) -> ValueError:
    return ValueError(f"ambiguous layout: {cause}; {fix}")
