import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aecore.data.splits import SPLITS, sample_splits, split_table


def places(table: pa.Table, *, official: list[str] | None = None, rule: str | None = None) -> dict[str, str]:
    """The split of each name; every row must be in exactly one, with its other columns."""
    _, splits = split_table(table, official, rule)
    assert tuple(splits) == SPLITS
    assert sum(part.num_rows for part in splits.values()) == table.num_rows
    return {name: split for split, part in splits.items() for name in part["name"].to_pylist()}


names = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=9), unique=True, min_size=1, max_size=60)


@given(names)
def test_every_row_is_in_one_split_and_some_are_to_train_on(found: list[str]):
    by_name = places(pa.table({"name": found}))
    assert set(by_name) == set(found)
    assert len(found) < 30 or "train" in by_name.values()


def test_shares_are_80_10_10_whatever_the_rule():
    table = pa.table({"name": [f"{i}.jpg" for i in range(20_000)], "identity": [i // 2 for i in range(20_000)]})
    for rule in ("hash", "identity"):
        found = list(places(table, rule=rule).values())
        assert abs(found.count("valid") / 20_000 - 0.1) < 0.01
        assert abs(found.count("test") / 20_000 - 0.1) < 0.01


@given(st.integers(0, 2**32), st.integers(500, 2000))
def test_a_row_keeps_its_split_whatever_else_is_there(seed: int, count: int):
    numbers = np.random.default_rng(seed).permutation(2000)[:count].tolist()
    table = pa.table({"name": [f"{i}.jpg" for i in numbers], "identity": [i // 5 for i in numbers]})
    for rule in ("hash", "identity"):
        every = pa.table({"name": [f"{i}.jpg" for i in range(2000)], "identity": [i // 5 for i in range(2000)]})
        whole = places(every, rule=rule)
        assert all(whole[name] == split for name, split in places(table, rule=rule).items())


@given(st.lists(st.integers(0, 30), min_size=1, max_size=80))
def test_a_person_is_in_one_split(people: list[int]):
    table = pa.table({"name": [str(i) for i in range(len(people))], "identity": people})
    found = places(table, rule="identity")
    assert len({(person, found[str(i)]) for i, person in enumerate(people)}) == len(set(people))


def test_the_official_split_is_kept_and_what_it_lacks_comes_out_of_train():
    table = pa.table({"name": [str(i) for i in range(200)]})
    official = ["train"] * 150 + ["test"] * 50
    found = places(table, official=official)
    assert [found[str(i)] for i in range(150, 200)] == ["test"] * 50
    assert 5 <= list(found.values()).count("valid") <= 30
    assert split_table(table, official)[0] == "official"
    assert split_table(table, None)[0] == "hash"


@pytest.mark.parametrize(
    ("rule", "match"),
    [("official", "no split of its own"), ("identity", "who is on"), ("odd", "one of official, identity, hash")],
)
def test_a_rule_that_cannot_be_followed_is_refused(rule: str, match: str):
    with pytest.raises(ValueError, match=match):
        split_table(pa.table({"name": ["a", "b"]}), None, rule)


def test_a_sample_keeps_the_shares():
    table = pa.table({"name": [str(i) for i in range(1000)]})
    _, splits = split_table(table, ["train"] * 800 + ["valid"] * 100 + ["test"] * 100)
    assert [part.num_rows for part in sample_splits(splits, 50).values()] == [40, 5, 5]
    assert [part.num_rows for part in sample_splits(splits, 5000).values()] == [800, 100, 100]
