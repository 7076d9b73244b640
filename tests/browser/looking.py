"""What the tests of the page do with it: look at pictures, move sliders, choose."""

import base64
import re
from collections.abc import Callable
from typing import Any


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
