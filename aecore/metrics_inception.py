"""FID, KID, precision and recall in the features of an Inception network, where its weights lie in a local file.

Heusel 2017, Binkowski 2018, Kynkaanniemi 2019, as torch-fidelity computes them. Nothing is downloaded.
"""

from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from torch.utils.data import Dataset

KID_SUBSET = 1_000


class _Images(Dataset):
    def __init__(self, images: np.ndarray):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = torch.from_numpy(np.array(self.images[index])).permute(2, 0, 1)
        return image.expand(3, -1, -1).contiguous()


def inception_scores(images: np.ndarray, reference: np.ndarray, weights: Path) -> dict[str, float]:
    """`fid`, `kid`, `precision` and `recall` of `images` against `reference`, both uint8 (n, size, size, channels).

    `weights`: torch-fidelity's file of the network, weights-inception-2015-12-05-6726825d.pth. Raises ValueError where
    that file or the package is missing, or the file holds more than tensors.
    """
    if not weights.is_file():
        raise ValueError(f"no Inception weights at {weights}: name torch-fidelity's file of them")
    try:
        torch.load(weights, weights_only=True, mmap=True)  # torch-fidelity itself would run what a pickle says
    except UnpicklingError as error:
        raise ValueError(f"{weights} holds more than weights, and is not read") from error
    try:
        from torch_fidelity import calculate_metrics  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError("FID and KID need the package torch-fidelity: pip install zpoint[inception]") from error
    found = calculate_metrics(
        input1=_Images(images), input2=_Images(reference), fid=True, kid=True, prc=True,
        feature_extractor="inception-v3-compat", feature_layer_prc="2048",  # by default precision wants VGG's weights
        feature_extractor_weights_path=str(weights), cuda=torch.cuda.is_available(), cache=False, verbose=False,
        save_cpu_ram=True,  # no worker processes
        kid_subset_size=min(KID_SUBSET, len(images), len(reference)),
    )  # fmt: skip
    return {
        "fid": found["frechet_inception_distance"],
        "kid": found["kernel_inception_distance_mean"],
        "precision": found["precision"],
        "recall": found["recall"],
    }
