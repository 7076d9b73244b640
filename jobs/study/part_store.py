"""Finished parts of a study, kept in the run's folder: `<run>/study/<part>-<digest>.npz`, figures within.

A study that was stopped goes on with them, and another study of the same run finds them.
"""

import hashlib
import io
import json
import zipfile
from typing import Any

import numpy as np
import pyarrow.fs as pafs

from aecore.analysis import Part
from aecore.data.io import read_bytes, write_atomic

VERSION = 4  # of what the parts measure: raise it where figures change, or parts, samplers, tasks or metrics are added
FIGURES = "figures.json"


def part_path(root: str, name: str, options: dict[str, Any]) -> str:
    """Where the part `name` of the run in folder `root` lies; `options` are what its figures depend on."""
    text = json.dumps([VERSION, options], sort_keys=True)
    return f"{root}/study/{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.npz"


def save_part(fs: pafs.FileSystem, path: str, part: Part) -> None:
    """Write `part`, whole or not at all."""
    text, out = json.dumps(part.figures).encode(), io.BytesIO()
    np.savez(out, allow_pickle=False, **{FIGURES: np.frombuffer(text, np.uint8)}, **part.arrays)
    write_atomic(fs, path, out.getvalue())


def load_part(fs: pafs.FileSystem, path: str) -> Part | None:
    """The part at `path`; None where there is none, or a damaged one (a zip keeps checksums)."""
    try:
        with np.load(io.BytesIO(read_bytes(fs, path)), allow_pickle=False) as kept:
            arrays = dict(kept)
    except (FileNotFoundError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    return Part(json.loads(arrays.pop(FIGURES).tobytes()), arrays)
