"""The table of a campaign's trials as text: for the terminal, for MLflow's description, and for the report."""

import textwrap
from collections.abc import Sequence
from typing import Any

from aecore.config import STORED_SAMPLERS
from jobs.tune.campaign import STATES, Campaign, Trial
from jobs.tune.selection import mean_score

Row = dict[str, str]  # a trial's cells by column
WIDTH = 80
LEFT_ALIGNED, METRICS = ("", "run", "state"), ("PSNR", "distance", "active", "steps/s", "min")
OPTIONAL = ("min", "steps/s", "active", "epoch")  # columns that a narrow terminal lacks, the first of them first
MIN_HEADER = 5  # characters of a column's header that are kept


def format_campaign(campaign: Campaign) -> str:
    """Return the table of all trials, the rule, the best run and the command that promotes it."""
    trials = campaign.sorted_trials()
    lines = [format_summary(campaign), *format_rows(campaign, [trial_cells(campaign, t) for t in trials])]
    lines += [f"{campaign.short_name(trial.run)} {trial.state}: {trial.reason}" for trial in trials if trial.reason]
    lines += [
        f"{campaign.short_name(mean.name)}, mean of {mean.num_seeds} seeds: PSNR {mean.psnr:.1f}, "
        f"distance {mean.distance:.2f}"
        for mean in campaign.means() if mean.num_seeds > 1
    ]  # fmt: skip
    lines += [f"runs are named {campaign.stem}-RUN; * Pareto front, > best by the rule"]
    if campaign.best:
        lines.append(f"best: {describe_best(campaign)}")
    lines += [f"rule: {campaign.rule}", *([f"note: {campaign.note}"] if campaign.note else [])]
    text = "\n".join(line for long in lines for line in (textwrap.wrap(long, WIDTH, subsequent_indent="  ") or [""]))
    command = promote_command(campaign)
    return f"{text}\nnext: {command}" if command else text


def format_summary(campaign: Campaign) -> str:
    """Return the state of the campaign and of its trials in one line."""
    counts = [f"{campaign.count(state)} {campaign.label_state(state)}" for state in STATES if campaign.count(state)]
    return ", ".join([f"campaign {campaign.campaign}: {campaign.state}", *counts, describe_hours(campaign)])


def describe_hours(campaign: Campaign) -> str:
    """Return the GPU or core hours of all trials and the duration of the campaign's commands."""
    hours = campaign.device_hours()
    return f"{hours:.{1 if hours >= 10 else 2}f} {campaign.unit} hours in {campaign.seconds / 60:.0f} min"


def describe_best(campaign: Campaign) -> str:
    """Return the best run with its point and its scores, those of a point with several seeds as their mean."""
    trial = campaign.trial(campaign.best)
    assert trial is not None
    model = mean_score(campaign.best_seeds())
    point = ", ".join(f"{key} {format_value(value)}" for key, value in trial.point.items())
    sampler = STORED_SAMPLERS[model.sampler]
    text = f"{trial.run} ({point}): PSNR {model.psnr:.1f} dB, distance {model.distance:.2f} of {sampler}"
    return f"{text}, the mean of {model.num_seeds} seeds" if model.num_seeds > 1 else text


def promote_command(campaign: Campaign) -> str:
    """Return the command that promotes the best run, "" if there is none yet."""
    if not campaign.best:
        return ""
    run = "" if campaign.state == "finished" else f" --run {campaign.short_name(campaign.best)}"
    return f"zpoint promote {campaign.campaign}{run}"


def format_rows(campaign: Campaign, rows: Sequence[Row], width: int = WIDTH) -> list[str]:
    """Return a header and a line for each row of cells, in `width` characters unless too many keys are searched.

    A narrow table lacks the columns of OPTIONAL that do not fit; then its headers are cut.
    """
    columns, gap = ["", "run", "state", "epoch", *campaign.key_names().values(), *METRICS], 2
    dropped = list(OPTIONAL)

    def widths(header: int | None = None) -> list[int]:
        return [max(1, len(column[:header]), *(len(row[column]) for row in rows), 0) for column in columns]

    while sum(widths()) + gap * (len(columns) - 1) > width and (gap > 1 or dropped):
        if gap > 1:
            gap = 1
        else:
            columns.remove(dropped.pop(0))
    sizes = widths() if sum(widths()) + gap * (len(columns) - 1) <= width else widths(MIN_HEADER)
    lines = []
    for row in [dict(zip(columns, columns, strict=True)), *rows]:
        cells = zip(columns, sizes, strict=True)
        fields = [row[c][:n].ljust(n) if c in LEFT_ALIGNED else row[c][:n].rjust(n) for c, n in cells]
        lines.append((" " * gap).join(fields).rstrip())
    return lines


def trial_cells(campaign: Campaign, trial: Trial) -> Row:
    """Return the cells of a trial by column: the mark of the front, run, state, epoch, searched values and metrics."""
    model = campaign.score(trial)
    metrics, names = trial.metrics, campaign.key_names()
    steps = campaign.steps_per_second(trial)
    return {
        "": ">" if trial.run == campaign.best else "*" if trial.run in campaign.pareto_front else "",
        "run": campaign.short_name(trial.run),
        "state": campaign.label_state(trial.state),
        "epoch": f"{trial.epoch}/{trial.epochs}",
        **{names[key]: format_value(value) for key, value in campaign.searched_values(trial).items()},
        "PSNR": f"{metrics['valid_psnr']:.1f}" if "valid_psnr" in metrics else "",
        "distance": f"{model.distance:.2f}" if model else "",
        "active": f"{metrics['valid_active_units']:.0f}" if "valid_active_units" in metrics else "",
        "steps/s": f"{steps:.3g}" if steps else "",
        "min": f"{trial.seconds / 60:.1f}",
    }


def format_value(value: Any) -> str:
    """Return a searched value with at most three significant digits; a whole number in full."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def format_campaigns(rows: Sequence[dict[str, Any]]) -> str:
    """Return the list of campaigns, one in a line or two."""
    if not rows:
        return "no campaigns yet: start one with `zpoint tune RECIPE data.uri=...`"
    names = max(len(row["campaign"]) for row in rows)
    return "\n".join(f"{row['campaign']:<{names}}  {row['summary']}" for row in rows)
