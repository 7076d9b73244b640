"""What a study's page shows, section by section: its texts, charts, cards of pictures and tables."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jobs.study import plots
from jobs.study.charts import Chart
from jobs.study.findings import FITTED, Metrics, percent


def short(rate: float) -> str:
    """A rate in a table's cell."""
    return percent(rate).replace("over ", ">").replace("under ", "<")


Kept = Mapping[str, Mapping[str, np.ndarray]]  # a run's arrays: part, name, array
Arrays = Sequence[Kept]
# a figure's key: its head in a table, and how a value is written
HEADS: dict[str, tuple[str, Callable[[float], str]]] = {
    "faces": ("faces", short), "recognised": ("recognised", short), "confidence": ("confidence", "{:.2f}".format),
    "classes": ("classes", "{:.1f}".format), "hog_frechet": ("HOG-Frechet", "{:.2f}".format),
    "coverage": ("coverage", "{:.2f}".format), "swd": ("SWD", "{:.0f}".format),
    "nearest_train": ("nearest", "{:.2f}".format), "copied": ("copied", short),
    "fid": ("FID", "{:.1f}".format), "kid": ("KID", "{:.3f}".format), "precision": ("precision", "{:.2f}".format),
    "recall": ("recall", "{:.2f}".format),
}  # fmt: skip
IN_CARDS = ("faces", "recognised", "hog_frechet")
BY_INCEPTION = ("fid", "kid", "precision", "recall")


@dataclass(frozen=True)
class Row:
    """Pictures side by side, uint8 (n, size, size, channels), between a label and cells."""

    label: str
    pictures: np.ndarray
    cells: Sequence[str] = ()


@dataclass(frozen=True)
class Card:
    """Rows of pictures of one run, the study's `number`th; `label` and `heads` are over the columns."""

    number: int
    title: str
    label: str
    heads: Sequence[str]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Table:
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """`cards`: rows of cards, those of the runs beside one another."""

    id: str
    title: str
    text: str
    charts: Sequence[Chart] = ()
    cards: Sequence[Sequence[Card]] = ()
    tables: Sequence[Table] = ()


Rows = Callable[[Metrics, Kept], Iterator[Row]]


def make_sections(figures: Metrics, arrays: Arrays) -> list[Section]:
    """The sections of the page, in order."""

    runs = figures["runs"]

    def cards(rows: Rows, label: str, heads: Sequence[str] = _heads(figures, IN_CARDS)) -> list[Card]:
        pairs = enumerate(zip(runs, arrays, strict=True))
        return [Card(n, plots.label(run), label, heads, list(rows(run, kept))) for n, (run, kept) in pairs]

    def swept(name: str) -> list[Card]:
        cards_of = cards(lambda run, kept: _swept(run, kept, name), plots.SWEPT[name][2])
        return [replace(card, title=f"{name}: {card.title}") for card in cards_of]

    return [
        Section(
            "samplers", "Samplers",
            "Where z-points are taken from. A row shows a sampler's first ten pictures; the figures are those of all.",
            plots.sampler_charts(figures), [cards(_sampled, "sampler")], _by_inception(figures),
        ),
        Section(
            "cube", "The cube", "A column is one z-point, moved outwards from row to row.",
            plots.sweep_charts(figures, "cube"), [swept("cube")],
        ),
        Section(
            "sphere", "The sphere", "A column is one direction, at every radius.",
            plots.sweep_charts(figures, "sphere"), [swept("sphere")],
        ),
        Section(
            "gaussians", "Fitted Gaussians",
            "Fitted to the training images' z-points: without correlations, with them, and a mixture. The temperature "
            f"multiplies the distance from the mean: 1 is as fitted. A column is one draw.{_mixtures_fitted(runs)}",
            [chart for name in FITTED for chart in plots.sweep_charts(figures, name)], [swept(name) for name in FITTED],
        ),
        Section(
            "tasks", "Tasks",
            "Test images, what the encoder sees of them, and what the decoder makes of that; the figures compare both "
            "with the clean images, `colours` those alone (Cb and Cr). A model was trained for one of the tasks.",
            [], [cards(_tasks, "task", ["PSNR (dB)", "SSIM", *["colours (dB)"] * _coloured(runs[0])])],
        ),
        Section(
            "ways", "Between two images",
            "From the z-point of one test image, left, to that of another: straight, along the arc about the mean "
            "z-point, and from neighbour to neighbour among z-points of training images.",
            plots.way_charts(figures), [cards(_ways, "way", [])],
        ),
        Section(
            "directions", "Directions",
            "The mean z-point, moved along the first principal axes of the z-points and along the set's attributes, "
            f"from -{runs[0]['directions']['sds']:g} to {runs[0]['directions']['sds']:g} standard deviations.",
            [], [cards(_directions, "along", [])],
        ),
        Section(
            "points", "The z-points",
            "Where the training images' z-points lie, as the decoder saw them in training. Correlations are those of "
            "the 64 components that vary most.",
            plots.point_charts(figures, arrays), tables=[_points(figures)],
        ),
    ]  # fmt: skip


def _mixtures_fitted(runs: Sequence[Metrics]) -> str:
    names = [run["run"] for run in runs if not run["points"]["mixture_stored"]]
    if not names:
        return ""
    return f" Stored without a mixture: {', '.join(names)}; this study fitted one, which an endpoint does not have."


def about(figures: Metrics) -> str:
    """What the study was made on, in a line."""
    data = figures["dataset"]
    images = ", ".join(f"{count:,} {split}" for split, count in data["images"].items() if count)
    return f"{data['name']}: {images} images of {data['size']} x {data['size']} pixels"


def models(figures: Metrics) -> Table:
    """A row for each run, and one for the real images."""
    runs, keys = figures["runs"], tuple(HEADS)
    own = [run["tasks"][run["task"]] for run in runs]
    rows = [
        [run["run"], f"{run['kl_factor']:g}", str(run["z_dim"]), run["task"], str(run["epochs"]),
         f"{task['psnr']:.1f}", f"{task['ssim']:.2f}", *_cells(run["samplers"]["reconstructions"], keys)]
        for run, task in zip(runs, own, strict=True)
    ]  # fmt: skip
    real = ["real test images", *[""] * 6, *_cells(runs[0]["real"], keys)]
    heads = ["run", "kl_factor", "z_dim", "task", "epochs", "PSNR (dB)", "SSIM", *_heads(figures, keys)]
    return Table(heads, [*rows, real])


def method(figures: Metrics) -> list[str]:
    """How the figures came about, in sentences."""
    data, first = figures["dataset"], figures["runs"][0]
    encoded, trained = first["points"]["encoded"], data["images"]["train"]
    some = f"{encoded:,} training images" if encoded == trained else f"{encoded:,} of {trained:,} training images"
    return [
        f"{figures['judged']:,} pictures were judged at each point, {first['ways']['pairs']} at each point between two "
        "images. The bands and bars around rates are 95 % intervals (Wilson 1927); two rates are said to differ where "
        "they lie more than two standard errors apart.",
        f"The z-points are those of {some}, drawn from q(z|x). Unseen images are of the {data['held_out']} split.",
        *(text for key, text in MEANING.items() if key in first["real"]),
    ]


MEANING = {
    "faces": "faces: the share of pictures in which OpenCV's frontal face detector (Viola and Jones 2001) finds one; "
    "it likes smooth faces.",
    "recognised": "recognised: the share of pictures in which a small classifier of the set's labels sees a class "
    "rather than nothing; confidence: the mean probability of the best class; classes: how many are shown, the "
    "exponential of their entropy.",
    "hog_frechet": "HOG-Frechet: the Frechet distance to training images in histograms of oriented gradients (Dalal "
    "and Triggs 2005); less is nearer, and it likes sharp and varied pictures.",
    "coverage": "coverage: the share of training images that have a picture nearer than their fifth neighbour (Naeem "
    "2020); more is more varied.",
    "swd": "SWD: the sliced Wasserstein distance to training images on Laplacian pyramids (Karras 2018), times 1000.",
    "nearest_train": "nearest: the distance to the nearest training image over that to the next 50 (Carlini 2023), "
    "median; copied: the share of pictures where it is under a third.",
    "fid": "FID (Heusel 2017) and KID (Binkowski 2018): distances to training images in the features of an Inception "
    "network; less is nearer. FID falls with the number of pictures: compare it within this report alone.",
    "precision": "precision: the share of pictures that lie within the training images in those features; recall: the "
    "share of training images that lie within the pictures (Kynkaanniemi 2019).",
}


def _heads(figures: Metrics, keys: Sequence[str]) -> list[str]:
    return [HEADS[key][0] for key in keys if key in figures["runs"][0]["real"]]


def _cells(scores: Metrics, keys: Sequence[str] = IN_CARDS) -> list[str]:
    return [HEADS[key][1](scores[key]) for key in keys if key in scores]


def _sampled(run: Metrics, kept: Kept) -> Iterator[Row]:
    yield Row("real images", kept["real"]["pictures"], _cells(run["real"]))
    for name, scores in run["samplers"].items():
        yield Row(name, kept["samplers"][name], _cells(scores))


def _by_inception(figures: Metrics) -> list[Table]:
    runs = figures["runs"]
    heads = _heads(figures, BY_INCEPTION)
    if not heads:
        return []
    rows = [["real test images", "", *_cells(runs[0]["real"], BY_INCEPTION)]]
    for name in runs[0]["samplers"]:
        rows += [[name, run["run"], *_cells(run["samplers"][name], BY_INCEPTION)] for run in runs]
    return [Table(["sampler", "run", *heads], rows)]


def _swept(run: Metrics, kept: Kept, name: str) -> Iterator[Row]:
    for point, pictures in zip(run[name], kept[name]["pictures"], strict=True):
        yield Row(f"{point[plots.SWEPT[name][2]]:g}", pictures, _cells(point))


def _tasks(run: Metrics, kept: Kept) -> Iterator[Row]:
    for kind, task in run["tasks"].items():
        clean, seen, made = kept["tasks"][kind]
        if kind == "reconstruct":
            yield Row("clean image", clean)
        else:
            key = SETTING.get(kind)
            yield Row(f"{kind}, {key} {task['settings'][key]:g}" if key else kind, seen, _closeness(task, "input_"))
        yield Row("output, own task" if task["trained"] else "output", made, _closeness(task))


SETTING = {"denoise": "sigma", "drop": "keep", "inpaint": "share"}


def _closeness(task: Metrics, prefix: str = "") -> list[str]:
    cells = [f"{task[f'{prefix}psnr']:.1f}", f"{task[f'{prefix}ssim']:.2f}"]
    return [*cells, f"{task[f'{prefix}chroma_psnr']:.1f}"] if f"{prefix}chroma_psnr" in task else cells


def _coloured(run: Metrics) -> bool:
    return "chroma_psnr" in run["tasks"]["reconstruct"]


def _ways(run: Metrics, kept: Kept) -> Iterator[Row]:
    names = list(run["ways"]["ways"])
    for number in range(len(kept["ways"][names[0]])):
        for name in names:
            yield Row(f"{number + 1}, {name}", kept["ways"][name][number])


def _directions(run: Metrics, kept: Kept) -> Iterator[Row]:
    for name, pictures in kept["directions"].items():
        yield Row(name.replace("_", " "), pictures)


def _points(figures: Metrics) -> Table:
    runs = figures["runs"]
    rows = [[text, *(write(run["points"]) for run in runs)] for text, write in FACTS]
    return Table(["", *(run["run"] for run in runs)], rows)


FACTS: list[tuple[str, Callable[[Metrics], str]]] = [
    ("mean radius", lambda p: f"{p['mean_radius']:.1f}"),
    ("sqrt(z_dim), the radius of N(0, 1)", lambda p: f"{p['sqrt_z_dim']:.1f}"),
    ("the centre's distance from the origin", lambda p: f"{p['centre_radius']:.2f}"),
    ("components with |x| < 20", lambda p: percent(p["within_20"])),
    ("sd of a component, mean", lambda p: f"{p['mean_sd']:.2f}"),
    ("|skew| of a component, mean", lambda p: f"{p['mean_abs_skew']:.2f}"),
    ("excess kurtosis of a component, mean", lambda p: f"{p['mean_kurtosis']:.2f}"),
    ("core's distance from normal (0: normal, 0.05: uniform)", lambda p: f"{p['core_distance']:.3f}"),
    ("|correlation| of two components, mean", lambda p: f"{p['mean_abs_correlation']:.2f}"),
    ("principal axes that hold 90 % of the variance", lambda p: f"{p['axes_90']}"),
    ("principal axes that hold 99 % of the variance", lambda p: f"{p['axes_99']}"),
    ("KL, nats", lambda p: f"{p['kl_sum']:,.1f}"),
    ("active units", lambda p: f"{p['active_units']}"),
    ("fragments of the neighbour graph", lambda p: f"{p['fragments']}"),
    ("silhouette of the best clusters", lambda p: f"{p['silhouette']:.2f}"),
    ("the same for one Gaussian", lambda p: f"{p['gaussian_silhouette']:.2f}"),
]
