"""The measurements of a study on an untrained model: the arrays match the metrics, and both are reproducible."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from aecore import analysis
from aecore.analysis import Measurement, StudiedModel
from aecore.config import Recipe
from aecore.data.synthetic_faces import draw_face
from aecore.latent.directions import fit_directions
from aecore.latent.samplers import fit_latent_stats, sample
from aecore.metrics.suite import MetricSuite
from aecore.model.autoencoder import ImageShape, build_model
from aecore.training.checkpoint import SavedModel

TRAIN_COUNT, SIZE, Z_DIM, NUM_SAMPLES = 72, 16, 4, 12


def make_model(channels: int = 3, **recipe_sections) -> StudiedModel:
    recipe = Recipe.model_validate({"model": {"z_dim": Z_DIM, "channels": (4, 4, 4, 4)}, **recipe_sections})
    faces = np.stack([draw_face(0, index, SIZE)[0] for index in range(TRAIN_COUNT + NUM_SAMPLES)])[..., :channels]
    network = build_model(recipe, ImageShape(SIZE, channels)).eval().requires_grad_(False)
    z = torch.randn(TRAIN_COUNT, Z_DIM, generator=torch.Generator().manual_seed(0))
    latent_stats = fit_latent_stats(z) | fit_directions(z, {"smile": z[:, 0]})
    train, held_out = faces[:TRAIN_COUNT], faces[TRAIN_COUNT:]
    return StudiedModel(SavedModel(network, recipe, latent_stats, {}), train, held_out, MetricSuite(train))


@pytest.fixture(scope="module", autouse=True)
def few_patches() -> Iterator[None]:
    """Use one thread, since two would mostly wait for each other, and few patches in the metric `swd`."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aecore.metrics.pixel.NUM_PATCHES", 256)
        yield


@pytest.fixture(scope="module")
def model(few_patches: None) -> StudiedModel:
    return make_model()


@pytest.fixture(scope="module")
def samplers(model: StudiedModel) -> Measurement:
    return analysis.measure_samplers(model)


@pytest.fixture(scope="module")
def z_points(model: StudiedModel) -> Measurement:
    return analysis.measure_z_points(model)


def test_sweep_decodes_the_same_directions_at_each_value(model: StudiedModel):
    measurement = analysis.measure_sweep(model, "sphere")
    radii = analysis.SWEEPS["sphere"][1]
    assert [scores["radius"] for scores in measurement.metrics] == list(radii)
    for radius, images in zip(radii, measurement.arrays["pictures"], strict=True):
        z = sample("sphere", NUM_SAMPLES, model.saved.latents, analysis.SEED, radius=radius)
        assert (model.decode(z)[: analysis.IMAGES_STORED] == images).all()
    unit_cubes = [
        sample("cube", 3, model.saved.latents, analysis.SEED, boundary=boundary) / boundary for boundary in (0.5, 20.0)
    ]
    torch.testing.assert_close(*unit_cubes)


def test_interpolations_start_and_end_at_images():
    model = make_model()
    model.saved.model.from_latent.weight.mul_(100)  # so that an untrained decoder's images differ
    measurement, z = analysis.measure_interpolations(model), model.held_out_z
    num_pairs = NUM_SAMPLES // 2
    assert measurement.metrics["pairs"] == num_pairs
    for name, steps in measurement.metrics["ways"].items():
        positions = np.linspace(0, 1, analysis.INTERPOLATION_STEPS).tolist()
        assert [step["t"] for step in steps] == pytest.approx(positions)
        images = measurement.arrays[name].astype(int)
        assert images.shape == (analysis.PAIRS_STORED, analysis.INTERPOLATION_STEPS, SIZE, SIZE, 3)
        for step, first in ((0, 0), (-1, num_pairs)):
            expected = model.decode(z[first : first + analysis.PAIRS_STORED]).astype(int)
            assert np.abs(images[:, step] - expected).max() <= 1


def test_each_task_is_measured_and_the_trained_task_with_its_own_settings():
    model = make_model(task={"kind": "denoise", "sigma": 0.5})
    measurement = analysis.measure_tasks(model)
    tasks = measurement.metrics
    assert {kind for kind, task in tasks.items() if task["trained"]} == {"denoise"}
    assert tasks["denoise"]["settings"] == {"sigma": 0.5}
    assert tasks["reconstruct"]["input_psnr"] == pytest.approx(100)
    assert tasks["reconstruct"]["input_ssim"] == pytest.approx(1)
    assert 3 < tasks["denoise"]["input_psnr"] < 12
    clean, corrupted, _ = measurement.arrays["reconstruct"]
    assert (clean == corrupted).all()
    assert (measurement.arrays["denoise"][1] != clean).any()
    assert (model.corrupt(model.held_out_images) == model.corrupt(model.held_out_images)).all()
    assert tasks["recolor"]["input_chroma_psnr"] < tasks["recolor"]["mean_chroma_psnr"] < 40
    assert tasks["reconstruct"]["input_chroma_psnr"] == pytest.approx(100)
    for baseline in ("mean_psnr", "mean_chroma_psnr"):
        assert len({task[baseline] for task in tasks.values()}) == 1


def test_mean_training_image_is_a_baseline_of_each_task():
    model = make_model(channels=1)
    mean_image = model.train_images.mean(0) / 255
    errors = np.square(model.held_out_images / 255 - mean_image).mean((1, 2, 3))
    for task in analysis.measure_tasks(model).metrics.values():
        assert task["mean_psnr"] == pytest.approx(-10 * np.log10(errors).mean(), abs=1e-4)


def test_gray_images_have_no_colour_metrics():
    tasks = analysis.measure_tasks(make_model(channels=1)).metrics
    assert "recolor" not in tasks
    assert not any("chroma" in name for name in tasks["reconstruct"])


def test_directions_pass_through_the_mean(model: StudiedModel):
    measurement = analysis.measure_directions(model)
    assert list(measurement.arrays) == ["axis 1", "axis 2", "axis 3", "axis 4", "smile"]
    mean_image = model.decode(model.saved.latents["mean"][None])[0].astype(int)
    for images in measurement.arrays.values():
        assert np.abs(images[analysis.DIRECTION_STEPS // 2].astype(int) - mean_image).max() <= 1


def test_own_radius_is_that_of_the_training_z_points(model: StudiedModel):
    radii = model.z_by_sampler["sphere, own radius"].norm(dim=1)
    torch.testing.assert_close(radii, model.train_z.norm(dim=1).mean().expand(NUM_SAMPLES))
    torch.testing.assert_close(model.z_by_sampler["sphere"].norm(dim=1), torch.full((NUM_SAMPLES,), Z_DIM**0.5))


def test_directions_are_decoded_at_evenly_spaced_sds_around_the_mean(model: StudiedModel):
    """Along a unit axis by the sd of the z-points there: the root of the variance along it."""
    latent_stats = model.saved.latents | {"mean": torch.tensor([1.0, 2, 3, 4]), "direction.smile": torch.ones(4)}
    latent_stats["covariance"] = torch.diag(torch.tensor([4.0, 25.0, 0.25, 1.0]))
    moved = replace(model, saved=replace(model.saved, latents=latent_stats))
    images = analysis.measure_directions(moved).arrays
    offsets = torch.tensor([-3, -2.25, -1.5, -0.75, 0, 0.75, 1.5, 2.25, 3])[:, None]
    for name, sd, unit in (
        ("axis 1", 5.0, torch.tensor([0.0, 1, 0, 0])), ("axis 2", 2.0, torch.tensor([1.0, 0, 0, 0])),
        ("axis 4", 0.5, torch.tensor([0.0, 0, 1, 0])), ("smile", (30.25 / 4) ** 0.5, torch.full((4,), 0.5)),
    ):  # fmt: skip
        along, against = (model.decode(latent_stats["mean"] + sign * sd * offsets * unit) for sign in (1, -1))
        decoded = images[name].astype(int)
        assert min(np.abs(decoded - expected).max() for expected in (along, against)) <= 1, name  # an axis has no sign


def test_z_points_are_drawn_from_the_posterior_of_the_training_images(model: StudiedModel, z_points: Measurement):
    assert z_points.metrics["encoded"] == TRAIN_COUNT
    assert sum(z_points.metrics["radius_shares"]) == pytest.approx(1)
    assert z_points.arrays["plane"].shape == z_points.arrays["tsne"].shape == (TRAIN_COUNT, 2)
    assert (make_model().train_z == model.train_z).all()
    assert (model.train_z != model.posterior.mean).any()
    assert make_model(loss={"kl_factor": 0}).posterior.logvar is None


def test_correlations_are_those_of_the_dimensions_with_the_greatest_sd(
    model: StudiedModel, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(analysis, "NUM_CORRELATED_DIMS", 3)
    correlation = analysis.measure_z_points(model).arrays["correlation"]
    dims = model.train_z.std(0).argsort(descending=True)[:3]
    np.testing.assert_allclose(correlation, np.corrcoef(model.train_z[:, dims].numpy().T), atol=1e-4)


def test_mixture_is_fitted_if_none_is_stored(model: StudiedModel, samplers: Measurement, z_points: Measurement):
    stored = {name: value for name, value in model.saved.latents.items() if not name.startswith("gmm")}
    without_mixture = replace(model, saved=replace(model.saved, latents=stored))
    assert z_points.metrics["mixture_stored"]
    assert not analysis.measure_z_points(without_mixture).metrics["mixture_stored"]
    assert set(analysis.measure_samplers(without_mixture).metrics) == set(samplers.metrics)
    fitted = fit_latent_stats(model.train_z)
    latent_stats = without_mixture.latent_stats
    assert all(torch.equal(latent_stats[name], fitted[name]) for name in fitted if name.startswith("gmm"))
    assert all(latent_stats[name] is value for name, value in stored.items())


def test_inception_scores_the_same_images_as_the_other_metrics(model: StudiedModel, samplers: Measurement):
    measurement = analysis.measure_inception(model, lambda images: {"fid": float(images.mean())})
    assert measurement.metrics["real"] == {"fid": model.held_out_images.mean()}
    assert set(measurement.metrics["samplers"]) == set(samplers.metrics)
    normal = sample("normal", NUM_SAMPLES, model.saved.latents, analysis.SEED)
    assert measurement.metrics["samplers"]["normal"] == {"fid": model.decode(normal).mean()}


def test_samplers_are_measured_beside_reconstructions_and_real_images(model: StudiedModel, samplers: Measurement):
    assert set(samplers.metrics) == {
        "reconstructions", "normal", "sphere", "diagonal", "gaussian", "gmm", "sphere, own radius",
    }  # fmt: skip
    reconstructions = model.decode(model.held_out_z)[: analysis.IMAGES_STORED]
    assert (samplers.arrays["reconstructions"] == reconstructions).all()
    assert analysis.measure_real_images(model).metrics["nearest_train"] > 0


def test_edges_of_the_histogram_of_radii_are_powers_of_two_and_eighths_of_them():
    edges = analysis.RADIUS_BIN_EDGES
    np.testing.assert_allclose(edges[::8], 2.0 ** np.arange(-3, 6))
    np.testing.assert_allclose(edges[1:] / edges[:-1], 2 ** (1 / 8))
