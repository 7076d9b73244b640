"""`data.cache: none`: the images stream through Ray Data's tasks to two workers, or are read in this process."""

from pathlib import Path

import pytest

from tests.synthetic_dataset import make_dataset

# Without noise and with steps that change nothing an epoch's means are those of fixed weights: equal if each image
# comes once.
FIXED_WEIGHTS = ("model.norm=none", "loss.kl_factor=0", "optim.lr=1e-12", "optim.epochs=2")


@pytest.fixture
def odd_dataset(tmp_path: Path) -> Path:
    """Write a dataset with an odd number of images in each split and in the last shards."""
    make_dataset(tmp_path / "odd", {"train": [15, 15, 7], "valid": [5, 2], "test": [3]}, size=16)
    return tmp_path / "odd"


@pytest.mark.usefixtures("ray_cluster", "tracking")
def test_streamed_training_gets_each_image_once(zpoint, refused, tiny: str, odd_dataset: Path):
    dataset = f"data.uri={odd_dataset}"
    cached = zpoint("train", tiny, dataset, "name=cached", "--fresh", *FIXED_WEIGHTS)["metrics"]
    argv = ("train", tiny, dataset, "data.cache=none", "--fresh", *FIXED_WEIGHTS)
    for streamed in (zpoint(*argv, "name=streamed", "scale.workers=2"), zpoint(*argv, "name=local")):
        for metric in ("train_recon", "valid_recon", "valid_psnr"):
            assert streamed["metrics"][metric] == pytest.approx(cached[metric], rel=1e-4), metric
    shard = odd_dataset / "train-00001.parquet"
    content = shard.read_bytes()
    shard.write_bytes(content[:-9] + b"X" + content[-8:])
    assert "train-00001.parquet is damaged" in refused(*argv, "name=bad", "scale.workers=1")


@pytest.mark.usefixtures("tracking")
def test_dataset_over_the_cache_limit_is_refused(refused, zpoint, tiny: str, odd_dataset: Path, monkeypatch):
    argv = ("train", tiny, f"data.uri={odd_dataset}")
    monkeypatch.setenv("ZPOINT_CACHE_MAX", "9KB")
    assert "stream it with data.cache=none" in refused(*argv)
    monkeypatch.setenv("ZPOINT_CACHE_MAX", "much")
    assert "ZPOINT_CACHE_MAX takes a size as in 500MB or 20GB, not 'much'" in refused(*argv)
    monkeypatch.setenv("ZPOINT_CACHE_MAX", "0.1 mb")
    assert zpoint(*argv, "data.flip=true", "optim.epochs=1")["metrics"]
    assert "data.cache: input should be" in refused(*argv, "data.cache=disk")
