"""A study of a set that is too large for one process: the cluster encodes it."""

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

FS, HELD, ENCODED = pafs.LocalFileSystem(), 64, 96


@pytest.mark.usefixtures("ray_cluster", "tracking")
def test_a_large_set_is_encoded_on_the_cluster_as_in_one_process(
    zpoint: Callable, tiny: str, many_faces: Path, monkeypatch: pytest.MonkeyPatch
):
    from jobs.study.encoding import encode_spread

    ours = (f"data.uri={many_faces}", "optim.epochs=1")
    zpoint("train", tiny, *ours, "name=large-ae", "loss.kl_factor=0")
    zpoint("train", tiny, *ours, "name=large-vae")
    dataset = Dataset.open(FS, str(many_faces))
    for name in ("large-ae", "large-vae"):
        uri = find_run(name).uri
        there = encode_spread(uri, str(many_faces), dataset.manifest, ENCODED)
        here = encode_images(load_model(FS, f"{uri}/model"), dataset.images("train", ENCODED))
        torch.testing.assert_close(there.mean, here.mean)
        assert (there.logvar is None) == (name == "large-ae")
        if there.logvar is not None and here.logvar is not None:
            torch.testing.assert_close(there.logvar, here.logvar)

    monkeypatch.setattr("jobs.study.images.LARGE", HELD)
    report = Path(zpoint("study", "large-vae", "--limit", ENCODED, "--judged", 12, "--out", "report")["report"])
    figures = json.loads((report.parent / "metrics.json").read_text())
    assert figures["runs"][0]["points"]["encoded"] == ENCODED


@pytest.mark.usefixtures("ray_cluster", "tracking")
def test_a_damaged_shard_is_named(zpoint: Callable, tiny: str, faces: Path):
    from jobs.study.encoding import encode_spread

    zpoint("train", tiny, f"data.uri={faces}", "optim.epochs=1", "name=large-damaged")
    manifest = Dataset.open(FS, str(faces)).manifest
    (faces / "train-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"train-00001\.parquet") as caught:
        encode_spread(find_run("large-damaged").uri, str(faces), manifest, 48)
    assert "\n" not in str(caught.value)
