"""Serve the same decoder with other servers, each set up as in its documentation, for tests/benchmarks/serve.py.

    python tests/benchmarks/serve_peers.py fastapi|litserve|bentoml MODEL_FOLDER PORT

They parse z-points and encode images with zpoint's functions, so that only the servers differ.
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
    """Return a folder's decoder as served, float32 z (n, z_dim) to uint8 images, and the parser of request bodies."""
    from aecore.training.checkpoint import load_model
    from cluster.storage import open_uri
    from serving.runtime.model_loading import build_networks

    saved = load_model(*open_uri(folder))
    decode, _ = build_networks(saved.model)

    def parse(body: bytes) -> np.ndarray:
        return parse_body(body, NPY, ("z",), saved.model.image, saved.model.z_dim, Limits())[0]

    return decode, parse


def fastapi(folder: str, port: int) -> None:
    """Serve with FastAPI + uvicorn: one decoder call per request, in the thread pool."""
    import asyncio

    import uvicorn
    from fastapi import FastAPI, Request, Response

    decode, parse = open_decoder(folder)
    app = FastAPI()

    @app.post("/v1/decode")
    async def decode_route(request: Request) -> Response:
        z, media_type = parse(await request.body()), request.headers["accept"]
        images = await asyncio.to_thread(decode, z)
        return Response(encode_images(images, media_type), media_type=media_type)

    uvicorn.run(app, port=port, log_level="warning")


def litserve(folder: str, port: int) -> None:
    """Serve with LitServe, dynamic batches, one worker: serve_lit.py."""
    import litserve as ls

    sys.path.insert(0, str(Path(__file__).parent))
    from serve_lit import Decoder

    server = ls.LitServer(Decoder(folder), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)


def bentoml(folder: str, port: int) -> None:
    """Serve with BentoML's HTTP server, one worker: serve_bento.py."""
    os.environ["ZPOINT_BENCH_MODEL"] = folder
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    os.chdir(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    arguments = ["-m", "bentoml", "serve", "serve_bento:Decoder", "--port", str(port), "--host", "127.0.0.1"]
    os.execv(sys.executable, [sys.executable, *arguments])


if __name__ == "__main__":
    {"fastapi": fastapi, "litserve": litserve, "bentoml": bentoml}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
