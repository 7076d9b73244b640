"""BentoML's service for serve_peers.py: a mounted ASGI route, since BentoML's own batching takes JSON alone."""

import asyncio
import os

import bentoml
from serve_peers import open_decoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving.http.encoding import encode_images

SERVICES = []  # the one service, for the route


async def decode(request: Request) -> Response:
    service, media_type = SERVICES[0], request.headers["accept"]
    images = await asyncio.to_thread(service.decode, service.parse(await request.body()))
    return Response(encode_images(images, media_type), media_type=media_type)


@bentoml.service(workers=1, traffic={"timeout": 60, "max_concurrency": 512}, metrics={"enabled": False})
@bentoml.asgi_app(Starlette(routes=[Route("/v1/decode", decode, methods=["POST"])]))
class Decoder:
    def __init__(self) -> None:
        self.decode, self.parse = open_decoder(os.environ["ZPOINT_BENCH_MODEL"])
        SERVICES.append(self)

    @bentoml.api
    def ready(self) -> bool:
        return True
