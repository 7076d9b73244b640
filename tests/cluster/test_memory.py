"""The memory that a process returns to the system."""

from pathlib import Path

from cluster.memory import release_memory


def anonymous_mb() -> float:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) / 1000


def test_memory_between_blocks_in_use_returns_to_the_system():
    blocks = [bytes(1_000) for _ in range(100_000)]
    last = blocks[-1]
    del blocks
    before = anonymous_mb()
    release_memory()
    assert before - anonymous_mb() > 50
    assert last
