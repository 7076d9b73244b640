"""A real browser for the tests of the page."""

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.serving.app_server import make_slot, serve_app

# Two random ends may be neighbours, and then two of the ways between them are one: the same points in each run.
SEEDED = "let state = 1; Math.random = () => (state = (state * 16807) % 2147483647) / 2147483647"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # No longer than it is needed: while it lives, an event loop runs in the main thread, and none beside it can.
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
def page_url() -> Iterator[str]:
    with serve_app(make_slot()) as url:
        yield url


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a URL in a tab of its own; at the end of the test no tab may have complained."""
    said, contexts = [], []

    def open_url(url: str, *, allowed: str = "nothing", **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
        contexts.append(context)
        context.add_init_script(SEEDED)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda message: allowed in message.text or said.append(message.text))
        origin = "/".join(url.split("/")[:3])
        page.on(
            "request",
            lambda request: request.url.startswith(("data:", f"blob:{origin}", origin)) or said.append(request.url),
        )
        page.goto(url)
        return page

    yield open_url
    for context in contexts:
        context.close()
    assert said == []
