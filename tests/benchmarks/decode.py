"""Compare the decoder as served with the decoder as trained: CPU milliseconds by z-points a call.

    python tests/benchmarks/decode.py [--rounds 200]

One thread, random weights (z_dim 200, 96x96, default channels). The contenders, each with a copy of the weights, are
called in turn, so that no call finds its weights in the CPU cache, as between the requests of a busy machine. Values
are medians; the last column is the ratio to the time of the decoder as trained.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch

from aecore.config import Recipe
from aecore.model.autoencoder import ImageShape, build_model
from serving.runtime.model_loading import build_networks

Z_DIM, SIZES = 200, (1, 2, 3, 4, 8, 16, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    model = build_model(Recipe.model_validate({"model": {"z_dim": Z_DIM}}), ImageShape(96, 3)).eval()
    contenders = {
        "as trained": lambda z: model.decode(torch.from_numpy(z)).numpy(),
        "as served": build_networks(model)[0],
    }
    print(f"| z a call | {' | '.join(contenders)} | ratio |", "|---:" * (len(contenders) + 2) + "|", sep="\n")
    for n in SIZES:
        z = np.random.default_rng(0).standard_normal((n, Z_DIM)).astype(np.float32)
        times_ms: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(max(5, rounds // n)):
            for name, decode in contenders.items():
                start = time.thread_time()
                decode(z)
                times_ms[name].append(1000 * (time.thread_time() - start))
        medians = [statistics.median(values) for values in times_ms.values()]
        print(f"| {n} | {' | '.join(f'{value:.2f}' for value in medians)} | {medians[-1] / medians[0]:.2f} |")


if __name__ == "__main__":
    main()
