"""CelebA as it is distributed: the official folders, torchvision's root, Kaggle's folder and zip, with their lists.

Layouts: `img_align_celeba` (folder or zip, also twice nested as Kaggle has it, also as PNG) or the photos before their
alignment, `img_celeba`; beside it, above it or in the zip `list_eval_partition`, `list_attr_celeba` and
`identity_CelebA` as .txt or .csv.
"""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from aecore.data.file_tree import FileTree, list_tree
from aecore.data.layout import common_folder
from aecore.data.readers import read_table
from aecore.data.remote_path import RemotePath
from aecore.errors import list_names, printable

IMAGE_FOLDERS = ("img_align_celeba", "img_align_celeba_png", "img_celeba")  # the first one that is there is taken
LISTS = ("list_eval_partition", "identity_CelebA", "list_attr_celeba")
_IN_7Z = {"img_align_celeba_png": "img_align_celeba_png.7z", "img_celeba": "img_celeba.7z"}  # unpacked on the spot
_HQ = re.compile(r"celeb[-_ ]?a?[-_ ]?(mask)?[-_ ]?hq", re.IGNORECASE)


@dataclass(frozen=True)
class CelebaFiles:
    """The images of a CelebA and the texts of its lists."""

    tree: FileTree
    prefix: str  # the folders that hold all images
    content_by_name: dict[str, int]  # of the images, as in FileTree.files
    lists: dict[str, str]  # texts by file name, those of LISTS that are there

    def list_file(self, name: str) -> str | None:
        """Return the file name of one of LISTS, or None if it is missing."""
        return next((file for file in self.lists if file.startswith(name)), None)


def find_celeba(base: RemotePath) -> CelebaFiles:
    """Find images and lists from `base`: the root, the image folder or a zip. `content_by_name` may be empty."""
    tree = list_tree(_find_image_folder(base))
    images = tree.find_images()
    for kind in IMAGE_FOLDERS:
        inside = {name: content for name, content in images.items() if f"/{kind}/" in f"/{name}"}
        if inside:
            tree.passed_over[f"not in {kind}"] += images.keys() - inside.keys()
            images = inside
            break
    prefix = common_folder(list(images)) if images else ""
    lists = dict(filter(None, (_find_list(tree, base, name) for name in LISTS)))
    tree.passed_over["text"] = [name for name in tree.passed_over["text"] if name.rpartition("/")[2] not in lists]
    return CelebaFiles(tree, prefix, {name[len(prefix) :]: images[name] for name in images}, lists)


def _find_image_folder(base: RemotePath) -> RemotePath:
    if not base.is_dir():
        return base
    for kind in IMAGE_FOLDERS:
        names = [f"{kind}.zip", f"Img/{kind}.zip", kind, f"Img/{kind}"]
        if kind in _IN_7Z:
            names += [f"{_IN_7Z[kind]}/{kind}", f"Img/{_IN_7Z[kind]}/{kind}"]
        candidates = [base / folder / name for folder in ("", "celeba", "CelebA") for name in names]
        if (path := next(filter(RemotePath.exists, candidates), None)) is not None:
            return path
    return base


def _find_list(tree: FileTree, base: RemotePath, name: str) -> tuple[str, str] | None:
    """Return file name and text of a list in the folder or zip of the images, in `base`, or in two folders above."""
    files = (f"{name}.txt", f"{name}.csv")
    for path in tree.files:
        if (file := path.rpartition("/")[2]) in files:
            return file, tree.read(path).decode("utf-8-sig", errors="replace")
    folders = (tree.path.parent, tree.path.parent.parent, base)
    for path in (folder / sub / file for folder in folders for sub in ("", "Eval", "Anno") for file in files):
        if path.is_file():
            return path.path.rpartition("/")[2], read_table(path).decode("utf-8-sig", errors="replace")
    return None


def parse_list(text: str, names: list[str], file: str) -> tuple[list[str], np.ndarray]:
    """Return the columns' names and the integers of each image in a list such as `000001.jpg 0` or `000001.jpg,0`.

    A list's .jpg stands for a .png of that number too. The integers are int64 (n, columns); a list without a header
    has no column names. Raises ValueError when an image is not listed or a row has other columns.
    """
    rows: dict[str, list[str]] = {}
    header: list[str] = []
    for line in text.splitlines():
        name, *values = line.replace(",", " ").split() or [""]
        if "." in name and values:
            rows[_stem(name)] = values
        elif values and not rows:
            header = [name, *values]
    if missing := [name for name in names if _stem(name) not in rows]:
        raise ValueError(
            f"{file} does not list the image {printable(missing[0])} ({len(missing):,} of {len(names):,} are missing); "
            "is it the list of this dataset?"
        )
    try:
        values = np.array([rows[_stem(name)] for name in names], np.int64)
    except ValueError as error:
        raise ValueError(f"{file} must have the same number of integers for each image") from error
    return header[-values.shape[1] :] if len(header) - values.shape[1] in (0, 1) else [], values


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def check_numbering(files: CelebaFiles) -> None:
    """Raise ValueError if the images are CelebA-HQ's, or others that CelebA does not have."""
    names = list(files.content_by_name)
    path = f"{PurePosixPath(files.tree.path.path).name}/{files.prefix}{names[0]}"
    stems = [PurePosixPath(name).stem for name in names]
    if _HQ.search(path) or all(stem.isdigit() and len(stem) < 6 for stem in stems):
        raise ValueError(
            f"{files.tree.path} holds CelebA-HQ (such as {printable(names[0])}), to whose numbers CelebA's lists do "
            "not apply; use `zpoint ingest folder`"
        )
    if misnamed := [name for name in names if not re.fullmatch(r"\d{6}\.\w+", name)]:
        raise ValueError(
            f"{files.tree.path} holds no CelebA: no img_align_celeba, but {list_names(misnamed, 1)}; use "
            "`zpoint ingest folder` for other images"
        )
