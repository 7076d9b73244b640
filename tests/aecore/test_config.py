import json
from pathlib import Path

import pytest

from aecore.config import TASKS, Recipe, check_recipe, load_recipe, recipe_path

RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: {z_dim: 20}\n")
    return path


def test_overrides_replace_values_of_the_file_and_keep_their_types(recipe_file):
    overrides = ["loss.kl_factor=1e-6", "optim.epochs=3", "search.space.model.z_dim=[8,16]", "data.uri=/d"]
    recipe = load_recipe(recipe_file, overrides)
    assert recipe.loss.kl_factor == 1e-6
    assert (recipe.optim.epochs, recipe.search.space, recipe.data.uri) == (3, {"model.z_dim": [8, 16]}, "/d")
    assert recipe.model.z_dim == 20


def test_a_local_dataset_is_named_by_its_absolute_path(recipe_file, monkeypatch, tmp_path):
    """Workers and later commands have other working directories."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/z")
    absolute_by_uri = {"a/b": f"{tmp_path}/a/b", "s3://bucket/a": "s3://bucket/a", "": "", "~/a": "/home/z/a"}
    for uri, absolute in absolute_by_uri.items():
        assert load_recipe(recipe_file, [f"data.uri={uri}"]).data.uri == absolute
    with pytest.raises(ValueError, match=r"data\.uri: '~nosuch/x' names no user's home folder; .* write './~nosuch/x'"):
        load_recipe(recipe_file, ["data.uri=~nosuch/x"])
    folder = tmp_path / "deleted"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(ValueError, match=r"data\.uri: cannot resolve 'a': the working directory was deleted"):
        load_recipe(recipe_file, ["data.uri=a"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.z_dim=0", "model.z_dim: input should be greater than or equal to 2 (got 0)"),
        ("model.z_dim=many", 'model.z_dim: input should be a valid integer (got "many")'),
        ("model.z_dim=true", "model.z_dim: input should be a valid integer (got true)"),
        ("model.zdim=5", "unknown key model.zdim: model takes z_dim, channels, norm"),
        ("modle.z_dim=5", "unknown key modle: a recipe takes name, data, model"),
        ("loss.kl_factor=-1", "loss.kl_factor: input should be greater than or equal to 0 (got -1)"),
        ("loss.kl_factor=nan", "loss.kl_factor: input should be a finite number"),
        ("model=5", "model: input should be a valid dictionary"),
        ("search.kl_factor=[5,1]", "search: z_dim and kl_factor have become keys of search.space"),
        ("task.kind=blur", 'task.kind: it takes one of reconstruct, denoise, drop, recolor, inpaint (got "blur")'),
        ("task.sigma=0.1", "task needs task.kind, one of reconstruct, denoise, drop, recolor, inpaint"),
        ("task=5", "task: input should be a valid dictionary"),
        ('task={"kind":"drop","sigma":1}', "unknown key task.sigma: task of kind drop takes kind, keep, fill"),
        ('task={"kind":"drop","keep":2}', "task.keep: input should be less than 1 (got 2)"),
        ('task={"kind":"drop","fill":"blue"}', "task.fill: input should be 'black', 'gray' or 'random' (got \"blue\")"),
        ('task={"kind":"denoise","sigma":0}', "task.sigma: input should be greater than 0 (got 0)"),
        ('task={"kind":"inpaint","block":1.5}', "task.block: input should be less than or equal to 1 (got 1.5)"),
        (
            "scale.workers=-1",
            "scale.workers: takes a number of workers, or [min, max] with 1 <= min <= max <= 10000 (got -1)",
        ),
        ("scale.workers=[0,2]", "scale.workers: takes a number of workers, or [min, max]"),
        ("scale.workers=[3,2]", "scale.workers: takes a number of workers, or [min, max]"),
        ("scale.workers=[1,2,3]", "scale.workers: takes a number of workers, or [min, max]"),
        ("scale.workers=1.5", "scale.workers: takes a number of workers, or [min, max]"),
        ("scale.workers=true", "scale.workers: takes a number of workers, or [min, max]"),
        ("name=A B", "name: string should match pattern"),
        ("epochs", "'epochs' is no override: it takes section.key=value"),
        ("data.uri.x=1", "data.uri"),
    ],
)
def test_wrong_key_or_value_is_named_in_one_line(recipe_file, override, message):
    with pytest.raises(ValueError) as error_info:  # noqa: PT011
        load_recipe(recipe_file, [override])
    assert message in str(error_info.value)
    assert "\n" not in str(error_info.value)


def test_workers_take_a_number_or_a_range(recipe_file):
    assert load_recipe(recipe_file, ["scale.workers=0"]).scale.workers == 0
    scale = load_recipe(recipe_file, ["scale.workers=[1, 4]"]).scale
    assert (scale.workers, scale.max_workers) == ((1, 4), 4)


def test_unknown_recipe_error_lists_the_recipes():
    with pytest.raises(ValueError, match=r"unknown recipe 'nope'.*celeba-vae"):
        recipe_path("nope", RECIPES)


def test_broken_yaml_is_refused(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("model: [")
    with pytest.raises(ValueError, match="is not readable YAML"):
        load_recipe(path, [])


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_loads(path):
    assert isinstance(load_recipe(path, []), Recipe)


def test_digest_depends_on_what_is_trained_not_on_workers_or_location():
    base = Recipe()
    assert base.digest("d") != base.digest("e")
    for sections in (
        {"scale": {"workers": 4}}, {"data": {"uri": "/x", "cache": "none"}}, {"checkpoint": {"keep": 9}},
        {"search": {"trials": 99}}, {"name": "mine"}, {"optim": {"compile": "on"}}, {"scale": {"gradients": "bf16"}},
    ):  # fmt: skip
        assert base.digest("d") == check_recipe(sections).digest("d"), sections
    trained = (
        {"data": {"flip": True}}, {"model": {"z_dim": 9}}, {"model": {"norm": "batch"}}, {"loss": {"kl_factor": 2}},
        {"optim": {"seed": 1}}, {"task": {"kind": "denoise"}}, {"task": {"kind": "denoise", "sigma": 0.5}},
        {"task": {"kind": "recolor"}},
    )  # fmt: skip
    assert len({check_recipe(sections).digest("d") for sections in ({}, *trained)}) == 1 + len(trained)


def test_defaults():
    """Each is stated in docs/configuration.md and trained by recipes that leave it out."""
    assert Recipe().model_dump() == {
        "name": "",
        "data": {"uri": "", "cache": "auto", "flip": False},
        "model": {"z_dim": 200, "channels": (32, 64, 128, 256), "norm": "none"},
        "task": {"kind": "reconstruct"},
        "loss": {"pixels": "bce", "kl_factor": 1.0, "kl_warmup": 0.0, "free_bits": 0.0},
        "optim": {
            "epochs": 10, "batch": 64, "lr": 1e-3, "warmup": 0.0, "schedule": "constant", "clip": 0.0, "seed": 0,
            "precision": "auto", "deterministic": False, "compile": "off",
        },
        "scale": {
            "workers": 1, "cpus_per_worker": "auto", "gpus_per_worker": "auto", "gradients": "float32",
            "max_failures": 3,
        },
        "checkpoint": {"every": 0, "minutes": 5.0, "keep": 2},
        "points": {"images": 2_000},
        "search": {
            "space": {"model.z_dim": [64, 128, 200, 512], "loss.kl_factor": "log(0.003, 30)"}, "first": (),
            "trials": 12, "minutes": 0.0, "gpu_hours": 0.0, "parallel": "auto", "per_gpu": "auto", "stop": "dominated",
            "sampler": "best", "replicates": 1, "psnr_slack": 3.0,
        },
    }  # fmt: skip
    defaults = {kind: check_recipe({"task": {"kind": kind}}).task.model_dump(exclude={"kind"}) for kind in TASKS}
    assert defaults == {
        "reconstruct": {}, "denoise": {"sigma": 0.25}, "drop": {"keep": 0.2, "fill": "black"}, "recolor": {},
        "inpaint": {"block": 0.25, "share": 0.25, "fill": "black"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "allowed", "refused"),
    [
        ("model.z_dim", (2, 1200), (1, 1201)),
        ("model.channels", ([1, 1, 1, 1],), ([1, 1, 1, 0], [8, 8, 8], [8, 8, 8, 8, 8])),
        ("loss.kl_factor", (0, 1e6), (-1e-9, 1.1e6)),
        ("loss.kl_warmup", (0, 1e6), (-1e-9, 1.1e6)),
        ("loss.free_bits", (0, 1e6), (-1e-9, 1.1e6)),
        ("optim.epochs", (1,), (0, 1.5)),
        ("optim.batch", (1,), (0,)),
        ("optim.lr", (1e-9,), (0,)),
        ("optim.warmup", (0, 9.9), (-1e-9, 10)),
        ("optim.clip", (0,), (-1e-9,)),
        ("optim.seed", (0,), (-1,)),
        ("scale.workers", (0, [1, 1], [1, 9]), (-1, [0, 1], [2, 1])),
        ("scale.max_failures", (0,), (-1,)),
        ("checkpoint.every", (0,), (-1,)),
        ("checkpoint.minutes", (0,), (-1e-9,)),
        ("checkpoint.keep", (1,), (0,)),
        ("search.trials", (1,), (0,)),
        ("search.parallel", (1,), (0,)),
        ("search.psnr_slack", (0,), (-1e-9,)),
        ('task={"kind":"denoise"}.sigma', (1e-9, 100), (0, 100.1)),
        ('task={"kind":"drop"}.keep', (0, 0.999), (-1e-9, 1)),
        ('task={"kind":"inpaint"}.block', (1e-9, 1), (0, 1.001)),
        ('task={"kind":"inpaint"}.share', (1e-9, 1), (0, 1.001)),
    ],
)
def test_values_up_to_each_bound_are_allowed_and_beyond_it_refused(recipe_file, key, allowed, refused):
    section, _, name = key.rpartition(".")
    task, section = ([section], "task") if "=" in section else ([], section)
    for value in allowed:
        load_recipe(recipe_file, [*task, f"{section}.{name}={json.dumps(value)}"])
    for value in refused:
        with pytest.raises(ValueError, match=rf"^{section}"):
            load_recipe(recipe_file, [*task, f"{section}.{name}={json.dumps(value)}"])


def test_task_round_trips_through_json():
    recipe = check_recipe({"task": {"kind": "inpaint", "share": 0.5}})
    assert check_recipe(recipe.model_dump(mode="json")) == recipe


def test_each_key_has_a_description():
    sections = [field.annotation for field in Recipe.model_fields.values() if hasattr(field.annotation, "model_fields")]
    for section in (*sections, *TASKS.values()):
        assert section.__doc__
        for name, field in section.model_fields.items():
            assert field.description or name == "kind", f"{section.__name__}.{name}"


@pytest.mark.parametrize(("kl_factor", "variational"), [(0, False), (1e-6, True), (0.5, True), (6, True)])
def test_any_kl_factor_above_0_makes_a_vae(kl_factor: float, variational: bool):
    assert Recipe(loss={"kl_factor": kl_factor}).variational is variational  # pyright: ignore[reportArgumentType]
