"""Folders of weights: checkpoints to go on from, and finished models to serve.

A checkpoint `step-00001250/` holds model.safetensors, optimizer.safetensors, config.json and, written last,
progress.json with the sha256 of the others: without a fitting progress.json a folder counts as absent, so a
checkpoint is whole or not there, on a disk as on S3. A model folder holds model.safetensors, config.json,
latents.safetensors (statistics of the z-points) and metrics.json. Nothing is pickled.
"""

import json
import logging
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow.fs as pafs
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from aecore.config import Recipe, check_recipe
from aecore.files import read_bytes, read_json, sha256, write_json, write_whole
from aecore.model import Autoencoder, ImageShape, build_model

log = logging.getLogger(__name__)
FILES = ("config.json", "model.safetensors", "optimizer.safetensors")


@dataclass
class Progress:
    """How far a run has come: whole epochs, optimizer steps and images in all, and the open epoch's sums."""

    epochs: int = 0
    step: int = 0
    samples: int = 0
    sums: dict[str, float] = field(default_factory=dict)


def save_checkpoint(
    fs: pafs.FileSystem, root: str, model: Autoencoder, optimizer: torch.optim.Optimizer, recipe: Recipe,
    progress: Progress,
) -> str:  # fmt: skip
    """Write `root/step-NNNNNNNN` whole or not at all, prune to `recipe.checkpoint.keep`; gives its path."""
    path = f"{root}/step-{progress.step:08d}"
    contents = {
        "config.json": json.dumps(_config(model, recipe), indent=1).encode(),
        "model.safetensors": save_tensors(_plain(model.state_dict())),
        "optimizer.safetensors": save_tensors(_flatten_optimizer(optimizer)),
    }
    for name in FILES:
        write_whole(fs, f"{path}/{name}", contents[name])
    digests = {name: sha256(data) for name, data in contents.items()}
    write_json(fs, f"{path}/progress.json", asdict(progress) | {"sha256": digests})
    for old in list_checkpoints(fs, root)[recipe.checkpoint.keep :]:
        fs.delete_dir(old)
    return path


def list_checkpoints(fs: pafs.FileSystem, root: str) -> list[str]:
    """Paths of the checkpoint folders under `root`, newest first, whole or not."""
    found = fs.get_file_info(pafs.FileSelector(root, allow_not_found=True))
    return sorted((f.path for f in found if f.base_name.startswith("step-")), reverse=True)


def load_checkpoint(fs: pafs.FileSystem, root: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Fill `model` and `optimizer` from the newest whole checkpoint under `root`; a new Progress when there is none.

    A damaged or half-written checkpoint is passed over, with a warning, for the one before it.
    """
    for path in list_checkpoints(fs, root):
        try:
            progress = read_json(fs, f"{path}/progress.json")
            contents = {name: read_bytes(fs, f"{path}/{name}") for name in FILES}
            digests = progress.pop("sha256")
            if any(sha256(data) != digests[name] for name, data in contents.items()):
                raise ValueError("a file's sha256 differs")
        except (OSError, ValueError, KeyError) as error:
            log.warning("checkpoint %s is damaged (%s); going back to the one before", path, error)
            continue
        model.load_state_dict(load_tensors(contents["model.safetensors"]))
        _fill_optimizer(optimizer, load_tensors(contents["optimizer.safetensors"]))
        return Progress(**progress)
    return Progress()


def save_model(
    fs: pafs.FileSystem, path: str, model: Autoencoder, recipe: Recipe, latents: dict[str, Tensor],
    metrics: dict[str, float],
) -> None:  # fmt: skip
    """Write a model folder; config.json comes last, so a folder with one is whole."""
    write_whole(fs, f"{path}/model.safetensors", save_tensors(_plain(model.state_dict())))
    write_whole(fs, f"{path}/latents.safetensors", save_tensors(_plain(latents)))
    write_json(fs, f"{path}/metrics.json", metrics)
    write_json(fs, f"{path}/config.json", _config(model, recipe))


@dataclass(frozen=True)
class SavedModel:
    model: Autoencoder
    recipe: Recipe
    latents: dict[str, Tensor]
    metrics: dict[str, float]


def load_model(fs: pafs.FileSystem, path: str, device: str = "cpu") -> SavedModel:
    """The model of a model folder, in eval mode on `device`, rebuilt from its config and safetensors alone.

    Raises FileNotFoundError when a file is missing, ValueError when weights and config do not fit together.
    """
    config = read_json(fs, f"{path}/config.json")
    recipe = check_recipe(config["recipe"])
    model = build_model(recipe, ImageShape(**config["image"]))
    try:
        model.load_state_dict(load_tensors(read_bytes(fs, f"{path}/model.safetensors")))
    except RuntimeError as error:
        raise ValueError(f"the weights in {path} do not fit its config: {error}") from error
    return SavedModel(
        model=model.eval().requires_grad_(False).to(device),
        recipe=recipe,
        latents=load_tensors(read_bytes(fs, f"{path}/latents.safetensors")),
        metrics=read_json(fs, f"{path}/metrics.json"),
    )


def _config(model: Autoencoder, recipe: Recipe) -> dict[str, Any]:
    return {"recipe": recipe.model_dump(mode="json"), "image": asdict(model.image)}


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    # Adam's state is tensors per parameter; its options come from the recipe.
    state = optimizer.state_dict()["state"]
    return _plain({f"{i}.{key}": value for i, part in state.items() for key, value in part.items()})


def _fill_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    # Fused Adam walks parameter and moments in memory order: they must be laid out alike (channels last).
    for parameter, moments in optimizer.state.items():
        for key, value in moments.items():
            if value.shape == parameter.shape:
                moments[key] = torch.empty_like(parameter).copy_(value)
