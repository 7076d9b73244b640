"""The service that serve_peers.py has BentoML serve."""

import os

import bentoml
import numpy as np
from serve_peers import open_decoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving.answers import encode_images


async def answer(request: Request) -> Response:
    service, kind = bentoml.get_current_service(), request.headers["accept"]
    images = await service.to_async.decode(service.read(await request.body()))
    return Response(encode_images(np.asarray(images), kind), media_type=kind)


@bentoml.service(workers=1, traffic={"timeout": 60, "max_concurrency": 512}, metrics={"enabled": False})
@bentoml.asgi_app(Starlette(routes=[Route("/v1/decode", answer, methods=["POST"])]))
class Decoder:
    def __init__(self) -> None:
        self.network, self.read = open_decoder(os.environ["ZPOINT_BENCH_MODEL"])

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=1000)
    def decode(self, z: np.ndarray) -> np.ndarray:
        return self.network(np.ascontiguousarray(z, np.float32))
