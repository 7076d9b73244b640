"""The page in a real browser: every control of every view changes its picture.

Each test ends with the browser's console read: an error, a request to elsewhere or a refusal of the
Content-Security-Policy fails it (open_page in conftest.py).
"""

import io
import json
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image

from aecore.data.images import encode_image
from aecore.data.synthetic_faces import draw_face
from tests.browser.looking import bytes_of, changes, choose, slide, sources
from tests.serving.app_server import IMAGE, Z_DIM

pytestmark = pytest.mark.browser


def test_random_points_change_with_each_control(open_page, page_url):
    page = open_page(page_url)
    assert len(sources(page, "#sheet")) == 24
    assert page.title() == "zpoint 7"
    changes(page, "#sheet", lambda: page.get_by_role("button", name="New points").click())
    changes(page, "#sheet", lambda: page.get_by_label("Seed").fill("12"))
    names = page.locator("#samplers label").all_inner_texts()
    assert set(names) == {"cube", "normal", "sphere", "diagonal", "gaussian", "gmm"}
    parameters = {"cube": "boundary", "sphere": "radius"}
    for name in [*names[1:], names[0]]:
        changes(page, "#sheet", lambda name=name: choose(page, name))
        label = parameters.get(name, "temperature")
        changes(page, "#sheet", lambda label=label: slide(page, label))
    assert "These points lie" in page.locator("#distance").inner_text()
    # The same seed gives the same pictures again.
    first = changes(page, "#sheet", lambda: page.get_by_label("Seed").fill("13"))
    changes(page, "#sheet", lambda: page.get_by_label("Seed").fill("14"))
    assert changes(page, "#sheet", lambda: page.get_by_label("Seed").fill("13")) == first


def test_change_moves_one_picture_along_its_directions(open_page, page_url):
    page = open_page(f"{page_url}/#change")
    sources(page, "#changed")
    labels = page.locator("#directions label").all_inner_texts()
    assert labels[:2] == ["Smiling", "dark hair"]
    assert len(labels) == 2 + Z_DIM
    for label in labels:
        changes(page, "#changed", lambda label=label: slide(page, label))
    strip = sources(page, "#along")
    assert len(strip) == 9
    before = changes(page, "#changed", lambda: page.get_by_role("button", name="Average").click())
    changes(page, "#changed", lambda: slide(page, "Smiling"))
    assert changes(page, "#changed", lambda: page.get_by_role("button", name="Undo").click()) == before
    changes(page, "#changed", lambda: page.get_by_role("button", name="Another").click())


def test_change_shows_where_the_point_lies(open_page, page_url):
    """The slider's figure is the z-point's own coordinate, and what is decoded is the moved z-point."""
    page = open_page(f"{page_url}/#change")
    changes(page, "#changed", lambda: page.get_by_role("button", name="Average").click())
    assert page.locator("#directions output").all_inner_texts() == ["0.0"] * (2 + Z_DIM)
    latents = httpx2.get(f"{page_url}/v1/model").json()["latents"]
    with page.expect_request("**/v1/decode") as sent:
        page.get_by_role("slider", name="Axis 1,").fill("2")
    [z] = json.loads(sent.value.post_data)["z"]
    first = latents["axes"][0]
    wanted = np.array(latents["mean"]) + 2 * first["sd"] * np.array(first["direction"])
    np.testing.assert_allclose(z, wanted, atol=1e-6)


def test_between_goes_from_one_end_to_the_other(open_page, page_url):
    page = open_page(f"{page_url}/#between")
    steps = sources(page, "#steps")
    assert [steps[0], steps[-1]] == sources(page, "#start") + sources(page, "#end")
    assert sources(page, "#middle") == [steps[4]]
    requests: list[str] = []
    page.on("request", lambda request: request.url.startswith("data:") or requests.append(request.url))
    assert changes(page, "#middle", lambda: slide(page, "Where between them", "Home", 1)) == [steps[0]]
    assert changes(page, "#middle", lambda: slide(page, "Where between them", "End", 1)) == [steps[-1]]
    assert requests == []  # its pictures are there already
    assert page.locator("#ways label").all_inner_texts() == ["straight", "spherical", "neighbours"]
    for way in ("spherical", "neighbours", "straight"):
        changed = changes(page, "#steps", lambda way=way: choose(page, way))
        assert [changed[0], changed[-1]] == [steps[0], steps[-1]]
    swapped = changes(page, "#steps", lambda: page.get_by_role("button", name="Swap").click())
    assert swapped[0] == steps[-1]
    changes(page, "#steps", lambda: page.get_by_role("button", name="Two others").click())


def test_rebuild_a_random_picture_by_each_task(open_page, page_url):
    page = open_page(f"{page_url}/#rebuild")
    before, seen, after = sources(page, "#rebuilt")
    assert before == seen != after
    assert page.locator("#tasks label").all_inner_texts() == ["reconstruct", "denoise", "drop", "recolor", "inpaint"]
    sliders = {"denoise": ["sigma"], "drop": ["keep"], "recolor": [], "inpaint": ["block", "share"]}
    for task, labels in sliders.items():
        now = changes(page, "#rebuilt", lambda task=task: choose(page, task))
        assert now[0] == before
        assert now[1] != before
        for label in labels:
            changes(page, "#rebuilt", lambda label=label: slide(page, label, times=25))
    changes(page, "#rebuilt", lambda: page.get_by_role("button", name="A random one").click())


def test_rebuild_ones_own_picture(open_page, page_url):
    """What is sent is the part in the frame, as large as the model's images."""
    page = open_page(f"{page_url}/#rebuild")
    face = encode_image(np.pad(draw_face(3, 0, 64)[0], ((0, 0), (20, 20), (0, 0)), mode="edge"), "png")
    give = {"name": "face.png", "mimeType": "image/png", "buffer": face}
    first = changes(page, "#rebuilt", lambda: page.set_input_files("#file", give))
    sent = np.asarray(Image.open(io.BytesIO(bytes_of(first[0]))).convert("RGB"))
    assert sent.shape == (IMAGE.size, IMAGE.size, 3)
    middle = Image.open(io.BytesIO(face)).crop((20, 0, 84, 64)).resize((16, 16), Image.Resampling.BOX)
    assert np.abs(sent.astype(int) - np.asarray(middle)).mean() < 12
    changes(page, "#rebuilt", lambda: slide(page, "Enlarge", times=20))
    frame = page.get_by_label("Your picture.")
    changes(page, "#rebuilt", lambda: frame.press("ArrowLeft"))
    box = frame.bounding_box()

    def drag() -> None:
        page.mouse.move(box["x"] + 100, box["y"] + 100)
        page.mouse.down()
        page.mouse.move(box["x"] + 60, box["y"] + 80, steps=4)
        page.mouse.up()

    changes(page, "#rebuilt", drag)
    page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no picture"})
    page.wait_for_selector("text=notes.txt is no picture")
    changes(page, "#rebuilt", lambda: frame.press("ArrowRight"))  # the endpoint's answers do not take it away
    assert page.locator("#notice").is_visible()


def test_a_clicked_picture_goes_on(open_page, page_url):
    page = open_page(page_url, permissions=["clipboard-read", "clipboard-write"])
    picture = sources(page, "#sheet")[4]
    pick = lambda: page.get_by_role("button", name="Random picture 5", exact=True).click()  # noqa: E731
    pick()
    assert page.locator("#picked-image").get_attribute("src") == picture
    page.get_by_role("button", name="Copy its z").click()
    page.wait_for_selector("#notice:visible")
    z = json.loads(page.evaluate("navigator.clipboard.readText()"))
    answer = httpx2.post(f"{page_url}/v1/decode", json={"z": [z]}, headers={"Accept": "image/png"})
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(answer.content))), np.asarray(Image.open(io.BytesIO(bytes_of(picture))))
    )
    pick()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "zpoint.png"
    assert Path(download.value.path()).read_bytes() == bytes_of(picture)
    goes = {"Change it": "#changed", "Start a walk here": "#start", "End a walk here": "#end"}
    for name, selector in goes.items():
        page.goto(f"{page_url}/#random")
        pick()
        page.get_by_role("button", name=name).click()
        page.wait_for_function("([s, src]) => document.querySelector(`${s} img`).src === src", arg=[selector, picture])
    page.goto(f"{page_url}/#random")
    pick()
    page.get_by_role("button", name="Rebuild it").click()
    page.wait_for_function("src => document.querySelector('#rebuilt img').src === src", arg=picture)


def test_the_model_tells_its_facts(open_page, page_url):
    page = open_page(f"{page_url}/#model")
    page.wait_for_selector(".bar")
    text = page.locator("#facts").inner_text()
    for fact in ("zpoint, version 7 (champion)", "run-1", "kl_factor 1", "16 pixels, colour", "psnr"):
        assert fact in text
    assert page.locator(".bar").count() == Z_DIM
