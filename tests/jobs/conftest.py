"""Fixtures of the tests of jobs: tiny datasets, a tiny recipe, finished runs, and the `zpoint` command in process."""

import json
import os
import re
import shutil
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from aecore.config import load_recipe
from aecore.data.images import encode_image
from aecore.data.shards import Manifest, save_manifest, shard_table, write_shard
from aecore.data.synthetic_faces import draw_face
from jobs.cli import main
from jobs.train.job import train

FS = pafs.LocalFileSystem()
SIZE = 16
PROGRESS = re.compile(r"\S+: [\d,/]+ (images|epochs)  |trial \S+ \(.*\) lost, ")
RECIPE = """
model: {z_dim: 3, channels: [4, 4, 4, 4], norm: group}
optim: {epochs: 2, batch: 8}
scale: {workers: 0}
search: {trials: 3, space: {model.z_dim: [2, 3], loss.kl_factor: "log(0.01, 1)"}, stop: none}
"""


@pytest.fixture(scope="session")
def written_faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 48 training, 16 validation and 16 test faces of 16x16 pixels, in shards of 16."""
    return _write_faces(tmp_path_factory.mktemp("faces"), {"train": 3, "valid": 1, "test": 1}, rows=16)


@pytest.fixture(scope="session")
def many_faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 128 training, 64 validation and 64 test faces of 16x16 pixels, enough for a study."""
    return _write_faces(tmp_path_factory.mktemp("many"), {"train": 2, "valid": 1, "test": 1}, rows=64)


def _write_faces(root: Path, num_shards: dict[str, int], rows: int) -> Path:
    first_face, splits = 0, {}
    for split, count in num_shards.items():
        shards = []
        for index in range(count):
            faces = range(first_face, first_face + rows)
            table = shard_table(
                pa.table({"name": [str(face) for face in faces]}),
                [encode_image(draw_face(0, face, SIZE)[0], "png") for face in faces],
            )
            shards.append(write_shard(FS, str(root), f"{split}-{index:05d}.parquet", table))
            first_face += rows
        splits[split] = tuple(shards)
    save_manifest(
        FS, str(root), Manifest(dataset="generated", options={}, size=16, channels=3, encoding="png", splits=splits)
    )
    return root


@pytest.fixture
def faces(written_faces: Path, tmp_path: Path) -> Path:
    """Copy the tiny dataset, so that the test may damage it."""
    return Path(shutil.copytree(written_faces, tmp_path / "faces"))


@contextmanager
def small_trainings() -> Iterator[pytest.MonkeyPatch]:
    """Train with one thread, since two would mostly wait for each other, and with few patches in the HOG metrics."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr("aecore.metrics.pixel.NUM_PATCHES", 256)
        yield patch
    torch.set_num_threads(threads)


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[str]:
    """Write a recipe that trains in a second in this process; gives its path."""
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    with small_trainings():
        yield str(path)


@contextmanager
def tiny_trainings(folder: Path, mlflow_template: Path) -> Iterator[tuple[Path, Path]]:
    """Create a ZPOINT_HOME below `folder` and use it inside the block; yield it and the path of the tiny recipe."""
    home, recipe = folder / "home", folder / "tiny.yaml"
    recipe.write_text(RECIPE)
    home.mkdir()
    shutil.copy(mlflow_template, home / "mlflow.db")
    with small_trainings() as patch:
        patch.setenv("ZPOINT_HOME", str(home))
        patch.setenv("ZPOINT_CACHE", str(folder / "cache"))
        yield home, recipe


@pytest.fixture(scope="session")
def trained_home(written_faces: Path, mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train the tiny recipe in this process as runs `a`, of 2 epochs, and `b`, of 1; gives their ZPOINT_HOME."""
    with tiny_trainings(tmp_path_factory.mktemp("trained"), mlflow_template) as (home, recipe):
        for name, epochs in {"a": 2, "b": 1}.items():
            train(load_recipe(recipe, [f"data.uri={written_faces}", f"name={name}", f"optim.epochs={epochs}"]), "tiny")
    return home


@pytest.fixture(scope="session")
def session_tracking(mlflow_template: Path) -> None:
    """Create an empty MLflow database in the session's ZPOINT_HOME, for fixtures that train on Ray for many tests."""
    database = Path(os.environ["ZPOINT_HOME"], "mlflow.db")
    if not database.exists():
        shutil.copy(mlflow_template, database)


def copy_home(source: Path) -> None:
    """Copy a ZPOINT_HOME with its runs and MLflow database to the test's ZPOINT_HOME."""
    from mlflow.tracking._tracking_service import utils

    utils._artifact_repos_cache.clear()  # by run id alone: artifacts would be logged to the source
    home = Path(os.environ["ZPOINT_HOME"])
    shutil.copytree(source, home, dirs_exist_ok=True)
    with closing(sqlite3.connect(home / "mlflow.db")) as database, database:
        for table, column in {"experiments": "artifact_location", "runs": "artifact_uri"}.items():
            update = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"
            database.execute(update, (str(source), str(home)))


@pytest.fixture
def trained_runs(trained_home: Path, isolated_folders: None) -> list[str]:
    """Copy the finished runs `a` and `b`, with their MLflow database, to the test's ZPOINT_HOME; gives their names."""
    copy_home(trained_home)
    return ["a", "b"]


@pytest.fixture
def zpoint(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Run a command that must succeed; gives its --json result, which must be all of stdout."""

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
    """Run a command that must be refused in one line, with status 2 and nothing written; gives the line."""

    def run(*argv: object) -> str:
        files = home_files()
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in argv])
        out, err = capsys.readouterr()
        assert (caught.value.code, out) == (2, ""), err
        lines = [line for line in err.splitlines() if not PROGRESS.match(line)]
        assert len(lines) == 1, err
        assert lines[0].startswith("zpoint: error: ")
        assert home_files() == files
        return lines[0]

    return run


def home_files() -> dict[str, bytes]:
    """Return the files of the test's own folder, without node caches and locks; of MLflow's database only the name."""
    paths = (p for p in sorted(Path.cwd().rglob("*")) if p.is_file() and "cache" not in p.parts and p.suffix != ".lock")
    return {str(path): b"" if path.name == "mlflow.db" else path.read_bytes() for path in paths}


@pytest.fixture
def interrupted(capsys: pytest.CaptureFixture[str], wait_until: Callable[..., None]) -> Callable[..., None]:
    """Run a command, press Ctrl-C once one of `runs` has an epoch, and check that it ends as resumable."""

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
        assert capsys.readouterr().err.endswith("zpoint: interrupted; run the same command again to resume\n")
        assert signal.getsignal(signal.SIGINT) is handler

    return run
