import numpy as np
import pytest
import torch

from aecore.data.io import sha256
from aecore.metrics.inception import Inception, _ImageDataset


def noise(seed, count=12):
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 1), np.uint8)


def test_missing_weights_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no Inception weights at .*none\.pth"):
        Inception(tmp_path / "none.pth")


@pytest.mark.parametrize("content", [b"<html>not here</html>", b"", b"PK\x03\x04 half a zip"])
def test_file_without_weights_is_refused(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"weights\.pth does not hold weights alone, so it is not loaded"):
        Inception(path)


def test_pickle_with_code_is_refused(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"hook": print}, path)
    with pytest.raises(ValueError, match="does not hold weights alone"):
        Inception(path)


@pytest.mark.parametrize("weights", [{"conv.weight": torch.zeros(2)}, torch.zeros(2)])
def test_weights_of_another_network_are_refused(tmp_path, weights):
    pytest.importorskip("torch_fidelity")
    path = tmp_path / "other.pth"
    torch.save(weights, path)
    with pytest.raises(ValueError, match="holds other weights than those of torch-fidelity's Inception"):
        Inception(path)


@pytest.mark.parametrize("zipped", [True, False])  # files from before 2020 are not
def test_metrics_equal_those_of_torch_fidelity(tmp_path, zipped):
    """With an untrained network: equal sets have distance 0."""
    extractor = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    path = tmp_path / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extractor, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(extractor.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = extractor.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
        torch.save(network.state_dict(), path, _use_new_zipfile_serialization=zipped)
    inception = Inception(path)
    compute_metrics = inception.metric_fn(noise(0))
    same, other = compute_metrics(noise(0)), compute_metrics(noise(1) // 4)
    assert same["fid"] == pytest.approx(0, abs=1e-2)
    assert other["fid"] > same["fid"]
    assert same["precision"] == same["recall"] == 1
    expected = pytest.importorskip("torch_fidelity").calculate_metrics(
        input1=_ImageDataset(noise(1) // 4), input2=_ImageDataset(noise(0)), fid=True, kid=True, prc=True, cache=False,
        feature_extractor="inception-v3-compat", feature_layer_prc="2048", kid_subset_size=12, save_cpu_ram=True,
        feature_extractor_weights_path=str(path), cuda=torch.cuda.is_available(), verbose=False,
    )  # fmt: skip
    assert other == {
        "fid": pytest.approx(expected["frechet_inception_distance"], rel=1e-3),
        "kid": pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-3),
        "precision": expected["precision"], "recall": expected["recall"],
    }  # fmt: skip
    assert inception.digest == sha256(path.read_bytes())
