"""`data.cache: none`: the same training from a stream, by Ray Data's tasks for two workers, or read in this process."""

from pathlib import Path

import pytest

from tests.synthetic_dataset import make_dataset

# Neither noise nor steps that matter: an epoch's mean is that of fixed weights, so it tells if each image came once.
STILL = ("model.norm=none", "loss.kl_factor=0", "optim.lr=1e-12", "optim.epochs=2")


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """An odd number of images in each split, and in the last shard."""
    make_dataset(tmp_path / "odd", {"train": [15, 15, 7], "valid": [5, 2], "test": [3]}, size=16)
    return tmp_path / "odd"


@pytest.mark.usefixtures("ray_cluster", "tracking")
def test_a_streamed_training_sees_what_a_cached_one_sees(zpoint, refused, tiny: str, odd: Path):
    cached = zpoint("train", tiny, f"data.uri={odd}", "name=cached", "--fresh", *STILL)["metrics"]
    argv = ("train", tiny, f"data.uri={odd}", "data.cache=none", "--fresh", *STILL)
    for streamed in (zpoint(*argv, "name=streamed", "scale.workers=2"), zpoint(*argv, "name=local")):
        metrics = streamed["metrics"]
        for key in ("train_recon", "valid_recon", "valid_psnr"):
            assert metrics[key] == pytest.approx(cached[key], rel=1e-4), key
    shard = odd / "train-00001.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-9] + b"X" + whole[-8:])
    assert "train-00001.parquet is damaged" in refused(*argv[:-1], "optim.epochs=2", "name=bad", "scale.workers=2")


@pytest.mark.usefixtures("tracking")
def test_what_does_not_fit_is_refused_and_says_what_to_do(refused, zpoint, tiny: str, odd: Path, monkeypatch):
    monkeypatch.setenv("ZPOINT_CACHE_MAX", "9KB")
    assert "stream it with data.cache=none" in refused("train", tiny, f"data.uri={odd}")
    monkeypatch.setenv("ZPOINT_CACHE_MAX", "much")
    assert "ZPOINT_CACHE_MAX takes a size as in 500MB or 20GB, not 'much'" in refused("train", tiny, f"data.uri={odd}")
    monkeypatch.setenv("ZPOINT_CACHE_MAX", "0.1 mb")
    assert zpoint("train", tiny, f"data.uri={odd}", "data.flip=true", "optim.epochs=1")["metrics"]
    assert "data.cache: input should be" in refused("train", tiny, f"data.uri={odd}", "data.cache=disk")
