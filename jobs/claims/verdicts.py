"""Check the claims about AE and VAE latent spaces: each function applies one rule to measured runs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from aecore.config import STORED_SAMPLERS
from jobs.study.charts import Chart
from jobs.study.findings import EQUAL_PSNR, HALF, RADIUS_TOLERANCE
from jobs.study.measurements import MeasuredRun
from jobs.study.metrics import (
    RATE_TARGETS,
    RunArrays,
    RunMetrics,
    format_rate,
    format_rate_short,
    rate_key,
    rates_differ,
)
from jobs.study.sections import ImageRow
from jobs.study.study_charts import correlation_chart, map_charts, radius_chart

Runs = Mapping[str, MeasuredRun]

VISIBLE_PSNR = 0.5  # dB: the smallest gain that a person sees
NEAR_REAL = 0.9  # of the rate of real images: images of a good decoder show as much, up to blur
ALMOST_NONE = 0.1  # a rate: the face detector also hits a few images that show no face
OFF_CENTRE = 0.1  # of the mean radius: less is no offset of the whole region
CORRELATED = 2.0  # times the mean |correlation| of independent dimensions, which comes from the finite sample
MIN_CORRELATION = 0.05  # mean |correlation|: the other limit falls to 0 as the sample grows
NEAR_NORMAL_CORE = 0.03  # normal values have 0, uniform ones 0.05: see aecore.latent.stats.core_distance
CUBES_SHOWN = (1.0, 5.0, 20.0)  # boundaries
IMAGE_HEADERS = ("recognised", "HOG-Frechet")  # of the cells of `_cells`


@dataclass(frozen=True)
class Verdict:
    """The result of a rule, the metrics behind it in words, and rows of images and charts to see it by."""

    holds: bool
    evidence: str
    image_rows: tuple[ImageRow, ...]
    charts: tuple[Chart, ...] = ()


def check_reconstruction(runs: Runs) -> Verdict:
    """Check that reconstructions are nearer to the images than their mean is, and show something as real images do."""
    [run] = runs.values()
    task = _metrics(run, "tasks")["reconstruct"]
    clean, _, output = _arrays(run, "tasks")["reconstruct"]
    holds = _is_near_real(run, "reconstructions") and task["psnr"] >= task["mean_psnr"] + VISIBLE_PSNR
    evidence = (
        f"PSNR {task['mean_psnr']:.1f} dB of the mean training image, {task['psnr']:.1f} dB of the reconstructions, "
        f"SSIM {task['ssim']:.2f}; {_rates_beside_real(run)}"
    )
    rows = (ImageRow("held-out images", clean), ImageRow("reconstructions", output))
    return Verdict(holds, evidence, rows)


def check_task(runs: Runs) -> Verdict:
    """Check that outputs are nearer to the clean images than inputs and the mean image are, and show something."""
    [run] = runs.values()
    task = _metrics(run, "tasks")[run.run.recipe.task.kind]
    baseline = max(task["input_psnr"], task["mean_psnr"])
    holds = _is_near_real(run, "reconstructions") and task["psnr"] >= baseline + VISIBLE_PSNR
    evidence = (
        f"PSNR {task['input_psnr']:.1f} dB of the inputs, {task['mean_psnr']:.1f} dB of the mean training image, "
        f"{task['psnr']:.1f} dB of the outputs, SSIM {task['input_ssim']:.2f} and {task['ssim']:.2f}; "
        f"{_rates_beside_real(run)}"
    )
    return Verdict(holds, evidence, _task_rows(run))


def check_recolor(runs: Runs) -> Verdict:
    """Check that the outputs' colours are nearer to the real ones than gray and the mean image's colours are."""
    [run] = runs.values()
    task = _metrics(run, "tasks")["recolor"]
    baseline = max(task["input_chroma_psnr"], task["mean_chroma_psnr"])
    holds = _is_near_real(run, "reconstructions") and task["chroma_psnr"] >= baseline + VISIBLE_PSNR
    evidence = (
        f"PSNR of the colours {task['input_chroma_psnr']:.1f} dB of gray, {task['mean_chroma_psnr']:.1f} dB of the "
        f"mean training image, {task['chroma_psnr']:.1f} dB of the outputs; {_rates_beside_real(run)}"
    )
    return Verdict(holds, evidence, _task_rows(run))


def check_ae_random_points(runs: Runs) -> Verdict:
    [run] = runs.values()
    normal, cubes = _metrics(run, "samplers")["normal"], _metrics(run, "cube")
    max_cube_rate = max(_rate(cube) for cube in cubes)
    holds = _detects_real_images(run) and max(_rate(normal), max_cube_rate) <= ALMOST_NONE
    evidence = (
        f"N(0, 1): {_rate_in_words(run, _rate(normal))}; cubes of boundary 0.5 to 20: at most "
        f"{format_rate(max_cube_rate)}; real images: {format_rate(_real_rate(run))}"
    )
    rows = [ImageRow("N(0, 1)", _arrays(run, "samplers")["normal"], _cells(normal))]
    for cube, images in zip(cubes, _arrays(run, "cube")["pictures"], strict=True):
        if cube["boundary"] in CUBES_SHOWN:
            rows.append(ImageRow(f"cube, boundary {cube['boundary']:g}", images, _cells(cube)))
    return Verdict(holds, evidence, tuple(rows))


def check_vae_near_origin(runs: Runs) -> Verdict:
    [run] = runs.values()
    cubes = _metrics(run, "cube")
    rates = {cube["boundary"]: _rate(cube) for cube in cubes}
    falls = rates[20.0] < rates[1.0] and rates_differ(rates[20.0], rates[1.0], run.options["judged"])
    holds = rates[1.0] > HALF and falls
    rates_in_words = ", ".join(f"boundary {boundary:g}: {format_rate(rate)}" for boundary, rate in rates.items())
    normal_rate = format_rate(_rate(_metrics(run, "samplers")["normal"]))
    rows = [
        ImageRow(f"cube, boundary {cube['boundary']:g}", images, _cells(cube))
        for cube, images in zip(cubes, _arrays(run, "cube")["pictures"], strict=True)
    ]
    return Verdict(holds, f"{rates_in_words}; N(0, 1): {normal_rate} of the images", tuple(rows))


def check_vae_sphere(runs: Runs) -> Verdict:
    [run] = runs.values()
    sqrt_z_dim = run.run.recipe.model.z_dim**0.5
    at_sqrt_z_dim, sweep = _metrics(run, "samplers")["sphere"], _metrics(run, "sphere")
    distances = {sqrt_z_dim: at_sqrt_z_dim["hog_frechet"]}
    distances |= {sphere["radius"]: sphere["hog_frechet"] for sphere in sweep}
    nearest = min(distances, key=lambda radius: distances[radius])
    evidence = (
        f"radius {sqrt_z_dim:.1f}: {_rate_in_words(run, _rate(at_sqrt_z_dim))}, HOG-Frechet "
        f"{at_sqrt_z_dim['hog_frechet']:.2f}; of all measured radii, {nearest:.3g} is nearest to real images "
        f"({distances[nearest]:.2f})"
    )
    rows = [ImageRow(f"radius {sqrt_z_dim:.1f}", _arrays(run, "samplers")["sphere"], _cells(at_sqrt_z_dim))]
    for sphere, images in zip(sweep, _arrays(run, "sphere")["pictures"], strict=True):
        rows.append(ImageRow(f"radius {sphere['radius']:g}", images, _cells(sphere)))
    return Verdict(_rate(at_sqrt_z_dim) > HALF, evidence, tuple(rows))


def check_vae_radius(runs: Runs) -> Verdict:
    mean_radii = {name: _metrics(runs[name], "points")["mean_radius"] for name in ("vae", "near-ae")}
    sqrt_z_dim = _metrics(runs["vae"], "points")["sqrt_z_dim"]
    holds = abs(mean_radii["vae"] / sqrt_z_dim - 1) <= RADIUS_TOLERANCE
    radii_in_words = ", ".join(f"{name}: {radius:.1f}" for name, radius in mean_radii.items())
    rows = [
        ImageRow(f"{name}, sphere of that radius", _arrays(runs[name], "samplers")["sphere, own radius"])
        for name in mean_radii
    ]
    charts = (radius_chart(_chart_metrics(runs)),)
    return Verdict(holds, f"mean radius {radii_in_words}; sqrt(z_dim) = {sqrt_z_dim:.1f}", tuple(rows), charts)


def check_one_region(runs: Runs) -> Verdict:
    [run] = runs.values()
    points = _metrics(run, "points")
    independent = (2 / (math.pi * points["encoded"])) ** 0.5  # mean |correlation| of independent dimensions
    holds = (
        points["coherent"]
        and points["centre_radius"] > OFF_CENTRE * points["mean_radius"]
        and points["mean_abs_correlation"] > max(CORRELATED * independent, MIN_CORRELATION)
        and points["core_distance"] < NEAR_NORMAL_CORE
    )
    evidence = (
        f"the largest connected part holds {format_rate(points['largest_fragment'])} of the z-points; "
        f"the silhouette of their best clustering is {points['silhouette']:.2f} (of one Gaussian "
        f"{points['gaussian_silhouette']:.2f}); "
        f"their mean is {points['centre_radius']:.1f} from the origin, their mean radius {points['mean_radius']:.1f}; "
        f"the mean |correlation| is {points['mean_abs_correlation']:.2f} (of independent dimensions "
        f"{independent:.2f}); "
        f"the core's distance from normal is {points['core_distance']:.3f} (of uniform values 0.05)"
    )
    run_metrics, run_arrays = _chart_metrics(runs), _chart_arrays(runs)
    charts = (*map_charts(run_metrics, run_arrays), correlation_chart(run_metrics, run_arrays))
    return Verdict(holds, evidence, (), charts)


def check_fitted_gaussian(runs: Runs) -> Verdict:
    [run] = runs.values()
    scores, images = _metrics(run, "samplers"), _arrays(run, "samplers")
    rates_in_words = ", ".join(
        f"{title} {format_rate(_rate(scores[sampler]))} (HOG-Frechet {scores[sampler]['hog_frechet']:.2f})"
        for sampler, title in STORED_SAMPLERS.items()
    )
    rows = tuple(
        ImageRow(title, images[sampler], _cells(scores[sampler])) for sampler, title in STORED_SAMPLERS.items()
    )
    evidence = f"images that show {_rate_target(run)}: {rates_in_words}, real images {format_rate(_real_rate(run))}"
    return Verdict(_is_near_real(run, "gaussian"), evidence, rows)


def check_kl_factor(runs: Runs) -> Verdict:
    by_kl_factor = sorted(runs.values(), key=lambda run: run.run.recipe.loss.kl_factor)
    first, last = by_kl_factor[0], by_kl_factor[-1]
    psnr_falls = all(_psnr(smaller) - _psnr(larger) >= EQUAL_PSNR for smaller, larger in pairwise(by_kl_factor))
    first_rate, last_rate = (_rate(_metrics(run, "samplers")["normal"]) for run in (first, last))
    rate_rises = last_rate > first_rate and rates_differ(last_rate, first_rate, first.options["judged"])
    values, rows = [], [_held_out_row(first)]
    for run in by_kl_factor:
        kl_factor = f"{run.run.recipe.loss.kl_factor:g}".replace("e-0", "e-")
        samplers, images = _metrics(run, "samplers"), _arrays(run, "samplers")
        normal = samplers["normal"]
        values.append(
            f"{kl_factor}: {_psnr(run):.1f} dB, {format_rate(_rate(normal))}, HOG-Frechet {normal['hog_frechet']:.2f}"
        )
        for sampler, title in (("reconstructions", "reconstructions"), ("normal", "N(0, 1)")):
            rows.append(ImageRow(f"kl_factor {kl_factor}: {title}", images[sampler], _cells(samplers[sampler])))
    evidence = (
        f"PSNR of reconstructions, and images from N(0, 1) that show {_rate_target(first)}, by kl_factor: "
        f"{'; '.join(values)}"
    )
    return Verdict(psnr_falls and rate_rises, evidence, tuple(rows))


def check_z_dim(runs: Runs, z_dim: int, *, is_sufficient: bool) -> Verdict:
    """Check that the PSNR gains visibly up to `z_dim`, and if `is_sufficient` that it gains nothing visible beyond."""
    by_z_dim = sorted(runs.values(), key=_z_dim)
    first, last = by_z_dim[0], by_z_dim[-1]
    psnr = {_z_dim(run): _psnr(run) for run in by_z_dim}
    gain_below, gain_above = psnr[z_dim] - _psnr(first), _psnr(last) - psnr[z_dim]
    holds = gain_below >= VISIBLE_PSNR and (not is_sufficient or gain_above < VISIBLE_PSNR)
    values, rows = [], [_held_out_row(first)]
    for run in by_z_dim:
        samplers = _metrics(run, "samplers")
        rate, distance = _rate(samplers["reconstructions"]), samplers["normal"]["hog_frechet"]
        values.append(f"{_z_dim(run)}: {_psnr(run):.1f} dB, {format_rate(rate)}, {distance:.2f}")
        output = _arrays(run, "tasks")["reconstruct"][2]
        rows.append(ImageRow(f"z_dim {_z_dim(run)}: reconstructions", output, _cells(samplers["reconstructions"])))
    evidence = (
        f"PSNR, reconstructions that show {_rate_target(first)}, and HOG-Frechet of N(0, 1), by z_dim: "
        f"{'; '.join(values)}; the largest has {_metrics(last, 'points')['active_units']} active units"
    )
    return Verdict(holds, evidence, tuple(rows))


def _held_out_row(run: MeasuredRun) -> ImageRow:
    return ImageRow("held-out images", _arrays(run, "tasks")["reconstruct"][0], _cells(_metrics(run, "real")))


def _metrics(run: MeasuredRun, measurement: str) -> Any:
    return run.measure(measurement).metrics


def _arrays(run: MeasuredRun, measurement: str) -> Mapping[str, np.ndarray]:
    return run.measure(measurement).arrays


def _psnr(run: MeasuredRun) -> float:
    return _metrics(run, "tasks")["reconstruct"]["psnr"]


def _z_dim(run: MeasuredRun) -> int:
    return run.run.recipe.model.z_dim


def _rate(scores: Mapping[str, float]) -> float:
    """Return the rate of images that show something: a face, or one of the dataset's classes."""
    return scores[rate_key(scores)]


def _rate_target(run: MeasuredRun) -> str:
    return RATE_TARGETS[rate_key(_metrics(run, "real"))]


def _is_near_real(run: MeasuredRun, sampler: str) -> bool:
    """Return True if real images show something, and a sampler's images nearly as often."""
    return _detects_real_images(run) and _rate(_metrics(run, "samplers")[sampler]) >= NEAR_REAL * _real_rate(run)


def _detects_real_images(run: MeasuredRun) -> bool:
    """Return True if at least half of the real images show something; otherwise the rates of others prove nothing."""
    return _real_rate(run) >= HALF


def _real_rate(run: MeasuredRun) -> float:
    return _rate(_metrics(run, "real"))


def _rates_beside_real(run: MeasuredRun) -> str:
    rate = _rate(_metrics(run, "samplers")["reconstructions"])
    return f"{_rate_in_words(run, rate)}, and {format_rate(_real_rate(run))} of the real images do"


def _rate_in_words(run: MeasuredRun, rate: float) -> str:
    return f"{format_rate(rate)} of the images show {_rate_target(run)}"


def _task_rows(run: MeasuredRun) -> tuple[ImageRow, ...]:
    labels = ("held-out images", "input of the encoder", "output of the decoder")
    return tuple(map(ImageRow, labels, _arrays(run, "tasks")[run.run.recipe.task.kind]))


def _cells(scores: Mapping[str, float]) -> tuple[str, str]:
    """Return the cells below IMAGE_HEADERS."""
    return format_rate_short(_rate(scores)), f"{scores['hog_frechet']:.2f}"


def _chart_metrics(runs: Runs) -> list[RunMetrics]:
    return [run.run.summary | {"points": _metrics(run, "points")} for run in runs.values()]


def _chart_arrays(runs: Runs) -> list[RunArrays]:
    return [{"points": _arrays(run, "points")} for run in runs.values()]
