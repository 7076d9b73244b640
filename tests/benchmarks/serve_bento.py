"""The service that serve_peers.py has BentoML serve: a mounted ASGI route, since its own batches take JSON alone."""

import asyncio
import os

import bentoml
from serve_peers import open_decoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving.http.encoding import encode_images

FOUND = []


async def answer(request: Request) -> Response:
    service, kind = FOUND[0], request.headers["accept"]
    images = await asyncio.to_thread(service.network, service.read(await request.body()))
    return Response(encode_images(images, kind), media_type=kind)


@bentoml.service(workers=1, traffic={"timeout": 60, "max_concurrency": 512}, metrics={"enabled": False})
@bentoml.asgi_app(Starlette(routes=[Route("/v1/decode", answer, methods=["POST"])]))
class Decoder:
    def __init__(self) -> None:
        self.network, self.read = open_decoder(os.environ["ZPOINT_BENCH_MODEL"])
        FOUND.append(self)

    @bentoml.api
    def ready(self) -> bool:
        return True
