"""Fetching the sets that torchvision knows, where a network exists."""

import os
import shutil
import socket
import sys
import tempfile
from contextlib import redirect_stdout

from aecore.data.remote_path import RemotePath
from aecore.errors import one_line

FOLDERS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "cifar-10-batches-py"}  # as torchvision's
SECONDS = 30  # that a server may stay silent


def check_downloadable(dataset: str) -> None:
    """Raise ValueError when `dataset` is not one of FOLDERS."""
    if dataset not in FOLDERS:
        raise ValueError(f"--download takes {', '.join(FOLDERS)}; {dataset} you must fetch yourself")


def download(dataset: str, place: RemotePath) -> None:
    """Put `dataset` into the folder `place`, whole or not at all; where its folder is there, nothing is fetched.

    Raises ValueError when `place` is not local or the network does not give it.
    """
    if not place.local:
        raise ValueError(f"--download needs a local folder as --source, not {place}")
    folder = FOLDERS[dataset]
    if (place / folder).exists():
        return
    before, made = socket.getdefaulttimeout(), not place.exists()
    socket.setdefaulttimeout(SECONDS)
    try:
        os.makedirs(place.path, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=place.path) as half:
            _fetch(dataset, half)
            os.rename(os.path.join(half, folder), (place / folder).path)
    except (OSError, RuntimeError) as error:  # URLError is an OSError, a wrong checksum a RuntimeError
        if made:
            shutil.rmtree(place.path, ignore_errors=True)
        raise ValueError(f"cannot download {dataset} to {place}: {one_line(error)}") from error
    finally:
        socket.setdefaulttimeout(before)


def _fetch(dataset: str, root: str) -> None:
    from torchvision import datasets
    from torchvision.datasets.utils import download_and_extract_archive

    with redirect_stdout(sys.stderr):
        if dataset == "cifar10":  # as CIFAR10(download=True), which would then also unpickle it
            kind = datasets.CIFAR10
            download_and_extract_archive(kind.url, root, filename=kind.filename, md5=kind.tgz_md5)
        else:
            kind = datasets.MNIST if dataset == "mnist" else datasets.FashionMNIST
            kind(root, train=False, download=True)
