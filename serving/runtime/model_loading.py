"""From a registered version to one that answers: rebuilt from safetensors and config, compiled, warmed."""

import copy
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from aecore.errors import one_line
from aecore.model.autoencoder import Autoencoder, to_float, to_uint8
from serving.runtime.batching import Batcher, BatchFn
from serving.runtime.metrics import EndpointMetrics
from serving.runtime.model_slot import ModelInfo
from serving.runtime.registry import ModelVersion, read_model

log = logging.getLogger(__name__)
WARM = (2, 1, 64)  # batch sizes: any number, the one that is compiled apart, the largest
Network = Callable[[Tensor], Tensor]


class LoadedModel:
    """A model in memory, a `serving.runtime.model_slot.ServedModel`. Its network runs in one thread of its own."""

    def __init__(
        self, info: ModelInfo, model: Autoencoder, *, compiled: bool = True, metrics: EndpointMetrics | None = None
    ):
        self.info = info
        thread = ThreadPoolExecutor(1, "model")  # ends when nobody holds this model any more
        decode, encode = thread.submit(build_networks, model, compiled).result()
        self.decode = Batcher("decode", decode, executor=thread, metrics=metrics)
        self.encode = Batcher("encode", encode, executor=thread, metrics=metrics)


def load_version(
    champion: ModelVersion, *, compiled: bool = True, metrics: EndpointMetrics | None = None
) -> LoadedModel:
    """The model of a registered version, ready to answer, on the GPU where this process has one.

    Raises FileNotFoundError or ValueError when its folder is not whole or its parts do not fit together.
    """
    saved = read_model(champion.source, champion.tracking_uri)
    info = ModelInfo(
        champion.name, champion.version, champion.alias, champion.run_id, saved.recipe.model_dump(mode="json"),
        saved.model.image, saved.model.z_dim, saved.metrics, saved.latents,
    )  # fmt: skip
    if saved.latents["mean"].shape != (info.z_dim,):
        raise ValueError(f"the latent statistics are of {len(saved.latents['mean'])} components, z_dim is {info.z_dim}")
    return LoadedModel(info, saved.model, compiled=compiled, metrics=metrics)


def fold_norms(model: Autoencoder) -> Autoencoder:
    """A copy whose batch norms are part of the convolutions before them; the same function, in fewer passes."""
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


def build_networks(model: Autoencoder, compiled: bool) -> tuple[BatchFn, BatchFn]:
    """Decoder and encoder, warm: float32 z (n, z_dim) to images uint8 (n, size, size, channels), and back."""
    model = fold_norms(model)
    # Column by column: a few z-points are decoded in the time that it takes to read these weights, the most of all.
    weight = model.from_latent.weight
    weight.data = weight.data.t().contiguous().t()
    example = torch.zeros(1, model.z_dim, device=model.device)
    with torch.inference_mode():
        encode = _warm(partial(_encode, model), _decode(model, example))
        decode = _warm(_compiled(model, example) if compiled else partial(_decode, model), example)
    return _on_arrays(decode, model.device), _on_arrays(encode, model.device)


def _decode(model: Autoencoder, z: Tensor) -> Tensor:
    return to_uint8(torch.sigmoid(model.logits(z)))


def _encode(model: Autoencoder, images: Tensor) -> Tensor:
    return model.encode(to_float(images)).mean


def _compiled(model: Autoencoder, example: Tensor) -> Network:
    try:
        return _warm(partial(_compiled_decode(), model), example)
    except Exception as error:  # its kinds are many, no C++ compiler the commonest; none is worth an outage
        log.warning("the decoder runs uncompiled: %s", one_line(error))
        return partial(_decode, model)


@cache
def _compiled_decode() -> Callable[[Autoencoder, Tensor], Tensor]:
    """`_decode` compiled once for all models of a kind: weights are arguments, so the next version compiles nothing."""
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    inductor.compile_threads = 1  # no pool of compiling processes beside the server
    dynamo.recompile_limit = 64  # kinds of models that one process may come to serve, two graphs each
    return torch.compile(_decode, dynamic=True)


def _warm(network: Network, example: Tensor) -> Network:
    for n in WARM:
        network(example.expand(n, *example.shape[1:]).contiguous())
    return network


def _on_arrays(network: Network, device: torch.device) -> BatchFn:
    def work(items: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(items).to(device)).cpu().numpy()

    return work
