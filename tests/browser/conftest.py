"""Chromium for the browser tests."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.serving.app_server import make_slot, serve_app

# A fixed seed: between some random ends two paths coincide.
SEEDED = "let state = 1; Math.random = () => (state = (state * 16807) % 2147483647) / 2147483647"
# `isIdle` in the page: no request for 150 ms. Playwright's own state `networkidle` is reached once for each document.
COUNTED = """{
    let running = 0, lastEnd = performance.now();
    const send = window.fetch;
    window.fetch = (...request) => {
        running++;
        return send(...request).finally(() => { running--; lastEnd = performance.now(); });
    };
    window.isIdle = () => running === 0 && performance.now() - lastEnd > 150;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # Module scope: playwright runs an event loop in the main thread, and other modules need their own there.
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None and os.environ.get("CI") != "true":
        pytest.skip("no Chromium on the PATH (apt-get install chromium)")
    assert chromium is not None, "no Chromium on the PATH"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium's sandbox does not start as root, the usual user of a container.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_url() -> Iterator[str]:
    with serve_app(make_slot()) as url:
        yield url


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Yield a function that serves slots like `serve_app`, until the test's pages are closed."""
    with ExitStack() as servers:
        yield lambda *slots, **options: servers.enter_context(serve_app(*slots, **options))


@pytest.fixture
def open_page(browser: Any, serve: Any) -> Iterator[Callable[..., Any]]:
    """Yield a function that opens a URL in a new context. Fails if a page logs an error or requests another origin."""
    errors, contexts = [], []

    def open_url(url: str, *, allowed: str = "nothing", **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
        contexts.append(context)
        context.add_init_script(f"{SEEDED}; {COUNTED}")
        page = context.new_page()
        page.set_default_timeout(60_000)  # a busy machine takes half a minute
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: allowed in message.text or errors.append(message.text))
        origin = "/".join(url.split("/")[:3])
        page.on(
            "request",
            lambda request: request.url.startswith(("data:", f"blob:{origin}", origin)) or errors.append(request.url),
        )
        page.goto(url)
        return page

    yield open_url
    for context in contexts:
        context.close()
    assert errors == []
