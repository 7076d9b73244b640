"""Load a registered version for serving: rebuild it from safetensors and config, warm it up, compile it."""

import copy
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from aecore.model.autoencoder import Autoencoder, to_float, to_uint8
from serving.runtime.batching import Batcher, BatchFn
from serving.runtime.metrics import EndpointMetrics
from serving.runtime.model_slot import ModelInfo
from serving.runtime.registry import ModelVersion, read_model

log = logging.getLogger(__name__)
WARMUP_BATCH_SIZES = (2, 1, 64)  # any size, the size that torch.compile specialises, the largest size
Network = Callable[[Tensor], Tensor]


class LoadedModel:
    """A model in memory, a `serving.runtime.model_slot.ServedModel`. Its networks run in a thread of their own.

    If it is to be `compiled`, another thread compiles the decoder while it decodes uncompiled: that takes 5 s, a minute
    on a machine that has not compiled one yet.
    """

    def __init__(
        self, info: ModelInfo, model: Autoencoder, *, compiled: bool = True, metrics: EndpointMetrics | None = None
    ):
        self.info, self._model, self._metrics = info, prepare_model(model), metrics or EndpointMetrics()
        executor = ThreadPoolExecutor(1, "model")  # its thread ends when this model is garbage collected
        decode, encode = executor.submit(build_networks, self._model).result()
        self.decode = Batcher("decode", decode, executor=executor, metrics=metrics)
        self.encode = Batcher("encode", encode, executor=executor, metrics=metrics)
        self._metrics.set_compiled(info.alias, False)
        if compiled:
            threading.Thread(target=self._compile, name="compile", daemon=True).start()

    def _compile(self) -> None:
        if decode := compile_decoder(self._model):
            self.decode.batch_fn = decode
            self._metrics.set_compiled(self.info.alias, True)


def load_version(
    version: ModelVersion, *, compiled: bool = True, metrics: EndpointMetrics | None = None
) -> LoadedModel:
    """Load a registered version, ready to serve; on the GPU if this process has one.

    Raises FileNotFoundError or ValueError if its model folder is incomplete or inconsistent.
    """
    saved = read_model(version.source, version.tracking_uri)
    info = ModelInfo(
        version.name, version.version, version.alias, version.run_id, saved.recipe.model_dump(mode="json"),
        saved.model.image, saved.model.z_dim, saved.metrics, saved.latents, version.sampler,
        saved.points,
    )  # fmt: skip
    stats_z_dim = len(saved.latents["mean"])
    if stats_z_dim != info.z_dim:
        raise ValueError(f"the latent statistics have z_dim {stats_z_dim}, the model has {info.z_dim}")
    if info.points and info.points.z.shape[1] != info.z_dim:
        raise ValueError(f"the stored points have z_dim {info.points.z.shape[1]}, the model has {info.z_dim}")
    return LoadedModel(info, saved.model, compiled=compiled, metrics=metrics)


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


def prepare_model(model: Autoencoder) -> Autoencoder:
    """Return a copy that computes the same function faster."""
    model = fold_norms(model)
    # Column-major: at small batches the time goes into reading these weights, the largest of the decoder.
    weight = model.from_latent.weight
    weight.data = weight.data.t().contiguous().t()
    return model


def build_networks(model: Autoencoder) -> tuple[BatchFn, BatchFn]:
    """Return decoder and encoder of a prepared model, warmed up.

    The decoder maps z float32 (n, z_dim) to images uint8 (n, size, size, channels), the encoder images to z.
    """
    z = torch.zeros(1, model.z_dim, device=model.device)
    with torch.inference_mode():
        encode = _warm_up(partial(_encode, model), _decode(model, z))
        decode = _warm_up(partial(_decode, model), z)
    return _on_arrays(decode, model.device), _on_arrays(encode, model.device)


def compile_decoder(model: Autoencoder) -> BatchFn | None:
    """Return the compiled decoder of a prepared model, warmed up; None, and log why, if it cannot be compiled."""
    z = torch.zeros(1, model.z_dim, device=model.device)
    try:
        with torch.inference_mode():
            return _on_arrays(_warm_up(partial(_compiled_decode(), model), z), model.device)
    except Exception as error:  # of many types; the commonest cause is a missing C++ compiler. None is worth an outage
        log.warning("cannot compile the decoder, so it runs uncompiled: %s", " ".join(str(error).split())[:300])
        return None


def _decode(model: Autoencoder, z: Tensor) -> Tensor:
    return to_uint8(torch.sigmoid(model.logits(z)))


def _encode(model: Autoencoder, images: Tensor) -> Tensor:
    return model.encode(to_float(images)).mean


@cache
def _compiled_decode() -> Callable[[Autoencoder, Tensor], Tensor]:
    """Return `_decode` compiled. Weights are its arguments, so the next version of the same shape compiles nothing."""
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    inductor.compile_threads = 1  # no pool of compiler processes beside the server
    dynamo.recompile_limit = 64  # model shapes in the life of a process, two graphs each
    return torch.compile(_decode, dynamic=True)


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
