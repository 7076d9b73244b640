"""The charts of a campaign's report, from its file alone."""

import time
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from aecore.data.shuffle import evenly_spaced
from aecore.search_space import Choices, Dimension, parse_space
from jobs.study.charts import COLOURS, Axis, Chart, Reference, Series, line_chart, span_chart, value_chart
from jobs.tune.campaign import Campaign, Trial
from jobs.tune.plan import distribution, quiet_optuna, to_param
from jobs.tune.selection import score
from jobs.tune.table import format_value

PSNR_AXIS, DISTANCE_AXIS = Axis("PSNR (dB)"), Axis("distance")
MIN_RANKED = 20  # trials from which on the importance of a key is estimated
MIN_TOP = 5  # trials that count as good: PED-ANOVA's estimate is unstable with fewer
MAX_MAPPED_KEYS = 3
LABELLED_POINTS = 8  # more labels would cover each other
COLOURED_CURVES = len(COLOURS)  # of the front
LOG_RATIO = 8  # of the greatest to the smallest value from which on an axis is logarithmic
IDLE_S = 60.0  # without a training, from which on the timeline leaves a gap out


def pareto_chart(campaign: Campaign) -> Chart:
    """Chart the PSNR and the distance of each trial: the Pareto front, the slack of the rule and its choice.

    A point with several seeds is drawn once, at their mean.
    """
    names, means = campaign.key_names(), {mean.name: mean for mean in campaign.means()}
    points: dict[str, list[tuple[float, float, str]]] = {"Pareto front": [], "chosen": [], "dominated": []}
    for trial in campaign.trials:
        model = means.get(trial.run) if trial.state == "finished" else campaign.score(trial)
        if model is None:
            continue
        label = ", ".join(map(format_value, campaign.searched_values(trial).values()))
        point = (model.psnr, model.distance, label)
        if trial.run == campaign.best:
            points["chosen"].append(point)
        if trial.run in campaign.pareto_front:
            points["Pareto front"].append(point)
        elif trial.run != campaign.best:
            dead = trial.state == "finished" and not model.alive
            kind = "no active units" if dead else "dominated" if trial.state == "finished" else trial.state
            points.setdefault(kind, []).append(point)
    series, front = [], sorted(points["Pareto front"])
    title, labelled = "PSNR and distance of the trials", 0 < len(front) <= LABELLED_POINTS
    if labelled:
        title += f", with {', '.join(names.values())}"
    for kind, values in points.items():
        if values:
            x, y, labels = zip(*sorted(values), strict=True)
            is_front = kind == "Pareto front"
            series.append(Series(kind, x, y, joined=is_front, labels=labels if is_front and labelled else ()))
    slack = campaign.search["psnr_slack"]
    psnrs = [model.psnr for model in campaign.candidates() if model.alive]
    line = [Reference(f"{slack:g} dB below the best PSNR", x=max(psnrs) - slack)] if psnrs else []
    return line_chart("pareto", title, PSNR_AXIS, DISTANCE_AXIS, series, line)


def curve_charts(campaign: Campaign) -> list[Chart]:
    """Chart PSNR and distance over the judged epochs, the best run and a few others of the front in colour."""
    rows = evenly_spaced(len(campaign.pareto_front), COLOURED_CURVES - 1)
    coloured = list(dict.fromkeys([campaign.best, *(campaign.pareto_front[row] for row in rows)]))
    trials = [trial for trial in campaign.trials if trial.judged]
    trials.sort(key=lambda trial: coloured.index(trial.run) if trial.run in coloured else len(coloured))
    charts = []
    for name, title, y in (("psnr", "PSNR", PSNR_AXIS), ("distance", "Distance", DISTANCE_AXIS)):
        series = []
        for trial in trials:
            models = [score(trial.run, metrics, campaign.search["sampler"]) for metrics in trial.judged]
            epochs, values = [metrics["epoch"] for metrics in trial.judged], [getattr(model, name) for model in models]
            series.append(Series(point_label(campaign, trial), epochs, values, muted=trial.run not in coloured))
        x = Axis("epoch", from_zero=True, integer=True)
        charts.append(line_chart(f"curves-{name}", f"{title} by epoch", x, y, series))
    return charts


def map_charts(campaign: Campaign) -> list[Chart]:
    """Chart distance and PSNR over each pair of searched numbers, the most important ones; over a single one too."""
    space, names = searched_space(campaign), campaign.key_names()
    keys = [key for key in list(importance(campaign)) or list(space) if is_numeric(space[key])][:MAX_MAPPED_KEYS]
    trials = [(trial, model) for trial in campaign.trials if (model := campaign.score(trial)) is not None]
    if not trials:
        return []
    metrics = (
        ("distance", "Distance", DISTANCE_AXIS, [model.distance for _, model in trials]),
        ("psnr", "PSNR", PSNR_AXIS, [model.psnr for _, model in trials]),
    )
    axes = {key: key_axis(names[key], space[key]) for key in keys}
    points = {key: [trial.point[key] for trial, _ in trials] for key in keys}
    if len(keys) == 1:
        key = keys[0]
        return [
            line_chart(f"map-{name}", f"{title} by {names[key]}", axes[key], y,
                       [Series(title, points[key], values, joined=False)])
            for name, title, y, values in metrics
        ]  # fmt: skip
    return [
        value_chart(f"map-{names[x]}-{names[y]}-{name}", f"{title} by {names[x]} and {names[y]}", axes[x], axes[y],
                    Series(title, points[x], points[y]), values, value_axis.label)
        for x, y in combinations(keys, 2) for name, title, value_axis, values in metrics
    ]  # fmt: skip


def timeline_chart(campaign: Campaign) -> Chart:
    """Chart when each trial trained, in minutes from the first start; gaps of over a minute are left out."""
    trials = [trial for trial in campaign.trials if trial.spans]
    ends = [span.end or span.start for trial in trials for span in trial.spans]
    end = time.time() if campaign.state == "running" else max(ends)
    spans = {trial.run: [(span.start, span.end or end) for span in trial.spans] for trial in trials}
    minutes = busy_minutes([span for run_spans in spans.values() for span in run_spans])
    states: dict[str, list[tuple[int, float, float]]] = {}
    for row, trial in enumerate(trials):
        for start, stop in spans[trial.run]:
            states.setdefault(trial.state, []).append((row, minutes(start), minutes(stop)))
    series = []
    for state, bars in states.items():
        rows, starts, ends = zip(*bars, strict=True)
        series.append(Series(state, ends, rows, band=(starts, ends)))
    labels = [campaign.short_name(trial.run) for trial in trials]
    return span_chart("timeline", "When each trial trained", labels, Axis("minutes", from_zero=True), series)


def importance_chart(campaign: Campaign) -> Chart | None:
    """Chart the importance of each searched key, None with too few trials."""
    if not (importances := importance(campaign)):
        return None
    labels = [campaign.key_names()[key] for key in importances]
    x = Axis("share of the importance", percent=True, ticks=(0, 0.25, 0.5, 0.75, 1))
    return span_chart("importance", "Importance of the searched keys", labels, x,
                      [Series("importance", list(importances.values()), range(len(importances)))])  # fmt: skip


def hypervolume_chart(campaign: Campaign) -> Chart:
    """Chart the area that the front dominates after each finished trial."""
    trial_counts = range(1, len(campaign.hypervolume) + 1)
    x = Axis("finished trials", from_zero=True, integer=True)
    y = Axis("dominated area (dB times distance)", from_zero=True)
    series = [Series("hypervolume", trial_counts, campaign.hypervolume)]
    return line_chart("hypervolume", "Area that the front dominates", x, y, series)


def importance(campaign: Campaign) -> dict[str, float]:
    """Return the share of each searched key in reaching the front, by PED-ANOVA (Watanabe 2023), greatest first.

    Empty with under MIN_RANKED trials or with a single key.
    """
    space = searched_space(campaign)
    models = [(t, campaign.score(t)) for t in campaign.trials if not t.replicate_of]
    scored = [(trial, model) for trial, model in models if model is not None]
    if len(scored) < MIN_RANKED or len(space) < 2:
        return {}
    import optuna

    quiet_optuna()
    study = optuna.create_study(directions=["maximize", "minimize"])
    distributions = {key: distribution(dimension) for key, dimension in space.items()}
    for trial, model in scored:
        params = {key: to_param(dimension, trial.point[key]) for key, dimension in space.items()}
        values = (model.psnr, model.distance)
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, values=values))
    quantile = max(0.1, MIN_TOP / len(scored))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=quantile)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def searched_space(campaign: Campaign) -> dict[str, Dimension]:
    """Return the values of each key that has several, by key in order."""
    space = parse_space(campaign.search["space"])
    return {key: space[key] for key in sorted(space) if space[key].size > 1}


def busy_minutes(spans: Sequence[tuple[float, float]]) -> Any:
    """Return a function from a time to the minutes since the first span began, without gaps of over IDLE_S."""
    gaps, end = [], None
    for start, stop in sorted(spans):
        if end is not None and start - end > IDLE_S:
            gaps.append((start, start - end))
        end = stop if end is None else max(end, stop)
    first = min((start for start, _ in spans), default=0.0)
    return lambda moment: (moment - first - sum(length for gap_end, length in gaps if moment >= gap_end)) / 60


def key_axis(name: str, dimension: Dimension) -> Axis:
    """Return the axis of a searched key: logarithmic for a log range, and for a list or integers over a wide range."""
    low, high = dimension.ends[0], dimension.ends[-1]
    log = getattr(dimension, "kind", "") == "log" or (low > 0 and high / low >= LOG_RATIO)
    ticks = dimension.ends if isinstance(dimension, Choices) and len(dimension.ends) <= LABELLED_POINTS else ()
    return Axis(name, log=log, ticks=ticks)


def is_numeric(dimension: Dimension) -> bool:
    """Return True if the key's values are numbers."""
    return not isinstance(dimension, Choices) or dimension.ordered


def point_label(campaign: Campaign, trial: Trial) -> str:
    """Return a trial's searched values, for a legend."""
    names = campaign.key_names()
    return ", ".join(f"{names[key]} {format_value(v)}" for key, v in campaign.searched_values(trial).items())
