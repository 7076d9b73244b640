"""Store measurements in the run's folder: `<run>/study/<name>-<digest>.npz`, with the metrics as JSON inside.

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
METRICS_ENTRY = "figures.json"


def measurement_path(root: str, name: str, options: dict[str, Any]) -> str:
    """Return the path of a measurement in the run's folder `root`. `options` are all that its metrics depend on."""
    text = json.dumps([VERSION, options], sort_keys=True)
    return f"{root}/study/{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.npz"


def save_measurement(fs: pafs.FileSystem, path: str, measurement: Measurement) -> None:
    """Write a measurement atomically."""
    text, buffer = json.dumps(measurement.metrics).encode(), io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{METRICS_ENTRY: np.frombuffer(text, np.uint8)}, **measurement.arrays)
    write_atomic(fs, path, buffer.getvalue())


def load_measurement(fs: pafs.FileSystem, path: str) -> Measurement | None:
    """Return the measurement at `path`, or None if there is none or its zip checksums do not match."""
    try:
        with np.load(io.BytesIO(read_bytes(fs, path)), allow_pickle=False) as npz:
            arrays = dict(npz)
    except (FileNotFoundError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    return Measurement(json.loads(arrays.pop(METRICS_ENTRY).tobytes()), arrays)
