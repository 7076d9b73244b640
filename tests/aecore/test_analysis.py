"""The parts of a study on an untrained model: what is decoded is what is said, and the same each time."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from aecore import analysis
from aecore.analysis import Subject
from aecore.config import Recipe
from aecore.data.shuffle import evenly_spaced
from aecore.data.synthetic_faces import draw_face
from aecore.latent.samplers import fit_latent_stats, sample
from aecore.metrics.suite import MetricSuite
from aecore.model.autoencoder import ImageShape, build_model
from aecore.training.checkpoint import SavedModel

COUNT, SIZE, JUDGED = 72, 16, 12


def a_subject(channels: int = 3, **sections) -> Subject:
    recipe = Recipe.model_validate({"model": {"z_dim": 4, "channels": (4, 4, 4, 4)}, **sections})
    faces = np.stack([draw_face(0, index, SIZE)[0] for index in range(2 * COUNT)])[..., :channels]
    model = build_model(recipe, ImageShape(SIZE, channels)).eval().requires_grad_(False)
    z = torch.randn(COUNT, 4, generator=torch.Generator().manual_seed(0))
    latents = fit_latent_stats(z, {"smile": z[:, 0]})
    train, test = faces[:COUNT], faces[COUNT:]
    return Subject(SavedModel(model, recipe, latents, {}), train, test, MetricSuite(train, test), JUDGED)


@pytest.fixture(scope="module")
def subject() -> Subject:
    torch.set_num_threads(1)
    return a_subject()


def test_a_sweep_decodes_the_same_directions_at_each_value(subject: Subject):
    part = analysis.sweep(subject, "sphere")
    radii = analysis.SWEEPS["sphere"][1]
    assert [row["radius"] for row in part.figures] == list(radii)
    for radius, pictures in zip(radii, part.arrays["pictures"], strict=True):
        z = sample("sphere", JUDGED, subject.saved.latents, analysis.SEED, radius=radius)
        assert (subject.decode(z)[: analysis.SHOWN] == pictures).all()
    points = [sample("cube", 3, subject.saved.latents, analysis.SEED, boundary=b) / b for b in (0.5, 20.0)]
    torch.testing.assert_close(*points)


def test_ways_begin_and_end_at_images(subject: Subject):
    part, z = analysis.ways(subject), subject.tested
    assert part.figures["pairs"] == JUDGED // 2
    for name, rows in part.figures["ways"].items():
        assert [row["t"] for row in rows] == pytest.approx(np.linspace(0, 1, analysis.STEPS).tolist())
        pictures = part.arrays[name].astype(int)
        assert pictures.shape == (analysis.PAIRS_SHOWN, analysis.STEPS, SIZE, SIZE, 3)
        for end, first in ((0, 0), (-1, JUDGED // 2)):
            wanted = subject.decode(z[first : first + analysis.PAIRS_SHOWN]).astype(int)
            assert np.abs(pictures[:, end] - wanted).max() <= 1


def test_each_task_is_measured_and_the_models_own_as_it_was_trained():
    own = a_subject(task={"kind": "denoise", "sigma": 0.5})
    part = analysis.tasks(own)
    assert {kind for kind, task in part.figures.items() if task["trained"]} == {"denoise"}
    assert part.figures["denoise"]["settings"] == {"sigma": 0.5}
    assert part.figures["reconstruct"]["input_psnr"] == pytest.approx(100)
    assert part.figures["reconstruct"]["input_ssim"] == pytest.approx(1)
    assert 3 < part.figures["denoise"]["input_psnr"] < 12
    clean, seen, _ = part.arrays["reconstruct"]
    assert (clean == seen).all()
    assert (part.arrays["denoise"][1] != clean).any()
    assert (own.seen(own.test) == own.seen(own.test)).all()
    recolor = part.figures["recolor"]
    assert recolor["input_chroma_psnr"] < recolor["mean_chroma_psnr"] < 40
    assert part.figures["reconstruct"]["input_chroma_psnr"] == pytest.approx(100)
    assert part.figures["reconstruct"]["mean_chroma_psnr"] == recolor["mean_chroma_psnr"]
    gray = analysis.tasks(a_subject(channels=1)).figures
    assert "recolor" not in gray
    assert not any("chroma" in name for name in gray["reconstruct"])


def test_directions_go_through_the_mean(subject: Subject):
    part = analysis.directions(subject)
    assert list(part.arrays) == ["axis 1", "axis 2", "axis 3", "axis 4", "smile"]
    middle = subject.decode(subject.saved.latents["mean"][None])[0].astype(int)
    for pictures in part.arrays.values():
        assert np.abs(pictures[analysis.ALONG // 2].astype(int) - middle).max() <= 1


def test_points_are_draws_of_the_training_images(subject: Subject):
    part = analysis.points(subject)
    assert part.figures["encoded"] == COUNT
    assert sum(part.figures["radius_shares"]) == pytest.approx(1)
    assert part.arrays["plane"].shape == part.arrays["tsne"].shape == (COUNT, 2)
    assert (a_subject().z == subject.z).all()
    assert (subject.z != subject.latent.mean).any()
    assert a_subject(loss={"kl_factor": 0}).latent.logvar is None


def test_correlations_are_those_of_the_components_that_vary_most(subject: Subject, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(analysis, "CORRELATED", 3)
    correlation = analysis.points(subject).arrays["correlation"]
    most = subject.z.std(0).argsort(descending=True)[:3]
    np.testing.assert_allclose(correlation, np.corrcoef(subject.z[:, most].numpy().T), atol=1e-4)


def test_a_mixture_is_fitted_where_none_was_stored(subject: Subject):
    stored = {name: value for name, value in subject.saved.latents.items() if not name.startswith("gmm")}
    without = replace(subject, saved=replace(subject.saved, latents=stored))
    assert analysis.points(subject).figures["mixture_stored"]
    assert not analysis.points(without).figures["mixture_stored"]
    assert set(analysis.samplers(without).figures) == set(analysis.samplers(subject).figures)
    fitted = fit_latent_stats(subject.z)
    assert all(torch.equal(without.latents[name], fitted[name]) for name in fitted if name.startswith("gmm"))
    assert all(without.latents[name] is value for name, value in stored.items())


def test_inception_scores_what_is_judged(subject: Subject):
    part = analysis.inception(subject, lambda images: {"fid": float(images.mean())})
    assert part.figures["real"] == {"fid": subject.unseen.mean()}
    assert (subject.unseen == subject.test[evenly_spaced(len(subject.test), JUDGED)]).all()  # not one class of a set
    assert set(part.figures["samplers"]) == set(analysis.samplers(subject).figures)
    normal = sample("normal", JUDGED, subject.saved.latents, analysis.SEED)
    assert part.figures["samplers"]["normal"] == {"fid": subject.decode(normal).mean()}


def test_real_images_and_reconstructions_stand_beside_the_samplers(subject: Subject):
    part = analysis.samplers(subject)
    assert set(part.figures) == {
        "reconstructions", "normal", "sphere", "diagonal", "gaussian", "gmm", "sphere, own radius",
    }  # fmt: skip
    assert (part.arrays["reconstructions"] == subject.decode(subject.tested)[: analysis.SHOWN]).all()
    assert analysis.real(subject).figures["nearest_train"] > 0
