import hashlib
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from aecore.data import download
from aecore.data.sources import SourceOptions, open_source

from .test_sources import write_cifar, write_idx


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Serve a folder over HTTP; return the folder and its URL."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{http.server_port}/"
    http.shutdown()
    http.server_close()


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_mnist_is_downloaded_once(server: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from torchvision.datasets import MNIST

    folder, url = server
    write_idx(folder / "raw", 10, packed=True)
    files = sorted((folder / "raw").iterdir())
    monkeypatch.setattr(MNIST, "mirrors", [f"{url}raw/"])
    monkeypatch.setattr(MNIST, "resources", [(path.name, md5(path)) for path in files])
    source = open_source("mnist", SourceOptions(str(tmp_path / "to"), download=True))
    assert sum(table.num_rows for table in source.splits.values()) == 20
    for path in files:
        path.unlink()
    second = open_source("mnist", SourceOptions(str(tmp_path / "to"), download=True))
    assert second.fingerprint == source.fingerprint
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["MNIST"]


def test_a_download_with_a_wrong_checksum_leaves_no_files(server, tmp_path: Path, monkeypatch):
    from torchvision.datasets import CIFAR10

    folder, url = server
    write_cifar(folder / "cifar-10-batches-py")
    with tarfile.open(folder / "cifar.tar.gz", "w:gz") as archive:
        archive.add(folder / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(CIFAR10, "url", f"{url}cifar.tar.gz")
    with pytest.raises(ValueError, match=r"cannot download cifar10 to .*corrupted"):
        open_source("cifar10", SourceOptions(str(tmp_path / "to"), download=True))
    assert not (tmp_path / "to").exists()
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(folder / "cifar.tar.gz"))
    source = open_source("cifar10", SourceOptions(str(tmp_path / "to"), download=True))
    assert source.splits["test"].num_rows == 4


@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist", "cifar10"])
def test_a_failed_download_is_one_line(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from torchvision import datasets

    for kind in (datasets.MNIST, datasets.FashionMNIST):
        monkeypatch.setattr(kind, "mirrors", ["http://127.0.0.1:9/"])  # where nothing answers
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/x")
    (tmp_path / "mine").write_text("stays")
    with pytest.raises(ValueError, match=f"cannot download {dataset} to .*refused") as caught:
        open_source(dataset, SourceOptions(str(tmp_path), download=True))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_failed_download_leaves_that_of_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fetch_while_another_process_ends_first(dataset: str, temporary: str) -> None:
        for folder in (Path(temporary), tmp_path / "to"):
            write_idx(folder / "MNIST" / "raw", 3)

    monkeypatch.setattr(download, "_fetch", fetch_while_another_process_ends_first)
    with pytest.raises(ValueError, match="cannot download mnist"):
        open_source("mnist", SourceOptions(str(tmp_path / "to"), download=True))
    assert open_source("mnist", SourceOptions(str(tmp_path / "to"))).splits["test"].num_rows == 3


@pytest.mark.parametrize("dataset", ["celeba", "folder", "generated"])
def test_other_datasets_are_not_downloaded(dataset: str, tmp_path: Path):
    with pytest.raises(ValueError, match="--download takes mnist, fashion_mnist, cifar10"):
        open_source(dataset, SourceOptions(str(tmp_path), download=True))


def test_an_existing_dataset_is_not_downloaded(tmp_path: Path):
    write_idx(tmp_path / "MNIST" / "raw", 3)
    assert open_source("mnist", SourceOptions(str(tmp_path), download=True)).splits["test"].num_rows == 3
