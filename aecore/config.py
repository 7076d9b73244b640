"""Recipes: frozen, checked descriptions of one training and of the search around it.

A recipe is a YAML file with the sections below; `section.key=value` overrides it from the command line.
Whatever is wrong with it (an unknown key, a wrong type, a value out of range) is refused with one line that
names the key and what it takes, before anything starts.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

Count = Annotated[int, Field(strict=True, ge=1)]
Fill = Literal["black", "gray", "random"]  # what hidden pixels become; `random`: uniform noise


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(Section):
    """`flip`: half of the training images are seen as in a mirror, others in each epoch.

    `cache`: where the decoded images lie. `node`: in a file on each node; `device`: also in the GPU's memory; `auto`:
    there when half of what is free holds them; `none`: nowhere, they are decoded anew in each epoch.
    """

    uri: str = Field(default="", description="the dataset's folder: a path, file:// or s3:// URI")
    cache: Literal["auto", "device", "node", "none"] = "auto"
    flip: Annotated[bool, Field(strict=True)] = False


class Model(Section):
    """`norm`: `batch` normalises with what each worker sees of a batch, `sync_batch` with the whole of it.

    `none` learns fastest: measured in tests/benchmarks/RESULTS.md.
    """

    z_dim: Annotated[int, Field(strict=True, ge=2, le=1200)] = 200
    channels: tuple[Count, Count, Count, Count] = (32, 64, 128, 256)
    norm: Literal["none", "group", "batch", "sync_batch"] = "none"


class Reconstruct(Section):
    """The encoder sees the image that the decoder must give."""

    kind: Literal["reconstruct"] = "reconstruct"


class Denoise(Section):
    """`sigma`: the sd of Gaussian noise on pixels in [0, 1]; at 1 a face is all but hidden."""

    kind: Literal["denoise"]
    sigma: Annotated[float, Field(gt=0, le=100)] = 0.25


class Drop(Section):
    """`keep`: the probability of each pixel to stay; the others become what `fill` says."""

    kind: Literal["drop"]
    keep: Annotated[float, Field(ge=0, lt=1)] = 0.2
    fill: Fill = "black"


class Recolor(Section):
    """The encoder sees gray, the decoder must give colour."""

    kind: Literal["recolor"]


class Inpaint(Section):
    """`block`: the side of a square hole, as a share of the image's; `share`: of the image, what the holes cover.

    The holes lie anywhere and may overlap, so that they cover `share` at most.
    """

    kind: Literal["inpaint"]
    block: Annotated[float, Field(gt=0, le=1)] = 0.25
    share: Annotated[float, Field(gt=0, le=1)] = 0.25
    fill: Fill = "black"


Task = Reconstruct | Denoise | Drop | Recolor | Inpaint
TASKS: dict[str, type[Section]] = {
    "reconstruct": Reconstruct, "denoise": Denoise, "drop": Drop, "recolor": Recolor, "inpaint": Inpaint,
}  # fmt: skip


class Loss(Section):
    """`pixels`: what is summed over pixels. `kl_factor`: the weight of the summed KL; 0 makes a plain AE.

    `kl_warmup`: epochs in which that weight rises from 0. `free_bits`: nats of each component that cost nothing.
    """

    pixels: Literal["bce", "mse"] = "bce"
    kl_factor: Annotated[float, Field(ge=0)] = 1.0
    kl_warmup: Annotated[float, Field(ge=0)] = 0.0
    free_bits: Annotated[float, Field(ge=0)] = 0.0


class Optim(Section):
    """`batch` is the global batch, shared out among the workers.

    `lr` is reached after `warmup` epochs; `schedule` cosine then brings it down to 0. `clip`: the largest norm that
    the gradient may have, 0 for any. `deterministic`: GPUs repeat a run bit by bit too, and take longer.
    """

    epochs: Count = 10
    batch: Count = 64
    lr: Annotated[float, Field(gt=0)] = 1e-3
    warmup: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    clip: Annotated[float, Field(ge=0)] = 0.0
    seed: Annotated[int, Field(strict=True, ge=0)] = 0
    precision: Literal["auto", "float32", "bf16"] = "auto"
    deterministic: Annotated[bool, Field(strict=True)] = False

    @model_validator(mode="after")
    def _warm_in_time(self) -> "Optim":
        if self.warmup >= self.epochs:
            raise ValueError(f"warmup takes fewer epochs than the {self.epochs} of the run")
        return self


class Scale(Section):
    """`workers`: DDP workers, one GPU each where the cluster has GPUs; 0 trains in this very process.

    `[1, 4]`: from one to four, as many as there is room for: more when a node joins, fewer when one dies.
    `max_failures`: how often workers may die before the training is given up; announced ends of nodes do not count.
    """

    workers: int | tuple[int, int] = 1
    max_failures: Annotated[int, Field(strict=True, ge=0)] = 3

    @field_validator("workers", mode="before")  # one line for both types, where pydantic's own would be one for each
    @classmethod
    def _number_or_range(cls, value: Any) -> Any:
        match value:
            case bool():
                pass
            case int() if value >= 0:
                return value
            case [int(least), int(most)] if 1 <= least <= most:
                return value
        raise ValueError("takes a number of workers, or [least, most] with 1 <= least <= most")

    @property
    def min_workers(self) -> int:
        """How many workers there must be."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def max_workers(self) -> int:
        """How many workers there may be."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]


class Checkpoints(Section):
    """A checkpoint is made at the end of each epoch, every `every` steps (0: none within an epoch for their sake) and
    whenever the last one is `minutes` old (0: never for its age). It is written beside the training: who is killed does
    again what he did since the last one that was written whole.

    `keep`: how many are kept, the newest ones; the one with the lowest validation loss is kept besides.
    """

    every: Annotated[int, Field(strict=True, ge=0)] = 0
    minutes: Annotated[float, Field(ge=0)] = 5.0
    keep: Count = 2


class Search(Section):
    """What a campaign varies: `z_dim` out of a list, `kl_factor` log-uniform between two bounds.

    `psnr_slack` (dB) is the rule's tolerance: see `jobs.tune.selection.choose_best`.
    """

    trials: Count = 8
    parallel: Count = 2
    z_dim: tuple[Annotated[int, Field(strict=True, ge=2, le=1200)], ...] = (64, 128, 200, 512)
    kl_factor: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (1e-6, 10.0)
    psnr_slack: Annotated[float, Field(ge=0)] = 3.0

    @field_validator("z_dim")
    @classmethod
    def _some(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value:
            raise ValueError("needs at least one z_dim")
        return value

    @model_validator(mode="after")
    def _ordered(self) -> "Search":
        if self.kl_factor[0] > self.kl_factor[1]:
            raise ValueError("kl_factor takes [low, high] with low <= high")
        return self


class Recipe(Section):
    name: Annotated[str, Field(pattern=r"^([a-z0-9][a-z0-9._-]{0,62})?$")] = ""
    data: Data = Data()
    model: Model = Model()
    task: Annotated[Task, Field(discriminator="kind")] = Reconstruct()
    loss: Loss = Loss()
    optim: Optim = Optim()
    scale: Scale = Scale()
    checkpoint: Checkpoints = Checkpoints()
    search: Search = Search()

    @property
    def variational(self) -> bool:
        """Whether the encoder gives a distribution (VAE) or a point (AE)."""
        return self.loss.kl_factor > 0

    def digest(self, *extra: str) -> str:
        """Eight hex digits of what is trained: not where it lies, nor on how many workers it runs.

        `extra` names the data, by its manifest's digest.
        """
        trained = {"data": {"flip"}, "model": True, "task": True, "loss": True, "optim": True}
        core = self.model_dump(mode="json", include=trained)
        text = json.dumps([core, *extra], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def recipe_path(recipe: str, folder: Path) -> Path:
    """The YAML file that `recipe` means: a path, or a name in `folder`. Raises ValueError when there is none."""
    for path in (Path(recipe), folder / f"{recipe}.yaml"):
        if path.suffix in (".yaml", ".yml") and path.is_file():
            return path
    known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
    raise ValueError(f"unknown recipe '{recipe}': it takes a YAML file's path or one of {known}")


def load_recipe(path: Path, overrides: list[str]) -> Recipe:
    """The recipe of a YAML file with `section.key=value` overrides. Raises ValueError in one line."""
    try:
        raw = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path} must hold the sections of a recipe ({', '.join(Recipe.model_fields)})")
    for override in overrides:
        _set(raw, override)
    return check_recipe(raw)


def check_recipe(raw: dict[str, Any]) -> Recipe:
    """`raw` as a Recipe. Raises ValueError that names every wrong key in one line."""
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise ValueError("; ".join(_plain(e) for e in error.errors())) from None


def _set(raw: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise ValueError(f"'{override}' is no override: it takes section.key=value")
    *parents, leaf = key.split(".")
    for parent in parents:
        child = raw.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ValueError(f"{key}: '{parent}' is not a section")
        raw = child
    raw[leaf] = _value(text)


def _value(text: str) -> Any:
    # JSON first: YAML 1.1 reads 1e-6 as a string.
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        try:
            return yaml.safe_load(text) if text.startswith(("[", "{")) else text
        except yaml.YAMLError:
            return text


def _plain(error: Any) -> str:
    location = [str(part) for part in error["loc"]]
    kind = location.pop(1) if location[0] == "task" and len(location) > 1 else ""  # the union's tag is no key
    key = ".".join(location) or "recipe"
    if error["type"] == "extra_forbidden":
        section: Any = Recipe
        for part in location[:-1]:
            section = TASKS[kind] if kind else section.model_fields[part].annotation
        place = f"task of kind {kind}" if kind else ".".join(location[:-1]) or "a recipe"
        return f"unknown key {key}: {place} takes {', '.join(section.model_fields)}"
    if error["type"].startswith("union_tag"):
        return f"{key}.kind: it takes one of {', '.join(TASKS)} (got {_shown(error['input'].get('kind'))})"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return f"{key}: {message} (got {_shown(error['input'])})"


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)[:80]
