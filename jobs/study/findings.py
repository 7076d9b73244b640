"""What the numbers of a study say, in plain sentences: each is said only where its numbers bear it out.

A sentence is a function of a run's figures, or of those of all runs, that gives a line or nothing. Two rates differ
where they lie more than two standard errors of their difference apart.
"""

from collections.abc import Callable, Iterator
from typing import Any

Figures = dict[str, Any]
HIDDEN = 12.0  # dB: an input with a lower PSNR shows next to nothing


def findings(figures: Figures) -> list[tuple[str, list[str]]]:
    """The sentences that the figures of a study bear out, by what they are on: all runs together, then each run."""
    runs = figures["runs"]
    between = [text for say in BETWEEN if (text := say(figures))] if len(runs) > 1 else []
    groups = [("The models side by side", between), *((run["run"], list(_of_run(run, figures))) for run in runs)]
    return [(heading, sentences) for heading, sentences in groups if sentences]


def _of_run(run: Figures, figures: Figures) -> Iterator[str]:
    for say in OF_RUN:
        if text := say(run, figures):
            yield text


def differ(a: float, b: float, n: int) -> bool:
    """Whether two rates, each of `n` pictures, differ by more than two standard errors (Agresti and Caffo 2000)."""
    a, b = ((rate * n + 1) / (n + 2) for rate in (a, b))
    return abs(a - b) > 2 * ((a * (1 - a) + b * (1 - b)) / (n + 2)) ** 0.5


def percent(rate: float) -> str:
    """A rate as whole percent; what is not quite 0 or 100 is not called so."""
    if 0 < rate < 0.005:
        return "under 1 %"
    return "over 99 %" if 0.995 <= rate < 1 else f"{100 * rate:.0f} %"


def reconstructions(run: Figures, figures: Figures) -> str | None:
    hit, real = run["samplers"]["reconstructions"].get("hit_rate"), run["real"].get("hit_rate")
    text = f"{run['run']} reconstructs unseen images with a PSNR of {run['tasks'][run['task']]['psnr']:.1f} dB"
    if hit is None:
        return f"{text}."
    return f"{text}; {percent(hit)} of the reconstructions show a face, as do {percent(real)} of the real images."


def in_the_cube(run: Figures, figures: Figures) -> str | None:
    points = [(p["boundary"], p["hit_rate"]) for p in run["cube"] if "hit_rate" in p]
    if not points:
        return None
    boundary, best = max(points, key=lambda point: point[1])
    if best < 0.5:
        return (
            f"In no cube from boundary {points[0][0]:g} to {points[-1][0]:g} does {run['run']} show a face in more than "
            f"{percent(best)} of the pictures."
        )
    text = f"In the cube of boundary {boundary:g}, {run['run']} shows a face in {percent(best)} of the pictures"
    lost = next((b for b, rate in points if b > boundary and rate < 0.5), None)
    return f"{text}; from boundary {lost:g} on in fewer than half of them." if lost else f"{text}."


def fitted(run: Figures, figures: Figures) -> str | None:
    rates = {name: s["hit_rate"] for name, s in run["samplers"].items() if "hit_rate" in s}
    known = {name: rates[name] for name in ("diagonal", "gaussian", "gmm") if name in rates}
    if "normal" not in rates or not known:
        return None
    best = max(known, key=lambda name: known[name])
    what = FITTED[best]
    text = f"{run['run']} shows a face in {percent(rates['normal'])} of the pictures from N(0, 1) and in "
    text += f"{percent(known[best])} of those from {what} fitted to its z-points"
    if not differ(known[best], rates["normal"], figures["judged"]):
        return f"{text}: no difference that {figures['judged']} pictures could show."
    if known[best] < rates["normal"]:
        return f"{text}: the fit helps nothing here."
    return f"{text}."


def correlated(run: Figures, figures: Figures) -> str | None:
    rates = {name: s["hit_rate"] for name, s in run["samplers"].items() if "hit_rate" in s}
    if "diagonal" not in rates or "gaussian" not in rates:
        return None
    if not differ(rates["diagonal"], rates["gaussian"], figures["judged"]) or rates["gaussian"] < rates["diagonal"]:
        return None
    return (
        f"The components of {run['run']} belong together: with their correlations the fitted Gaussian shows a face in "
        f"{percent(rates['gaussian'])} of the pictures, without them in {percent(rates['diagonal'])}."
    )


def radius(run: Figures, figures: Figures) -> str:
    mean, expected = run["statistics"]["radius_mean"], run["z_dim"] ** 0.5
    text = f"The z-points of {run['run']} lie {mean:.1f} from the origin on average"
    root = f"sqrt({run['z_dim']}) = {expected:.1f}"
    if abs(mean / expected - 1) <= 0.1:
        return f"{text}, about {root}, where N(0, 1) has its points."
    times = mean / expected
    far = f"{times:.1f} times as far as" if times > 1 else f"{percent(times)} of the distance of"
    return f"{text}, {far} the points of N(0, 1), at {root}."


def axes(run: Figures, figures: Figures) -> str:
    stats = run["statistics"]
    return (
        f"{stats['axes_90']} of the {run['z_dim']} principal axes of {run['run']} hold 90 % of its z-points' variance, "
        f"{stats['axes_99']} hold 99 %."
    )


def tasks(run: Figures, figures: Figures) -> str | None:
    task = run["tasks"].get(run["task"])
    if run["task"] == "reconstruct" or task is None:
        return None
    before, after = task["input_psnr"], task["psnr"]
    text = f"{run['run']} was trained to {VERBS.get(run['task'], run['task'])}: the PSNR "
    if abs(after - before) < 0.1:
        return f"{text}stays at {after:.1f} dB."
    text += f"{'rises' if after > before else 'falls'} from {before:.1f} dB of its inputs to {after:.1f} dB"
    return f"{text}, though next to nothing can be seen in them." if before < HIDDEN and after > before else f"{text}."


def between_images(run: Figures, figures: Figures) -> str | None:
    paths = {name: points for name, points in run["interpolation"].items() if "hit_rate" in points[0]}
    if "linear" not in paths:
        return None
    points = paths["linear"]
    half, ends = points[len(points) // 2]["hit_rate"], (points[0]["hit_rate"] + points[-1]["hit_rate"]) / 2
    text = f"Halfway on the straight line between two test images, {run['run']} shows a face in {percent(half)} of the "
    text += f"pictures, at the ends in {percent(ends)}"
    return f"{text}." if differ(half, ends, figures["pairs"]) else f"{text}: no difference that shows."


def of_normal(figures: Figures) -> str | None:
    rates = {run["run"]: run["samplers"]["normal"].get("hit_rate") for run in figures["runs"]}
    known = {name: rate for name, rate in rates.items() if rate is not None}
    if len(known) < 2:
        return None
    best, worst = max(known, key=lambda n: known[n]), min(known, key=lambda n: known[n])
    if not differ(known[best], known[worst], figures["judged"]):
        return f"From N(0, 1) no model shows more faces than the others: {percent(known[best])} at best."
    rest = ", ".join(f"{n} in {percent(r)}" for n, r in sorted(known.items(), key=lambda i: -i[1]) if n != best)
    return f"From N(0, 1), {best} shows a face in {percent(known[best])} of the pictures, {rest}."


def best_pair(figures: Figures) -> str | None:
    """The best of all models and samplers, by the hit rate and by the Frechet distance."""
    every = [
        (run["run"], name, scores)
        for run in figures["runs"]
        for name, scores in run["samplers"].items()
        if name != "reconstructions" and "hit_rate" in scores and "hog_frechet" in scores
    ]
    if not every:
        return None
    hit = max(every, key=lambda one: one[2]["hit_rate"])
    near = min(every, key=lambda one: one[2]["hog_frechet"])
    text = f"The lowest HOG-Frechet distance of all samplers has {near[0]} with {near[1]} "
    text += f"({near[2]['hog_frechet']:.2f}, {percent(near[2]['hit_rate'])} faces)"
    if hit[:2] == near[:2]:
        return f"{text}; it has the highest hit rate too."
    if not differ(hit[2]["hit_rate"], near[2]["hit_rate"], figures["judged"]):
        return f"{text}; no other has a hit rate that is higher beyond chance."
    return (
        f"{text}, the highest hit rate {hit[0]} with {hit[1]} ({percent(hit[2]['hit_rate'])}, distance "
        f"{hit[2]['hog_frechet']:.2f}): the two measures do not agree on the best."
    )


FITTED = {
    "diagonal": "a Gaussian without correlations", "gaussian": "a full Gaussian", "gmm": "a mixture of Gaussians",
}  # fmt: skip
VERBS = {
    "denoise": "remove noise", "drop": "fill in dropped pixels", "recolor": "colour gray images",
    "inpaint": "fill in masked blocks",
}  # fmt: skip
OF_RUN: tuple[Callable[[Figures, Figures], str | None], ...] = (
    reconstructions, tasks, in_the_cube, fitted, correlated, radius, axes, between_images,
)  # fmt: skip
BETWEEN: tuple[Callable[[Figures], str | None], ...] = (of_normal, best_pair)
