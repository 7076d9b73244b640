"""The page in a real browser: every control changes its picture, and nothing is loaded, said or run that must not be.

Each test ends with the browser's console read: one error or one refusal of the Content-Security-Policy fails it.
"""

import base64
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from aecore.faces import draw_face
from aecore.images import encode_image
from tests.serving.live import IMAGE, Z_DIM, made_slot, running

pytestmark = pytest.mark.browser
STATIC = Path(__file__).parents[2] / "serving" / "static"
TOKEN = "of the page's test"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None and os.environ.get("CI") != "true":
        pytest.skip("no Chromium on the PATH (apt-get install chromium)")
    assert chromium is not None, "no Chromium on the PATH"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium's own sandbox does not start as root, which containers are.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(made_slot()) as url:
        yield url


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a URL in a tab of its own; at the end of the test no tab may have complained."""
    said, contexts = [], []

    def open_url(url: str, *, allowed: str = "nothing", **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda message: allowed in message.text or said.append(message.text))
        page.on(
            "request", lambda request: request.url.startswith(("data:", url.split("#")[0])) or said.append(request.url)
        )
        page.goto(url)
        return page

    yield open_url
    for context in contexts:
        context.close()
    assert said == []


def sources(page: Any, selector: str) -> list[str]:
    """The pictures below `selector`, once all are there."""
    script = "s => [...document.querySelectorAll(`${s} img`)].every(image => image.src && image.complete)"
    page.wait_for_selector(f"{selector} img")
    page.wait_for_function(script, arg=selector)
    return page.eval_on_selector_all(f"{selector} img", "all => all.map(image => image.src)")


def changes(page: Any, selector: str, act: Callable[[], Any]) -> list[str]:
    """Do `act` and wait until the pictures below `selector` are others; gives them."""
    before = sources(page, selector)
    act()
    page.wait_for_function(
        "([s, before]) => [...document.querySelectorAll(`${s} img`)].some((image, i) => image.src !== before[i])",
        arg=[selector, before],
    )
    page.wait_for_load_state("networkidle")
    return sources(page, selector)


def slide(page: Any, label: str | re.Pattern[str], key: str = "ArrowRight", times: int = 3) -> None:
    slider = page.get_by_role("slider", name=label)
    slider.focus()
    for _ in range(times):
        slider.press(key)


def choose(page: Any, name: str) -> None:
    """Choose a radio button as a mouse does: by its label."""
    page.locator(".choice:visible label", has_text=re.compile(f"^{name}$")).click()


def bytes_of(url: str) -> bytes:
    """The bytes of a data: URL."""
    return base64.b64decode(url.partition(",")[2])


def test_random_points_change_with_each_control(open_page, url):
    page = open_page(url)
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


def test_change_moves_one_picture_along_its_directions(open_page, url):
    page = open_page(f"{url}/#change")
    sources(page, "#changed")
    labels = page.locator("#directions label").all_inner_texts()
    assert labels[:2] == ["Smiling", "dark hair"]
    assert len(labels) == 2 + Z_DIM
    for label in labels:
        changes(page, "#changed", lambda label=label: slide(page, label))
    strip = sources(page, "#along")
    assert len(strip) == 9
    before = changes(page, "#changed", lambda: page.get_by_role("button", name="The average").click())
    changes(page, "#changed", lambda: slide(page, "Smiling"))
    assert changes(page, "#changed", lambda: page.get_by_role("button", name="Undo").click()) == before
    changes(page, "#changed", lambda: page.get_by_role("button", name="Another one").click())


def test_change_shows_where_the_point_lies(open_page, url):
    """The slider's figure is the z-point's own coordinate, and what is decoded is the moved z-point."""
    page = open_page(f"{url}/#change")
    changes(page, "#changed", lambda: page.get_by_role("button", name="The average").click())
    assert page.locator("#directions output").all_inner_texts() == ["+0.0"] * (2 + Z_DIM)
    latents = httpx2.get(f"{url}/v1/model").json()["latents"]
    with page.expect_request("**/v1/decode") as sent:
        page.get_by_role("slider", name="Axis 1,").fill("2")
    [z] = json.loads(sent.value.post_data)["z"]
    first = latents["axes"][0]
    wanted = np.array(latents["mean"]) + 2 * first["sd"] * np.array(first["direction"])
    np.testing.assert_allclose(z, wanted, atol=1e-6)


def test_between_goes_from_one_end_to_the_other(open_page, url):
    page = open_page(f"{url}/#between")
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


def test_rebuild_a_random_picture_by_each_task(open_page, url):
    page = open_page(f"{url}/#rebuild")
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


def test_rebuild_ones_own_picture(open_page, url):
    """What is sent is the part in the frame, as large as the model's images."""
    page = open_page(f"{url}/#rebuild")
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


def test_a_clicked_picture_goes_on(open_page, url):
    page = open_page(url, permissions=["clipboard-read", "clipboard-write"])
    picture = sources(page, "#sheet")[4]
    pick = lambda: page.get_by_role("button", name="Random picture 5", exact=True).click()  # noqa: E731
    pick()
    assert page.locator("#picked-image").get_attribute("src") == picture
    page.get_by_role("button", name="Copy its z").click()
    page.wait_for_selector("#notice:visible")
    z = json.loads(page.evaluate("navigator.clipboard.readText()"))
    answer = httpx2.post(f"{url}/v1/decode", json={"z": [z]}, headers={"Accept": "image/png"})
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
        page.goto(f"{url}/#random")
        pick()
        page.get_by_role("button", name=name).click()
        page.wait_for_function("([s, src]) => document.querySelector(`${s} img`).src === src", arg=[selector, picture])
    page.goto(f"{url}/#random")
    pick()
    page.get_by_role("button", name="Rebuild it").click()
    page.wait_for_function("src => document.querySelector('#rebuilt img').src === src", arg=picture)


def test_the_model_tells_its_facts(open_page, url):
    page = open_page(f"{url}/#model")
    text = page.locator("#facts").inner_text()
    for fact in ("zpoint, version 7 (champion)", "run-1", "kl_factor 1", "16 pixels, colour", "psnr"):
        assert fact in text
    assert page.locator(".bar").count() == Z_DIM


def test_keys_alone_suffice(open_page, url):
    """Tab reaches every control in order, and a picture opens, acts and closes without a mouse."""
    page = open_page(url)
    sources(page, "#sheet")
    reached = []
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.innerText || document.activeElement.type"))
    assert reached[0] == "To the pictures"
    assert [name for name in ("Random", "Change", "Model", "New points") if name not in reached] == []
    assert "radio" in reached
    assert "range" in reached
    picture = page.get_by_role("button", name="Random picture 1", exact=True)
    picture.focus()
    page.keyboard.press("Enter")
    assert page.locator("#picked").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#picked").is_visible()
    assert picture.evaluate("element => element === document.activeElement")


def test_dragging_asks_once_at_a_time_and_ends_where_the_slider_does(open_page, url):
    page = open_page(url)
    sources(page, "#sheet")
    under_way, most, asked = 0, 0, []

    def started(request: Any) -> None:
        nonlocal under_way, most
        if "/v1/sample" in request.url:
            asked.append(json.loads(request.post_data))
            under_way += 1
            most = max(most, under_way)

    def ended(request: Any) -> None:
        nonlocal under_way
        under_way -= "/v1/sample" in request.url

    page.on("request", started)
    page.on("requestfinished", ended)
    box = page.get_by_role("slider", name="temperature").bounding_box()
    page.mouse.move(box["x"] + 85, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 20, box["y"] + box["height"] / 2, steps=150)
    page.mouse.up()
    page.wait_for_load_state("networkidle")
    value = page.get_by_role("slider", name="temperature").evaluate("slider => slider.valueAsNumber")
    assert most == 1
    assert 1 < len(asked) < 150
    assert asked[-1]["parameters"] == {"temperature": value}


def test_a_token_is_asked_for_and_kept_in_the_tab(open_page):
    with running(made_slot(), TOKEN) as url:
        page = open_page(url, allowed="401")
        page.get_by_role("textbox", name="Token").fill("wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=does not take this token")
        page.get_by_role("textbox", name="Token").fill(TOKEN)
        page.get_by_role("button", name="Open", exact=True).click()
        sources(page, "#sheet")
        page.reload()
        sources(page, "#sheet")
        assert not page.locator("#token").is_visible()


def test_a_busy_or_absent_endpoint_is_told(open_page, url):
    page = open_page(url, allowed="Failed to load resource")
    sources(page, "#sheet")
    busy = {"status": 503, "headers": {"Retry-After": "1"}, "body": "{}"}
    page.route("**/v1/sample", lambda route: route.fulfill(**busy), times=1)
    changes(page, "#sheet", lambda: page.get_by_role("button", name="New points").click())
    page.route("**/v1/sample", lambda route: route.abort(), times=1)
    page.get_by_role("button", name="New points").click()
    page.wait_for_selector("text=The endpoint does not answer")
    changes(page, "#sheet", lambda: page.get_by_role("button", name="New points").click())
    assert not page.locator("#notice").is_visible()


def test_another_model_is_told(open_page):
    slot = made_slot()
    with running(slot) as url:
        page = open_page(url)
        sources(page, "#sheet")
        slot.current = made_slot("8").current
        page.get_by_role("button", name="New points").click()
        page.wait_for_selector("text=serves zpoint/8 now")


@pytest.mark.parametrize("width", [320, 390, 820])
def test_nothing_is_wider_than_a_small_screen(open_page, url, width):
    page = open_page(url, viewport={"width": width, "height": 700})
    for view in ("random", "change", "between", "rebuild", "model"):
        page.goto(f"{url}/#{view}")
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, view
    page.goto(f"{url}/#random")
    page.get_by_role("button", name="Random picture 1", exact=True).click()
    box = page.locator("#picked").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width


def contrast(first: list[float], second: list[float]) -> float:
    """WCAG 2.2's contrast ratio of two sRGB colours in 0 to 255."""

    def luminance(colour: list[float]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in np.array(colour) / 255]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(open_page, url, scheme):
    """At least 4.5 to 1, what WCAG 2.2 asks of text (1.4.3)."""
    page = open_page(url, color_scheme=scheme)
    script = """names => Object.fromEntries(names.map(name => {
        const probe = document.body.appendChild(document.createElement("i"));
        probe.style.color = `var(--${name})`;
        return [name, getComputedStyle(probe).color.match(/[0-9.]+/g).slice(0, 3).map(Number)];
    }))"""
    colours = page.evaluate(script, ["paper", "card", "ink", "quiet", "accent", "on-accent", "soft"])
    assert (np.mean(colours["paper"]) < 128) == (scheme == "dark")
    for text, ground in [
        ("ink", "paper"), ("ink", "card"), ("quiet", "paper"), ("quiet", "card"), ("accent", "paper"),
        ("accent", "soft"), ("on-accent", "accent"),
    ]:  # fmt: skip
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
