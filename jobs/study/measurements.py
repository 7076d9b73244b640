"""What a study measures of finished runs: a part at a time, kept with its run, measured when first asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from aecore.config import Recipe, check_recipe
from aecore.data.dataset import Dataset
from aecore.data.io import read_json
from aecore.data.shards import Manifest
from jobs.dataset import open_dataset
from jobs.run_store import RunStore, find_run

if TYPE_CHECKING:
    from aecore.analysis import Part, Subject
    from aecore.metrics.inception import ScoredModel
    from aecore.model.autoencoder import DiagonalGaussian
    from jobs.study.images import Images

LIMIT, JUDGED = 6_000, 256  # training images encoded at most; pictures judged at each point


@dataclass(frozen=True)
class Finished:
    """A finished run: where it lies, its recipe and the digest of the dataset that it was trained on."""

    record: RunStore
    recipe: Recipe
    dataset: str

    @property
    def about(self) -> dict[str, Any]:
        recipe = self.recipe
        return {
            "run": self.record.name, "z_dim": recipe.model.z_dim, "kl_factor": recipe.loss.kl_factor,
            "task": recipe.task.kind, "epochs": recipe.optim.epochs,
        }  # fmt: skip


def find_finished(name: str) -> Finished:
    """The run `name`. Raises ValueError where there is none or it has not finished."""
    record = find_run(name)
    if not record.finished():
        raise ValueError(f"run '{name}' has not finished: start its command again, then study it")
    fs, root = record.folder
    known = read_json(fs, f"{root}/run.json")
    return Finished(record, check_recipe(known["recipe"]), known["dataset"])


def options_for(manifest: Manifest, limit: int, judged: int) -> dict[str, int]:
    """What the figures depend on: of `judged` pictures as many as there are unseen images, so that like is compared."""
    from jobs.study.images import held_out_split

    return {"limit": limit, "judged": min(judged, manifest.count(held_out_split(manifest)))}


def common_dataset(runs: list[Finished], limit: int) -> Dataset:
    """The dataset that `runs` were trained on. Raises ValueError for several, a changed or a small one."""
    from jobs.study.images import check_enough

    first = runs[0]
    for run in runs:
        if run.dataset != first.dataset:
            raise ValueError(
                f"a study compares runs on one dataset: '{first.record.name}' was trained on {first.recipe.data.uri}, "
                f"'{run.record.name}' on {run.recipe.data.uri}"
            )
    dataset = open_dataset(first.recipe.data.uri)
    if dataset.manifest.digest != first.dataset:
        raise ValueError(f"{first.recipe.data.uri} no longer holds what '{first.record.name}' was trained on")
    check_enough(dataset.manifest, limit)
    return dataset


class Measured:
    """The parts of a finished run (`aecore.analysis.PARTS`), as an earlier study kept them or measured anew.

    `images` gives those of its dataset, `options` are what the figures depend on; `fresh` measures anew in any case.
    """

    def __init__(
        self, run: Finished, images: Callable[[], "Images"], options: dict[str, int], *, fresh: bool = False
    ) -> None:
        self.run, self.images, self.options, self.fresh = run, images, options, fresh

    def part(self, name: str) -> "Part":
        from aecore.analysis import PARTS

        return self._part(name, self.options, lambda subject: PARTS[name](subject))

    def inception(self, weights: str, scored: "Callable[[], ScoredModel]") -> "Part":
        """`aecore.analysis.inception` by a network whose weights have this sha256; `scored` gives what it scores."""
        from aecore.analysis import inception

        options = self.options | {"weights": weights}
        return self._part("inception", options, lambda subject: inception(subject, scored()))

    def _part(self, name: str, options: dict[str, Any], measure: "Callable[[Subject], Part]") -> "Part":
        from jobs.study.part_store import load_part, part_path, save_part

        fs, root = self.run.record.folder
        path = part_path(root, name, options)
        part = None if self.fresh else load_part(fs, path)
        if part is None:
            part = measure(self._subject)
            save_part(fs, path, part)
        return part

    @cached_property
    def _subject(self) -> "Subject":
        from aecore.analysis import Subject
        from aecore.model.autoencoder import default_device
        from aecore.training.checkpoint import load_model

        fs, root = self.run.record.folder
        known, saved = self.images(), load_model(fs, f"{root}/model", default_device())
        return Subject(saved, known.train, known.test, known.scores, self.options["judged"], self._elsewhere())

    def _elsewhere(self) -> "Callable[[], DiagonalGaussian] | None":
        """What has a large set encoded on the cluster; None where this process does it."""
        from jobs.study.images import LARGE

        uri, limit = self.run.recipe.data.uri, self.options["limit"]
        if limit <= LARGE or (dataset := open_dataset(uri)).count("train") <= LARGE:
            return None
        from jobs.study.encoding import encode_spread

        return partial(encode_spread, self.run.record.uri, uri, dataset.manifest, limit)
