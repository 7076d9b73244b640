"""The face detector beside the other routes: it has a thread of its own and refuses requests that would wait long."""

import asyncio
import threading

import httpx2
import numpy as np
import pytest
import torch

from aecore.data.synthetic_faces import draw_face
from aecore.latent.points import make_points
from serving.http.decoding import JSON
from serving.runtime.admission import Overloaded
from serving.runtime.face_finder import FaceFinder
from serving.runtime.metrics import EndpointMetrics
from tests.serving.app_client import is_problem, make_client, make_slot_with
from tests.serving.app_server import Z_DIM

IMAGES = np.zeros((64, 8, 8, 3), np.uint8)


@pytest.fixture
def detector(monkeypatch):
    """Hold the detector, which finds a face in every image, until the event is set."""
    event = threading.Event()

    def face_hits(images):
        assert event.wait(60)
        return np.ones(len(images), bool)

    monkeypatch.setattr("aecore.metrics.face_detector.face_hits", face_hits)
    monkeypatch.setattr("aecore.metrics.face_detector.typical_face", lambda images: (0.5, 0.5, 0.6))
    yield event
    event.set()


def test_other_routes_are_answered_while_requests_wait_for_the_detector(detector):
    metrics, num_counts = EndpointMetrics(), 40  # more than asyncio's executor has threads

    async def post_concurrently():
        transport = httpx2.ASGITransport(make_client(metrics=metrics).app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
            options = [{"seed": seed, "count_faces": True} for seed in range(num_counts)]
            counts = [asyncio.ensure_future(http.post("/v1/sample", json=one)) for one in options]
            async with asyncio.timeout(20):
                while metrics.samples().get(("zpoint_waiting_items", (("operation", "faces"),))) != num_counts:
                    await asyncio.sleep(0.01)
                plain = await http.post("/v1/sample", json={})
            detector.set()
            return plain, await asyncio.gather(*counts)

    plain, counts = asyncio.run(post_concurrently())
    assert plain.status_code == 200
    assert {response.headers["x-zpoint-faces"] for response in counts} == {"1"}


def test_counts_that_would_wait_longer_than_ten_seconds_are_refused(detector):
    """Before the first one has ended, the detector is taken to search 64 images in a second."""
    metrics = EndpointMetrics("1")

    async def count():
        finder = FaceFinder(metrics)
        counts = [asyncio.ensure_future(finder.count(seed, IMAGES, None)) for seed in range(14)]
        await asyncio.sleep(0.1)
        detector.set()
        results = await asyncio.gather(*counts, return_exceptions=True)
        return results, await finder.count(14, IMAGES, None), await finder.count(0, IMAGES[:0], None)

    results, after, kept = asyncio.run(count())
    assert results[:11] == [64] * 11
    assert [type(result) for result in results[11:]] == [Overloaded] * 3
    assert (after, kept) == (64, 64)  # the overload has passed
    assert 'zpoint_shed_total{operation="faces",replica="1"} 3.0' in metrics.exposition().decode().splitlines()


@pytest.mark.parametrize(("num_faces", "faces"), [(None, 3), (9, 3), (3, None)])
def test_faces_are_counted_unless_fewer_than_half_of_the_stored_images_show_one(monkeypatch, num_faces, faces):
    monkeypatch.setattr("aecore.metrics.face_detector.face_hits", lambda images: np.arange(len(images)) < 3)
    thumbnails = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
    thumbnails[:num_faces] = np.stack([draw_face(seed, 0, 32)[0] for seed in range(12)])[:num_faces]
    points = num_faces and make_points(torch.randn(12, Z_DIM), thumbnails, torch.zeros(12, dtype=torch.uint8), {})
    http = make_client(make_slot_with(points=points))
    for _ in range(2):
        response = http.post("/v1/sample", json={"n": 4, "seed": 0, "count_faces": True}, headers={"Accept": JSON})
        assert response.status_code == 200
        assert response.json().get("faces") == faces
        assert response.headers.get("x-zpoint-faces") == (faces and str(faces))


def test_a_refused_count_is_a_503_with_retry_after(monkeypatch):
    async def refuse(*_):
        raise Overloaded(2.0)

    monkeypatch.setattr(FaceFinder, "count", refuse)
    response = make_client().post("/v1/sample", json={"count_faces": True})
    is_problem(response, 503, "server overloaded")
    assert response.headers["retry-after"] == "2"


def test_waiting_requests_for_the_same_images_are_counted_once(monkeypatch):
    counted = []

    def face_hits(images):
        counted.append(len(images))
        return np.ones(len(images), bool)

    monkeypatch.setattr("aecore.metrics.face_detector.face_hits", face_hits)

    async def count():
        finder = FaceFinder()
        return await asyncio.gather(*(finder.count("key", IMAGES, None) for _ in range(3)))

    assert asyncio.run(count()) == [64, 64, 64]
    assert counted == [64]
