"""The export command: a model's decoder or encoder as an ONNX file or a torch.export program, checked before it stays.

A decoder maps `z`, float32 (n, z_dim), to `images`, float32 (n, channels, size, size) in [0, 1]; an encoder maps such
`images` to `z`, the means of q(z|x). n is any number from 1.
"""

import copy
import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import PurePath
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from aecore.data.io import write_atomic
from aecore.model.autoencoder import Autoencoder
from aecore.training.checkpoint import SavedModel
from cluster.settings import absolute_uri
from cluster.storage import check_uri, open_uri
from jobs.run_store import find_run
from serving.runtime.registry import find_model_version, read_model

MAX_DIFFERENCE = 1e-5  # of the outputs, relative to the largest one if that exceeds 1
CHECKED_BATCHES = (1, 2, 7)  # numbers of inputs whose outputs are compared
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
Network = Callable[[Tensor], Tensor]


def export(name: str, format: str, part: str, out: str) -> dict[str, Any]:
    """Export the model of run or alias `name` to the file `out`, and its z statistics beside it.

    `out` is a path or an s3:// URI; files that exist are replaced.
    The exported file is loaded again, by onnxruntime or torch, and its outputs are compared with the model's. Returns
    the files, the shapes and the largest difference. Raises ValueError for an unknown run or alias, another ending of
    `out` or without the packages, and RuntimeError if the outputs differ by 1e-5 or more; nothing is written then.
    """
    uri = absolute_uri(out)
    if PurePath(uri).suffix != f".{format}":
        raise ValueError(f"--format {format} writes a .{format} file: name it so in --out, not '{out}'")
    if format == "onnx" and (missing := [package for package in ONNX_PACKAGES if find_spec(package) is None]):
        raise ValueError(f"--format onnx needs {', '.join(missing)}: `pip install 'zpoint[export]'`")
    check_uri(uri)
    saved, label = _load(name)
    network = (Decoder if part == "decoder" else Encoder)(saved.model).eval()
    write, load = {"onnx": (_to_onnx, _load_onnx), "pt2": (_to_pt2, _load_pt2)}[format]
    data = write(network)
    difference = _compare(network, load(data))
    if not difference < MAX_DIFFERENCE:
        raise RuntimeError(f"the exported {part} differs from the model by {difference:.2g}, so it was not written")
    description = {
        "model": label, "part": part, "input": network.names[0], "output": network.names[1],
        "z_dim": saved.model.z_dim, "image": asdict(saved.model.image),
    }  # fmt: skip
    latents_uri = f"{uri.removesuffix(f'.{format}')}.latents.safetensors"
    tensors = {key: tensor.contiguous() for key, tensor in saved.latents.items()}
    header = {"zpoint": json.dumps(description)}
    write_atomic(*open_uri(latents_uri), save_tensors(tensors, metadata=header))
    write_atomic(*open_uri(uri), data)
    return {"out": uri, "latents": latents_uri, **description, "bytes": len(data), "difference": difference}


class Decoder(nn.Module):
    """z-points to images, with an example of the input."""

    names = ("z", "images")

    def __init__(self, model: Autoencoder):
        super().__init__()
        self.model, self.example = _part(model, "encoder", "to_latent"), _random((2, model.z_dim)) * 4 - 2

    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.model.logits(z))


class Encoder(nn.Module):
    """Images to the means of q(z|x), with an example of the input."""

    names = ("images", "z")

    def __init__(self, model: Autoencoder):
        super().__init__()
        shape = (2, model.image.channels, model.image.size, model.image.size)
        self.model, self.example = _part(model, "from_latent", "decoder"), _random(shape)

    def forward(self, images: Tensor) -> Tensor:
        return self.model.encode(images).mean


def _part(model: Autoencoder, *unused: str) -> Autoencoder:
    """Return a copy without the weights of the `unused` layers; torch.export takes no channels-last ones."""
    part = copy.deepcopy(model)
    for name in unused:
        setattr(part, name, nn.Identity())
    return part.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]


def _random(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def _load(name: str) -> tuple[SavedModel, str]:
    """Return the model of a run, else of the version that alias `name` names, and its label."""
    try:
        run_store = find_run(name)
    except ValueError as no_run:
        try:
            version = find_model_version(name)
        except ValueError:
            raise ValueError(f"{no_run}; nor has a model the alias '{name}'") from None
        saved = read_model(version.source, version.tracking_uri)
        saved.model.cpu()
        return saved, f"{version.name}/{version.version}"
    run_store.check_finished()
    return run_store.load_model(), run_store.name


def _to_onnx(network: Decoder | Encoder) -> bytes:
    with redirect_stdout(io.StringIO()):  # the exporter prints its steps
        program = torch.onnx.export(
            network, (network.example,), dynamo=True, dynamic_shapes=_dynamic_batch(), verbose=False,
            input_names=network.names[:1], output_names=network.names[1:],
        )  # fmt: skip
    assert program is not None
    return program.model_proto.SerializeToString()


def _load_onnx(data: bytes) -> Network:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    [argument] = session.get_inputs()
    return lambda batch: torch.from_numpy(session.run(None, {argument.name: batch.numpy()})[0])


def _to_pt2(network: Decoder | Encoder) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(network, (network.example,), dynamic_shapes=_dynamic_batch()), buffer)
    return buffer.getvalue()


def _load_pt2(data: bytes) -> Network:
    return torch.export.load(io.BytesIO(data)).module()


def _dynamic_batch() -> tuple[dict[int, Any]]:
    return ({0: torch.export.Dim("n", min=1)},)


@torch.inference_mode()
def _compare(network: Decoder | Encoder, exported: Network) -> float:
    """Return the largest difference of the outputs, over the largest output if that exceeds 1; inf for other shapes."""
    difference = 0.0
    for n in CHECKED_BATCHES:
        batch = network.example.repeat(-(-n // 2), *[1] * (network.example.ndim - 1))[:n]
        expected, outputs = network(batch), exported(batch)
        if outputs.shape != expected.shape:
            return float("inf")
        scale = max(1.0, float(expected.abs().max()))
        difference = max(difference, float((outputs - expected).abs().max()) / scale)
    return difference
