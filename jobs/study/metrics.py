"""The metrics of a study: their types and names, how rates are compared, and how values are written."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest, studentized_range

from aecore.metrics.distribution import NUM_REFERENCE

StudyMetrics = dict[str, Any]  # the content of metrics.json: options, `dataset`, and `runs`, a list of RunMetrics
INTERPOLATIONS_KEY = "ways"  # key of that measurement in stored files and metrics.json, and of its metrics by path
RunMetrics = dict[str, Any]  # a run's summary, and the metrics of each of aecore.analysis.MEASUREMENTS by name
RunArrays = Mapping[str, Mapping[str, np.ndarray]]  # a run's arrays by measurement and name

# the rate of images that show something: the metric's key, and what they show
RATE_TARGETS = {"faces": "a face", "recognised": "one of the set's classes"}
IMAGE_TABLE_KEYS = ("faces", "recognised", "hog_frechet")  # metrics beside rows of images
INCEPTION_KEYS = ("fid", "kid", "precision", "recall")


def rate_key(scores: Mapping[str, float]) -> str:
    """Return the key of the rate among the metrics of some images: faces, or recognised if the set has labels."""
    return next(key for key in RATE_TARGETS if key in scores)


def rates_differ(a: float, b: float, n: int, num_compared: int = 2) -> bool:
    """Return True if two rates, each of `n` images, differ by over two standard errors (Agresti and Caffo 2000).

    Of `num_compared` rates the extremes lie further apart by chance: if the two were chosen among them by their values,
    the limit is that of the studentized range at 5 % (Tukey 1949).
    """
    a, b = ((rate * n + 1) / (n + 2) for rate in (a, b))
    limit = 2.0 if num_compared == 2 else studentized_range.ppf(0.95, num_compared, np.inf) / 2**0.5
    return abs(a - b) > limit * ((a * (1 - a) + b * (1 - b)) / (n + 2)) ** 0.5


def confidence_interval(rate: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a rate of `n` images (Wilson 1927)."""
    interval = binomtest(round(rate * n), n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def format_rate(rate: float) -> str:
    """Return a rate as whole percent. Only exact 0 and 1 are written as 0 % and 100 %."""
    if 0 < rate <= 0.005:
        return "under 1 %"
    return "over 99 %" if 0.995 <= rate < 1 else f"{100 * rate:.0f} %"


def format_rate_short(rate: float) -> str:
    """Return a rate for a table's cell."""
    return format_rate(rate).replace("over ", ">").replace("under ", "<")


# key: column header, and the format of a value
COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "faces": ("faces", format_rate_short), "recognised": ("recognised", format_rate_short),
    "confidence": ("confidence", "{:.2f}".format), "classes": ("classes", "{:.1f}".format),
    "hog_frechet": ("HOG-Frechet", "{:.2f}".format), "coverage": ("coverage", "{:.2f}".format),
    "swd": ("SWD", "{:.0f}".format), "nearest_train": ("nearest", "{:.2f}".format),
    "copied": ("copied", format_rate_short), "fid": ("FID", "{:.1f}".format), "kid": ("KID", "{:.3f}".format),
    "precision": ("precision", "{:.2f}".format), "recall": ("recall", "{:.2f}".format),
}  # fmt: skip

DEFINITIONS = {
    "faces": "faces: the rate of images in which OpenCV's frontal face detector (Viola and Jones 2001) finds a face. "
    "It favours smooth faces.",
    "recognised": "recognised: the rate of images that a small classifier of the set's labels assigns to a class and "
    "not to 'nothing'. confidence: the mean probability of the most probable class. classes: the effective number of "
    "classes, the exponential of their entropy.",
    "hog_frechet": "HOG-Frechet: the Frechet distance to training images in histograms of oriented gradients (Dalal "
    "and Triggs 2005); lower is better. It favours sharp and varied images.",
    "coverage": "coverage: the share of training images with a decoded image nearer than their fifth neighbour (Naeem "
    "2020); higher is more varied.",
    "swd": "SWD: the sliced Wasserstein distance to training images on Laplacian pyramids (Karras 2018), times 1000; "
    "lower is better.",
    "nearest_train": f"nearest: the distance to the nearest of at most {NUM_REFERENCE:,} evenly spaced training images "
    "divided by the mean distance to the next 50 (Carlini 2023), median. copied: the rate of images with a ratio below "
    "a third; copies of the other training images are not counted.",
    "fid": "FID (Heusel 2017) and KID (Binkowski 2018): distances to training images in the features of an Inception "
    "network; lower is better. FID falls as the number of images grows: compare it only within this report.",
    "precision": "precision: the share of decoded images inside the manifold of the training images in these features. "
    "recall: the share of training images inside the manifold of the decoded images (Kynkaanniemi 2019).",
}


def column_headers(study: StudyMetrics, keys: Sequence[str]) -> list[str]:
    """Return the headers of those metrics in `keys` that the study has."""
    return [COLUMNS[key][0] for key in keys if key in study["runs"][0]["real"]]


def format_cells(scores: Mapping[str, float], keys: Sequence[str] = IMAGE_TABLE_KEYS) -> list[str]:
    """Return the cells of those metrics in `keys` that `scores` has."""
    return [COLUMNS[key][1](scores[key]) for key in keys if key in scores]


def run_label(run: RunMetrics) -> str:
    """Return a run's name with its KL factor, for charts and tables."""
    return f"{run['run']} (kl_factor {run['kl_factor']:g})"
