"""FID, KID, precision and recall in the features of an Inception network whose weights are in a local file.

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

KID_SUBSET = 1_000  # images in each of the subsets over which KID is averaged
BATCH = 64
LAYER = "2048"  # its 2,048 features are those of all four metrics
MetricFn = Callable[[np.ndarray], dict[str, float]]


class _ImageDataset(Dataset):
    """Images uint8 (n, size, size, 1 or 3) as tensors uint8 (3, size, size)."""

    def __init__(self, images: np.ndarray):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = torch.from_numpy(np.array(self.images[index])).permute(2, 0, 1)
        return image.expand(3, -1, -1).contiguous()


class Inception:
    """An Inception network; `digest` is the sha256 of its weights file."""

    def __init__(self, weights: Path) -> None:
        """`weights`: torch-fidelity's file of the network, weights-inception-2015-12-05-6726825d.pth.

        Raises ValueError if the file or torch-fidelity is missing, or the file holds something else.
        """
        if not weights.is_file():
            raise ValueError(f"no Inception weights at {weights}: name torch-fidelity's file of them")
        try:
            torch.load(weights, map_location="cpu", weights_only=True)  # torch-fidelity would execute a pickle's code
        except (UnpicklingError, RuntimeError, EOFError) as error:
            raise ValueError(
                f"{weights} does not hold weights alone, so it is not loaded: name torch-fidelity's file"
            ) from error
        try:
            from torch_fidelity.utils import create_feature_extractor  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ValueError("FID and KID need torch-fidelity: `pip install 'zpoint[inception]'`") from error
        try:
            self._network = create_feature_extractor(
                "inception-v3-compat", [LAYER], cuda=torch.cuda.is_available(), verbose=False,
                feature_extractor_weights_path=str(weights),
            )  # fmt: skip
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(f"{weights} holds other weights than those of torch-fidelity's Inception") from error
        self.digest = sha256(weights.read_bytes())

    def metric_fn(self, reference: np.ndarray) -> MetricFn:
        """Return a function that computes `fid`, `kid`, `precision` and `recall` of images against `reference`.

        Both uint8 (n, size, size, 1 or 3). The features of the reference are computed once.
        """
        from torch_fidelity.metric_kid import kid_features_to_metric  # pyright: ignore[reportMissingImports]
        from torch_fidelity.metric_prc import prc_features_to_metric  # pyright: ignore[reportMissingImports]

        reference_features = self._features(reference)
        frechet_distance = FrechetDistance(reference_features.numpy())

        def compute_metrics(images: np.ndarray) -> dict[str, float]:
            features = self._features(images)
            subset = min(KID_SUBSET, len(features), len(reference_features))
            kid = kid_features_to_metric(features, reference_features, kid_subset_size=subset, verbose=False)
            prc = prc_features_to_metric(features, reference_features, save_cpu_ram=True, verbose=False)
            return {
                "fid": frechet_distance(features.numpy()), "kid": kid["kernel_inception_distance_mean"],
                "precision": prc["precision"], "recall": prc["recall"],
            }  # fmt: skip

        return compute_metrics

    def _features(self, images: np.ndarray) -> torch.Tensor:
        from torch_fidelity.utils import get_featuresdict_from_dataset  # pyright: ignore[reportMissingImports]

        features = get_featuresdict_from_dataset(
            _ImageDataset(images), self._network, BATCH, torch.cuda.is_available(),
            save_cpu_ram=True, verbose=False,  # save_cpu_ram: no worker processes
        )  # fmt: skip
        return features[LAYER]
