"""Store measurements in the run's folder: `<run>/study/<name>-<digest>.npz`.

Inside are the arrays by number, and as JSON their names and the metrics.

An interrupted study resumes with them, and later studies of the run reuse them.
"""

import hashlib
import io
import json
import zipfile
from typing import Any

import numpy as np
import pyarrow.fs as pafs

from aecore.analysis import Measurement
from aecore.data.io import read_bytes, write_atomic

# Increase it when a measurement changes, or when a measurement, sampler, task or metric is added.
VERSION = 5
METRICS_ENTRY, NAMES_ENTRY = "figures.json", "names.json"


def measurement_path(root: str, name: str, options: dict[str, Any]) -> str:
    """Return the path of a measurement in the run's folder `root`. `options` are all that its metrics depend on."""
    text = json.dumps([VERSION, options], sort_keys=True)
    return f"{root}/study/{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.npz"


def save_measurement(fs: pafs.FileSystem, path: str, measurement: Measurement) -> None:
    """Write a measurement atomically."""
    # An array may have the name of any class, such as "file": not every name can be a keyword or a zip member's name.
    entries = {METRICS_ENTRY: measurement.metrics, NAMES_ENTRY: list(measurement.arrays)}
    encoded = {entry: np.frombuffer(json.dumps(value).encode(), np.uint8) for entry, value in entries.items()}
    buffer = io.BytesIO()
    np.savez(buffer, *measurement.arrays.values(), allow_pickle=False, **encoded)
    write_atomic(fs, path, buffer.getvalue())


def load_measurement(fs: pafs.FileSystem, path: str) -> Measurement | None:
    """Return the measurement at `path`, or None if there is none or its zip checksums do not match."""
    try:
        with np.load(io.BytesIO(read_bytes(fs, path)), allow_pickle=False) as npz:
            arrays = dict(npz)
    except (FileNotFoundError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    metrics = json.loads(arrays.pop(METRICS_ENTRY).tobytes())
    if NAMES_ENTRY in arrays:  # earlier versions stored the arrays by name
        names = json.loads(arrays.pop(NAMES_ENTRY).tobytes())
        arrays = {name: arrays[f"arr_{index}"] for index, name in enumerate(names)}
    return Measurement(metrics, arrays)
