"""Judging with a task: what the encoder sees is corrupted, the same each time; what the decoder gives is compared."""

import cv2
import numpy as np
import pytest
import torch

from aecore.config import check_recipe
from aecore.data.loaders import NodeLoader
from aecore.data.shuffle import BatchSampler, World
from aecore.data.synthetic_faces import draw_face
from aecore.metrics.pixel import psnr, ssim
from aecore.model.autoencoder import ImageShape, build_model, to_float
from aecore.training import checkpoint, loop
from aecore.training.evaluate import JUDGED, SampleEvaluator, evaluate, fit_run_latents

CPU = torch.device("cpu")
BASE = {"model": {"z_dim": 3, "channels": [4, 4, 4, 4], "norm": "none"}, "optim": {"batch": 8}}
NOISY = {"task": {"kind": "denoise", "sigma": 0.2}}


def images(count=70):
    shade = np.random.default_rng(0).integers(100, 150, (count, 1, 1, 1))  # noise is hardly cut off
    return np.broadcast_to(shade, (count, 16, 16, 1)).astype(np.uint8)


def make_run(sections):
    recipe = check_recipe(BASE | sections)
    model = build_model(recipe, ImageShape(16, 1))
    run = loop.TrainingRun(
        recipe, model, model, loop.make_optimizer(model, recipe), CPU, World(), checkpoint.TrainState()
    )
    run.model.eval()
    return run


def feed(run):
    return NodeLoader(images(), BatchSampler(0, 8, run.world), CPU)


def test_what_a_task_leaves_is_measured_beside_what_is_made_of_it():
    told, _ = evaluate(make_run(NOISY), images(), "valid")
    assert told["valid_input_psnr"] == pytest.approx(-20 * np.log10(0.2), abs=0.2)
    assert 0 < told["valid_input_ssim"] < 0.2
    again, _ = evaluate(make_run(NOISY), images(), "valid")
    assert again == told
    assert not {key for key in evaluate(make_run({}), images(), "valid")[0] if "input" in key}


def test_reconstructions_are_compared_with_the_clean_images():
    """A model without weights gives mid-gray: its figures do not depend on what it saw."""
    runs = make_run({}), make_run(NOISY)
    for run in runs:
        torch.nn.init.zeros_(run.model.decoder[-1].weight)
        torch.nn.init.zeros_(run.model.decoder[-1].bias)
    plain, noisy = (evaluate(run, images(), "valid")[0] for run in runs)
    clean = to_float(torch.from_numpy(images()))
    gray = torch.full_like(clean, 0.5)
    assert noisy["valid_psnr"] == pytest.approx(
        psnr((gray - clean).square().flatten(1).mean(1)).mean().item(), rel=1e-5
    )
    assert noisy["valid_ssim"] == pytest.approx(ssim(gray, clean).mean().item(), abs=1e-5)
    assert plain["valid_psnr"] == noisy["valid_psnr"]


def test_latents_are_those_of_what_the_encoder_sees():
    plain = {"loss": {"kl_factor": 0}}  # of an AE, whose z-points have no noise of their own
    clean, noisy = (fit_run_latents(make_run(plain | task), images(), components=0) for task in ({}, NOISY))
    assert noisy["covariance"].trace() > 1.05 * clean["covariance"].trace()
    assert set(clean) == {"mean", "covariance"}


def test_latents_hold_the_mixture_and_the_attributes_directions():
    shade = torch.from_numpy(images()[:, 0, 0, 0].astype(np.float32))
    latents = fit_run_latents(make_run({}), images(), attributes={"shade": shade})
    assert set(latents) == {"mean", "covariance", "gmm_weights", "gmm_means", "gmm_factors", "direction.shade"}
    assert latents["direction.shade"].abs().sum() > 0


def test_pictures_show_what_the_encoder_sees():
    run = make_run(NOISY)
    metrics = {}
    shown = SampleEvaluator(run, feed(run), feed(run))(metrics)
    assert set(metrics) == {"hog_frechet_normal", "hog_frechet_gaussian"}
    assert list(shown)[:3] == ["originals", "seen", "reconstructions"]
    assert shown["seen"].shape == shown["originals"].shape
    assert shown["seen"].astype(int).std() > shown["originals"].astype(int).std()
    assert "seen" not in SampleEvaluator(make_run({}), feed(run), feed(run))({})


def faces(first, count):
    return np.stack([draw_face(0, first + index, 32)[0] for index in range(count)])


def test_pictures_are_ranked_by_how_much_they_look_like_training_images(monkeypatch):
    """Whatever the network: what it decodes is judged, by the same training images each time."""
    model = {"model": BASE["model"] | {"z_dim": 2}}
    recipe = check_recipe(BASE | model)
    network = build_model(recipe, ImageShape(32, 3))
    optimizer = loop.make_optimizer(network, recipe)
    run = loop.TrainingRun(recipe, network, network, optimizer, CPU, World(), checkpoint.TrainState())
    asked, train = [], NodeLoader(faces(0, 600), BatchSampler(0, 8), CPU)
    spread = train.spread
    monkeypatch.setattr(train, "spread", lambda count: asked.append(count) or spread(count))
    judge, real = SampleEvaluator(run, train, NodeLoader(faces(600, 16), BatchSampler(0, 8), CPU)), faces(1000, JUDGED)
    told = {}
    for name, made in {
        "real": real,
        "blurred": np.stack([cv2.GaussianBlur(face, (0, 0), 1.5) for face in real]),
        "mixed": real // 2 + np.roll(real, 1, 0) // 2,
        "one": np.repeat(real[:1], JUDGED, 0),
        "noise": np.random.default_rng(0).integers(0, 256, real.shape, np.uint8),
        "gray": np.full_like(real, 128),
    }.items():
        parts = iter(2 * [*torch.from_numpy(made).split(64)])
        monkeypatch.setattr(network, "decode", lambda z, parts=parts: next(parts) if len(z) == 64 else spread(len(z)))
        metrics = {}
        pictures = judge(metrics)
        assert (pictures["normal"] == made[: len(pictures["normal"])]).all()
        assert metrics["hog_frechet_normal"] == metrics["hog_frechet_gaussian"]
        told[name] = metrics["hog_frechet_normal"]
    assert all(told["real"] < 0.6 * told[name] for name in told if name != "real"), told
    assert max(told["blurred"], told["mixed"]) < min(told["one"], told["noise"], told["gray"]), told
    assert asked.count(2_048) == 1
