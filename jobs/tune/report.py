"""Make the report of a campaign: one HTML page that loads nothing, its charts as PNG, and the command of each trial."""

import json
import logging
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import yaml

from aecore.config import flatten_keys, load_recipe
from aecore.errors import one_line
from jobs.recipes import RECIPES
from jobs.report_folder import open_report_folder
from jobs.run_store import find_run
from jobs.study.report import render_page
from jobs.study.sections import ImageRow, ImageTable, Section
from jobs.tune import campaign_charts
from jobs.tune.campaign import STATES, Campaign, Trial
from jobs.tune.selection import score
from jobs.tune.table import describe_best, describe_hours, promote_command, trial_cells

log = logging.getLogger(__name__)
PAGE_FILE, PARETO_FILE = "campaign.html", "chart-pareto.png"
NUM_IMAGES, SEED = 10, 0  # decoded z-points of each trial; the same z-points for trials of one z_dim

Decoder = Callable[[str, Sequence[str]], dict[str, np.ndarray]]


def write_report(campaign: Campaign, out: str | None = None) -> tuple[str, dict[str, bytes]]:
    """Write campaign.html and its files to the folder `out`, by default ZPOINT_HOME/campaigns/NAME.

    Return the page's URI and the files by name. The page comes last and is written whole, so it never lacks a file.
    `out` is a path or an s3:// URI; errors are raised as by `open_report_folder`.
    """
    folder = open_report_folder(out, f"campaigns/{campaign.campaign}")
    files = make_report(campaign, folder.uri)
    folder.write(files)
    return f"{folder.uri}/{PAGE_FILE}", files


def make_report(campaign: Campaign, folder: str, decode: "Decoder | None" = None) -> dict[str, bytes]:
    """Return the report's files by name, the page last. `decode` returns decoded z-points of a run by sampler."""
    sections = make_sections(campaign, decode or decode_run)
    files = {f"chart-{chart.name}.png": chart.png for section in sections for chart in section.charts}
    commands, recipe = trial_commands(campaign, folder)
    if recipe is not None:
        files[f"{campaign.stem}.yaml"] = recipe
    trials = campaign.sorted_trials()
    page = render_page(
        "campaign.html.j2", campaign=campaign, sections=sections, hours=describe_hours(campaign),
        states={campaign.label_state(state): campaign.count(state) for state in STATES},
        best=describe_best(campaign) if campaign.best else "", promote=promote_command(campaign),
        space=campaign.search["space"], columns=list(trial_cells(campaign, trials[0])) if trials else [],
        rows=[(trial, list(trial_cells(campaign, trial).values()), commands[trial.run]) for trial in trials],
    )  # fmt: skip
    files[PAGE_FILE] = page.encode()
    return files


def make_sections(campaign: Campaign, decode: Decoder) -> list[Section]:
    """Return the report's sections in order, without those that the campaign has no data for yet."""
    slack = campaign.search["psnr_slack"]
    has_scores = any(trial.judged for trial in campaign.trials)
    hypervolume = campaign_charts.hypervolume_chart(campaign) if campaign.hypervolume else None
    sections = []
    if has_scores:
        text = (
            "Higher PSNR and a lower distance are better; no trial is better in both than one on the front. The rule "
            f"chooses the lowest distance on the front within {slack:g} dB of the best PSNR. The area that the front "
            "dominates, measured from the worst values of models with active units, grows while the search finds "
            "better ones."
        )
        if any(mean.num_seeds > 1 for mean in campaign.means()):
            text += " A point with several seeds is drawn once, at their mean; the rule chooses among these points."
        sections.append(Section(
            "pareto", "Pareto front", text,
            [campaign_charts.pareto_chart(campaign), *([hypervolume] if hypervolume else [])],
        ))  # fmt: skip
    if tables := image_tables(campaign, decode):
        sections.append(Section(
            "samples", "Decoded samples",
            "Each row is one trial, ordered by its searched values; each column is one random z-point. A stopped trial "
            "is shown at its last epoch, by N(0, 1) alone: the other samplers are fitted to finished models.",
            image_tables=[tables],
        ))  # fmt: skip
    if has_scores:
        text = "Each point is one trial, at its last judged epoch. A lower distance and a higher PSNR are better."
        charts = campaign_charts.map_charts(campaign)
        if chart := campaign_charts.importance_chart(campaign):
            charts.append(chart)
            text += " The importance of a key is its share in reaching the front (PED-ANOVA, Watanabe 2023)."
        sections.append(Section("map", "Map of the searched values", text, charts))
        text = "The best trial and some others on the front are in colour."
        if campaign.search["sampler"] == "best":
            text += " Distances are the lowest of two samplers, after the last epoch of four."
        sections.append(Section("curves", "Learning curves", text, campaign_charts.curve_charts(campaign)))
    if any(trial.spans for trial in campaign.trials):
        text = "Pauses of over a minute are left out."
        sections.append(Section("timeline", "Timeline", text, [campaign_charts.timeline_chart(campaign)]))
    return sections


def image_tables(campaign: Campaign, decode: Decoder) -> list[ImageTable]:
    """Return tables of decoded z-points: of N(0, 1) for each finished or stopped trial, of its best sampler for each
    finished one.
    """
    keys, names = ordered_keys(campaign), campaign.key_names()
    header, normal, best = ", ".join(names[key] for key in keys), [], []
    trials = [trial for trial in campaign.trials if trial.state in ("finished", "stopped") and trial.judged]
    for trial in sorted(trials, key=lambda trial: sample_order(campaign, trial)):
        model, cells = score(trial.run, trial.judged[-1], "best"), trial_cells(campaign, trial)
        label = f"{cells['']} {', '.join(cells[names[key]] for key in keys)}".strip()
        samplers = ["normal", model.sampler] if trial.state == "finished" else ["normal"]
        images = decode(trial.run, list(dict.fromkeys(samplers)))
        if "normal" in images:
            distance = f"{trial.judged[-1]['hog_frechet_normal']:.2f}"
            normal.append(ImageRow(label, images["normal"], [cells["PSNR"], distance, cells["epoch"]]))
        if trial.state == "finished" and model.sampler in images:
            values = [model.sampler, cells["PSNR"], f"{model.distance:.2f}"]
            best.append(ImageRow(label, images[model.sampler], values))
    tables = [("z-points of N(0, 1)", ["PSNR", "distance", "epoch"], normal)]
    if campaign.search["sampler"] == "best":
        title = "z-points of each finished trial's best sampler"
        tables.append((title, ["sampler", "PSNR", "distance"], best))
    return [ImageTable(None, title, header, columns, rows) for title, columns, rows in tables if rows]


def ordered_keys(campaign: Campaign) -> list[str]:
    """Return the searched keys, kl_factor first."""
    return sorted(campaign.searched_keys(), key=lambda key: key != "loss.kl_factor")


def sample_order(campaign: Campaign, trial: Trial) -> list[Any]:
    """Return the sort key of a trial's images: its searched values, numbers before texts."""
    values = campaign.searched_values(trial)
    return [(isinstance(values[key], str), values[key]) for key in ordered_keys(campaign)]


def decode_run(run: str, samplers: Sequence[str]) -> dict[str, np.ndarray]:
    """Return NUM_IMAGES decoded z-points of a run by sampler, uint8 (n, size, size, channels).

    Of an unfinished run those of its last checkpoint from N(0, 1). A run whose model cannot be read has none; that is
    logged.
    """
    import torch

    from aecore.latent.samplers import sample
    from aecore.training.checkpoint import load_unfinished_model

    try:
        run_store = find_run(run)
        if run_store.finished():
            saved = run_store.load_model()
            model, latents = saved.model, saved.latents
        else:
            fs, root = run_store.folder
            model = load_unfinished_model(fs, f"{root}/checkpoints")
            samplers, latents = ["normal"], {"mean": torch.zeros(model.z_dim)}
        return {name: model.decode(sample(name, NUM_IMAGES, latents, seed=SEED)).numpy() for name in samplers}
    except (OSError, ValueError) as error:
        log.warning("the report lacks the images of run '%s': %s", run, one_line(error))
        return {}


def trial_commands(campaign: Campaign, folder: str) -> tuple[dict[str, str], bytes | None]:
    """Return the `zpoint train` command of each trial by run, and the recipe to write beside the page if they need it.

    The commands start from the named recipe of the campaign's stem if overrides lead from it to the campaign's recipe,
    else from a YAML file of this recipe in `folder`, which has to be downloaded if that is on S3.
    """
    content = {key: value for key, value in campaign.recipe.items() if key not in ("name", "search")}
    recipe, named = flatten_keys(content), RECIPES / f"{campaign.stem}.yaml"
    base = (
        flatten_keys(load_recipe(named, []).model_dump(mode="json", exclude={"name", "search"}))
        if named.exists()
        else {}
    )
    if base and base.keys() <= recipe.keys():
        start, file = campaign.stem, None
        overrides = {key: value for key, value in recipe.items() if key not in base or base[key] != value}
    else:
        name = f"{campaign.stem}.yaml"
        start = name if folder.startswith("s3://") else f"{folder}/{name}"
        file, overrides = yaml.safe_dump(content).encode(), {}
    commands = {}
    for trial in campaign.trials:
        point = trial.point
        if trial.epochs != campaign.recipe["optim"]["epochs"]:  # a longer run of another command
            point = point | {"optim.epochs": trial.epochs}
        values = [f"{key}={format_override(value)}" for key, value in (overrides | point).items()]
        commands[trial.run] = shlex.join(["zpoint", "train", start, *values])
    return commands, file


def format_override(value: Any) -> str:
    """Return a value as the command line takes it: JSON, or a text that is none."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except json.JSONDecodeError:
            return value
    return json.dumps(value)
