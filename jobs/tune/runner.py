"""One command's run of a campaign: which trial is next, what a trial's result means, and when all is done.

Ray Tune drives it through the adapters in `jobs.tune.adapters`; all calls come from the driver's main thread.
"""

import copy
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any

from aecore.config import Recipe
from aecore.data.shards import Manifest
from aecore.errors import one_line
from aecore.search_space import Point
from aecore.training.checkpoint import RETRY_S, saved_epochs
from cluster.lock import LockedError
from jobs.run_store import lock_run, open_run, run_name, stored_run
from jobs.tune.campaign import Campaign, State, Trial
from jobs.tune.plan import PointPlan
from jobs.tune.selection import rank_by_rule
from jobs.tune.stopping import reason_to_stop

log = logging.getLogger(__name__)
METRIC_PREFIXES = ("train_", "valid_", "hog_frechet_", "images_per_second", "memory_mb", "gpu_memory_mb")
NUM_REPLICATED = 3  # points of the front that are trained with more seeds
MAX_INVALID = 100  # points in a row that the recipe refuses in combination
BUDGET = "the budget is spent"
CHECKPOINT_S = 60.0  # from a trial's stop, for the checkpoint of its last epoch
Listener = Callable[[Campaign], None]


class CampaignRun:
    """The trials of one command, by Tune's trial ids in `running`; each change is copied to the `listeners`."""

    def __init__(self, campaign: Campaign, recipe: Recipe, manifest: Manifest) -> None:
        self.campaign, self.recipe, self.manifest = campaign, recipe, manifest
        self.listeners: Sequence[Listener] = ()
        self.search, self.space = recipe.search, recipe.search.dimensions
        self.running: dict[str, Trial] = {}
        self.refused: dict[str, str] = {}  # the user's mistake that ended a run
        self.withheld: dict[str, str] = {}  # why a run is not this command's to train
        # By run; held here, since Ray may replace a trial's process.
        self._locks: dict[str, ExitStack] = {}
        self._outcomes: dict[str, tuple[State, str]] = {}  # by trial id
        self._unsaved: dict[str, float] = {}  # time until which a stopped run may write its last checkpoint
        self._clock: Callable[[], float] = lambda: campaign.seconds
        self._resumable = [trial for trial in campaign.trials if self._goes_on(trial)]
        self._replicates = None
        self._exhausted = False  # the plan has no further point
        self._storage_failed: float | None = None  # time of the first of a row of failures to open a run

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles its searcher for a restore; a campaign resumes from its own file."""
        return {}

    def begin(self) -> None:
        """Mark the campaign as running; its clock goes on from the seconds of earlier commands.

        Locks the runs that a killed command trained, all at once: on S3 each lock may take the rest of its lease.
        """
        start = time.monotonic() - self.campaign.seconds
        self._clock = lambda: time.monotonic() - start
        self.plan = self._make_plan()
        self.campaign.state = "running"
        self._changed()
        if interrupted := [trial.run for trial in self._resumable if trial.state == "running"]:
            with ThreadPoolExecutor(len(interrupted)) as pool:
                list(pool.map(self._try_lock, interrupted))

    def has_work(self) -> bool:
        """Return True if there is a trial to train."""
        if self.spent():
            return False
        searching = not self._exhausted and self._num_searched() < self.campaign.max_points
        return bool(self._resumable or searching or self._missing_replicates())

    def next_trial(self) -> Trial | None:
        """Return the next trial to train, None if there is none, none before a running one ends, or none to open now.

        A run that the storage does not open is tried again at the next call; after RETRY_S its trial is lost.
        """
        if self.spent():
            return None
        try:
            trial = self._next_trial()
        except OSError as error:
            now = time.monotonic()
            if self._storage_failed is None:
                self._storage_failed = now
                log.warning("cannot open the next run yet: %s; the campaign continues", one_line(error))
            elif now - self._storage_failed > RETRY_S:
                self._storage_failed = None
                self._end(self._resumable.pop(0), "lost", one_line(error))
            return None
        self._storage_failed = None
        return trial

    def _next_trial(self) -> Trial | None:
        while self._resumable:
            if self._open(trial := self._resumable.pop(0)):
                return trial
        invalid = 0
        while not self._exhausted and self._num_searched() < self.campaign.max_points:
            if invalid == MAX_INVALID or (point := self.plan.next()) is None:
                self._exhausted = True
                break
            try:
                trial = self._new_trial(point)
            except ValueError as error:  # each value is valid, but not their combination
                log.warning("point %s is no recipe: %s", point, error)
                self.plan.tell(point, None)
                invalid += 1
                continue
            if trial is not None and self._open(trial):
                return trial
        if any(not trial.replicate_of for trial in self.running.values()):
            return None  # the best points are not known yet
        for point, run in self._missing_replicates():
            if (trial := self._new_trial(point, run)) is not None and self._open(trial):
                return trial
        return None

    def finished(self) -> bool:
        """Return True if no trial will follow and the stopped ones are saved: Tune then kills their processes."""
        return not self.running and not self.has_work() and self._all_saved()

    def _all_saved(self) -> bool:
        """Return True if no stopped trial may still write its last checkpoint; log which ones have not in time."""
        for run, deadline in list(self._unsaved.items()):
            trial, (fs, root) = self.campaign.trial(run), stored_run(run).folder
            assert trial is not None
            epochs = 0
            with suppress(OSError):
                epochs = saved_epochs(fs, f"{root}/checkpoints")
            if epochs < trial.epoch:
                if time.monotonic() < deadline:
                    return False
                log.warning(
                    "trial %s: no checkpoint of epoch %d after %.0f s; a larger budget resumes it from epoch %d",
                    run, trial.epoch, CHECKPOINT_S, epochs,
                )  # fmt: skip
            del self._unsaved[run]
        return True

    def start(self, trial_id: str, run: str, devices: float) -> None:
        """Mark the trial as running."""
        trial = self.running[trial_id]
        assert trial.run == run
        trial.start(devices, self.campaign.unit)
        self._changed()

    def record(self, trial_id: str, result: dict[str, Any]) -> str:
        """Take a trial's report: an epoch's metrics, or its outcome. Return why it is to stop, "" if it goes on."""
        if "outcome" in result:
            self._outcomes[trial_id] = (result["outcome"], result.get("reason", ""))
            return ""
        trial = self.running[trial_id]
        metrics = {key: value for key, value in result.items() if key.startswith(METRIC_PREFIXES)}
        trial.record(int(result["epoch"]), metrics)
        reason = BUDGET if self.spent() else reason_to_stop(self.campaign, trial, self.recipe)
        if reason and trial.epoch < trial.epochs:
            self._outcomes[trial_id] = ("stopped", reason)
        self._changed()
        return reason if trial.epoch < trial.epochs else ""

    def recover(self, trial_id: str, error: str) -> None:
        """Take note that the trial failed with `error` and that it will resume from its last checkpoint."""
        trial = self.running[trial_id]
        log.warning("trial %s: %s; it resumes from its last checkpoint", trial.run, error)
        trial.close_span()
        self._changed()

    def end(self, trial_id: str, error: str = "") -> None:
        """Take the end of a trial, with `error` if Tune gave it up."""
        trial = self.running.pop(trial_id)
        state, reason = self._outcomes.pop(trial_id, ("lost", error or "it ended without a result"))
        if state == "refused":
            state = "lost"
            self.refused[trial.run] = reason
        if state == "stopped":
            self._unsaved[trial.run] = time.monotonic() + CHECKPOINT_S
        if state == "finished" and trial.epoch < trial.epochs:  # its process died between a checkpoint and the report
            try:
                for epoch, metrics in stored_run(trial.run).epochs(after=trial.epoch).items():
                    trial.record(epoch, metrics)
            except OSError as failure:  # the same command takes the finished run as it is
                state, reason = "lost", one_line(failure)
        self._end(trial, state, reason)

    def close(self) -> None:
        """Set the campaign's state after the last trial, or after an interruption."""
        for trial in self.running.values():
            trial.close_span()
        for run in list(self._locks):
            self._unlock(run)
        for trial in self._resumable:
            if trial.state == "running" and self.spent():  # an earlier command was killed while it trained
                trial.end("stopped", BUDGET)
        unfinished = self.running or self.campaign.count("lost") or self.has_work()
        self.campaign.state = "unfinished" if unfinished else "finished"
        self.campaign.rank()
        self._changed()

    def spent(self) -> bool:
        """Return True if the campaign has used its minutes or device hours."""
        self.campaign.seconds = self._clock()
        minutes, hours = self.search.minutes, self.search.gpu_hours
        return bool(
            (minutes and self.campaign.seconds >= 60 * minutes) or (hours and self.campaign.device_hours() >= hours)
        )

    def _make_plan(self) -> PointPlan:
        """Return the search's points with the results of earlier commands; a trial that goes on adds its own later."""
        recipe_point = self._own_point()
        first = [*self.search.first, *([recipe_point] if recipe_point else [])]
        plan = PointPlan(self.space, first, self.search.trials, self.recipe.optim.seed)
        for trial in self.campaign.trials:
            if not trial.replicate_of:
                plan.add(trial.point, None if trial in self._resumable else self._values(trial))
        return plan

    def _own_point(self) -> Point | None:
        """Return the recipe's own values of the searched keys, None if the space has them not."""
        sections = self.recipe.model_dump(mode="json")
        point = {}
        for key, dimension in self.space.items():
            section, _, name = key.rpartition(".")
            try:
                point[key] = dimension.nearest(sections[section][name])
            except (KeyError, ValueError):
                return None
        return point

    def _goes_on(self, trial: Trial) -> bool:
        unstopped = trial.reason == BUDGET or self.search.stop == "none" or bool(trial.replicate_of)
        return trial.state in ("running", "lost") or (trial.state == "stopped" and unstopped)

    def _num_searched(self) -> int:
        return sum(not trial.replicate_of for trial in self.campaign.trials)

    def _new_trial(self, point: Point, replicate_of: str = "") -> Trial | None:
        """Add a trial of `point` to the campaign; return None if its run is a trial already."""
        recipe = self.recipe.at(point)
        run = run_name(recipe, self.campaign.stem, self.manifest)
        if (trial := self.campaign.trial(run)) is not None:
            self.plan.tell(point, self._values(trial))
            return None
        trial = Trial(run, point, recipe.optim.epochs, replicate_of=replicate_of)
        self.campaign.trials.append(trial)
        return trial

    def _open(self, trial: Trial) -> bool:
        """Lock and open the trial's run; return True if it is to be trained, and not trained already or elsewhere.

        A run whose model has more epochs than the recipe is taken as it is.
        """
        trial.epochs = self.recipe.optim.epochs
        try:
            model_epochs = stored_run(trial.run).model_epochs()
            finished = model_epochs >= trial.epochs
            if finished:
                trial.epochs = model_epochs
            else:
                self._lock(trial.run)
            recipe = self.recipe.at(trial.point | {"optim.epochs": trial.epochs})
            run_store = open_run(recipe, self.campaign.stem, self.manifest)
            epochs = run_store.epochs()
        except ValueError as error:  # another process trains it, or it has more epochs
            self.withheld[trial.run] = str(error)
            self._end(trial, "lost", str(error))
            return False
        except OSError:
            self._resumable.insert(0, trial)
            raise
        for epoch, metrics in epochs.items():
            trial.record(epoch, metrics)
        if finished:
            self._end(trial, "finished")
        return not finished

    def _end(self, trial: Trial, state: State, reason: str = "") -> None:
        trial.end(state, reason)
        self._unlock(trial.run)
        if state in ("lost", "diverged"):
            log.warning("trial %s %s: %s", trial.run, "is lost" if state == "lost" else "diverged", reason)
        if not trial.replicate_of:
            self.plan.tell(trial.point, self._values(trial))
        self.campaign.rank()
        self._changed()

    def _try_lock(self, run: str) -> None:
        """Lock a run; one that is not to be locked now is tried again when its trial is next."""
        with suppress(LockedError, OSError):
            self._lock(run)

    def _lock(self, run: str) -> None:
        """Lock a run unless it is locked here already. Raises LockedError or OSError."""
        if run not in self._locks:
            lock = ExitStack()
            lock.enter_context(lock_run(run))
            self._locks[run] = lock

    def _unlock(self, run: str) -> None:
        if lock := self._locks.pop(run, None):
            lock.close()

    def _missing_replicates(self) -> list[tuple[Point, str]]:
        """Return the points, with the next seeds, of the best trials that lack replicates, and the runs they repeat."""
        if self.search.replicates == 1:
            return []
        trials = {t.run: t for t in self.campaign.trials if not t.replicate_of}
        models = [model for model in self.campaign.scores() if model.name in trials]
        if self._replicates is None:
            self._replicates = [m.name for m in rank_by_rule(models, self.search.psnr_slack)[:NUM_REPLICATED]]
        first_seed = self.recipe.optim.seed
        points = []
        for run in self._replicates:
            for seed in range(first_seed + 1, first_seed + self.search.replicates):
                point = trials[run].point | {"optim.seed": seed % 2**32}
                name = run_name(self.recipe.at(point), self.campaign.stem, self.manifest)
                if self.campaign.trial(name) is None:
                    points.append((point, run))
        return points

    def _values(self, trial: Trial) -> tuple[float, float] | None:
        """Return the trial's objectives at its last judged epoch."""
        model = self.campaign.score(trial)
        return (model.psnr, model.distance) if model else None

    def _changed(self) -> None:
        snapshot = copy.deepcopy(self.campaign)  # for the threads of listeners, which must not see a change half made
        for listener in self.listeners:
            listener(snapshot)
