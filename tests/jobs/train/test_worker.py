"""The loaders of a training worker, and the progress that they show."""

from pathlib import Path

from aecore.config import Recipe
from jobs.dataset import open_dataset
from jobs.train.worker import Worker, open_loaders


def test_progress_shows_only_the_first_filling_of_the_node_cache(faces: Path):
    calls: list[tuple[str, int, int]] = []

    def record(done: int, total: int, text: str) -> None:
        calls.append((text, done, total))

    filling = [("train", done, 48) for done in (16, 32, 48)] + [("valid", 16, 16), ("test", 16, 16)]
    for expected in (filling, []):
        calls.clear()
        loaders = open_loaders(Recipe(), open_dataset(str(faces)), Worker(show_progress=record))
        assert [len(loader) for loader in loaders.values()] == [48, 16, 16]
        assert calls == [(f"filling the node cache: {split}", done, total) for split, done, total in expected]
