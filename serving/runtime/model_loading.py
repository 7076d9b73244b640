"""Load a registered version for serving: rebuild it from safetensors and config, make it faster, warm it up.

Nothing is compiled: on a CPU that gains 2 % at most, and while torch.compile traces in one thread, modules that another
one calls raise errors.
"""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from aecore.errors import one_line
from aecore.latent.directions import DIRECTION_PREFIX
from aecore.latent.samplers import sample
from aecore.model.autoencoder import Autoencoder, to_float
from serving.runtime.batching import Batcher, BatchFn
from serving.runtime.metrics import EndpointMetrics
from serving.runtime.model_slot import ModelInfo
from serving.runtime.registry import ModelVersion, read_model

WARMUP_BATCH_SIZES = (1, 64)  # the smallest and the largest
Network = Callable[[Tensor], Tensor]


class LoadedModel:
    """A model in memory, a `serving.runtime.model_slot.ServedModel`. Its networks run in a thread of their own."""

    def __init__(self, info: ModelInfo, model: Autoencoder, *, metrics: EndpointMetrics | None = None):
        self.info = info
        executor = ThreadPoolExecutor(1, "model")  # its thread ends when this model is garbage collected
        decode, encode = executor.submit(build_networks, model).result()
        self.decode = Batcher("decode", decode, executor=executor, metrics=metrics)
        self.encode = Batcher("encode", encode, executor=executor, metrics=metrics)


def load_version(version: ModelVersion, *, metrics: EndpointMetrics | None = None) -> LoadedModel:
    """Load a registered version, ready to serve; on the GPU if this process has one.

    Raises FileNotFoundError or ValueError if its model folder is incomplete or inconsistent.
    """
    saved = read_model(version.source, version.tracking_uri)
    info = ModelInfo(
        version.name, version.version, version.alias, version.run_id, saved.recipe.model_dump(mode="json"),
        saved.model.image, saved.model.z_dim, saved.metrics, saved.latents, version.sampler,
        saved.points,
    )  # fmt: skip
    _check_description(info)
    if info.points and info.points.z.shape[1] != info.z_dim:
        raise ValueError(f"the stored points have z_dim {info.points.z.shape[1]}, the model has {info.z_dim}")
    return LoadedModel(info, saved.model, metrics=metrics)


def _check_description(info: ModelInfo) -> None:
    """Raise ValueError if the metrics or the latent statistics are not as the routes need them."""
    try:
        _ = info.finite_metrics
    except (AttributeError, TypeError) as error:
        raise ValueError(f"the metrics are not numbers by name: {one_line(error)}") from error
    latents, z_dim = info.latents, info.z_dim
    shapes = {name: (z_dim,) for name in latents if name.startswith(DIRECTION_PREFIX)}
    shapes |= {"mean": (z_dim,), "covariance": (z_dim, z_dim)}
    if "gmm_weights" in latents:
        k = len(latents["gmm_weights"])
        shapes |= {"gmm_means": (k, z_dim), "gmm_factors": (k, z_dim, z_dim)}
    if missing := shapes.keys() - latents.keys():
        raise ValueError(f"the latent statistics lack {', '.join(sorted(missing))}")
    stats_z_dim = len(latents["mean"])
    if stats_z_dim != z_dim:
        raise ValueError(f"the latent statistics have z_dim {stats_z_dim}, the model has {z_dim}")
    if damaged := [name for name, shape in shapes.items() if latents[name].shape != shape]:
        raise ValueError(f"the latent statistics have another shape: {', '.join(damaged)}")
    if not latents["mean"].isfinite().all():
        raise ValueError("the latent statistics are damaged: the mean is not finite")
    try:
        _ = info.latent_space  # kept for the routes
        damaged = [name for name in info.samplers if not sample(name, 1, latents, seed=0).isfinite().all()]
    except (RuntimeError, IndexError) as error:  # of torch.linalg and torch.multinomial
        raise ValueError(f"the latent statistics are damaged: {one_line(error)}") from error
    if damaged:
        raise ValueError(f"the latent statistics are damaged: z-points of {', '.join(damaged)} are not finite")


def fold_norms(model: Autoencoder) -> Autoencoder:
    """Return a copy with the batch norms folded into the convolutions before them: the same function, faster."""
    model = copy.deepcopy(model)
    for name, transposed in (("encoder", False), ("decoder", True)):
        layers: list[nn.Module] = []
        for layer in getattr(model, name):
            if isinstance(layer, nn.BatchNorm2d):
                layers[-1] = fuse_conv_bn_eval(layers[-1], layer, transpose=transposed)  # pyright: ignore
            else:
                layers.append(layer)
        setattr(model, name, nn.Sequential(*layers))
    return model


def build_networks(model: Autoencoder) -> tuple[BatchFn, BatchFn]:
    """Return decoder and encoder of a copy of `model` that computes the same function faster, warmed up.

    The decoder maps z float32 (n, z_dim) to images uint8 (n, size, size, channels), the encoder images to z.
    """
    model = fold_norms(model)
    # Column-major: at small batches the time goes into reading these weights, the largest of the decoder.
    weight = model.from_latent.weight
    weight.data = weight.data.t().contiguous().t()
    z = torch.zeros(1, model.z_dim, device=model.device)
    with torch.inference_mode():
        encode = _warm_up(partial(_encode, model), model.decode(z))
        decode = _warm_up(model.decode, z)
    return _on_arrays(decode, model.device), _on_arrays(encode, model.device)


def _encode(model: Autoencoder, images: Tensor) -> Tensor:
    return model.encode(to_float(images)).mean


def _warm_up(network: Network, example: Tensor) -> Network:
    for batch_size in WARMUP_BATCH_SIZES:
        network(example.expand(batch_size, *example.shape[1:]).contiguous())
    return network


def _on_arrays(network: Network, device: torch.device) -> BatchFn:
    """Wrap a network so that it maps numpy arrays to numpy arrays."""

    def batch_fn(items: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(items).to(device)).cpu().numpy()

    return batch_fn
