"""Where a training's images come from, and what shows of it."""

from pathlib import Path

import pyarrow.fs as pafs
import torch

from aecore.config import Recipe
from aecore.data.dataset import Dataset
from aecore.data.shuffle import World
from jobs.train.loaders import open_loaders

FS = pafs.LocalFileSystem()


def test_the_filling_of_the_node_cache_shows_once(faces: Path):
    dataset, seen = Dataset.open(FS, str(faces)), []
    for expected in ([(done, 48) for done in (16, 32, 48)] + [(16, 16)] * 2, []):
        seen.clear()
        feeds = open_loaders(
            Recipe(),
            dataset,
            World(),
            torch.device("cpu"),
            show=lambda done, total, text: seen.append((text, done, total)),
        )
        assert [len(feed) for feed in feeds.values()] == [48, 16, 16]
        assert [each[1:] for each in seen] == expected
        assert {each[0] for each in seen} == {f"filling the node cache: {split}" for split in feeds if expected}
