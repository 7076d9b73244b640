"""The study of a dataset that is too large for one process: Ray Data encodes it."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.fs as pafs
import pytest
import torch

from aecore.analysis import encode_images
from aecore.data.dataset import Dataset
from aecore.training.checkpoint import load_model
from jobs.run_store import find_run

FS = pafs.LocalFileSystem()
LIMIT = 96  # images to encode, over the patched MAX_IN_PROCESS


@pytest.mark.usefixtures("ray_cluster", "tracking")
def test_large_dataset_is_encoded_on_the_cluster_as_in_one_process(
    zpoint: Callable, tiny: str, many_faces: Path, monkeypatch: pytest.MonkeyPatch
):
    from jobs.study.encoding import encode_on_cluster

    overrides = (f"data.uri={many_faces}", "optim.epochs=1")
    zpoint("train", tiny, *overrides, "name=large-ae", "loss.kl_factor=0")
    zpoint("train", tiny, *overrides, "name=large-vae")
    dataset = Dataset.open(FS, str(many_faces))
    for name in ("large-ae", "large-vae"):
        run_uri = find_run(name).uri
        on_cluster = encode_on_cluster(run_uri, str(many_faces), dataset.manifest, LIMIT)
        in_process = encode_images(load_model(FS, f"{run_uri}/model"), dataset.images("train", LIMIT))
        torch.testing.assert_close(on_cluster.mean, in_process.mean)
        assert (on_cluster.logvar is None) == (name == "large-ae")
        if on_cluster.logvar is not None and in_process.logvar is not None:
            torch.testing.assert_close(on_cluster.logvar, in_process.logvar)

    monkeypatch.setattr("jobs.study.images.MAX_IN_PROCESS", 64)
    options = ("--limit", LIMIT, "--num-samples", 12, "--out", "report")
    report = Path(zpoint("study", "large-vae", *options)["report"])
    metrics = json.loads((report.parent / "metrics.json").read_text())
    assert metrics["runs"][0]["points"]["encoded"] == LIMIT


@pytest.mark.usefixtures("ray_cluster", "tracking")
def test_error_names_the_damaged_shard(zpoint: Callable, tiny: str, faces: Path):
    from jobs.study.encoding import encode_on_cluster

    zpoint("train", tiny, f"data.uri={faces}", "optim.epochs=1", "name=large-damaged")
    manifest = Dataset.open(FS, str(faces)).manifest
    (faces / "train-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"train-00001\.parquet") as error:
        encode_on_cluster(find_run("large-damaged").uri, str(faces), manifest, 48)
    assert "\n" not in str(error.value)
