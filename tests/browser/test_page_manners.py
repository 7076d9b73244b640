"""How the page behaves in a real browser: keys, dragging, tokens, troubles, small screens, dark and light."""

import json
from typing import Any

import numpy as np
import pytest

from tests.browser.looking import changes, sources
from tests.serving.app_server import make_slot, serve_app

pytestmark = pytest.mark.browser
TOKEN = "of the page's test"


def test_keys_alone_suffice(open_page, page_url):
    """Tab reaches every control in order, and a picture opens, acts and closes without a mouse."""
    page = open_page(page_url)
    sources(page, "#sheet")
    reached = []
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.innerText || document.activeElement.type"))
    assert reached[0] == "To the pictures"
    page.evaluate("location.hash = 'model'")
    page.get_by_role("link", name="To the pictures").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    assert page.locator("#view-model").is_visible()
    page.evaluate("location.hash = 'random'")
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


def test_dragging_asks_once_at_a_time_and_ends_where_the_slider_does(open_page, page_url):
    page = open_page(page_url)
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
    with serve_app(make_slot(), TOKEN) as url:
        page = open_page(url, allowed="401")
        for wrong in ("wrong", "\u201cquoted\u201d"):
            page.get_by_role("textbox", name="Token").fill(wrong)
            page.keyboard.press("Enter")
            page.wait_for_selector("text=does not take this token")
        page.get_by_role("textbox", name="Token").fill(TOKEN)
        page.get_by_role("button", name="Open", exact=True).click()
        sources(page, "#sheet")
        page.reload()
        sources(page, "#sheet")
        assert not page.locator("#token").is_visible()


def test_docs_need_no_token_until_a_route_is_tried(open_page):
    """Swagger UI works under the Content-Security-Policy, reached by its URL or from the page."""
    with serve_app(make_slot(), TOKEN) as url:
        page = open_page(f"{url}/docs")
        page.get_by_role("button", name="Authorize").click()
        page.locator(".auth-container input").fill(TOKEN)
        page.locator(".auth-btn-wrapper .authorize").click()
        page.locator(".btn-done").click()
        page.get_by_role("button", name="POST /v1/sample Sample").click()
        page.get_by_role("button", name="Try it out").click()
        page.get_by_role("button", name="Execute").click()
        page.wait_for_function("document.querySelector('.response img')?.naturalWidth > 0")
        page = open_page(url, allowed="401")
        page.get_by_role("textbox", name="Token").fill(TOKEN)
        page.get_by_role("button", name="Open", exact=True).click()
        page.get_by_role("link", name="Model").click()
        page.get_by_role("link", name="/docs").click()
        page.get_by_role("button", name="POST /v1/decode Decode").wait_for()


def test_a_busy_or_absent_endpoint_is_told(open_page, page_url):
    page = open_page(page_url, allowed="Failed to load resource")
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
    slot = make_slot()
    with serve_app(slot) as url:
        page = open_page(url)
        sources(page, "#sheet")
        slot.current = make_slot("8").current
        page.get_by_role("button", name="New points").click()
        page.wait_for_selector("text=serves zpoint/8 now")


@pytest.mark.parametrize("width", [320, 390, 820])
def test_nothing_is_wider_than_a_small_screen(open_page, page_url, width):
    page = open_page(page_url, viewport={"width": width, "height": 700})
    for view in ("docs", "#random", "#change", "#between", "#rebuild", "#model"):
        page.goto(f"{page_url}/{view}")
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, view
    page.goto(f"{page_url}/#random")
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
def test_text_stands_out(open_page, page_url, scheme):
    """At least 4.5 to 1, what WCAG 2.2 asks of text (1.4.3)."""
    page = open_page(page_url, color_scheme=scheme)
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
