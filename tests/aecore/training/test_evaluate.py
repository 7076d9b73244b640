"""Evaluation with a task: the input is corrupted the same each time, the output is compared with the clean image."""

import math

import cv2
import numpy as np
import pytest
import torch

from aecore.config import STORED_SAMPLERS, check_recipe
from aecore.data.loaders import NodeLoader
from aecore.data.shuffle import BatchSampler, World
from aecore.data.synthetic_faces import draw_face
from aecore.latent.samplers import fit_latent_stats, sample
from aecore.metrics.distribution import hog_features
from aecore.metrics.pixel import psnr, ssim
from aecore.model.autoencoder import DiagonalGaussian, ImageShape, build_model, to_float
from aecore.training.evaluate import (
    NUM_SAMPLES,
    SampleEvaluator,
    draw_train_points,
    encode_points,
    evaluate,
    points_per_split,
)

CPU = torch.device("cpu")
BASE = {"model": {"z_dim": 3, "channels": [4, 4, 4, 4], "norm": "none"}, "optim": {"batch": 8}}
DENOISE = {"task": {"kind": "denoise", "sigma": 0.2}}


def make_images(count=70):
    shade = np.random.default_rng(0).integers(100, 150, (count, 1, 1, 1))  # mid-gray: the noise is hardly clipped
    return np.broadcast_to(shade, (count, 16, 16, 1)).astype(np.uint8)


def make_evaluator(sections, train=None, valid=None):
    recipe = check_recipe(BASE | sections)
    train, valid = (
        NodeLoader(make_images() if images is None else images, BatchSampler(0, 8), CPU) for images in (train, valid)
    )
    model = build_model(recipe, ImageShape(*train.images.shape[2:])).eval()
    return SampleEvaluator(model, recipe, train, valid)


def valid_metrics(evaluator):
    return evaluate(evaluator.model, evaluator.recipe, evaluator.valid, World(), "valid")[0]


def train_latents(evaluator, **options):
    return fit_latent_stats(draw_train_points(evaluator.model, evaluator.recipe, evaluator.train), **options)


def test_metrics_of_the_corrupted_input_are_reported_beside_the_outputs():
    metrics = valid_metrics(make_evaluator(DENOISE))
    assert metrics["valid_input_psnr"] == pytest.approx(-20 * np.log10(0.2), abs=0.2)
    assert 0 < metrics["valid_input_ssim"] < 0.2
    assert valid_metrics(make_evaluator(DENOISE)) == metrics
    assert not {name for name in valid_metrics(make_evaluator({})) if "input" in name}


def test_reconstructions_are_compared_with_the_clean_images():
    """A decoder with zero weights gives mid-gray, whatever its input: its metrics do not depend on the task."""
    evaluators = make_evaluator({}), make_evaluator(DENOISE)
    for evaluator in evaluators:
        torch.nn.init.zeros_(evaluator.model.decoder[-1].weight)
        torch.nn.init.zeros_(evaluator.model.decoder[-1].bias)
    reconstruct, denoise = (valid_metrics(evaluator) for evaluator in evaluators)
    clean = to_float(torch.from_numpy(make_images()))
    gray = torch.full_like(clean, 0.5)
    gray_psnr = psnr((gray - clean).square().flatten(1).mean(1)).mean().item()
    assert denoise["valid_psnr"] == pytest.approx(gray_psnr, rel=1e-5)
    assert denoise["valid_ssim"] == pytest.approx(ssim(gray, clean).mean().item(), abs=1e-5)
    assert reconstruct["valid_psnr"] == denoise["valid_psnr"]


def test_latent_stats_are_those_of_the_corrupted_images():
    ae = {"loss": {"kl_factor": 0}}  # its z-points have no noise of their own
    clean, noisy = (train_latents(make_evaluator(ae | task), n_components=0) for task in ({}, DENOISE))
    assert noisy["covariance"].trace() > 1.05 * clean["covariance"].trace()
    assert set(clean) == {"mean", "covariance"}


def test_latent_stats_are_fitted_to_training_images_alone():
    dark, bright = make_images() // 4, make_images() + 80
    ae = {"loss": {"kl_factor": 0}}
    evaluator = make_evaluator(ae, train=dark, valid=bright)
    latents = train_latents(evaluator, n_components=0)
    with torch.inference_mode():
        z = evaluator.model.encode(to_float(torch.from_numpy(dark))).mean
    torch.testing.assert_close(latents["mean"], z.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(latents["covariance"].trace(), z.var(0, correction=0).sum(), rtol=1e-3, atol=1e-6)
    assert torch.equal(
        latents["mean"], train_latents(make_evaluator(ae, train=dark, valid=dark), n_components=0)["mean"]
    )


def test_epochs_show_samples_of_the_gaussian_fitted_to_training_images():
    evaluator = make_evaluator({}, train=make_images() // 4, valid=make_images() + 80)
    images = evaluator.evaluate()[1]
    z = sample("gaussian", NUM_SAMPLES, train_latents(evaluator, n_components=0), seed=0)
    assert np.abs(images["gaussian"].astype(int) - evaluator.model.decode(z[:10]).numpy()).max() <= 1


def test_latent_stats_have_the_sd_of_the_posterior():
    """An encoder that gives N(2, 0.5 ** 2) for each image."""
    evaluator = make_evaluator({}, train=make_images(1000))
    torch.nn.init.zeros_(evaluator.model.to_latent.weight)
    evaluator.model.to_latent.bias.data = torch.tensor([2.0, 2, 2, *[2 * math.log(0.5)] * 3])
    latents = train_latents(evaluator, n_components=0)
    torch.testing.assert_close(latents["mean"], torch.full((3,), 2.0), rtol=0, atol=0.06)
    torch.testing.assert_close(latents["covariance"].diagonal(), torch.full((3,), 0.25), rtol=0.15, atol=0)


def test_kl_and_active_units_of_a_constructed_posterior(monkeypatch):
    """Half of the images have a mean of +a, half of -a: a variance of a ** 2, on either side of the threshold 0.01."""
    evaluator = make_evaluator({"loss": {"kl_factor": 4}}, valid=make_images(40))
    amplitudes, logvar = torch.tensor([0.0, 0.098, 0.102]), torch.tensor([0.0, math.log(0.25), 0.0])

    def encode(images):
        signs = (torch.arange(len(images)) % 2 * 2 - 1)[:, None]
        return DiagonalGaussian(signs * amplitudes + 1, logvar.expand(len(images), 3))

    monkeypatch.setattr(evaluator.model, "encode", encode)
    metrics, kl_per_dim = evaluate(evaluator.model, evaluator.recipe, evaluator.valid, World(), "valid")
    assert metrics["valid_active_units"] == 1
    expected = 0.5 * (1 + amplitudes**2 + logvar.exp() - 1 - logvar)
    assert kl_per_dim == pytest.approx(expected.numpy(), rel=1e-5)
    assert metrics["valid_kl"] == pytest.approx(expected.sum().item(), rel=1e-5)
    assert metrics["valid_loss"] == pytest.approx(metrics["valid_recon"] + 4 * metrics["valid_kl"])


def test_latent_stats_hold_the_mixture():
    latents = train_latents(make_evaluator({}))
    assert set(latents) == {"mean", "covariance", "gmm_weights", "gmm_means", "gmm_factors"}


def test_preview_images_show_the_corrupted_input():
    metrics, images = make_evaluator(DENOISE).evaluate()
    assert set(metrics) == {"hog_frechet_normal", "hog_frechet_gaussian"}
    assert list(images)[:3] == ["originals", "corrupted", "reconstructions"]
    assert images["corrupted"].shape == images["originals"].shape
    assert images["corrupted"].astype(int).std() > images["originals"].astype(int).std()
    assert "corrupted" not in make_evaluator({}).evaluate()[1]


def test_finished_model_is_judged_by_its_stored_samplers():
    """A decoder that shows where its z-points lie: each sampler gets its own distance and images."""
    evaluator = make_evaluator({}, train=make_images(600))
    latents = train_latents(evaluator)
    metrics, images = evaluator.evaluate(latents)
    assert set(metrics) == {f"hog_frechet_{sampler}" for sampler in STORED_SAMPLERS}
    for sampler in STORED_SAMPLERS:
        decoded = evaluator.model.decode(sample(sampler, NUM_SAMPLES, latents, seed=0)).numpy()
        assert np.abs(images[sampler].astype(int) - decoded[:10]).max() <= 1
        distance = evaluator.frechet_distance(hog_features(decoded))
        assert metrics[f"hog_frechet_{sampler}"] == pytest.approx(distance, rel=0.02)


def faces(first, count):
    return np.stack([draw_face(0, first + index, 32)[0] for index in range(count)])


def test_samples_are_ranked_by_their_likeness_to_training_images(monkeypatch):
    """With a decoder that returns prepared images; the training images' features are computed once."""
    evaluator = make_evaluator({"model": BASE["model"] | {"z_dim": 2}}, faces(0, 600), faces(600, 16))
    limits, spaced_images = [], evaluator.train.spaced_images
    monkeypatch.setattr(evaluator.train, "spaced_images", lambda limit: limits.append(limit) or spaced_images(limit))
    real, distances = faces(1000, NUM_SAMPLES), {}
    for name, decoded in {
        "real": real,
        "blurred": np.stack([cv2.GaussianBlur(face, (0, 0), 1.5) for face in real]),
        "mixed": real // 2 + np.roll(real, 1, 0) // 2,
        "one": np.repeat(real[:1], NUM_SAMPLES, 0),
        "noise": np.random.default_rng(0).integers(0, 256, real.shape, np.uint8),
        "gray": np.full_like(real, 128),
    }.items():
        batches = iter(2 * [*torch.from_numpy(decoded).split(64)])
        decode = lambda z, batches=batches: next(batches) if len(z) == 64 else spaced_images(len(z))  # noqa: E731
        monkeypatch.setattr(evaluator.model, "decode", decode)
        metrics, images = evaluator.evaluate()
        assert (images["normal"] == decoded[: len(images["normal"])]).all()
        assert metrics["hog_frechet_normal"] == metrics["hog_frechet_gaussian"]
        distances[name] = metrics["hog_frechet_normal"]
    assert all(distances["real"] < 0.6 * distances[name] for name in distances if name != "real"), distances
    far = min(distances["one"], distances["noise"], distances["gray"])
    assert max(distances["blurred"], distances["mixed"]) < far, distances
    assert limits.count(2_048) == 1


def test_points_have_the_attributes_that_both_splits_have():
    evaluator = make_evaluator({"points": {"images": 50}})
    loaders = {"train": evaluator.train, "valid": evaluator.valid, "test": evaluator.valid}
    assert points_per_split(evaluator.recipe, loaders) == {"train": 40, "test": 10}
    attributes = {
        "train": {"shade": torch.arange(40.0), "label 3": torch.zeros(40)}, "test": {"shade": torch.arange(10.0)},
    }  # fmt: skip
    points = encode_points(evaluator.model, evaluator.recipe, loaders, attributes)
    assert points is not None
    assert points.attributes.keys() == {"shade"}
    assert points.attributes["shade"].tolist() == [*range(40), *range(10)]
    assert len(points) == 50


@pytest.mark.parametrize(
    ("images", "test_images", "counts"),
    [
        (0, 70, {}), (50, 0, {"train": 50}), (50, 4, {"train": 46, "test": 4}), (5000, 70, {"train": 70, "test": 70}),
        (4, 70, {"train": 4}),
    ],
)  # fmt: skip
def test_a_fifth_of_the_points_are_test_images(images, test_images, counts):
    evaluator = make_evaluator({"points": {"images": images}}, valid=make_images(test_images))
    loaders = {"train": evaluator.train, "test": evaluator.valid}
    assert points_per_split(evaluator.recipe, loaders) == counts
    points = encode_points(evaluator.model, evaluator.recipe, loaders, {})
    assert (len(points) if points else 0) == sum(counts.values())
