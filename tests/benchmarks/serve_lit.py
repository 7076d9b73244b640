"""The service that serve_peers.py has LitServe serve: its worker processes import the class from a module."""

from typing import Annotated, Any

import litserve as ls
import numpy as np
from fastapi import Depends, Request, Response
from serve_peers import open_decoder

from serving.http.encoding import encode_images


async def asked(request: Request) -> dict[str, Any]:
    return {"body": await request.body(), "kind": request.headers["accept"]}


class Decoder(ls.LitAPI):
    """Requests in batches of up to 64, gathered for 2 ms at most."""

    def __init__(self, folder: str):
        super().__init__(max_batch_size=64, batch_timeout=0.002, api_path="/v1/decode")
        self.folder = folder

    def setup(self, device: str) -> None:
        self.network, self.read = open_decoder(self.folder)

    def decode_request(self, request: Annotated[dict, Depends(asked)]):
        return self.read(request["body"]), request["kind"]

    def batch(self, inputs):
        return inputs

    def predict(self, x):
        images = self.network(np.concatenate([z for z, _ in x]))
        parts = np.split(images, np.cumsum([len(z) for z, _ in x])[:-1])
        return [(part, kind) for part, (_, kind) in zip(parts, x, strict=True)]

    def unbatch(self, output):
        return output

    def encode_response(self, output) -> Response:
        return Response(encode_images(*output), media_type=output[1])
