"""The range of each numeric key: what lies outside is refused by the key's name, what lies inside works."""

import math
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from itertools import islice
from types import UnionType
from typing import Any, get_args

import numpy as np
import optuna
import pytest
import torch
from sklearn.mixture import GaussianMixture

from aecore.config import TASKS, Recipe, check_recipe
from aecore.data.loaders import NodeLoader
from aecore.data.shuffle import BatchSampler
from aecore.model.autoencoder import ImageShape, build_model
from aecore.training.loop import TrainingRun, fit

EXTREMES = (
    -(10**30), -1, 0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63, 2**64, 10**30, -1e308, -1.5, -5e-324, 5e-324,
    1e-45, 1e6, 1e38, 1e39, 1e308, math.inf, -math.inf, math.nan, True, "", "x", None, [], {},
)  # fmt: skip


def numeric_keys() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each numeric key and the sections that it needs."""
    for section, field in Recipe.model_fields.items():
        if section == "task":
            for kind, model in TASKS.items():
                yield from (
                    (f"task.{key}", {"task": {"kind": kind}}) for key in model.model_fields if is_number(model, key)
                )
        elif hasattr(field.annotation, "model_fields"):
            yield from (
                (f"{section}.{key}", {}) for key in field.annotation.model_fields if is_number(field.annotation, key)
            )


def is_number(model: Any, key: str) -> bool:
    annotation = model.model_fields[key].annotation
    types = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    return any(kind in (int, float) for kind in types)


def with_value(key: str, value: object, sections: dict[str, Any]) -> dict[str, Any]:
    section, leaf = key.split(".")
    return {**sections, section: {**sections.get(section, {}), leaf: value}}


KEYS = [pytest.param(*key, id="-".join([key[0], *key[1].get("task", {}).values()])) for key in numeric_keys()]


def test_all_numeric_keys_are_in_the_table():
    assert len(KEYS) >= 22
    assert {"optim.seed", "scale.workers", "task.sigma", "loss.free_bits"} <= {key.values[0] for key in KEYS}


@pytest.mark.parametrize(("key", "sections"), KEYS)
def test_value_out_of_range_is_refused_by_the_keys_name(key: str, sections: dict[str, Any]):
    messages = []
    for value in EXTREMES:
        try:
            check_recipe(with_value(key, value, sections))
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) >= 12  # negative and infinite ones, and other types
    section, leaf = key.split(".")
    assert [text for text in messages if not text.startswith((f"{key}: ", f"{section}: {leaf} "))] == []
    assert max(map(len, messages)) < 300


def accepted_extremes(key: str, sections: dict[str, Any]) -> list[Any]:
    """Return the smallest and the largest of the extremes that the key takes, and its own bounds."""
    section, leaf = key.split(".")
    model = TASKS[sections["task"]["kind"]] if "task" in sections else Recipe.model_fields[section].annotation
    bounds = [
        getattr(bound, side)
        for bound in model.model_fields[leaf].metadata
        for side in ("ge", "le")
        if hasattr(bound, side)
    ]
    accepted = []
    for value in (*bounds, *EXTREMES):
        try:
            check_recipe(with_value(key, value, sections))
        except ValueError:
            continue
        if isinstance(value, int | float):
            accepted.append(value)
    return [min(accepted), max(accepted)]


TRAINED = ("loss", "optim", "task", "checkpoint", "scale")  # network sizes are only slow, searches have their own tests


@pytest.mark.parametrize(("key", "sections"), [key for key in KEYS if key.values[0].split(".")[0] in TRAINED])
def test_extremes_within_the_range_train(key: str, sections: dict[str, Any]):
    for value in accepted_extremes(key, sections):
        base = {"model": {"z_dim": 2, "channels": [2, 2, 2, 2]}, "optim": {"epochs": 1, "batch": 4}}
        if key == "optim.warmup":
            base["optim"]["epochs"] = 1_000_000
        section, leaf = key.split(".")
        merged = {**sections, **base, section: {**sections.get(section, {}), **base.get(section, {}), leaf: value}}
        if key == "optim.warmup":
            merged["optim"]["warmup"] = min(value, 999_999)
        recipe = check_recipe(merged)
        images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
        loader = NodeLoader(images, BatchSampler(recipe.optim.seed, recipe.optim.batch), torch.device("cpu"))
        run = TrainingRun(recipe, build_model(recipe, ImageShape(16, 3)), loader, loader)
        with suppress(FloatingPointError) if key == "optim.lr" else nullcontext():  # its message names optim.lr
            list(islice(fit(run), 2))
        assert all(torch.isfinite(p).all() for p in run.model.parameters())


def test_each_seed_is_one_of_the_libraries_below():
    for seed in (0, 2**32 - 1):
        seed = check_recipe({"optim": {"seed": seed}}).optim.seed
        optuna.samplers.TPESampler(seed=seed)
        GaussianMixture(2, random_state=seed).fit(np.arange(8.0)[:, None])
    with pytest.raises(ValueError, match=r"optim.seed: input should be less than 4294967296"):
        check_recipe({"optim": {"seed": 2**32}})


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"norm": "batch"}, "optim": {"batch": 1}}, "optim.batch: model.norm=batch needs at least 2 images"),
        ({"model": {"norm": "sync_batch"}, "optim": {"batch": 1}}, "optim.batch: model.norm=sync_batch needs"),
        (
            {"scale": {"workers": [1, 10_001]}},
            "scale.workers: takes a number of workers, or [min, max] with 1 <= min <= max <= 10000",
        ),
        ({"model": {"channels": [1, 1, 1, 4097]}}, "model.channels.3: input should be less than or equal to 4096"),
        ({"name": "a" * 64}, "name: string should match pattern"),
        ({"name": "a\n"}, "name: string should match pattern"),
    ],
)
def test_ranges_of_lists_names_and_pairs(sections: dict[str, Any], message: str):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        check_recipe(sections)
    assert str(error.value).startswith(message)
