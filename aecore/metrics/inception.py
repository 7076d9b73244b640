"""FID, KID, precision and recall in the features of an Inception network, where its weights lie in a local file.

Heusel 2017, Binkowski 2018, Kynkaanniemi 2019, as torch-fidelity computes them. Nothing is downloaded.
"""

from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from torch.utils.data import Dataset

from aecore.data.io import sha256
from aecore.metrics.distribution import FrechetDistance

KID_SUBSET = 1_000  # images that one estimate of KID takes, of which it is the mean
BATCH = 64
LAYER = "2048"  # whose features, as many, all four figures compare
MetricFn = Callable[[np.ndarray], dict[str, float]]


class _Images(Dataset):
    def __init__(self, images: np.ndarray):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = torch.from_numpy(np.array(self.images[index])).permute(2, 0, 1)
        return image.expand(3, -1, -1).contiguous()


class Inception:
    """The network with the weights of one file, whose sha256 is `digest`."""

    def __init__(self, weights: Path) -> None:
        """`weights`: torch-fidelity's file of the network, weights-inception-2015-12-05-6726825d.pth.

        Raises ValueError where it or the package is missing, or where it is another file.
        """
        if not weights.is_file():
            raise ValueError(f"no Inception weights at {weights}: name torch-fidelity's file of them")
        try:
            torch.load(weights, map_location="cpu", weights_only=True)  # torch-fidelity would run what a pickle says
        except (UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(f"{weights} is no file of weights alone, and is not read") from error
        try:
            from torch_fidelity.utils import create_feature_extractor  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ValueError("FID and KID need the package torch-fidelity: pip install zpoint[inception]") from error
        try:
            self._network = create_feature_extractor(
                "inception-v3-compat", [LAYER], cuda=torch.cuda.is_available(), verbose=False,
                feature_extractor_weights_path=str(weights),
            )  # fmt: skip
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(f"{weights} holds other weights than those of torch-fidelity's Inception") from error
        self.digest = sha256(weights.read_bytes())

    def metric_fn(self, reference: np.ndarray) -> MetricFn:
        """What gives `fid`, `kid`, `precision` and `recall` of images against `reference`.

        Both uint8 (n, size, size, 1 or 3). The reference's features are computed once.
        """
        from torch_fidelity.metric_kid import kid_features_to_metric  # pyright: ignore[reportMissingImports]
        from torch_fidelity.metric_prc import prc_features_to_metric  # pyright: ignore[reportMissingImports]

        wanted = self._features(reference)
        distance = FrechetDistance(wanted.numpy())

        def scored(images: np.ndarray) -> dict[str, float]:
            features = self._features(images)
            subset = min(KID_SUBSET, len(features), len(wanted))
            kid = kid_features_to_metric(features, wanted, kid_subset_size=subset, verbose=False)
            near = prc_features_to_metric(features, wanted, save_cpu_ram=True, verbose=False)
            return {
                "fid": distance(features.numpy()), "kid": kid["kernel_inception_distance_mean"],
                "precision": near["precision"], "recall": near["recall"],
            }  # fmt: skip

        return scored

    def _features(self, images: np.ndarray) -> torch.Tensor:
        from torch_fidelity.utils import get_featuresdict_from_dataset  # pyright: ignore[reportMissingImports]

        found = get_featuresdict_from_dataset(
            _Images(images), self._network, BATCH, torch.cuda.is_available(),
            save_cpu_ram=True, verbose=False,  # the former: no worker processes
        )  # fmt: skip
        return found[LAYER]
