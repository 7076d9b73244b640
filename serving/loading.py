"""From a registered version to one that answers: rebuilt from safetensors and config, compiled, warmed."""

import copy
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from aecore.model import Autoencoder, to_float, to_uint8
from serving.batching import Batcher
from serving.meters import Meters
from serving.registry import Champion, read_model
from serving.served import Facts

log = logging.getLogger(__name__)
WARM = (2, 1, 64)  # batch sizes: any number, the one that is compiled apart, the largest
Network = Callable[[Tensor], Tensor]


class Loaded:
    """A model in memory, a `serving.served.Served`. Its network runs in one thread of its own."""

    def __init__(self, facts: Facts, model: Autoencoder, *, compiled: bool = True, meters: Meters | None = None):
        self.facts = facts
        thread = ThreadPoolExecutor(1, "model")  # ends when nobody holds this model any more
        network = thread.submit(_networks, model, compiled).result()
        self.decode = Batcher("decode", _on_arrays(network[0], model), executor=thread, meters=meters)
        self.encode = Batcher("encode", _on_arrays(network[1], model), executor=thread, meters=meters)


def load(champion: Champion, device: str = "cpu", *, compiled: bool = True, meters: Meters | None = None) -> Loaded:
    """The model of a registered version, ready to answer.

    Raises FileNotFoundError or ValueError when its folder is not whole or its parts do not fit together.
    """
    saved = read_model(champion.source, champion.tracking_uri, device)
    facts = Facts(
        champion.name, champion.version, champion.alias, champion.run_id, saved.recipe.model_dump(mode="json"),
        saved.model.image, saved.model.z_dim, saved.metrics, saved.latents,
    )  # fmt: skip
    if saved.latents["mean"].shape != (facts.z_dim,):
        raise ValueError(
            f"the latent statistics are of {len(saved.latents['mean'])} components, z_dim is {facts.z_dim}"
        )
    return Loaded(facts, saved.model, compiled=compiled, meters=meters)


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


def _networks(model: Autoencoder, compiled: bool) -> tuple[Network, Network]:
    """Decoder and encoder, warm: float32 z (n, z_dim) to images uint8 (n, size, size, channels), and back."""
    model = fold_norms(model)

    def decode(z: Tensor) -> Tensor:
        return to_uint8(torch.sigmoid(model.logits(z)))

    def encode(images: Tensor) -> Tensor:
        return model.encode(to_float(images)).mean

    device = next(model.parameters()).device
    made = torch.zeros(2, model.z_dim, device=device)
    with torch.inference_mode():
        seen = decode(made)
        for n in WARM[::-1]:
            encode(seen[:1].expand(n, -1, -1, -1).contiguous())
        return (_compile(decode, made) if compiled else _warm(decode, made)), encode


def _compile(network: Network, example: Tensor) -> Network:
    """`network` compiled and warm; itself, with a warning, where this machine has no C++ compiler."""
    import torch._inductor.config as inductor

    inductor.compile_threads = 1  # no pool of compiling processes beside the server
    try:
        return _warm(torch.compile(network, dynamic=True), example)
    except Exception as error:  # the compiler's own kinds are many, and none of them is worth an outage
        log.warning("the decoder runs uncompiled: %s", " ".join(str(error).split())[:300])
        return _warm(network, example)


def _warm(network: Network, example: Tensor) -> Network:
    for n in WARM:
        network(example[:1].expand(n, -1).contiguous())
    return network


def _on_arrays(network: Network, model: Autoencoder) -> Callable[[np.ndarray], np.ndarray]:
    device = next(model.parameters()).device

    def work(items: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(items).to(device)).cpu().numpy()

    return work
