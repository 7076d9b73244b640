import numpy as np
import pytest
import torch

from aecore.metrics_inception import inception_scores


def noise(seed, count=12):
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 1), np.uint8)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no Inception weights at .*none\.pth"):
        inception_scores(noise(0), noise(1), tmp_path / "none.pth")


def test_a_pickle_that_could_run_code_is_refused(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"hook": print}, path)
    with pytest.raises(ValueError, match="holds more than weights"):
        inception_scores(noise(0), noise(1), path)


def test_scores_with_weights_of_any_kind(tmp_path):
    """With a network that was never trained: equal sets have distance 0, others do not."""
    extractor = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    path = tmp_path / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extractor, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(extractor.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.save(extractor.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).state_dict(), path)
    same = inception_scores(noise(0), noise(0), path)
    other = inception_scores(noise(0) // 4, noise(1), path)
    assert same["fid"] == pytest.approx(0, abs=1e-2)
    assert other["fid"] > same["fid"]
    assert same["precision"] == same["recall"] == 1
    assert set(same) == {"fid", "kid", "precision", "recall"}
