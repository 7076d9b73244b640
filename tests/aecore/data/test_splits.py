import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aecore.data.splits import SPLITS, sample_splits, split_table


def split_by_name(table: pa.Table, *, official: list[str] | None = None, rule: str | None = None) -> dict[str, str]:
    """Return the split of each name, and check that each row is in exactly one."""
    _, splits = split_table(table, official, rule)
    assert tuple(splits) == SPLITS
    assert sum(rows.num_rows for rows in splits.values()) == table.num_rows
    return {name: split for split, rows in splits.items() for name in rows["name"].to_pylist()}


names = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=9), unique=True, min_size=1, max_size=60)


@given(names)
def test_each_row_is_in_one_split_and_train_is_not_empty(row_names: list[str]):
    by_name = split_by_name(pa.table({"name": row_names}))
    assert set(by_name) == set(row_names)
    assert len(row_names) < 30 or "train" in by_name.values()


def test_proportions_are_80_10_10_for_each_rule():
    table = pa.table({"name": [f"{i}.jpg" for i in range(20_000)], "identity": [i // 2 for i in range(20_000)]})
    for rule in ("hash", "identity"):
        splits = list(split_by_name(table, rule=rule).values())
        assert abs(splits.count("valid") / 20_000 - 0.1) < 0.01
        assert abs(splits.count("test") / 20_000 - 0.1) < 0.01


@given(st.integers(0, 2**32), st.integers(500, 2000))
def test_the_split_of_a_row_is_independent_of_other_rows(seed: int, count: int):
    indices = np.random.default_rng(seed).permutation(2000)[:count].tolist()
    table = pa.table({"name": [f"{i}.jpg" for i in indices], "identity": [i // 5 for i in indices]})
    for rule in ("hash", "identity"):
        full_table = pa.table({"name": [f"{i}.jpg" for i in range(2000)], "identity": [i // 5 for i in range(2000)]})
        full_splits = split_by_name(full_table, rule=rule)
        assert all(full_splits[name] == split for name, split in split_by_name(table, rule=rule).items())


@given(st.lists(st.integers(0, 30), min_size=1, max_size=80))
def test_images_of_a_person_are_in_one_split(people: list[int]):
    table = pa.table({"name": [str(i) for i in range(len(people))], "identity": people})
    splits = split_by_name(table, rule="identity")
    assert len({(person, splits[str(i)]) for i, person in enumerate(people)}) == len(set(people))


def test_official_splits_are_kept_and_missing_ones_are_taken_from_train():
    table = pa.table({"name": [str(i) for i in range(200)]})
    official = ["train"] * 150 + ["test"] * 50
    splits = split_by_name(table, official=official)
    assert [splits[str(i)] for i in range(150, 200)] == ["test"] * 50
    assert 5 <= list(splits.values()).count("valid") <= 30
    assert split_table(table, official)[0] == "official"
    assert split_table(table, None)[0] == "hash"


@pytest.mark.parametrize(
    ("rule", "match"),
    [("official", "no official splits"), ("identity", "no identities"), ("odd", "one of official, identity, hash")],
)
def test_a_rule_without_its_column_is_refused(rule: str, match: str):
    with pytest.raises(ValueError, match=match):
        split_table(pa.table({"name": ["a", "b"]}), None, rule)


def test_a_sample_keeps_the_proportions():
    table = pa.table({"name": [str(i) for i in range(1000)]})
    _, splits = split_table(table, ["train"] * 800 + ["valid"] * 100 + ["test"] * 100)
    assert [rows.num_rows for rows in sample_splits(splits, 50).values()] == [40, 5, 5]
    assert [rows.num_rows for rows in sample_splits(splits, 5000).values()] == [800, 100, 100]
