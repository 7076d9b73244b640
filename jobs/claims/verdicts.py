"""How the claims on AE and VAE latent spaces are judged: functions of the measured runs that a claim needs."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from jobs.study.charts import Chart
from jobs.study.findings import RATES, differ, percent
from jobs.study.measurements import Measured
from jobs.study.plots import point_charts
from jobs.study.sections import Row, short

Runs = Mapping[str, Measured]
FEW, MOST = 0.1, 0.9  # rates, the second as a share of that of real images
VISIBLE = 0.5  # dB of PSNR that a person sees
NEAR_NORMAL = 0.03  # the core's distance: see aecore.latent.stats.core_distance
HEADS = ("shown", "HOG-Frechet")  # of the cells beside pictures


@dataclass(frozen=True)
class Verdict:
    """`holds`: whether the claim's rule is met; `figures` in words; `rows` of pictures, and charts."""

    holds: bool
    figures: str
    rows: tuple[Row, ...]
    charts: tuple[Chart, ...] = ()


def reconstructs(runs: Runs) -> Verdict:
    run = runs["ae"]
    task = _figures(run, "tasks")["reconstruct"]
    enough, rates = _as_often_as_real(run)
    clean, _, output = run.part("tasks").arrays["reconstruct"]
    text = f"PSNR {task['psnr']:.1f} dB, SSIM {task['ssim']:.2f}; {rates}"
    return Verdict(enough, text, (Row("unseen images", clean), Row("reconstructions", output)))


def does_its_task(name: str) -> Callable[[Runs], Verdict]:
    """The verdict on the run `name`: are its outputs nearer to clean images than its inputs, and do they show any?"""

    def judge(runs: Runs) -> Verdict:
        run = runs[name]
        task = _figures(run, "tasks")[run.run.recipe.task.kind]
        enough, rates = _as_often_as_real(run)
        text = f"PSNR {task['input_psnr']:.1f} dB of the inputs, {task['psnr']:.1f} dB of the outputs, "
        text += f"SSIM {task['input_ssim']:.2f} and {task['ssim']:.2f}; {rates}"
        return Verdict(enough and task["psnr"] >= task["input_psnr"] + VISIBLE, text, _pairs(run))

    return judge


def colours(name: str) -> Callable[[Runs], Verdict]:
    """The verdict on the run `name`: are its outputs' colours nearer to the real ones than gray and the mean's are?"""

    def judge(runs: Runs) -> Verdict:
        run = runs[name]
        task = _figures(run, "tasks")["recolor"]
        enough, rates = _as_often_as_real(run)
        text = f"PSNR of the colours {task['input_chroma_psnr']:.1f} dB of gray, {task['mean_chroma_psnr']:.1f} dB of "
        text += f"the training images' mean, {task['chroma_psnr']:.1f} dB of the outputs; {rates}"
        known = max(task["input_chroma_psnr"], task["mean_chroma_psnr"])
        return Verdict(enough and task["chroma_psnr"] >= known + VISIBLE, text, _pairs(run))

    return judge


def ae_random_points(runs: Runs) -> Verdict:
    run = runs["near-ae"]
    points = [("N(0, 1)", _samplers(run)["normal"], run.part("samplers").arrays["normal"])]
    for figures, pictures in zip(_figures(run, "cube"), run.part("cube").arrays["pictures"], strict=True):
        if figures["boundary"] in (1, 5, 20):
            points.append((f"cube, boundary {figures['boundary']:g}", figures, pictures))
    normal, cubes = _rate(points[0][1]), max(_rate(figures) for figures in _figures(run, "cube"))
    text = f"N(0, 1): {_show(run, normal)}; cubes of boundary 0.5 to 20: {percent(cubes)} at most"
    rows = tuple(Row(name, pictures, _cells(figures)) for name, figures, pictures in points)
    return Verdict(max(normal, cubes) <= FEW, text, rows)


def vae_near_the_origin(runs: Runs) -> Verdict:
    run, rows = runs["vae"], []
    for figures, pictures in zip(_figures(run, "cube"), run.part("cube").arrays["pictures"], strict=True):
        rows.append(Row(f"cube, boundary {figures['boundary']:g}", pictures, _cells(figures)))
    rates = {figures["boundary"]: _rate(figures) for figures in _figures(run, "cube")}
    text = ", ".join(f"boundary {boundary:g}: {percent(rate)}" for boundary, rate in rates.items())
    text = f"{text}; N(0, 1): {percent(_rate(_samplers(run)['normal']))} of the pictures"
    return Verdict(rates[1.0] > 0.5 and rates[20.0] < rates[1.0], text, tuple(rows))


def vae_on_the_sphere(runs: Runs) -> Verdict:
    run = runs["vae"]
    own, root = _samplers(run)["sphere"], run.run.recipe.model.z_dim**0.5
    rows = [Row(f"radius {root:.1f}", run.part("samplers").arrays["sphere"], _cells(own))]
    for figures, pictures in zip(_figures(run, "sphere"), run.part("sphere").arrays["pictures"], strict=True):
        rows.append(Row(f"radius {figures['radius']:g}", pictures, _cells(figures)))
    tried = {root: own} | {figures["radius"]: figures for figures in _figures(run, "sphere")}
    nearest = min(tried, key=lambda radius: tried[radius]["hog_frechet"])
    text = f"radius {root:.1f}: {_show(run, _rate(own))}, HOG-Frechet {own['hog_frechet']:.2f}; of the radii tried, "
    text += f"{nearest:.3g} comes nearest to real images ({tried[nearest]['hog_frechet']:.2f})"
    return Verdict(_rate(own) > 0.5, text, tuple(rows))


def vae_radius(runs: Runs) -> Verdict:
    told, rows = [], []
    for name in ("vae", "near-ae"):
        points = _figures(runs[name], "points")
        told.append(f"{name}: {points['mean_radius']:.1f}")
        rows.append(Row(f"{name}, sphere of that radius", runs[name].part("samplers").arrays["sphere, own radius"]))
    mean, root = (_figures(runs["vae"], "points")[key] for key in ("mean_radius", "sqrt_z_dim"))
    text = f"mean radius {', '.join(told)}; sqrt(z_dim) = {root:.1f}"
    return Verdict(abs(mean / root - 1) <= 0.1, text, tuple(rows), _charts(runs, "radius"))


def one_region(runs: Runs) -> Verdict:
    run = runs["near-ae"]
    points = _figures(run, "points")
    chance = (2 / (math.pi * points["encoded"])) ** 0.5  # mean |correlation| of independent components
    told = [
        f"{percent(points['largest_fragment'])} of the z-points hang together",
        f"the silhouette of their best clusters is {points['silhouette']:.2f} (of one Gaussian "
        f"{points['gaussian_silhouette']:.2f})",
        f"the centre lies {points['centre_radius']:.1f} from the origin, z-points {points['mean_radius']:.1f}",
        f"the mean |correlation| is {points['mean_abs_correlation']:.2f} (of independent components {chance:.2f})",
        f"the core's distance from normal is {points['core_distance']:.3f} (of uniform values 0.05)",
    ]
    holds = (
        points["coherent"] and points["centre_radius"] > FEW * points["mean_radius"]
        and points["mean_abs_correlation"] > 2 * chance and points["core_distance"] < NEAR_NORMAL
    )  # fmt: skip
    return Verdict(holds, "; ".join(told), (), _charts(runs, "plane", "tsne", "correlation"))


def fit_rescues_the_ae(runs: Runs) -> Verdict:
    run = runs["near-ae"]
    names = {"normal": "N(0, 1)", "diagonal": "fitted Gaussian without correlations", "gaussian": "with them",
             "gmm": "fitted mixture"}  # fmt: skip
    shown = {text: (_samplers(run)[name], run.part("samplers").arrays[name]) for name, text in names.items()}
    told = (f"{text} {percent(_rate(f))} (HOG-Frechet {f['hog_frechet']:.2f})" for text, (f, _) in shown.items())
    rows = tuple(Row(text, pictures, _cells(figures)) for text, (figures, pictures) in shown.items())
    holds = _rate(_samplers(run)["gaussian"]) >= MOST * _rate(_real(run))
    return Verdict(holds, f"pictures that show {_thing(run)}: {', '.join(told)}", rows)


def kl_factor_trades(runs: Runs) -> Verdict:
    ordered = sorted(runs.values(), key=lambda run: run.run.recipe.loss.kl_factor)
    told, rows = [], []
    for run in ordered:
        kl, normal = f"{run.run.recipe.loss.kl_factor:g}".replace("e-0", "e-"), _samplers(run)["normal"]
        told.append(f"{kl}: {_psnr(run):.1f} dB, {percent(_rate(normal))}, HOG-Frechet {normal['hog_frechet']:.2f}")
        rows.append(Row(f"kl_factor {kl}: reconstructions", run.part("samplers").arrays["reconstructions"]))
        rows.append(Row(f"kl_factor {kl}: N(0, 1)", run.part("samplers").arrays["normal"], _cells(normal)))
    rates = [_rate(_samplers(run)["normal"]) for run in ordered]
    falls = all(_psnr(a) > _psnr(b) for a, b in pairwise(ordered))
    rises = rates[-1] > rates[0] and differ(rates[-1], rates[0], ordered[0].options["judged"])
    text = f"PSNR of reconstructions, and pictures from N(0, 1) that show {_thing(ordered[0])}, by kl_factor: "
    return Verdict(falls and rises, text + "; ".join(told), tuple(rows))


def z_dim(enough: int, *, no_more: bool) -> Callable[[Runs], Verdict]:
    """The verdict on runs of several z_dim: is more than the least worth it up to `enough`, and no more than that?"""

    def judge(runs: Runs) -> Verdict:
        ordered = sorted(runs.values(), key=_z_dim)
        psnr, told = {_z_dim(run): _psnr(run) for run in ordered}, []
        rows = [Row("unseen images", ordered[0].part("tasks").arrays["reconstruct"][0])]
        for run in ordered:
            made, drawn = _samplers(run)["reconstructions"], _samplers(run)["normal"]["hog_frechet"]
            told.append(f"{_z_dim(run)}: {_psnr(run):.1f} dB, {percent(_rate(made))}, {drawn:.2f}")
            rows.append(Row(f"z_dim {_z_dim(run)}", run.part("tasks").arrays["reconstruct"][2], _cells(made)))
        smallest, greatest = min(psnr), max(psnr)
        holds = psnr[enough] - psnr[smallest] >= VISIBLE
        if no_more:
            holds = holds and psnr[greatest] - psnr[enough] < VISIBLE
        text = (
            f"PSNR, reconstructions that show {_thing(ordered[0])}, and HOG-Frechet of N(0, 1), by z_dim: "
            f"{'; '.join(told)}; the greatest uses "
        )
        return Verdict(holds, f"{text}{_figures(ordered[-1], 'points')['active_units']} components", tuple(rows))

    return judge


def _as_often_as_real(run: Measured) -> tuple[bool, str]:
    """Whether the reconstructions show something nearly as often as real images do, and both rates in words."""
    made, real = _rate(_samplers(run)["reconstructions"]), _rate(_real(run))
    return made >= MOST * real, f"{_show(run, made)}, {percent(real)} of the real images"


def _pairs(run: Measured) -> tuple[Row, ...]:
    """Test images, what its own task leaves of them, and what the run makes of that."""
    titles = ("unseen images", "what the encoder sees", "what the decoder gives")
    return tuple(map(Row, titles, run.part("tasks").arrays[run.run.recipe.task.kind]))


def _figures(run: Measured, part: str) -> Any:
    return run.part(part).figures


def _samplers(run: Measured) -> dict[str, dict[str, float]]:
    return _figures(run, "samplers")


def _real(run: Measured) -> dict[str, float]:
    return _figures(run, "real")


def _psnr(run: Measured) -> float:
    return _figures(run, "tasks")["reconstruct"]["psnr"]


def _z_dim(run: Measured) -> int:
    return run.run.recipe.model.z_dim


def _key(figures: Mapping[str, float]) -> str:
    return next(key for key in RATES if key in figures)


def _rate(figures: Mapping[str, float]) -> float:
    """The share of pictures that show something: a face, or one of the set's classes."""
    return figures[_key(figures)]


def _thing(run: Measured) -> str:
    return RATES[_key(_real(run))]


def _show(run: Measured, rate: float) -> str:
    return f"{percent(rate)} of the pictures show {_thing(run)}"


def _cells(figures: Mapping[str, float]) -> tuple[str, str]:
    """What HEADS are over."""
    return short(_rate(figures)), f"{figures['hog_frechet']:.2f}"


def _charts(runs: Runs, *names: str) -> tuple[Chart, ...]:
    figures = {"runs": [run.run.about | {"points": _figures(run, "points")} for run in runs.values()]}
    charts = point_charts(figures, [{"points": run.part("points").arrays} for run in runs.values()])
    return tuple(chart for chart in charts if chart.name in names)
