"""Actions of the browser tests: read images, move sliders, choose radio buttons."""

import base64
import re
from collections.abc import Callable
from typing import Any


def image_urls(page: Any, selector: str) -> list[str]:
    """Return the data: URLs of the images below `selector` once all are loaded."""
    script = "s => [...document.querySelectorAll(`${s} img`)].every(image => image.src && image.complete)"
    page.wait_for_selector(f"{selector} img")
    page.wait_for_function(script, arg=selector)
    return page.eval_on_selector_all(f"{selector} img", "all => all.map(image => image.src)")


def changed_image_urls(page: Any, selector: str, act: Callable[[], Any]) -> list[str]:
    """Call `act`, wait until an image below `selector` changes, and return the URLs of all of them."""
    previous = image_urls(page, selector)
    act()
    page.wait_for_function(
        "([s, previous]) => [...document.querySelectorAll(`${s} img`)].some((image, i) => image.src !== previous[i])",
        arg=[selector, previous],
    )
    page.wait_for_load_state("networkidle")
    return image_urls(page, selector)


def pixels(page: Any, selector: str) -> list[str]:
    """Return the files behind the images below `selector` as PNG data: URLs: equal for equal pixels."""
    image_urls(page, selector)
    script = """images => images.map(image => {
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
        canvas.getContext("2d").drawImage(image, 0, 0);
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


def decode_data_url(url: str) -> bytes:
    return base64.b64decode(url.partition(",")[2])
