"""The same decoder behind other servers, each as its own documentation shows it, for tests/benchmarks/serve.py.

    python tests/benchmarks/serve_peers.py fastapi|litserve|bentoml MODEL_FOLDER PORT

They read the z-points and write the images with zpoint's own functions, so that the servers alone differ.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch

from serving.http.decoding import NPY, Limits, parse_body
from serving.http.encoding import encode_images

torch.set_num_threads(1)


def open_decoder(folder: str):
    """The compiled decoder of a model folder: float32 z (n, z_dim) to uint8 images; and what reads a request's body."""
    from aecore.training.checkpoint import load_model
    from cluster.storage import open_uri
    from serving.runtime.model_loading import build_networks

    saved = load_model(*open_uri(folder))
    decode = build_networks(saved.model, compiled=True)[0]

    def read(body: bytes) -> np.ndarray:
        return parse_body(body, NPY, ("z",), saved.model.image, saved.model.z_dim, Limits())[0]

    return decode, read


def fastapi(folder: str, port: int) -> None:
    """FastAPI + uvicorn: the decoder in the thread pool, one call per request."""
    import asyncio

    import uvicorn
    from fastapi import FastAPI, Request, Response

    decode, read = open_decoder(folder)
    app = FastAPI()

    @app.post("/v1/decode")
    async def answer(request: Request) -> Response:
        z, kind = read(await request.body()), request.headers["accept"]
        images = await asyncio.to_thread(decode, z)
        return Response(encode_images(images, kind), media_type=kind)

    uvicorn.run(app, port=port, log_level="warning")


def litserve(folder: str, port: int) -> None:
    """LitServe with dynamic batches, one worker: serve_lit.py."""
    import litserve as ls

    sys.path.insert(0, str(Path(__file__).parent))
    from serve_lit import Decoder

    server = ls.LitServer(Decoder(folder), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)


def bentoml(folder: str, port: int) -> None:
    """BentoML's own HTTP server, one worker: serve_bento.py."""
    os.environ["ZPOINT_BENCH_MODEL"] = folder
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    os.chdir(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    words = ["-m", "bentoml", "serve", "serve_bento:Decoder", "--port", str(port), "--host", "127.0.0.1"]
    os.execv(sys.executable, [sys.executable, *words])


if __name__ == "__main__":
    {"fastapi": fastapi, "litserve": litserve, "bentoml": bentoml}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
