"""Recipes: frozen, validated descriptions of a training and of the search around it.

A recipe is a YAML file with the sections below; `section.key=value` overrides a key on the command line. A wrong
recipe (an unknown key, a wrong type, a value out of range) is refused before anything starts, in one line that names
the key and the values that it takes.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from aecore.data.io import absolute_path
from aecore.errors import one_line
from aecore.search_space import FORMS, Dimension, Point, parse_dimension, parse_space

Count = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
Channels = Annotated[int, Field(strict=True, ge=1, le=4096)]
Epochs = Annotated[float, Field(ge=0, le=1_000_000)]
Flag = Annotated[bool, Field(strict=True)]
ZDim = Annotated[int, Field(strict=True, ge=2, le=1200)]
MAX_WORKERS = 10_000
SAMPLE_EVALUATIONS = 5  # in a run: one costs as much as some steps
# The samplers that a training judges at its end, and how texts name them. Without sphere, whose scores differ
# from those of normal only in few dimensions: tests/benchmarks/README.md.
STORED_SAMPLERS = {
    "normal": "N(0, 1)", "diagonal": "the fitted Gaussian without correlations", "gaussian": "the fitted Gaussian",
    "gmm": "the fitted mixture of Gaussians",
}  # fmt: skip
Fill = Literal["black", "gray", "random"]
TRAINED = ("data.flip", "model.", "task.", "loss.", "optim.")  # how a key that changes what is trained begins


def sampler_distances(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the distances `hog_frechet_SAMPLER` that a training's metrics have, by sampler."""
    return {name: metrics[key] for name in STORED_SAMPLERS if (key := f"hog_frechet_{name}") in metrics}


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(Section):
    """The dataset and how it reaches the network."""

    uri: str = Field(default="", description="The dataset's folder: a path, file:// or s3:// URI.")
    cache: Literal["auto", "device", "node", "none"] = Field(
        default="auto",
        description=(
            "Where decoded images are cached: node: in a file on each node; device: in GPU memory too; auto: in GPU "
            "memory if they take less than half of what is free; none: nowhere, each epoch decodes them again."
        ),
    )
    flip: Flag = Field(default=False, description="Mirror a random half of the training images in each epoch.")

    @field_validator("uri")
    @classmethod
    def _make_absolute(cls, uri: str) -> str:
        return uri if not uri or "://" in uri else str(absolute_path(uri))  # workers have other working directories


class Model(Section):
    """The network."""

    z_dim: ZDim = Field(default=200, description="Number of latent dimensions.")
    channels: tuple[Channels, Channels, Channels, Channels] = Field(
        default=(32, 64, 128, 256), description="Channels of the encoder's four layers; the decoder's are the reverse."
    )
    norm: Literal["none", "group", "batch", "sync_batch"] = Field(
        default="none",
        description=(
            "Normalisation after each layer: batch: over each worker's images; sync_batch: over the global batch. none "
            "learns fastest (tests/benchmarks/README.md)."
        ),
    )

    @property
    def min_batch(self) -> int:
        """Return the fewest images of a batch that the network can train on: the variance of one image is none."""
        return 2 if self.norm in ("batch", "sync_batch") else 1


class Reconstruct(Section):
    """Reconstruct the input image."""

    kind: Literal["reconstruct"] = "reconstruct"


class Denoise(Section):
    """Remove Gaussian noise."""

    kind: Literal["denoise"]
    sigma: Annotated[float, Field(gt=0, le=100)] = Field(
        default=0.25, description="Standard deviation of the noise, for pixels in [0, 1]; 1 nearly hides a face."
    )


class Drop(Section):
    """Restore randomly dropped pixels."""

    kind: Literal["drop"]
    keep: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.2, description="Probability that a pixel is kept.")
    fill: Fill = Field(default="black", description="Value of dropped pixels; random: uniform noise.")


class Recolor(Section):
    """Restore the colours of a gray image."""

    kind: Literal["recolor"]


class Inpaint(Section):
    """Restore square holes, at least one. They cover about `share` of the image, less if they overlap."""

    kind: Literal["inpaint"]
    block: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.25, description="Side of a hole, as a fraction of the image's side."
    )
    share: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.25, description="Area of all holes, as a fraction of the image's area."
    )
    fill: Fill = Field(default="black", description="Value of the pixels in holes; random: uniform noise.")


Task = Reconstruct | Denoise | Drop | Recolor | Inpaint
TASKS: dict[str, type[Section]] = {
    "reconstruct": Reconstruct, "denoise": Denoise, "drop": Drop, "recolor": Recolor, "inpaint": Inpaint,
}  # fmt: skip


class Loss(Section):
    """The loss of an image: pixel loss + kl_factor * KL, each summed; the mean over the batch is minimised."""

    pixels: Literal["bce", "mse"] = Field(
        default="bce", description="Pixel loss, summed over pixels: binary cross-entropy or squared error."
    )
    kl_factor: Annotated[float, Field(ge=0, le=1e6)] = Field(
        default=1.0, description="Weight of the KL (beta): 1 is the ELBO, 0 a plain autoencoder."
    )
    kl_warmup: Epochs = Field(
        default=0.0, description="Epochs during which the weight of the KL rises linearly from 0."
    )
    free_bits: Annotated[float, Field(ge=0, le=1e6)] = Field(
        default=0.0, description="Nats of KL per latent dimension that are not penalised."
    )


class Optim(Section):
    """The optimizer, Adam, and its schedule."""

    epochs: Count = Field(
        default=10, description="Epochs to train; more of them continue a finished run, unless schedule is cosine."
    )
    batch: Count = Field(default=64, description="Images in a global batch, split over the workers.")
    lr: Annotated[float, Field(gt=0, le=1e30)] = Field(default=1e-3, description="Learning rate after the warmup.")
    warmup: Epochs = Field(
        default=0.0, description="Epochs during which the learning rate rises linearly; fewer than epochs."
    )
    schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="Learning rate after the warmup; cosine falls to 0 at the end of the run."
    )
    clip: Annotated[float, Field(ge=0, le=1e12)] = Field(
        default=0.0, description="Maximum norm of the gradient; 0: no clipping."
    )
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**32)] = Field(
        default=0, description="Seed of the weights, the order of images and all noise."
    )
    precision: Literal["auto", "float32", "bf16"] = Field(
        default="auto", description="Precision of the network's layers; auto: bf16 on GPUs, else float32."
    )
    deterministic: Flag = Field(
        default=False, description="Repeat a run bit by bit on GPUs too, at a lower speed; CPUs always do."
    )
    compile: Literal["auto", "on", "off"] = Field(
        default="off",  # until tests/benchmarks/gpu.sh has passed on a GPU
        description=(
            "Compile network and loss by torch.compile; one worker on a GPU then also takes its steps in a CUDA graph. "
            "auto: on a GPU with 10,000 or more steps to go, unless deterministic; on a CPU it does not pay."
        ),
    )

    @property
    def judged_epochs(self) -> list[int]:
        """The epochs, counted from 1, after which random samples are judged: about five, and the last."""
        interval = math.ceil(self.epochs / SAMPLE_EVALUATIONS)
        return sorted({*range(interval, self.epochs, interval), self.epochs})

    @model_validator(mode="after")
    def _check_warmup(self) -> "Optim":
        if self.warmup >= self.epochs:
            raise ValueError(f"warmup takes fewer epochs than the {self.epochs} of the run")
        return self


class Scale(Section):
    """The workers of a training."""

    workers: int | tuple[int, int] = Field(
        default=1,
        description=(
            "DDP workers, with one GPU each if the cluster has GPUs; 0: train in the command's process without Ray. "
            "[min, max]: as many as the cluster has resources for, more when a node joins, fewer when one is lost."
        ),
    )
    cpus_per_worker: Literal["auto"] | float = Field(
        default="auto",
        description=(
            "CPUs of a worker, also a fraction; auto: 1 beside a GPU, else as many as let all workers fit on whole "
            "nodes, without those that an endpoint holds."
        ),
    )
    gpus_per_worker: Literal["auto"] | float = Field(
        default="auto",
        description=(
            "GPU of a worker, or a fraction of one, 0: none; auto: one if the cluster has GPUs, or what an endpoint "
            "leaves of one if there are too few others."
        ),
    )
    gradients: Literal["float32", "bf16"] = Field(
        default="float32",
        description=(
            "Precision in which the workers exchange gradients. bf16 halves the traffic between hosts; the model then "
            "depends on the number of workers, by about as much as on bf16 layers."
        ),
    )
    max_failures: Annotated[int, Field(strict=True, ge=0, le=1_000_000)] = Field(
        default=3, description="Worker failures after which the training fails; announced node shutdowns do not count."
    )

    @field_validator("workers", mode="before")  # one message; pydantic would give one for each type of the union
    @classmethod
    def _check_workers(cls, value: Any) -> Any:
        match value:
            case bool():
                pass
            case int() if 0 <= value <= MAX_WORKERS:
                return value
            case [int(min_workers), int(max_workers)] if 1 <= min_workers <= max_workers <= MAX_WORKERS:
                return value
        raise ValueError(f"takes a number of workers, or [min, max] with 1 <= min <= max <= {MAX_WORKERS}")

    @field_validator("cpus_per_worker", "gpus_per_worker", mode="before")
    @classmethod
    def _check_resources(cls, value: Any, info: ValidationInfo) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if info.field_name == "cpus_per_worker":
            if value == "auto" or (is_number and 0 < value <= MAX_WORKERS):
                return value
            raise ValueError(f"takes auto, or a number of CPUs above 0, up to {MAX_WORKERS}")
        if value == "auto" or (is_number and 0 <= value <= 1):
            return value
        raise ValueError("takes auto, or a fraction of a GPU, 0 to 1")

    @property
    def min_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def max_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]


class Checkpoints(Section):
    """Checkpoints, written in the background at the end of each epoch and as often as these keys say.

    A killed run repeats the steps since its last complete checkpoint.
    """

    every: Annotated[int, Field(strict=True, ge=0, le=10**12)] = Field(
        default=0, description="Steps between two checkpoints; 0: none by steps."
    )
    minutes: Annotated[float, Field(ge=0, le=1e9)] = Field(
        default=5.0, description="Minutes between two checkpoints; 0: none by time."
    )
    keep: Count = Field(
        default=2, description="Newest checkpoints to keep, besides the one with the lowest validation loss."
    )


class Search(Section):
    """The search of a campaign: which values of which keys, for how long, and how the best model is chosen."""

    space: dict[str, list[Any] | str] = Field(
        default={"model.z_dim": [64, 128, 200, 512], "loss.kl_factor": "log(0.003, 30)"},
        description=(
            "Values of each searched recipe key: a list, int(low, high), uniform(low, high) or log(low, high). Lists "
            "alone, with no more points than trials, are a grid: each point is trained once."
        ),
    )
    first: tuple[dict[str, Any], ...] = Field(
        default=(),
        description="Points to try first, each with a value of every searched key; the recipe's own point is the next.",
    )
    trials: Count = Field(default=12, description="Points to train, those of earlier commands included.")
    minutes: Annotated[float, Field(ge=0, le=1e9)] = Field(
        default=0.0, description="Minutes of the campaign, those of earlier commands included; 0: no limit."
    )
    gpu_hours: Annotated[float, Field(ge=0, le=1e9)] = Field(
        default=0.0, description="GPU hours of all trials; on a cluster without GPUs core hours; 0: no limit."
    )
    parallel: Literal["auto"] | int = Field(
        default="auto", description="Trials that run at the same time; auto: as many as the cluster has resources for."
    )
    per_gpu: Literal["auto"] | int = Field(
        default="auto",
        description=(
            "Trials that share one GPU, if each has one worker: a small network in small batches leaves most of one "
            "idle. auto: as many as the memory holds and the GPU trains faster together, measured before the search."
        ),
    )
    stop: Literal["dominated", "none"] = Field(
        default="dominated",
        description=(
            "dominated: stop trials that are in the worse half, by PSNR and distance, after a fifth and two fifths of "
            "their epochs; none: train each to its end. A trial without active units is stopped in any case but none."
        ),
    )
    sampler: Literal["best", "normal"] = Field(
        default="best",
        description="Sampler whose distance is compared: the best one that is stored with each model, or N(0, 1).",
    )
    replicates: Count = Field(
        default=1, description="Seeds to train of each of the front's best three points, their first one included."
    )
    psnr_slack: Annotated[float, Field(ge=0, le=1e6)] = Field(
        default=3.0, description="Decibels of PSNR below the best trial at which a trial can still be chosen."
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_old_keys(cls, value: Any) -> Any:
        old = value if isinstance(value, dict) else {}
        new = []
        if "z_dim" in old:
            new.append(f"search.space.model.z_dim={json.dumps(old['z_dim'], default=str)}")
        if "kl_factor" in old:
            bounds = old["kl_factor"] if isinstance(old["kl_factor"], list) else [0.003, 30]
            new.append(f"'search.space.loss.kl_factor=log({', '.join(map(str, bounds))})'")
        if new:
            raise ValueError(f"z_dim and kl_factor have become keys of search.space: write {' '.join(new)}")
        return value

    @field_validator("space", mode="before")
    @classmethod
    def _check_form(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not value:
            raise ValueError(f"takes recipe keys, each with {FORMS}")
        space, errors = flatten_keys(value), []
        for key, text in space.items():
            try:
                parse_dimension(text)
            except ValueError as error:
                errors.append(f"{key}: {error}")
        if errors:
            raise ValueError("; ".join(errors))
        return space

    @field_validator("first", mode="before")
    @classmethod
    def _flatten_first(cls, value: Any) -> Any:
        points = value if isinstance(value, list | tuple) else [value]
        return [flatten_keys(point) if isinstance(point, dict) else point for point in points]

    @field_validator("parallel", "per_gpu", mode="before")  # one message; pydantic would give one for each type
    @classmethod
    def _check_count(cls, value: Any) -> Any:
        if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_WORKERS):
            return value
        raise ValueError(f"takes auto, or a number of trials, 1 to {MAX_WORKERS}")

    @property
    def dimensions(self) -> dict[str, Dimension]:
        """The values of each searched key, parsed."""
        return parse_space(self.space)


class Points(Section):
    """z-points of real images, stored with the finished model, their 2-D map (t-SNE) and thumbnails of 32 pixels."""

    images: Annotated[int, Field(strict=True, ge=0, le=5_000)] = Field(
        default=2_000,
        description=(
            "Training and test images to store, a fifth of them test images; 0: none, if thumbnails must not leave the "
            "dataset."
        ),
    )


def flatten_keys(sections: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested sections by `section.key`."""
    leaves: dict[str, Any] = {}
    for key, value in sections.items():
        leaves |= flatten_keys(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


class Recipe(Section):
    """A training and the search around it."""

    name: Annotated[str, Field(pattern=r"^([a-z0-9][a-z0-9._-]{0,62})?$")] = Field(
        default="", description="Name of the run; by default the recipe's name and a digest."
    )
    data: Data = Data()
    model: Model = Model()
    task: Annotated[Task, Field(discriminator="kind")] = Reconstruct()
    loss: Loss = Loss()
    optim: Optim = Optim()
    scale: Scale = Scale()
    checkpoint: Checkpoints = Checkpoints()
    points: Points = Points()
    search: Search = Search()

    @model_validator(mode="after")
    def _check_batch(self) -> "Recipe":
        if self.optim.compile == "on" and self.data.cache == "none":
            raise ValueError("optim.compile=on needs batches of one size: data.cache=none gives others")
        if self.optim.batch < self.model.min_batch:
            raise ValueError(f"optim.batch: model.norm={self.model.norm} needs at least 2 images (got 1)")
        return self

    @property
    def variational(self) -> bool:
        """Return True for a VAE, whose encoder gives a distribution, and False for an AE."""
        return self.loss.kl_factor > 0

    def digest(self, *extra: str, with_epochs: bool = False) -> str:
        """Return 8 hex digits of what is trained: they do not depend on workers, compiling, storage or checkpoints.

        `extra` identifies the data, by the digest of its manifest. Nor do they depend on the number of epochs, unless
        `with_epochs`: a training of more epochs is the same one, continued. With the cosine schedule it is not: the
        number of epochs sets the learning rate of each step.
        """
        trained = {"data": {"flip"}, "model": True, "task": True, "loss": True, "optim": True}
        content = self.model_dump(mode="json", include=trained)
        del content["optim"]["compile"]
        if not with_epochs and self.optim.schedule == "constant":
            del content["optim"]["epochs"]
        text = json.dumps([content, *extra], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def at(self, point: Point) -> "Recipe":
        """Return the recipe of one trial: `point`'s values, without the name and the search.

        Raises ValueError in one line if the recipe does not take a value.
        """
        sections = self.model_dump(mode="json", exclude={"search", "name"})
        for key, value in point.items():
            _set_key(sections, key, value)
        return check_recipe(sections)


def recipe_path(recipe: str, folder: Path) -> Path:
    """Return the YAML file of `recipe`: a path, or a name in `folder`. Raises ValueError if there is none."""
    for path in (Path(recipe), folder / f"{recipe}.yaml"):
        if path.suffix in (".yaml", ".yml") and path.is_file():
            return path
    names = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    raise ValueError(f"unknown recipe '{recipe}': it takes a YAML file's path or one of {names}")


def load_recipe(path: Path, overrides: list[str]) -> Recipe:
    """Read a YAML file and apply `section.key=value` overrides. Raises ValueError with a message of one line."""
    try:
        sections = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable YAML: {one_line(error, None)}") from error
    if not isinstance(sections, dict):
        raise ValueError(f"{path} must hold the sections of a recipe ({', '.join(Recipe.model_fields)})")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ValueError(f"'{override}' is no override: it takes section.key=value")
        _set_key(sections, key, _parse_value(text))
    return check_recipe(sections)


def check_recipe(sections: dict[str, Any]) -> Recipe:
    """Validate `sections`. Raises ValueError with a message of one line that names each wrong key."""
    try:
        recipe = Recipe.model_validate(sections)
    except ValidationError as error:
        raise ValueError("; ".join(_error_message(details) for details in error.errors())) from None
    if "search" in sections:
        check_space(recipe)
    return recipe


def stored_recipe(sections: dict[str, Any]) -> Recipe:
    """Return the recipe that a run's files hold; earlier versions stored a search, which means nothing for a run."""
    return check_recipe({key: value for key, value in sections.items() if key != "search"})


def check_space(recipe: Recipe) -> None:
    """Raise ValueError unless the recipe takes the ends of each searched range, each listed value and first point."""
    errors: list[str] = []
    for key, dimension in recipe.search.dimensions.items():
        if key in ("optim.epochs", "optim.compile") or not key.startswith(TRAINED):
            errors.append(f"search.space.{key}: a search takes the keys that change what is trained, and not epochs")
            continue
        for value in dimension.ends:
            try:
                recipe.at({key: value})
            except ValueError as error:
                errors.append(f"search.space.{key}: {str(error).removeprefix(f'{key}: ')}")
    for index, point in enumerate(recipe.search.first, 1):
        if set(point) != set(recipe.search.space):
            errors.append(f"search.first: point {index} needs a value of {', '.join(recipe.search.space)}")
            continue
        for key, value in point.items():
            try:
                recipe.search.dimensions[key].nearest(value)
            except ValueError as error:
                errors.append(f"search.first: point {index}, {key}: {error} (got {_to_json(value)})")
    if errors:
        raise ValueError("; ".join(dict.fromkeys(errors)))


def _set_key(sections: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    section = sections
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise ValueError(f"{key}: '{parent}' is not a section")
    section[leaf] = value


def _parse_value(text: str) -> Any:
    # JSON first: YAML 1.1 reads 1e-6 as a string.
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # also for a number of more than 4,300 digits
        try:
            return yaml.safe_load(text) if text.startswith(("[", "{")) else text
        except (yaml.YAMLError, RecursionError):
            return text


def _error_message(details: Any) -> str:
    location = [str(name) for name in details["loc"]]
    task_kind = location.pop(1) if location[:1] == ["task"] and len(location) > 1 else ""  # the union's tag is no key
    key = ".".join(location) or "recipe"
    if details["type"] == "extra_forbidden":
        section: Any = Recipe
        for name in location[:-1]:
            section = TASKS[task_kind] if task_kind else section.model_fields[name].annotation
        section_name = f"task of kind {task_kind}" if task_kind else ".".join(location[:-1]) or "a recipe"
        return f"unknown key {key}: {section_name} takes {', '.join(section.model_fields)}"
    if details["type"] == "union_tag_not_found":
        return f"{key} needs {key}.kind, one of {', '.join(TASKS)}"
    if details["type"] == "union_tag_invalid":
        return f"{key}.kind: it takes one of {', '.join(TASKS)} (got {_to_json(details['input'].get('kind'))})"
    message = details["msg"].removeprefix("Value error, ")
    if not location:  # a check over several sections names its keys
        return message
    message = message[0].lower() + message[1:]
    return f"{key}: {message} (got {_to_json(details['input'])})"


def _to_json(value: Any) -> str:
    return json.dumps(value, default=str)[:80]
