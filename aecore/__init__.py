"""The science of zpoint: images, networks, training, latent space and metrics, without Ray, MLflow or a web server."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `import aecore` stays quick
    import os

    import torch

    from aecore.pretrained import PretrainedModel


def load(path: "str | os.PathLike[str]", device: "torch.device | str" = "cpu") -> "PretrainedModel":
    """Load a finished model to encode, decode, sample and interpolate with.

    `path`: the folder of a run or its model folder, or a registered version that was downloaded; local, file:// or
    s3:// (the AWS variables apply). Raises ValueError if there is no model, or if it does not load.
    """
    from aecore.pretrained import load

    return load(path, device)
