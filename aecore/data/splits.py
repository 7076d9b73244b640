"""Which images train, which validate, which test: by the source's own word or by a hash, the same everywhere."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from aecore.data.io import sha256

SPLITS = ("train", "valid", "test")
RULES = ("official", "identity", "hash")
SHARES = {"valid": (0.0, 0.1), "test": (0.1, 0.2)}  # of the hashes' range; the rest is train


def split_table(
    table: pa.Table, official: Sequence[str] | None, rule: str | None = None
) -> tuple[str, dict[str, pa.Table]]:
    """Give the rule that was followed and the rows (column `name`) of each of SPLITS.

    'official' takes the split that `official` names for each row; where that has no valid or no test, a tenth of
    train becomes it by hash. 'hash' draws 80/10/10 from the names, 'identity' from the column of that name, so
    that a person is in one split only. No row's draw depends on the other rows, but in a set so small that a
    split stays empty: there the lowest draw goes to it. None is 'official' where there is one, else 'hash'.
    Raises ValueError when the table has not what the rule needs.
    """
    rule = rule or ("hash" if official is None else "official")
    if rule not in RULES:
        raise ValueError(f"unknown split {rule!r}; it is one of {', '.join(RULES)}")
    if rule == "official" and official is None:
        raise ValueError("this source names no split of its own: --split takes hash here")
    if rule == "identity" and "identity" not in table.column_names:
        raise ValueError("this source does not say who is on an image: --split takes identity only where it does")
    keys = table["identity" if rule == "identity" else "name"].to_pylist()
    draws = hashes([str(key) for key in keys])
    given = official if rule == "official" and official is not None else ["train"] * table.num_rows
    assigned = np.array(given, dtype="U5")
    for split, (start, end) in SHARES.items():
        train = assigned == "train"
        if not (assigned == split).any() and len(np.unique(draws[train])) > 2:
            chosen = train & (draws >= start) & (draws < end)
            if not chosen.any():
                chosen = train & (draws == draws[train].min())
            assigned[chosen] = split
    return rule, {split: table.filter(pa.array(assigned == split)) for split in SPLITS}


def sample_splits(splits: dict[str, pa.Table], limit: int) -> dict[str, pa.Table]:
    """Give `limit` rows in all, each split its share of them: those with the lowest hashes, in their order."""
    ends = np.cumsum([0] + [table.num_rows for table in splits.values()])
    shares = np.diff(np.minimum(limit, ends[-1]) * ends // ends[-1])
    sampled = {}
    for (split, table), share in zip(splits.items(), shares.tolist(), strict=True):
        chosen = np.sort(np.argsort(hashes(table["name"].to_pylist()), kind="stable")[:share])
        sampled[split] = table.take(chosen)
    return sampled


def hashes(names: list[str]) -> np.ndarray:
    """Give a number in [0, 1) for each name, float64 (n,), the same everywhere."""
    return np.array([int(sha256(name.encode())[:12], 16) for name in names], np.float64) / 16**12
