"""The file of a campaign, `<store>/campaigns/<name>.json`: its recipe and its trials, each an ordinary run.

    campaign       name
    digest         of the recipe without the searched keys, the dataset and the space: what identifies the campaign
    dataset        digest of the dataset's manifest
    stem           how the names of its runs begin
    recipe         the recipe of the last command, as JSON; its `search` has the space, budgets and rule
    run_id         the campaign's run in MLflow, the parent of its trials' runs; "" if MLflow has none yet
    key            the tag by which that run is found again
    state          running, finished, or unfinished: interrupted, failed, or with lost trials
    seconds        that its commands took, all together
    unit           what the trials of its last command take, GPU or core; search.gpu_hours counts spans of this unit
    trials         in the order of their start, each with
        run          name of the run: `zpoint train` with the point's keys names it the same
        point        value of each searched key; of a replicate optim.seed too
        state        running; finished; stopped by the scheduler or a budget; diverged: its loss was not finite;
                     lost: it failed more often than scale.max_failures, or by an error that a retry would repeat
        reason       why it was stopped, diverged or lost; else ""
        epoch        finished epochs, of `epochs`
        metrics      of its last epoch: valid_psnr, valid_active_units, train_loss, images_per_second and so on
        judged       [{epoch, and of that epoch valid_psnr, valid_active_units, hog_frechet_normal, _gaussian}] of the
                     epochs with judged samples: about every fifth, and the last, which has _diagonal and _gmm too
        spans        [start, end, devices, unit] of each time that it trained: seconds since 1970, null as the end of a
                     running one, and the devices that it took: cores, or GPUs or a fraction of one
        replicate_of run whose point it trains with another seed; else ""
    pareto_front   runs, by falling PSNR
    best           run that the rule chooses, "" before one has finished
    sampler        of the best run's distance
    rule           in words
    note           what limits the choice, such as noise between seeds; else ""
    hypervolume    area that the front dominates (dB times distance) after each trial's end, from the worst values seen

`read_campaign` returns it as a `Campaign`. While a campaign runs, `CampaignRun` calls each of its `listeners` with
a copy of the Campaign after each change; a listener must return quickly and must not change it. The running trials'
steps are on the progress board under the name of their run (`cluster.progress`).
"""

import json
import math
import secrets
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from itertools import islice
from typing import Any, Literal, NamedTuple, get_args

import pyarrow.fs as pafs

from aecore.config import STORED_SAMPLERS, Recipe
from aecore.data.io import read_json, write_json
from aecore.data.shards import Manifest
from aecore.search_space import Point, grid, grid_size, is_grid
from cluster.lock import hold_lock, is_locked
from cluster.settings import settings
from cluster.storage import open_uri
from jobs.tune.selection import (
    ScoredModel,
    choose_best,
    describe_noise,
    describe_rule,
    hypervolume,
    mean_score,
    pareto_front,
    score,
)

JUDGED_METRICS = ("valid_psnr", "valid_active_units", *(f"hog_frechet_{sampler}" for sampler in STORED_SAMPLERS))
MAX_COMBINATIONS = 10_000  # of searched values that are tried for a valid one, which takes 2 s
State = Literal["running", "finished", "stopped", "diverged", "lost"]
STATES: tuple[State, ...] = get_args(State)  # in the order in which the trials that are not on the front are listed


class Span(NamedTuple):
    """A time in which a trial trained, in seconds since 1970, and its cores or GPUs; `end` is None while it runs."""

    start: float
    end: float | None
    devices: float
    unit: str

    @property
    def seconds(self) -> float:
        """Seconds until its end, or until now."""
        return (time.time() if self.end is None else self.end) - self.start


@dataclass
class Trial:
    """One run of a campaign, as this module's text describes it."""

    run: str
    point: Point
    epochs: int
    state: State = "running"
    reason: str = ""
    epoch: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    judged: list[dict[str, float]] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    replicate_of: str = ""

    def start(self, devices: float, unit: str) -> None:
        """Mark the trial as running on so many cores or GPUs from now on."""
        self.state, self.reason = "running", ""
        self.spans.append(Span(time.time(), None, devices, unit))

    def end(self, state: State, reason: str = "") -> None:
        """Mark the trial as ended now."""
        self.state, self.reason = state, reason
        self.close_span()

    def close_span(self, end: float | None = None) -> None:
        """End the time in which it trains at `end`, by default now."""
        if self.spans and self.spans[-1].end is None:
            span = self.spans[-1]
            self.spans[-1] = span._replace(end=max(span.start, time.time() if end is None else end))

    @property
    def seconds(self) -> float:
        """Seconds that it has trained until now."""
        return sum(span.seconds for span in self.spans)

    def record(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics of a finished epoch; an epoch that is trained again keeps its first ones.

        Values that are not finite are left out, since the campaign's file cannot hold them; with one among them an
        epoch does not count as judged.
        """
        if epoch <= self.epoch:
            return
        self.epoch, self.metrics = epoch, {name: value for name, value in metrics.items() if math.isfinite(value)}
        judged = {name: metrics[name] for name in JUDGED_METRICS if name in metrics}
        if "hog_frechet_normal" in judged and judged.keys() <= self.metrics.keys():
            self.judged.append({"epoch": epoch} | judged)

    def judged_at(self, epoch: int) -> dict[str, float] | None:
        """Return the metrics of this judged epoch, None if its samples were not judged then."""
        return next((metrics for metrics in self.judged if metrics["epoch"] == epoch), None)


@dataclass
class Campaign:
    """A search and its trials, as this module's text describes it."""

    campaign: str
    digest: str
    dataset: str
    stem: str
    recipe: dict[str, Any]
    run_id: str = ""
    key: str = field(default_factory=lambda: secrets.token_hex(8))
    state: Literal["running", "finished", "unfinished"] = "unfinished"
    seconds: float = 0.0
    unit: str = "core"
    trials: list[Trial] = field(default_factory=list)
    pareto_front: list[str] = field(default_factory=list)
    best: str = ""
    sampler: str = ""
    rule: str = ""
    note: str = ""
    hypervolume: list[float] = field(default_factory=list)

    @property
    def search(self) -> dict[str, Any]:
        """The recipe's section `search`."""
        return self.recipe["search"]

    @property
    def max_points(self) -> float:
        """The number of points that the search tries at most; of a grid those whose values make a recipe together."""
        return _max_points(json.dumps(self.recipe))

    def trial(self, run: str) -> Trial | None:
        """Return the trial with this run, None if there is none."""
        return next((trial for trial in self.trials if trial.run == run), None)

    def sorted_trials(self) -> list[Trial]:
        """Return the trials: the front by falling PSNR, then the others by state and distance."""

        def rank(trial: Trial) -> tuple[float, ...]:
            if trial.run in self.pareto_front:
                return (-1, self.pareto_front.index(trial.run))
            model = self.score(trial)
            return (STATES.index(trial.state), model.distance if model else math.inf)

        return sorted(self.trials, key=rank)

    def short_name(self, run: str) -> str:
        """Return a run's name without the stem that all runs of the campaign share."""
        return run.removeprefix(f"{self.stem}-")

    def count(self, state: State) -> int:
        """Return the number of trials in this state."""
        return sum(trial.state == state for trial in self.trials)

    def label_state(self, state: State) -> str:
        """Return the label of a trial's state: one that was training when its command ended is interrupted."""
        return "interrupted" if state == "running" and self.state != "running" else state

    def searched_keys(self) -> list[str]:
        """Return the searched recipe keys; with replicates, optim.seed too."""
        keys = sorted(self.search["space"])  # as the campaign's file has them
        seeds = "optim.seed" not in keys and any(trial.replicate_of for trial in self.trials)
        return [*keys, "optim.seed"] if seeds else keys

    def searched_values(self, trial: Trial) -> dict[str, Any]:
        """Return the value of each of the `searched_keys`; the seed of a point's first trial is the recipe's."""
        values = {"optim.seed": self.recipe["optim"]["seed"]} | trial.point
        return {key: values[key] for key in self.searched_keys()}

    def key_names(self) -> dict[str, str]:
        """Return the last part of each searched key, or all of it if two keys share that part."""
        keys = self.searched_keys()
        last = [key.rpartition(".")[2] for key in keys]
        return {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}

    def steps_per_second(self, trial: Trial) -> float | None:
        """Return the optimizer steps per second of the trial's last epoch, None before it."""
        rate = trial.metrics.get("images_per_second")
        return rate and rate / trial.point.get("optim.batch", self.recipe["optim"]["batch"])

    def device_hours(self) -> float:
        """Return the GPU hours, or core hours, of all trials until now, without those on devices of the other unit."""
        spans = [span for trial in self.trials for span in trial.spans if span.unit == self.unit]
        return sum(span.seconds * span.devices for span in spans) / 3600

    def score(self, trial: Trial) -> ScoredModel | None:
        """Return the scores of the trial's last judged epoch, None before the first one."""
        return score(trial.run, trial.judged[-1], self.search["sampler"]) if trial.judged else None

    def scores(self) -> list[ScoredModel]:
        """Return the scores of the finished trials."""
        return [model for seeds in self.points() for model in seeds]

    def points(self) -> list[list[ScoredModel]]:
        """Return the scores of each point's finished seeds; most points have one seed."""
        points: dict[str, list[ScoredModel]] = {}
        for trial in self.trials:
            if trial.state == "finished" and (model := self.score(trial)) is not None:
                points.setdefault(trial.replicate_of or trial.run, []).append(model)
        return list(points.values())

    def best_seeds(self) -> list[ScoredModel]:
        """Return the scores of the finished seeds of the best run's point; there must be a best run."""
        return next(seeds for seeds in self.points() if self.best in [seed.name for seed in seeds])

    def means(self) -> list[ScoredModel]:
        """Return the mean of each point's finished seeds, under the name of its best one."""
        return [mean_score(seeds) for seeds in self.points()]

    def candidates(self) -> list[ScoredModel]:
        """Return the means of the points that the rule chooses from: all, or the live ones of several seeds."""
        means = self.means()
        return [mean for mean in means if mean.num_seeds > 1 and mean.alive] or means

    def rank(self) -> None:
        """Set the Pareto front, the best run, the rule and its note from the finished trials."""
        slack, means = self.search["psnr_slack"], self.means()
        self.rule = describe_rule(slack, self.search["sampler"], any(mean.num_seeds > 1 for mean in means))
        self.best, self.sampler, self.note = "", "", ""
        self.pareto_front = [model.name for model in pareto_front(means)]
        if self.pareto_front:
            best = choose_best(self.candidates(), slack)
            self.best, self.sampler = best.name, best.sampler
            self.note = "; ".join(filter(None, [self._describe_longer(), describe_noise(self.points(), slack)]))
        pairs = [(model.psnr, model.distance) for model in self.scores() if model.alive]
        if pairs:
            reference = (min(psnr for psnr, _ in pairs), max(distance for _, distance in pairs))
            self.hypervolume = [hypervolume(pairs[: n + 1], reference) for n in range(len(pairs))]

    def _describe_longer(self) -> str:
        """Return which run of the best point has more epochs than the campaign's trials, "" if none has."""
        epochs = self.recipe["optim"]["epochs"]
        for trial in filter(None, (self.trial(seed.name) for seed in self.best_seeds())):
            if trial.epochs > epochs:
                return (
                    f"{trial.run} has {trial.epochs} epochs from another command, the trials {epochs}: "
                    "these epochs, not its values, may be why it leads"
                )
        return ""

    def close_spans(self) -> None:
        """End the spans of a command that was killed, when it last wrote the file."""
        interrupted = [trial for trial in self.trials if trial.spans and trial.spans[-1].end is None]
        if interrupted:
            end = _modified(self.campaign)
            for trial in interrupted:
                trial.close_span(end)

    def to_json(self) -> dict[str, Any]:
        """Return the content of the campaign's file."""
        return asdict(self)


def from_json(content: Mapping[str, Any]) -> Campaign:
    """Return the campaign that a file holds. Raises ValueError for the file of an earlier version."""
    if "recipe" not in content:
        raise ValueError(
            f"the file of campaign '{content.get('campaign')}' has no field 'recipe', since an earlier version of "
            "zpoint wrote it: give another name=..."
        )
    field_names = {item.name for item in fields(Campaign)}
    campaign = Campaign(**{key: value for key, value in content.items() if key in field_names})
    campaign.trials = [trial_from_json(trial, campaign.unit) for trial in content["trials"]]
    return campaign


def trial_from_json(content: Mapping[str, Any], unit: str) -> Trial:
    """Return a trial of a campaign's file; spans of earlier versions take its `devices` and the campaign's `unit`."""
    values = dict(content)
    devices = values.pop("devices", 0.0)
    spans = [Span(*span[:2], *(span[2:] or (devices, unit))) for span in values.pop("spans")]
    return Trial(**values, spans=spans)


def campaign_file(name: str) -> tuple[pafs.FileSystem, str]:
    """Return the file system and the path of a campaign's file."""
    return open_uri(f"{settings().store}/campaigns/{name}.json")


def open_campaign(recipe: Recipe, stem: str, manifest: Manifest) -> Campaign:
    """Return the campaign of `recipe` on `manifest`, as stored or new; write nothing.

    Raises ValueError if another recipe, dataset or space has the name.
    """
    space = json.dumps(recipe.search.space, sort_keys=True)
    digest = first_valid_recipe(recipe).digest(manifest.digest, space, with_epochs=True)
    name = recipe.name or f"{stem}-search-{digest}"
    content = recipe.model_dump(mode="json")
    campaign = read_campaign(name) or Campaign(name, digest, manifest.digest, stem, content)
    if campaign.digest != digest:
        raise ValueError(
            f"campaign '{name}' was made from another recipe, dataset or search.space: give another name=..."
        )
    campaign.recipe = content
    campaign.close_spans()
    return campaign


def first_valid_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe at the first combination of the ends of its space that is valid. Raises ValueError if none is.

    The campaign's digest is made from it, so the order of the combinations must not change.
    """
    points = list(islice(grid(recipe.search.dimensions), MAX_COMBINATIONS))
    return recipe.at(next((point for point in points if _is_recipe(recipe, point)), points[0]))


@lru_cache(8)  # the table of a running campaign asks twice a second
def _max_points(recipe_json: str) -> float:
    recipe = Recipe.model_validate_json(recipe_json)
    space, trials = recipe.search.dimensions, recipe.search.trials
    if not is_grid(space, trials):
        return min(trials, grid_size(space))
    return sum(_is_recipe(recipe, point) for point in grid(space))


def _is_recipe(recipe: Recipe, point: Point) -> bool:
    try:
        recipe.at(point)
    except ValueError:  # each value is valid, but not their combination
        return False
    return True


def _modified(name: str) -> float:
    """Return when the campaign's file was written, in seconds since 1970."""
    fs, path = campaign_file(name)
    return fs.get_file_info(path).mtime_ns / 1e9


def read_campaign(name: str) -> Campaign | None:
    """Return the campaign `name`, None if there is none."""
    try:
        return from_json(read_json(*campaign_file(name)))
    except (FileNotFoundError, NotADirectoryError):
        return None


def lock_campaign(name: str) -> AbstractContextManager[None]:
    """Return a context in which no other process runs campaign `name`. Raises LockedError."""
    return hold_lock(_lock_uri(name), f"campaign '{name}' is being run", "give another name=...")


def is_run_now(name: str) -> bool:
    """Return True if a process runs campaign `name`; also if the store does not say."""
    return is_locked(_lock_uri(name))


def _lock_uri(name: str) -> str:
    return f"{settings().store}/locks/campaign-{name}"


def write_campaign(campaign: Campaign) -> None:
    """Write the campaign's file."""
    write_json(*campaign_file(campaign.campaign), campaign.to_json())


def discard(campaign: Campaign) -> None:
    """Delete the file of a campaign that a user's mistake kept from starting."""
    fs, path = campaign_file(campaign.campaign)
    if fs.get_file_info(path).type is not pafs.FileType.NotFound:
        fs.delete_file(path)


@dataclass(frozen=True)
class BestRun:
    """The run that a campaign chose, the sampler that serves it best, and the rule in words."""

    run: str
    sampler: str
    rule: str


def find_best_run(name: str) -> BestRun | None:
    """Return the best run of campaign `name`, None if there is no campaign. Raises ValueError for an unfinished one."""
    try:
        campaign = read_json(*campaign_file(name))
    except (FileNotFoundError, NotADirectoryError):
        return None
    if campaign.get("state", "finished") != "finished":
        raise ValueError(
            f"campaign '{name}' has not finished: start its command again, or name one of its runs with --run"
        )
    if not campaign.get("best"):
        raise ValueError(f"campaign '{name}' has no model to choose: start its command again to see why")
    return BestRun(campaign["best"], campaign.get("sampler", "normal"), campaign.get("rule", "that of its time"))
