"""The folder of a job's report, on a disk or on S3."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow.fs as pafs

from aecore.data.io import write_atomic
from cluster.lineage import submitted_job
from cluster.settings import absolute_uri, settings
from cluster.storage import check_uri, open_uri


@dataclass(frozen=True)
class ReportFolder:
    """`uri`: an absolute path, or s3://bucket/prefix."""

    uri: str

    def write(self, files: Mapping[str, bytes]) -> None:
        """Write the files by name, in their order, each whole or not at all."""
        fs, root = open_uri(self.uri)
        for name, content in files.items():
            write_atomic(fs, f"{root}/{name}", content)


def open_report_folder(out: str | None, default: str) -> ReportFolder:
    """Return the folder `out`, a path or an s3:// URI; without it, `default` below ZPOINT_HOME.

    A submitted job without a ZPOINT_HOME has its home in the job's folder, which Ray deletes: its default is below
    ZPOINT_STORE. Raises ValueError if `out` is a file or its store refuses access, OSError if the folder cannot be
    made: before the work, not after it.
    """
    in_job_folder = submitted_job() and "ZPOINT_HOME" not in os.environ
    parent = settings().store if in_job_folder else str(settings().home)
    uri = absolute_uri(out) if out else f"{parent}/{default}"
    fs, root = check_uri(uri)
    if isinstance(fs, pafs.LocalFileSystem):
        if os.path.exists(root) and not os.path.isdir(root):
            raise ValueError(f"--out {out or uri} is a file: name a folder")
        os.makedirs(root, exist_ok=True)
    return ReportFolder(uri)
