"""Splits of a dataset into train, valid and test: the source's own or drawn by a hash of the names."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from aecore.data.io import sha256

SPLITS = ("train", "valid", "test")
RULES = ("official", "identity", "hash")
HASH_RANGES = {"valid": (0.0, 0.1), "test": (0.1, 0.2)}  # train has the rest


def split_table(
    table: pa.Table, official: Sequence[str] | None, rule: str | None = None
) -> tuple[str, dict[str, pa.Table]]:
    """Return the rule that was applied and the rows (column `name`) of each of SPLITS.

    'official' takes each row's split from `official`; if that has no valid or no test, a tenth of train becomes it by
    hash. 'hash' draws 80/10/10 from the names, 'identity' from the column of that name, so that a person is in one
    split only. A row's draw is independent of the other rows, except in a table so small that a split stays empty:
    then the lowest hash goes to it. None means 'official' if it is there, else 'hash'. Raises ValueError when the
    table lacks what the rule needs.
    """
    rule = rule or ("hash" if official is None else "official")
    if rule not in RULES:
        raise ValueError(f"unknown split {rule!r}; it is one of {', '.join(RULES)}")
    if rule == "official" and official is None:
        raise ValueError("this source has no official splits: leave --split out or use --split hash")
    if rule == "identity" and "identity" not in table.column_names:
        raise ValueError("this source has no identities: leave --split out or use --split hash")
    keys = table["identity" if rule == "identity" else "name"].to_pylist()
    hashes = hash_names([str(key) for key in keys])
    split_names = official if rule == "official" and official is not None else ["train"] * table.num_rows
    assigned = np.array(split_names, dtype="U5")
    for split, (low, high) in HASH_RANGES.items():
        train = assigned == "train"
        if not (assigned == split).any() and len(np.unique(hashes[train])) > 2:
            chosen = train & (hashes >= low) & (hashes < high)
            if not chosen.any():
                chosen = train & (hashes == hashes[train].min())
            assigned[chosen] = split
    return rule, {split: table.filter(pa.array(assigned == split)) for split in SPLITS}


def sample_splits(splits: dict[str, pa.Table], limit: int) -> dict[str, pa.Table]:
    """Return `limit` rows in the proportions of the splits: of each the rows of lowest hash, in their order."""
    ends = np.cumsum([0] + [table.num_rows for table in splits.values()])
    counts = np.diff(np.minimum(limit, ends[-1]) * ends // ends[-1])
    sampled = {}
    for (split, table), count in zip(splits.items(), counts.tolist(), strict=True):
        chosen = np.sort(np.argsort(hash_names(table["name"].to_pylist()), kind="stable")[:count])
        sampled[split] = table.take(chosen)
    return sampled


def hash_names(names: list[str]) -> np.ndarray:
    """Return a number in [0, 1) for each name, float64 (n,), the same on any machine."""
    return np.array([int(sha256(name.encode())[:12], 16) for name in names], np.float64) / 16**12
