"""Download the datasets that torchvision provides."""

import os
import socket
import sys
import tempfile
from contextlib import redirect_stdout, suppress

from aecore.data.remote_path import RemotePath
from aecore.errors import one_line

FOLDERS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "cifar-10-batches-py"}  # torchvision's
TIMEOUT_S = 30  # without a byte from the server


def check_downloadable(dataset: str) -> None:
    """Raise ValueError when `dataset` is not one of FOLDERS."""
    if dataset not in FOLDERS:
        raise ValueError(f"--download takes {', '.join(FOLDERS)}; {dataset} must be downloaded by hand")


def download(dataset: str, root: RemotePath) -> None:
    """Download `dataset` into a folder of `root` atomically; do nothing if that folder exists.

    Raises ValueError when `root` is not local or the download fails.
    """
    if not root.is_local:
        raise ValueError(f"--download needs a local folder as --source, not {root}")
    folder = FOLDERS[dataset]
    if (root / folder).exists():
        return
    default_timeout, created = socket.getdefaulttimeout(), not root.exists()
    socket.setdefaulttimeout(TIMEOUT_S)
    try:
        os.makedirs(root.path, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root.path) as temporary:
            _fetch(dataset, temporary)
            os.rename(os.path.join(temporary, folder), (root / folder).path)
    except (OSError, RuntimeError) as error:  # URLError is an OSError, a wrong checksum a RuntimeError
        if created:
            with suppress(OSError):  # not empty: another process has downloaded there
                os.rmdir(root.path)
        raise ValueError(f"cannot download {dataset} to {root}: {one_line(error)}") from error
    finally:
        socket.setdefaulttimeout(default_timeout)


def _fetch(dataset: str, root: str) -> None:
    from torchvision import datasets
    from torchvision.datasets.utils import download_and_extract_archive

    with redirect_stdout(sys.stderr):
        if dataset == "cifar10":  # what CIFAR10(download=True) does, which would also unpickle it
            cls = datasets.CIFAR10
            download_and_extract_archive(cls.url, root, filename=cls.filename, md5=cls.tgz_md5)
        else:
            cls = datasets.MNIST if dataset == "mnist" else datasets.FashionMNIST
            cls(root, train=False, download=True)
