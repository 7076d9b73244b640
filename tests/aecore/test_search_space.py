"""The space of a search: its forms, the recipe's checks of it, and the points that it holds."""

from pathlib import Path

import pytest

from aecore.config import check_recipe, load_recipe, stored_recipe
from aecore.search_space import Choices, Range, grid, grid_size, is_grid, parse_dimension, parse_space


@pytest.mark.parametrize(
    ("text", "dimension"),
    [
        ([512, 64], Choices((64, 512))),
        (["none", "batch"], Choices(("none", "batch"))),
        ([[32, 64], [16, 32]], Choices(([32, 64], [16, 32]))),
        ("int(2, 20)", Range("int", 2, 20)),
        (" uniform(0,0.5) ", Range("uniform", 0.0, 0.5)),
        ("log(1e-3, 30)", Range("log", 1e-3, 30.0)),
    ],
)
def test_each_form_is_parsed(text, dimension):
    assert parse_dimension(text) == dimension


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ([], "at least one value"),
        ([1, 1], "each once"),
        ("linear(1, 2)", "int(low, high), uniform(low, high) or log(low, high)"),
        ("int(1.5, 3)", "takes whole numbers"),
        ("uniform(a, 3)", "takes numbers"),
        ("uniform(3, 1)", "low <= high"),
        ("uniform(0, inf)", "low <= high"),
        ("log(0, 1)", "low > 0"),
        (3, "a list, int"),
    ],
)
def test_any_other_form_is_refused(text, message: str):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        parse_dimension(text)


def test_fractions_cover_a_dimension_evenly():
    fractions = [0.0, 0.25, 0.5, 0.999]
    assert [Choices((1, 2, 3, 4)).at(f) for f in fractions] == [1, 2, 3, 4]
    assert [Range("int", 5, 8).at(f) for f in fractions] == [5, 6, 7, 8]
    assert [Range("uniform", 1.0, 3.0).at(f) for f in fractions] == [1, 1.5, 2, 3]
    assert [Range("log", 0.01, 100.0).at(f) for f in fractions] == [0.01, 0.1, 1, 99.1]


def test_values_have_three_digits_and_stay_within_the_range():
    assert Range("log", 0.0123456, 1.0).nearest(0.01234561) == 0.0123456
    assert Range("uniform", 0.0, 1.0).nearest(0.123456) == 0.123
    assert [Range("int", 5, 8).nearest(value) for value in (5 * (1 - 1e-12), 5.6, 8)] == [5, 6, 8]
    for outside in (1.1, 0.49, 1.001, 0.4999, True, "0.7"):
        with pytest.raises(ValueError, match=r"uniform\(0.5, 1\)"):
            Range("uniform", 0.5, 1.0).nearest(outside)
    assert Range("log", 1e-3, 1e3).nearest(1e3 * (1 + 1e-12)) == 1e3  # as exp(log(high)) may round
    assert [Range("int", -3, -1).nearest(value) for value in (-3, -1)] == [-3, -1]
    with pytest.raises(ValueError, match="one of"):
        Choices((1, 2)).nearest(3)


def test_value_of_a_list_is_the_lists_own():
    assert repr([Choices((0.5, 1, 2)).nearest(1.0), Choices((0.5, 1.0, 2.0)).nearest(1)]) == "[1, 1.0]"


def test_lists_with_no_more_points_than_trials_are_a_grid():
    space = parse_space({"a": [2, 1], "b": ["x", "y"]})
    assert list(grid(space)) == [{"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"}]
    assert (is_grid(space, 4), is_grid(space, 3)) == (True, False)
    assert not is_grid(parse_space({"a": "int(1, 2)"}), 4)
    assert grid_size(parse_space({"a": [1, 2], "b": "int(1, 3)"})) == 6
    assert grid_size(parse_space({"a": "log(1, 1)"})) == 1


def recipe_with(*overrides: str, tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text("{}")
    return load_recipe(path, list(overrides))


def test_space_is_given_by_key_or_whole(tmp_path: Path):
    by_key = recipe_with("search.space.loss.kl_factor=log(0.1,3)", "search.space.model.z_dim=[2,3]", tmp_path=tmp_path)
    whole = recipe_with(
        'search.space={"loss.kl_factor":"log(0.1,3)","model.z_dim":[2,3]}',
        'search.first=[{"loss.kl_factor":1,"model.z_dim":3}]',
        tmp_path=tmp_path,
    )
    assert by_key.search.space == whole.search.space == {"loss.kl_factor": "log(0.1,3)", "model.z_dim": [2, 3]}
    assert whole.search.first == ({"loss.kl_factor": 1, "model.z_dim": 3},)


@pytest.mark.parametrize(
    ("override", "messages"),
    [
        ("search.space.model.z_dim=[1,64]", ["search.space.model.z_dim", "greater than or equal to 2 (got 1)"]),
        ("search.space.loss.kl_factor=uniform(-1,2)", ["search.space.loss.kl_factor", "(got -1.0)"]),
        ("search.space.model.z_dim=log(2,8)", ["search.space.model.z_dim", "valid integer"]),
        ("search.space.model.foo=[1]", ["unknown key model.foo"]),
        ("search.space.task.sigma=[0.1]", ["task of kind reconstruct"]),
        ("search.space.optim.epochs=[1,2]", ["not epochs"]),
        ("search.space.optim.compile=[on,off]", ["change what is trained"]),
        ("search.space.scale.workers=[1,2]", ["change what is trained"]),
        ("search.space={}", ["takes recipe keys"]),
        ('search.space={"optim.lr":[-1],"optim.batch":"int(0,4)"}', ["space.optim.lr", "space.optim.batch"]),
        ('search.first=[{"loss.kl_factor":1}]', ["point 1 needs a value of model.z_dim, loss.kl_factor"]),
        ('search.first=[{"loss.kl_factor":99,"model.z_dim":64}]', ["point 1, loss.kl_factor", "log(0.003, 30)"]),
        ("search.parallel=0", ["search.parallel: takes auto, or a number of trials, 1 to 10000 (got 0)"]),
        ("search.z_dim=[16,32]", ["write search.space.model.z_dim=[16, 32]"]),
        ("search.kl_factor=[0.1,10]", ["write 'search.space.loss.kl_factor=log(0.1, 10)'"]),
    ],
)
def test_wrong_search_names_each_key(override: str, messages: list[str], tmp_path: Path):
    with pytest.raises(ValueError, match="search") as caught:
        recipe_with(override, tmp_path=tmp_path)
    assert "\n" not in str(caught.value)
    for message in messages:
        assert message in str(caught.value)


def test_recipe_at_a_point_is_the_recipe_with_these_keys():
    recipe = check_recipe({"name": "mine", "search": {"trials": 3}})
    trial = recipe.at({"model.z_dim": 7, "task.kind": "denoise", "loss.kl_factor": 0.5})
    assert trial == check_recipe({"model": {"z_dim": 7}, "task": {"kind": "denoise"}, "loss": {"kl_factor": 0.5}})


def test_stored_recipes_of_earlier_versions_are_read():
    assert stored_recipe({"model": {"z_dim": 5}, "search": {"z_dim": [2], "kl_factor": [1, 2]}}).model.z_dim == 5
