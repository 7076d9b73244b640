"""LitServe's service for serve_peers.py: its worker processes import the class from a module."""

from typing import Annotated, Any

import litserve as ls
import numpy as np
from fastapi import Depends, Request, Response
from serve_peers import open_decoder

from serving.http.encoding import encode_images


async def read_request(request: Request) -> dict[str, Any]:
    return {"body": await request.body(), "media_type": request.headers["accept"]}


class Decoder(ls.LitAPI):
    """Decode requests in batches of at most 64, gathered for at most 2 ms."""

    def __init__(self, folder: str):
        super().__init__(max_batch_size=64, batch_timeout=0.002, api_path="/v1/decode")
        self.folder = folder

    def setup(self, device: str) -> None:
        self.decode, self.parse = open_decoder(self.folder)

    def decode_request(self, request: Annotated[dict, Depends(read_request)]):
        return self.parse(request["body"]), request["media_type"]

    def batch(self, inputs):
        return inputs

    def predict(self, x):
        images = self.decode(np.concatenate([z for z, _ in x]))
        images_of_requests = np.split(images, np.cumsum([len(z) for z, _ in x])[:-1])
        return [(images, media_type) for images, (_, media_type) in zip(images_of_requests, x, strict=True)]

    def unbatch(self, output):
        return output

    def encode_response(self, output) -> Response:
        return Response(encode_images(*output), media_type=output[1])
