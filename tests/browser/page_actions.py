"""Actions of the browser tests: read images and the address, move sliders, choose radio buttons."""

import base64
import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image


def address(page: Any) -> str:
    """Return the URL in the address bar with the page's last state; `page.url` follows the page's changes later."""
    page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide'))")  # else the page writes the state after 300 ms
    return page.evaluate("location.href")


def image_urls(page: Any, selector: str) -> list[str]:
    """Return the data: URLs of the images below `selector` once all are loaded."""
    script = "s => [...document.querySelectorAll(`${s} img`)].every(image => image.src && image.complete)"
    page.wait_for_selector(f"{selector} img")
    page.wait_for_function(script, arg=selector)
    return page.eval_on_selector_all(f"{selector} img", "all => all.map(image => image.src)")


def changed_image_urls(page: Any, selector: str, act: Callable[[], Any]) -> list[str]:
    """Call `act`, wait until an image below `selector` or its cell changes, and return the URLs of all of them."""
    image_urls(page, selector)
    state = "s => [...document.querySelectorAll(`${s} img`)].map(image => image.src + image.style.cssText)"
    previous = page.evaluate(state, selector)
    act()
    page.wait_for_function(
        f"([s, previous]) => ({state})(s).some((state, i) => state !== previous[i])", arg=[selector, previous]
    )
    wait_until_idle(page)
    return image_urls(page, selector)


def wait_until_idle(page: Any) -> None:
    """Wait until the page has loaded and none of its requests is in progress."""
    page.wait_for_load_state("networkidle")  # of the document, once: `isIdle` alone may precede its first request
    page.wait_for_function("() => isIdle()")


def is_count(request: Any) -> bool:
    """Return true for the request that counts the faces of samples, which the page sends 300 ms after it shows them."""
    return "count_faces" in (request.post_data or "")


def reload_until_counted(page: Any) -> None:
    """Reload the page and wait until it has counted faces: it sends no further count for a model of other images."""
    with page.expect_response(lambda response: is_count(response.request)):
        page.reload()
    wait_until_idle(page)


def pixels(page: Any, selector: str) -> list[str]:
    """Return the images below `selector`, or the cells that they show, as PNG data: URLs: equal for equal pixels."""
    image_urls(page, selector)
    script = """images => images.map(image => {
        const count = size => Math.round(parseFloat(size || "100%") / 100);
        const width = image.naturalWidth / count(image.style.width);
        const height = image.naturalHeight / count(image.style.height);
        const [x, y] = [...image.style.translate.split(" "), "0%", "0%"].map(part => -parseFloat(part || "0%") / 100);
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [width, height];
        const [left, top] = [x * image.naturalWidth, y * image.naturalHeight];
        canvas.getContext("2d").drawImage(image, left, top, width, height, 0, 0, width, height);
        return canvas.toDataURL();
    })"""
    return page.eval_on_selector_all(f"{selector} img", script)


def press_slider(page: Any, label: str | re.Pattern[str], key: str = "ArrowRight", times: int = 3) -> None:
    slider = page.get_by_role("slider", name=label)
    slider.focus()
    for _ in range(times):
        slider.press(key)


def choose(page: Any, name: str) -> None:
    """Check a radio button by clicking its label."""
    page.locator(".radio-group:visible label", has_text=re.compile(f"^{name}$")).click()


def looks_like(shown: str, expected: str, other: str) -> bool:
    """Return true if an image, a data: URL, is nearer to `expected` than to `other`: a sheet of WebP is lossy."""
    image, near, far = (
        np.asarray(Image.open(io.BytesIO(decode_data_url(url))).convert("RGB")).astype(float)
        for url in (shown, expected, other)
    )
    return bool(np.abs(image - near).mean() < np.abs(image - far).mean())


def decode_data_url(url: str) -> bytes:
    return base64.b64decode(url.partition(",")[2])
