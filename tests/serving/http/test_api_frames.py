"""POST /v1/frames: the square of a photo that frames its face as the stored images are framed."""

import base64

import numpy as np
import pytest
import torch

from aecore.data.images import encode_image
from aecore.data.synthetic_faces import draw_face
from aecore.latent.points import StoredPoints, make_points
from serving.http.decoding import JPEG, JSON, NPY, Limits
from serving.http.encoding import encode_npy
from tests.serving.app_client import is_problem, make_client, make_slot_with
from tests.serving.app_server import Z_DIM

LEFT, TOP, SIZE = 150, 60, 120


def make_photo(face: bool = True) -> bytes:
    photo = np.full((300, 400, 3), 110, np.uint8)
    if face:
        photo[TOP : TOP + SIZE, LEFT : LEFT + SIZE] = draw_face(3, 0, SIZE)[0]
    return encode_image(photo, "jpeg")


def make_face_points(margin: int = 0) -> StoredPoints:
    """Return the stored points of drawn faces of 96 pixels without `margin` pixels at each side."""
    faces = np.stack([draw_face(seed, 0, 96)[0][margin : 96 - margin, margin : 96 - margin] for seed in range(12)])
    return make_points(torch.randn(12, Z_DIM), faces, torch.zeros(12, dtype=torch.uint8), {})


def post(http, body=None, content_type=JPEG):
    return http.post("/v1/frames", content=body or make_photo(), headers={"content-type": content_type})


@pytest.mark.parametrize("margin", [0, 12])
def test_the_face_is_framed_as_those_of_the_stored_images(margin):
    http = make_client(make_slot_with(points=make_face_points(margin)))
    response = post(http)
    assert (response.status_code, response.json()["model"]) == (200, "zpoint/7")
    cut = SIZE * margin / 96
    expected = {"left": LEFT + cut, "top": TOP + cut, "size": SIZE - 2 * cut}
    assert response.json()["frames"][0] == pytest.approx(expected, abs=12)
    assert post(http, content_type="").json() == response.json()
    files = [base64.b64encode(photo).decode() for photo in (make_photo(face=False), make_photo())]
    assert http.post("/v1/frames", json={"images": files}).json()["frames"] == [None, response.json()["frames"][0]]


def test_a_photo_without_a_face_has_no_frame():
    http = make_client(make_slot_with(points=make_face_points()))
    assert post(http, make_photo(face=False)).json() == {"model": "zpoint/7", "frames": [None]}


def test_a_model_of_other_images_frames_nothing():
    assert post(make_client()).json() == {"model": "zpoint/7", "frames": None}


def test_a_model_without_stored_points_is_a_404():
    is_problem(post(make_client(make_slot_with(points=None))), 404, "stored without points")


def test_what_is_no_image_file_is_refused():
    http = make_client(make_slot_with(points=make_face_points()), limits=Limits(max_upload_pixels=100_000))
    is_problem(post(http), 413, "at most 100,000")
    many = encode_npy(np.zeros((65, 8, 8, 3), np.uint8))
    is_problem(post(http, many, NPY), 413, "at most 64")
    is_problem(post(http, b"no image"), 422, "images[0]")
    is_problem(post(http, b"{}", JSON), 422, "images")
