"""A finished run as an MLflow model: zpoint's model folder, and beside it what `mlflow.pyfunc.load_model` needs.

config.json, *.safetensors, metrics.json   what the endpoint and `aecore.load` read
samples.png                                the last epoch's images and decoded random z-points
MLmodel, pyfunc_model.py, code/aecore      MLflow's models from code: Python source, nothing pickled
requirements.txt, conda.yaml, ...          the packages that this source imports, at the installed versions
input_example.json                         two z-points
"""

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.fs as pafs

import aecore
from aecore.config import STORED_SAMPLERS
from aecore.data.io import read_bytes
from jobs.run_store import RunStore, epoch_path

if TYPE_CHECKING:  # torch
    from aecore.training.checkpoint import SavedModel

MODEL_FILES = ("config.json", "latents.safetensors", "metrics.json", "model.safetensors")
SAMPLES = "samples.png"
PACKAGES = (
    "numpy", "pillow", "pyarrow", "pydantic", "pyyaml", "safetensors", "scipy", "simplejpeg", "threadpoolctl", "torch",
)  # fmt: skip
SHOWN_METRICS = (
    "test_psnr", "test_ssim", "valid_psnr", "valid_active_units", *map("hog_frechet_{}".format, STORED_SAMPLERS),
)  # fmt: skip


def write_mlflow_model(folder: Path, run_store: RunStore, saved: "SavedModel", artifact_path: str) -> None:
    """Write the MLflow model of a finished run to the new folder `folder`; it will be the run's `artifact_path`."""
    import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    from aecore.training.checkpoint import POINTS_FILE

    z_dim, image = saved.model.z_dim, saved.model.image
    mlflow.pyfunc.save_model(
        path=str(folder),
        python_model=str(Path(__file__).with_name("pyfunc_model.py")),
        code_paths=[str(Path(aecore.__file__).parent)],
        mlflow_model=Model(artifact_path=artifact_path, run_id=run_store.run_id),
        signature=ModelSignature(
            Schema([TensorSpec(np.dtype(np.float32), (-1, z_dim))]),
            Schema([TensorSpec(np.dtype(np.uint8), (-1, image.size, image.size, image.channels))]),
        ),
        input_example=np.stack([saved.latents["mean"].numpy(), np.zeros(z_dim, np.float32)]),
        pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in PACKAGES],
        metadata={"zpoint.run": run_store.name},
    )
    fs, root = run_store.folder
    for name in MODEL_FILES:
        (folder / name).write_bytes(read_bytes(fs, f"{root}/model/{name}"))
    if saved.points:
        (folder / POINTS_FILE).write_bytes(read_bytes(fs, f"{root}/model/{POINTS_FILE}"))
    sheet = f"{root}/{epoch_path(saved.recipe.optim.epochs, 'png')}"
    if fs.get_file_info(sheet).type is not pafs.FileType.NotFound:
        (folder / SAMPLES).write_bytes(read_bytes(fs, sheet))


def describe(run_store: RunStore, saved: "SavedModel", choice: str, sampler: str, artifact_path: str) -> str:
    """Return a version's description in Markdown: recipe, reason of the choice, metrics, a sheet of samples."""
    recipe, metrics = saved.recipe, saved.metrics
    kind = f"{'VAE' if recipe.variational else 'AE'} of {saved.model.image.size} pixels"
    rows = [f"| {name} | {metrics[name]:.4g} |" for name in SHOWN_METRICS if name in metrics]
    sheet = f"get-artifact?path={artifact_path}/{SAMPLES}&run_uuid={run_store.run_id}"
    return "\n".join(
        [
            f"{kind}, z_dim {saved.model.z_dim}, kl_factor {recipe.loss.kl_factor:g}, task {recipe.task.kind}, "
            f"{recipe.optim.epochs} epochs of {recipe.data.uri}; run {run_store.name}.",
            "",
            f"{choice} Served best by the sampler {sampler}.",
            "",
            "| metric | value |",
            "|---|---|",
            *rows,
            "",
            f"![reconstructions and decoded random z-points]({sheet})",
        ]
    )
