"""What the tests of the jobs share: a tiny dataset, a tiny recipe, and the command called as a user calls it."""

import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from aecore.data.images import encode_image
from aecore.data.shards import Manifest, save_manifest, shard_table, write_shard
from aecore.data.synthetic_faces import draw_face
from jobs.cli import main

FS = pafs.LocalFileSystem()
SIZE = 16
PROGRESS = re.compile(r"\S+: [\d,/]+ (images|epochs)  ")
RECIPE = """
model: {z_dim: 3, channels: [4, 4, 4, 4], norm: group}
optim: {epochs: 2, batch: 8}
scale: {workers: 0}
search: {trials: 3, parallel: 2, z_dim: [2, 3], kl_factor: [0.01, 1.0]}
"""


@pytest.fixture(scope="session")
def written_faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 faces of 16x16 to train on, 16 to validate, 16 to test, in shards of 16."""
    return _write_faces(tmp_path_factory.mktemp("faces"), {"train": 3, "valid": 1, "test": 1}, rows=16)


@pytest.fixture(scope="session")
def many_faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """128 faces of 16x16 to train on, 64 to validate, 64 to test: enough for a study."""
    return _write_faces(tmp_path_factory.mktemp("many"), {"train": 2, "valid": 1, "test": 1}, rows=64)


def _write_faces(root: Path, counts: dict[str, int], rows: int) -> Path:
    first, splits = 0, {}
    for split, count in counts.items():
        shards = []
        for number in range(count):
            images = [encode_image(draw_face(0, first + row, SIZE)[0], "png") for row in range(rows)]
            table = shard_table(pa.table({"name": [str(first + row) for row in range(rows)]}), images)
            shards.append(write_shard(FS, str(root), f"{split}-{number:05d}.parquet", table))
            first += rows
        splits[split] = tuple(shards)
    save_manifest(FS, str(root), Manifest(dataset="x", options={}, size=16, channels=3, encoding="png", splits=splits))
    return root


@pytest.fixture
def faces(written_faces: Path, tmp_path: Path) -> Path:
    """A copy of the tiny dataset that the test may damage."""
    return Path(shutil.copytree(written_faces, tmp_path / "faces"))


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The path of a recipe that trains in a second, in this process."""
    import torch

    # Two threads on so little work wait for each other, on a busy machine most of the time.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("aecore.metrics.pixel.MAX_PATCHES", 256)
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    yield str(path)
    torch.set_num_threads(threads)


@pytest.fixture
def zpoint(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Runs a command that must succeed; gives its --json result, which must be all that stdout holds."""

    def run(*argv: object) -> dict[str, Any]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in argv] + ["--json"])
        out, err = capsys.readouterr()
        assert caught.value.code == 0, err
        assert out.count("\n") == 1, out
        return json.loads(out)

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must be refused in one line, with status 2 and nothing written; gives the line."""

    def run(*argv: object) -> str:
        before = tree()
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in argv])
        out, err = capsys.readouterr()
        assert (caught.value.code, out) == (2, ""), err
        lines = [line for line in err.splitlines() if not PROGRESS.match(line)]
        assert len(lines) == 1, err
        assert lines[0].startswith("zpoint: error: ")
        assert tree() == before
        return lines[0]

    return run


def tree() -> dict[str, bytes]:
    """The files of the test's own folder, but for the node cache, which only remembers, MLflow's database and locks."""
    every = (p for p in sorted(Path.cwd().rglob("*")) if p.is_file() and "cache" not in p.parts)
    files = (p for p in every if p.suffix != ".lock")
    return {str(p): b"" if p.name == "mlflow.db" else p.read_bytes() for p in files}


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """Waits until a function gives something true."""

    def wait(true: Callable[[], Any], seconds: float = 120) -> None:
        until = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < until, "it did not come to pass"
            time.sleep(0.002)

    return wait


@pytest.fixture
def interrupted(capsys: pytest.CaptureFixture[str], wait_until: Callable[..., None]) -> Callable[..., None]:
    """Runs a command that gets a Ctrl-C once one of `runs` has an epoch, and must end as one that can go on."""

    def run(runs: str, *argv: object) -> None:
        folder, handler = Path(os.environ["ZPOINT_HOME"], "runs"), signal.getsignal(signal.SIGINT)

        def stop() -> None:
            wait_until(lambda: list(folder.glob(f"{runs}/epochs/*.json")))
            os.kill(os.getpid(), signal.SIGINT)

        stopper = threading.Thread(target=stop)
        stopper.start()
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in argv])
        stopper.join()
        assert caught.value.code == 130
        assert capsys.readouterr().err.endswith("zpoint: stopped; the same command goes on from here\n")
        assert signal.getsignal(signal.SIGINT) is handler

    return run
