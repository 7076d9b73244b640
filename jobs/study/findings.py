"""Write the findings of a study as plain sentences. A sentence appears only if the metrics support it."""

from scipy.stats import chi

from jobs.study.metrics import (
    INTERPOLATIONS_KEY,
    RATE_TARGETS,
    RunMetrics,
    StudyMetrics,
    format_rate,
    rate_key,
    rates_differ,
)

FITTED_SAMPLERS = {
    "diagonal": "a Gaussian without correlations", "gaussian": "a full Gaussian", "gmm": "a mixture of Gaussians",
}  # fmt: skip
TASK_VERBS = {
    "denoise": "remove noise", "drop": "fill in dropped pixels", "recolor": "colour gray images",
    "inpaint": "fill in hidden blocks",
}  # fmt: skip
UNRECOGNISABLE_PSNR = 10.0  # dB: below it hardly anything can be recognised in an image
EQUAL_PSNR = 0.1  # dB: the precision at which a PSNR is written
HALF = 0.5  # the rate from which a sampler is said to show something: most of its images do
RADIUS_TOLERANCE = 0.1  # a relative difference that a histogram of radii hardly shows


def make_findings(study: StudyMetrics) -> dict[str, list[str]]:
    """Return the sentences by heading: first the comparison of the runs, then each run. No heading is empty."""
    runs = study["runs"]
    sections = {"The models side by side": compare_runs(study) if len(runs) > 1 else []}
    sections |= {run["run"]: describe_run(run, study["judged"]) for run in runs}
    return {heading: sentences for heading, sentences in sections.items() if sentences}


def describe_run(run: RunMetrics, num_samples: int) -> list[str]:
    sentences = [
        describe_reconstructions(run), describe_task(run), describe_cube(run), describe_sphere(run),
        describe_fits(run, num_samples), describe_correlations(run, num_samples), describe_radius(run),
        describe_region(run), describe_interpolation(run), describe_copies(run, num_samples),
    ]  # fmt: skip
    return [sentence for sentence in sentences if sentence]


def compare_runs(study: StudyMetrics) -> list[str]:
    return [compare_normal_samples(study), compare_samplers(study)]


def describe_reconstructions(run: RunMetrics) -> str:
    key, psnr = rate_key(run["real"]), run["tasks"][run["task"]]["psnr"]
    rate, real_rate = run["samplers"]["reconstructions"][key], run["real"][key]
    return (
        f"{run['run']} reconstructs held-out images with a PSNR of {psnr:.1f} dB; {format_rate(rate)} of the "
        f"reconstructions show {RATE_TARGETS[key]}, and {format_rate(real_rate)} of the real images do."
    )


def describe_task(run: RunMetrics) -> str | None:
    task = run["task"]
    if task == "reconstruct":
        return None
    # The PSNR of gray images is already high: it would measure only the blur of the output.
    metric, key = ("PSNR of the colours", "chroma_psnr") if task == "recolor" else ("PSNR", "psnr")
    input_psnr, output_psnr = (run["tasks"][task][prefix + key] for prefix in ("input_", ""))
    text = f"{run['run']} was trained to {TASK_VERBS.get(task, task)}: the {metric} "
    if abs(output_psnr - input_psnr) < EQUAL_PSNR:
        return f"{text}stays at {output_psnr:.1f} dB."
    rises = output_psnr > input_psnr
    text += f"{'rises' if rises else 'falls'} from {input_psnr:.1f} dB (input) to {output_psnr:.1f} dB (output)"
    if rises and input_psnr < UNRECOGNISABLE_PSNR:
        return f"{text}, although the inputs are hardly recognisable."
    return f"{text}."


def describe_cube(run: RunMetrics) -> str:
    key = rate_key(run["real"])
    rates = {point["boundary"]: point[key] for point in run["cube"]}
    best = max(rates, key=lambda boundary: rates[boundary])
    if rates[best] < HALF:
        return (
            f"In cubes of boundary {min(rates):g} to {max(rates):g}, at most {format_rate(rates[best])} of the images "
            f"of {run['run']} show {RATE_TARGETS[key]}."
        )
    text = (
        f"In the cube of boundary {best:g}, {format_rate(rates[best])} of the images of {run['run']} show "
        f"{RATE_TARGETS[key]}"
    )
    below_half = next((boundary for boundary, rate in rates.items() if boundary > best and rate < HALF), None)
    return f"{text}; at boundary {below_half:g} fewer than half do." if below_half else f"{text}."


def describe_sphere(run: RunMetrics) -> str:
    key = rate_key(run["real"])
    nearest = min(run["sphere"], key=lambda point: point["hog_frechet"])
    return (
        f"On the sphere, {run['run']} is nearest to real images at radius {nearest['radius']:g} (HOG-Frechet distance "
        f"{nearest['hog_frechet']:.2f}; {format_rate(nearest[key])} show {RATE_TARGETS[key]}); sqrt(z_dim) is "
        f"{run['points']['sqrt_z_dim']:.1f}."
    )


def describe_fits(run: RunMetrics, num_samples: int) -> str:
    key = rate_key(run["real"])
    normal_rate = run["samplers"]["normal"][key]
    rates = {sampler: run["samplers"][sampler][key] for sampler in FITTED_SAMPLERS}
    best = max(rates, key=lambda sampler: rates[sampler])
    text = (
        f"{format_rate(normal_rate)} of the images of {run['run']} from N(0, 1) show {RATE_TARGETS[key]}, and "
        f"{format_rate(rates[best])} of those from {FITTED_SAMPLERS[best]} fitted to its z-points"
    )
    if not rates_differ(rates[best], normal_rate, num_samples, len(rates) + 1):
        return f"{text}: no significant difference."
    return f"{text}." if rates[best] > normal_rate else f"{text}: no fit is as good as N(0, 1)."


def describe_correlations(run: RunMetrics, num_samples: int) -> str | None:
    key = rate_key(run["real"])
    diagonal, full = (run["samplers"][sampler][key] for sampler in ("diagonal", "gaussian"))
    if full < diagonal or not rates_differ(diagonal, full, num_samples):
        return None
    return (
        f"The correlations of {run['run']}'s latent dimensions matter: {format_rate(full)} of the images from the "
        f"fitted Gaussian show {RATE_TARGETS[key]} with them, {format_rate(diagonal)} without."
    )


def describe_radius(run: RunMetrics) -> str:
    mean, expected = run["points"]["mean_radius"], chi(run["z_dim"]).mean()  # for few dimensions below sqrt(z_dim)
    text = f"The z-points of {run['run']} have a mean distance of {mean:.1f} from the origin"
    normal = f"that of N(0, 1), {expected:.1f}"
    if abs(mean / expected - 1) <= RADIUS_TOLERANCE:
        return f"{text}, close to {normal}."
    return f"{text}, {mean / expected:.1f} times {normal}."


def describe_region(run: RunMetrics) -> str:
    points = run["points"]
    text = f"They are {'one region' if points['coherent'] else 'not one region'}"
    if points["fragments"] != 1:
        text += f": the largest connected part holds {format_rate(points['largest_fragment'])} of them"
    elif not points["coherent"]:
        text += ": they form clusters more clearly than a Gaussian does"
    return (
        f"{text}; their mean is {points['centre_radius']:.1f} from the origin, and {points['axes_90']} of "
        f"{run['z_dim']} principal axes explain 90 % of the variance."
    )


def describe_interpolation(run: RunMetrics) -> str:
    key, pairs = rate_key(run["real"]), run[INTERPOLATIONS_KEY]["pairs"]
    rates = [step[key] for step in run[INTERPOLATIONS_KEY][INTERPOLATIONS_KEY]["straight"]]
    middle, ends = rates[len(rates) // 2], (rates[0] + rates[-1]) / 2
    text = (
        f"Halfway on the straight line between two test images, {format_rate(middle)} of the images of {run['run']} "
        f"show {RATE_TARGETS[key]}, at the ends {format_rate(ends)}"
    )
    return f"{text}." if rates_differ(middle, ends, pairs) else f"{text}: no significant difference."


def describe_copies(run: RunMetrics, num_samples: int) -> str | None:
    real_rate = run["real"]["copied"]
    rates = {sampler: scores["copied"] for sampler, scores in run["samplers"].items() if sampler != "reconstructions"}
    worst = max(rates, key=lambda sampler: rates[sampler])
    if rates[worst] < real_rate or not rates_differ(rates[worst], real_rate, num_samples, len(rates) + 1):
        return None
    return f"{format_rate(rates[worst])} of {run['run']}'s images from {worst} are close copies of a training image."


def compare_normal_samples(study: StudyMetrics) -> str:
    runs = study["runs"]
    key = rate_key(runs[0]["real"])
    rates = {run["run"]: run["samplers"]["normal"][key] for run in runs}
    best, *lower = sorted(rates, key=lambda name: -rates[name])
    worst = lower[-1]
    if not rates_differ(rates[best], rates[worst], study["judged"], len(rates)):
        return (
            f"From N(0, 1), the models show {RATE_TARGETS[key]} in {format_rate(rates[worst])} to "
            f"{format_rate(rates[best])} of the images: no significant difference."
        )
    rest = ", ".join(f"{name} in {format_rate(rates[name])}" for name in lower)
    return f"From N(0, 1), {best} shows {RATE_TARGETS[key]} in {format_rate(rates[best])} of the images, {rest}."


def compare_samplers(study: StudyMetrics) -> str:
    """Name the best pair of model and sampler by HOG-Frechet distance, and by rate if another pair has a better one."""
    runs = study["runs"]
    key = rate_key(runs[0]["real"])
    scores_by_pair = {
        (run["run"], sampler): scores
        for run in runs
        for sampler, scores in run["samplers"].items()
        if sampler != "reconstructions"
    }
    nearest = min(scores_by_pair, key=lambda pair: scores_by_pair[pair]["hog_frechet"])
    best = max(scores_by_pair, key=lambda pair: scores_by_pair[pair][key])
    nearest_scores, best_scores = scores_by_pair[nearest], scores_by_pair[best]
    text = (
        f"Of all samplers, {nearest[1]} of {nearest[0]} has the lowest HOG-Frechet distance "
        f"({nearest_scores['hog_frechet']:.2f}; {format_rate(nearest_scores[key])} show {RATE_TARGETS[key]})"
    )
    if not rates_differ(best_scores[key], nearest_scores[key], study["judged"], len(scores_by_pair)):
        return f"{text}; none shows {RATE_TARGETS[key]} significantly more often."
    return (
        f"{text}, {best[1]} of {best[0]} shows {RATE_TARGETS[key]} most often ({format_rate(best_scores[key])}; "
        f"{best_scores['hog_frechet']:.2f})."
    )
