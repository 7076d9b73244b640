"""What the numbers of a study say, in plain sentences: each is said only where its numbers bear it out.

A sentence is a function of a run's figures, or of those of all runs, that gives a line or nothing. Two rates differ
where they lie more than two standard errors of their difference apart.
"""

from collections.abc import Callable
from typing import Any

Metrics = dict[str, Any]
HIDDEN = 10.0  # dB: an input with a lower PSNR shows next to nothing
# by whom a picture is found to show something: the figure's key, and what it shows
RATES = {"faces": "a face", "recognised": "one of the set's classes"}
FITTED = {
    "diagonal": "a Gaussian without correlations", "gaussian": "a full Gaussian", "gmm": "a mixture of Gaussians",
}  # fmt: skip
VERBS = {
    "denoise": "remove noise", "drop": "fill in dropped pixels", "recolor": "colour gray images",
    "inpaint": "fill in hidden blocks",
}  # fmt: skip


def findings(figures: Metrics) -> dict[str, list[str]]:
    """The sentences that the figures of a study bear out, by what they are on: all runs together, then each run."""
    runs = figures["runs"]
    groups = {"The models side by side": [say(figures) for say in BETWEEN] if len(runs) > 1 else []}
    groups |= {run["run"]: [say(run, figures) for say in OF_RUN] for run in runs}
    said = {on: [text for text in texts if text] for on, texts in groups.items()}
    return {on: texts for on, texts in said.items() if texts}


def rate_of(figures: Metrics) -> str:
    """The key of the rate of pictures that show something."""
    return next(key for key in RATES if key in figures["runs"][0]["real"])


def differ(a: float, b: float, n: int) -> bool:
    """Whether two rates, each of `n` pictures, differ by more than two standard errors (Agresti and Caffo 2000)."""
    a, b = ((rate * n + 1) / (n + 2) for rate in (a, b))
    return abs(a - b) > 2 * ((a * (1 - a) + b * (1 - b)) / (n + 2)) ** 0.5


def percent(rate: float) -> str:
    """A rate as whole percent; what is not quite 0 or 100 is not called so."""
    if 0 < rate < 0.005:
        return "under 1 %"
    return "over 99 %" if 0.995 <= rate < 1 else f"{100 * rate:.0f} %"


def reconstructions(run: Metrics, figures: Metrics) -> str:
    key, task = rate_of(figures), run["tasks"][run["task"]]
    made, real = run["samplers"]["reconstructions"][key], run["real"][key]
    return (
        f"{run['run']} reconstructs unseen images with a PSNR of {task['psnr']:.1f} dB; {percent(made)} of the "
        f"reconstructions show {RATES[key]}, and {percent(real)} of the real images do."
    )


def own_task(run: Metrics, figures: Metrics) -> str | None:
    if run["task"] == "reconstruct":
        return None
    # Of gray images the whole PSNR is high already: it would tell of the output's blur alone.
    measure, key = ("PSNR of the colours", "chroma_psnr") if run["task"] == "recolor" else ("PSNR", "psnr")
    before, after = (run["tasks"][run["task"]][prefix + key] for prefix in ("input_", ""))
    text = f"{run['run']} was trained to {VERBS.get(run['task'], run['task'])}: the {measure} "
    if abs(after - before) < 0.1:
        return f"{text}stays at {after:.1f} dB."
    text += f"{'rises' if after > before else 'falls'} from {before:.1f} dB of its inputs to {after:.1f} dB"
    return f"{text}, though next to nothing can be seen in them." if before < HIDDEN and after > before else f"{text}."


def in_the_cube(run: Metrics, figures: Metrics) -> str:
    key = rate_of(figures)
    points = [(point["boundary"], point[key]) for point in run["cube"]]
    boundary, best = max(points, key=lambda point: point[1])
    if best < 0.5:
        return (
            f"In no cube from boundary {points[0][0]:g} to {points[-1][0]:g} does {run['run']} show {RATES[key]} in "
            f"more than {percent(best)} of the pictures."
        )
    text = f"In the cube of boundary {boundary:g}, {run['run']} shows {RATES[key]} in {percent(best)} of the pictures"
    lost = next((b for b, rate in points if b > boundary and rate < 0.5), None)
    return f"{text}; at boundary {lost:g} in fewer than half of them." if lost else f"{text}."


def on_the_sphere(run: Metrics, figures: Metrics) -> str:
    key, root = rate_of(figures), run["points"]["sqrt_z_dim"]
    nearest = min(run["sphere"], key=lambda point: point["hog_frechet"])
    return (
        f"On the sphere, {run['run']} comes nearest to real images at radius {nearest['radius']:g} (HOG-Frechet "
        f"distance {nearest['hog_frechet']:.2f}; {percent(nearest[key])} show {RATES[key]}); sqrt(z_dim) is {root:.1f}."
    )


def fitted(run: Metrics, figures: Metrics) -> str:
    key = rate_of(figures)
    rates = {name: run["samplers"][name][key] for name in ("normal", *FITTED)}
    best = max(FITTED, key=lambda name: rates[name])
    text = f"{run['run']} shows {RATES[key]} in {percent(rates['normal'])} of the pictures from N(0, 1) and in "
    text += f"{percent(rates[best])} of those from {FITTED[best]} fitted to its z-points"
    if not differ(rates[best], rates["normal"], figures["judged"]):
        return f"{text}: no difference beyond chance."
    return f"{text}." if rates[best] > rates["normal"] else f"{text}: no fit is as good as N(0, 1)."


def correlated(run: Metrics, figures: Metrics) -> str | None:
    key = rate_of(figures)
    alone, together = (run["samplers"][name][key] for name in ("diagonal", "gaussian"))
    if together < alone or not differ(alone, together, figures["judged"]):
        return None
    return (
        f"The correlations of {run['run']}'s components matter: with them the fitted Gaussian shows {RATES[key]} in "
        f"{percent(together)} of the pictures, without them in {percent(alone)}."
    )


def radius(run: Metrics, figures: Metrics) -> str:
    mean, root = run["points"]["mean_radius"], run["points"]["sqrt_z_dim"]
    text = f"The z-points of {run['run']} lie {mean:.1f} from the origin on average"
    n01 = f"N(0, 1) has its points: sqrt({run['z_dim']}) = {root:.1f}"
    if abs(mean / root - 1) <= 0.1:
        return f"{text}, near to where {n01}."
    return f"{text}, {mean / root:.1f} times as far as where {n01}."


def region(run: Metrics, figures: Metrics) -> str:
    points = run["points"]
    text = f"They are {'one region' if points['coherent'] else 'not one region'}"
    if points["fragments"] != 1:
        text += f": {percent(points['largest_fragment'])} of them hang together"
    elif not points["coherent"]:
        text += ": they fall into clusters more than a Gaussian does"
    return (
        f"{text}; the centre is {points['centre_radius']:.1f} from the origin, and {points['axes_90']} of "
        f"{run['z_dim']} principal axes hold 90 % of the variance."
    )


def between_images(run: Metrics, figures: Metrics) -> str:
    key, pairs = rate_of(figures), run["ways"]["pairs"]
    way = run["ways"]["ways"]["straight"]
    half, ends = way[len(way) // 2][key], (way[0][key] + way[-1][key]) / 2
    text = f"Halfway on the straight line between two test images, {run['run']} shows {RATES[key]} in {percent(half)} "
    text += f"of the pictures, at the ends in {percent(ends)}"
    return f"{text}." if differ(half, ends, pairs) else f"{text}: no difference beyond chance."


def copied(run: Metrics, figures: Metrics) -> str | None:
    rates = {name: scores["copied"] for name, scores in run["samplers"].items() if name != "reconstructions"}
    worst = max(rates, key=lambda name: rates[name])
    if not differ(rates[worst], run["real"]["copied"], figures["judged"]) or rates[worst] < run["real"]["copied"]:
        return None
    return f"{percent(rates[worst])} of {run['run']}'s pictures from {worst} are close copies of a training image."


def of_normal(figures: Metrics) -> str:
    key = rate_of(figures)
    rates = {run["run"]: run["samplers"]["normal"][key] for run in figures["runs"]}
    best, *others = sorted(rates, key=lambda name: -rates[name])
    if not differ(rates[best], rates[others[-1]], figures["judged"]):
        return (
            f"From N(0, 1) no model shows {RATES[key]} more often than another beyond chance: from "
            f"{percent(rates[others[-1]])} to {percent(rates[best])} of the pictures."
        )
    rest = ", ".join(f"{name} in {percent(rates[name])}" for name in others)
    return f"From N(0, 1), {best} shows {RATES[key]} in {percent(rates[best])} of the pictures, {rest}."


def best_pair(figures: Metrics) -> str:
    """The best of all models and samplers, by the rate and by the Frechet distance."""
    key = rate_of(figures)
    every = [
        (run["run"], name, scores[key], scores["hog_frechet"])
        for run in figures["runs"]
        for name, scores in run["samplers"].items()
        if name != "reconstructions"
    ]
    shows, near = max(every, key=lambda one: one[2]), min(every, key=lambda one: one[3])
    text = f"Of all samplers, {near[1]} of {near[0]} has the lowest HOG-Frechet distance ({near[3]:.2f}; "
    text += f"{percent(near[2])} show {RATES[key]})"
    if not differ(shows[2], near[2], figures["judged"]):
        return f"{text}; none shows {RATES[key]} more often beyond chance."
    return f"{text}, {shows[1]} of {shows[0]} shows {RATES[key]} most often ({percent(shows[2])}; {shows[3]:.2f})."


OF_RUN: tuple[Callable[[Metrics, Metrics], str | None], ...] = (
    reconstructions, own_task, in_the_cube, on_the_sphere, fitted, correlated, radius, region, between_images, copied,
)  # fmt: skip
BETWEEN: tuple[Callable[[Metrics], str], ...] = (of_normal, best_pair)
