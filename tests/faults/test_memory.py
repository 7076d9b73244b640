"""Private memory of a worker is small and constant for any dataset: 200,000 images of 32x32x3 in a sparse file."""

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

def private_mb():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024

shard = {"path": "x.parquet", "rows": 200_000, "bytes": 1, "sha256": "0" * 64}
manifest = Manifest(dataset="x", options={}, size=32, channels=3, encoding="jpeg", splits={"train": [shard]})
entry = Path(sys.argv[1]) / f"{manifest.digest[:16]}-train"
entry.mkdir(parents=True)
with open(entry / "images.u8", "wb") as file:
    file.truncate(200_000 * 32 * 32 * 3)
time.sleep(0.05)
(entry / "complete.json").write_text("{}")
start_mb = private_mb()
images = open_cache(Path(sys.argv[1]), Dataset(pafs.LocalFileSystem(), "", manifest), "train")
loader = NodeLoader(images, BatchSampler(0, 256), torch.device("cpu"))
epoch_mb, count = [], 0
for epoch in range(4):
    for batch in loader.batches(epoch):
        count += len(batch.images)
    epoch_mb.append(private_mb() - start_mb)
loader.spaced_images(4096)
print(json.dumps({"images": count, "epoch_mb": epoch_mb, "end_mb": private_mb() - start_mb}))
"""


def test_private_memory_is_small_and_constant(tmp_path: Path):
    repo = Path(__file__).parent.parent.parent
    command = [sys.executable, "-c", WORKER, str(tmp_path / "cache")]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["images"] == 4 * 200_000
    assert max(result["epoch_mb"]) < 100, result
    assert result["epoch_mb"][-1] < result["epoch_mb"][0] + 10, result
    assert result["end_mb"] < 150, result
