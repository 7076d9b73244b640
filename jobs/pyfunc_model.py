"""A registered version as MLflow loads it: z-points float32 (n, z_dim) in, images uint8 (n, size, size, channels) out.

MLflow's models from code: `jobs.mlflow_model` copies this file into the folder of each version, beside its weights, and
`mlflow.pyfunc.load_model` runs it there. zpoint's endpoint never does: it reads the weights and config.json alone.
"""

from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

import aecore


class Decoder(PythonModel):
    def load_context(self, context: Any) -> None:
        self.model = aecore.load(Path(__file__).parent)

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """Return the images of z-points."""
        return np.asarray(self.model.decode(np.asarray(model_input)))


set_model(Decoder())
