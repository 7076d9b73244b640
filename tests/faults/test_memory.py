"""A worker's private memory stays small and flat, however large the set: 200,000 images of 32x32x3 in a sparse file."""

import json
import subprocess
import sys
from pathlib import Path

WORKER = """
import json, sys, time
from pathlib import Path
import pyarrow.fs as pafs
import torch
from aecore.data.dataset import Dataset
from aecore.data.node_cache import open_cache
from aecore.data.loaders import NodeLoader
from aecore.data.shuffle import BatchSampler
from aecore.data.shards import Manifest

def private():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024

shard = {"path": "x.parquet", "rows": 200_000, "bytes": 1, "sha256": "0" * 64}
manifest = Manifest(dataset="x", options={}, size=32, channels=3, encoding="jpeg", splits={"train": [shard]})
place = Path(sys.argv[1]) / f"{manifest.digest[:16]}-train"
place.mkdir(parents=True)
with open(place / "images.u8", "wb") as file:
    file.truncate(200_000 * 32 * 32 * 3)
time.sleep(0.05)
(place / "complete.json").write_text("{}")
bare = private()
images = open_cache(Path(sys.argv[1]), Dataset(pafs.LocalFileSystem(), "", manifest), "train")
feed = NodeLoader(images, BatchSampler(0, 256), torch.device("cpu"))
told, seen = [], 0
for epoch in range(4):
    for batch in feed.batches(epoch):
        seen += len(batch.images)
    told.append(private() - bare)
feed.spaced_images(4096)
print(json.dumps({"seen": seen, "told": told, "after": private() - bare}))
"""


def test_private_memory_is_small_and_flat(tmp_path: Path):
    repo = Path(__file__).parent.parent.parent
    command = [sys.executable, "-c", WORKER, str(tmp_path / "cache")]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["seen"] == 4 * 200_000
    assert max(result["told"]) < 100, result
    assert result["told"][-1] < result["told"][0] + 10, result
    assert result["after"] < 150, result
