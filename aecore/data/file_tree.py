"""List the files of a folder or zip by their relative paths with slashes, so that one rule reads both."""

import os
import re
import stat
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow.fs as pafs

from aecore.data.images import missing_decoder, sniff_format
from aecore.data.readers import MAX_REQUESTS, FileReader, Reader, ZipReader, member_path, open_zip
from aecore.data.remote_path import RemotePath
from aecore.errors import printable

IMAGE_SUFFIXES = {  # of files that must decode; a file with another ending is judged by its content
    ".apng", ".avif", ".bmp", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".pjpeg",
    ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
}  # fmt: skip
TEXT_SUFFIXES = {
    ".cfg", ".css", ".csv", ".htm", ".html", ".ini", ".ipynb", ".js", ".json", ".jsonl", ".log", ".md", ".py", ".rst",
    ".sh", ".svg", ".tex", ".toml", ".tsv", ".txt", ".xml", ".yaml", ".yml",
}  # fmt: skip
OTHER_SUFFIXES = {  # never opened: archives, arrays, films, drawings, raw photos (TIFFs inside), leftovers of programs
    ".7z", ".arrow", ".arw", ".avi", ".bak", ".bz2", ".cr2", ".cr3", ".crdownload", ".dcm", ".dng", ".eps", ".exr",
    ".gz", ".h5", ".hdf5", ".lmdb", ".mat", ".mdb", ".mkv", ".mov", ".mp3", ".mp4", ".nef", ".nii", ".npy", ".npz",
    ".old", ".orf", ".orig", ".parquet", ".part", ".pdf", ".pickle", ".pkl", ".psd", ".pt", ".pth", ".raf", ".rar",
    ".rw2", ".sqlite", ".tar", ".tfrecord", ".tgz", ".tmp", ".wav", ".webm", ".xcf", ".xz", ".zip", ".zst",
}  # fmt: skip
LITTER = {  # what Windows, macOS, Linux and network drives leave in folders, besides names that start with a dot
    "$recycle.bin", "#recycle", "@eadir", "__macosx", "desktop.ini", "ehthumbs.db", "lost+found",
    "system volume information", "thumbs.db",
}  # fmt: skip
HEAD_BYTES = 64  # that tell an image's format


@dataclass(frozen=True)
class FileTree:
    """The regular files of a folder or zip, and the entries that were passed over, by reason."""

    path: RemotePath
    mtime_ns: int | None  # of a zip
    files: dict[str, int] = field(default_factory=dict)  # by relative path: length in a folder, CRC-32 in a zip
    modified_ns: dict[str, int] = field(default_factory=dict)  # by relative path: times of the files in a folder
    folders: set[str] = field(default_factory=set)  # that hold a file, or are empty, or are broken links
    passed_over: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    repeated: list[str] = field(default_factory=list)  # pairs of paths that are one folder by a link: `a and b`

    def reader(self, prefix: str = "") -> Reader:
        """Return the reader of the files below the folder `prefix` (empty, or with a slash at its end)."""
        return FileReader(self.path / prefix) if self.mtime_ns is None else ZipReader(self.path, self.mtime_ns, prefix)

    def read(self, name: str) -> bytes:
        """Return a file's bytes. Raises ValueError when it is missing or damaged."""
        data = self.reader().read(name)
        assert isinstance(data, bytes)
        return data

    def find_images(self) -> dict[str, int]:
        """Return the files that are images, sorted by path; add the others to `passed_over`.

        Raises ValueError for an image whose name is not UTF-8, or has backslashes outside of a zip.
        """
        images, unclear = [], []
        for name in self.files:
            suffix = os.path.splitext(name)[1].lower()
            if suffix in IMAGE_SUFFIXES:
                images.append(name)
            elif suffix in TEXT_SUFFIXES:
                self.passed_over["text"].append(name)
            elif suffix in OTHER_SUFFIXES or name.endswith("~"):
                self.passed_over["ending"].append(name)
            else:
                unclear.append(name)
        for name, head in zip(unclear, self._read_heads(unclear), strict=True):
            image_format = sniff_format(head)
            if image_format is None:
                reason = "text" if _is_text(head) else "ending" if os.path.splitext(name)[1] else "content"
                self.passed_over[reason].append(name)
            elif missing_decoder(image_format):
                self.passed_over[f"no {image_format} decoder"].append(name)
            else:
                images.append(name)
        images.sort()
        for name in images:
            if not (name.isascii() or _is_utf8(name)):
                raise ValueError(f"{self.path}: the file name {printable(name)} is not UTF-8; rename the file")
            if "\\" in name and self.mtime_ns is None:
                raise ValueError(
                    f"{self.path}: the file name {printable(name)} has backslashes, as Python unpacks a zip made on "
                    "Windows; name the zip as --source, unpack it with `unzip`, or rename the file"
                )
        return {name: self.files[name] for name in images}

    def _read_heads(self, names: list[str]) -> Iterator[bytes]:
        if self.path.is_local:
            yield from map(self._read_head, names)
            return
        with ThreadPoolExecutor(MAX_REQUESTS) as pool:
            yield from pool.map(self._read_head, names)

    def _read_head(self, name: str) -> bytes:
        try:
            if self.mtime_ns is None:
                file = (self.path / name).open()
            else:
                archive, members = open_zip(self.path, self.mtime_ns)
                file = archive.open(members[name])
            with file:
                return file.read(HEAD_BYTES)
        except Exception:  # an encrypted or damaged member, a file without permission: no image that could be read
            return b""


def list_tree(path: RemotePath) -> FileTree:
    """List a folder or a zip.

    Links are followed, except one that is broken or leads back to a folder that holds it. Names of LITTER and names
    that start with a dot are passed over. Raises ValueError when a file is not a complete zip, OSError when storage
    fails or a folder is not readable.
    """
    if not path.is_dir():
        return _list_zip(path)
    tree = FileTree(path, None)
    if path.is_local:
        _walk(tree)
    else:
        _list_objects(tree)
    for name in tree.files:
        _add_folders(tree, name)
    return tree


def is_litter(name: str) -> bool:
    """Return True for the name of a file or folder that a system left behind."""
    return name.startswith(".") or name.lower() in LITTER


def _litter_in(name: str) -> str | None:
    """Return the path of the first folder or file in a relative path that is litter, or None."""
    if "/." not in name and name[0] != "." and not any(segment.lower() in LITTER for segment in name.split("/")):
        return None
    segments = name.split("/")
    depth = next(i for i, segment in enumerate(segments) if is_litter(segment))
    return "/".join(segments[: depth + 1])


def _walk(tree: FileTree) -> None:
    base = tree.path.path
    info = os.stat(base)
    # Each folder with the device and inode of all folders above it, which a link below must not lead to.
    pending, listed = [(base, "", frozenset([(info.st_dev, info.st_ino)]))], {}
    while pending:
        folder, prefix, above = pending.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                name = prefix + entry.name
                if is_litter(entry.name):
                    tree.passed_over["hidden"].append(name)
                    continue
                try:
                    info = entry.stat()
                except OSError:
                    if not entry.is_symlink():
                        raise
                    tree.passed_over["link"].append(name)
                    tree.folders.add(name)
                    continue
                if stat.S_ISREG(info.st_mode):
                    tree.files[name], tree.modified_ns[name] = info.st_size, info.st_mtime_ns
                elif not stat.S_ISDIR(info.st_mode):
                    tree.passed_over["device"].append(name)
                elif (key := (info.st_dev, info.st_ino)) in above:
                    tree.passed_over["link"].append(name)
                else:
                    tree.folders.add(name)
                    if (first_name := listed.setdefault(key, name)) != name:
                        tree.repeated.append(" and ".join(sorted((first_name, name))))
                    pending.append((entry.path, f"{name}/", above | {key}))


def _list_objects(tree: FileTree) -> None:
    hidden = set()
    for info in tree.path.fs.get_file_info(pafs.FileSelector(tree.path.path, recursive=True)):
        name = info.path[len(tree.path.path) + 1 :]
        if (litter := _litter_in(name)) is not None:
            hidden.add(litter)
        elif info.is_file:
            tree.files[name], tree.modified_ns[name] = info.size or 0, info.mtime_ns or 0
        else:
            tree.folders.add(name)
    tree.passed_over["hidden"].extend(sorted(hidden))


def _list_zip(path: RemotePath) -> FileTree:
    mtime_ns = path.mtime_ns()
    try:
        archive, _ = open_zip(path, mtime_ns)
    except zipfile.BadZipFile as error:
        if not path.path.lower().endswith(".zip"):
            raise ValueError(
                f"{path} is neither a folder nor a zip; unpack other archives and name the folder"
            ) from None
        raise ValueError(
            f"{path} is not a complete zip file ({path.size():,} bytes): {error}; fetch it again"
        ) from error
    except UnicodeDecodeError as error:
        name = printable(os.fsdecode(error.object))
        raise ValueError(f"{path} holds a member whose name is not UTF-8: {name}; pack the zip again") from error
    tree, hidden = FileTree(path, mtime_ns), set()
    for member in archive.infolist():
        name, is_folder = member_path(member.filename), member.filename.endswith(("/", "\\"))
        if not name:
            continue
        if (litter := _litter_in(name)) is not None:
            hidden.add(litter)
        elif is_folder:
            tree.folders.add(name)
        elif stat.S_ISLNK(member.external_attr >> 16):
            tree.passed_over["link"].append(name)
            tree.folders.add(name)
        else:
            if name in tree.files:
                tree.passed_over["duplicate"].append(name)
            tree.files[name] = member.CRC
            _add_folders(tree, name)
    tree.passed_over["hidden"].extend(sorted(hidden))
    return tree


def _add_folders(tree: FileTree, name: str) -> None:
    folder = name.rpartition("/")[0]
    while folder and folder not in tree.folders:
        tree.folders.add(folder)
        folder = folder.rpartition("/")[0]


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_text(head: bytes) -> bool:
    """Return True for bytes without control characters that are UTF-8, except for a last character cut in two."""
    return (
        bool(head)
        and not re.search(rb"[\0-\x08\x0e-\x1a\x1c-\x1f]", head)
        and "\ufffd" not in head.decode(errors="replace").rstrip("\ufffd")
    )
