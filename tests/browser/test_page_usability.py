"""The page in a browser: keyboard, dragging, tokens, errors, small screens, colour schemes."""

import json
from dataclasses import replace
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.browser.page_actions import address, changed_image_urls, image_urls, reload_until_counted, wait_until_idle
from tests.serving.app_server import make_slot

pytestmark = pytest.mark.browser
TOKEN = "of the page's test"
VIEWS = ("sample", "map", "edit", "interpolate", "reconstruct", "model")


def test_page_is_usable_by_keyboard(open_page, page_url):
    """Tab reaches every control in order, and the image dialog opens and closes without a mouse."""
    page = open_page(page_url)
    image_urls(page, "#samples")
    focused = []
    for _ in range(24):
        page.keyboard.press("Tab")
        focused.append(page.evaluate("document.activeElement.innerText || document.activeElement.type"))
    assert focused[0] == "Skip to content"
    page.evaluate("location.hash = 'model'")
    page.get_by_role("link", name="Skip to content").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.locator("#view-model").wait_for()
    page.evaluate("location.hash = 'sample'")
    assert [name for name in ("Sample", "Edit", "Model", "New samples") if name not in focused] == []
    assert "radio" in focused
    assert "range" in focused
    image = page.get_by_role("button", name="Sample 1 of VAE: champion")
    image.focus()
    page.keyboard.press("Enter")
    page.locator("#image-dialog").wait_for()
    page.keyboard.press("Escape")
    assert not page.locator("#image-dialog").is_visible()
    assert image.evaluate("element => element === document.activeElement")
    # A sheet is one stop of Tab, its images are reached by the arrow keys.
    for key, sample in (("ArrowRight", 2), ("ArrowDown", 8), ("ArrowUp", 2), ("ArrowUp", 2)):
        page.keyboard.press(key)
        label = page.evaluate("document.activeElement.getAttribute('aria-label')")
        assert label == f"Sample {sample} of VAE: champion"
    page.get_by_role("button", name="Sample 5 of VAE: champion").click()
    page.locator("#image-dialog").wait_for()
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Sample 6 of VAE: champion"
    assert page.locator("#samples [tabindex='0']").count() == 1
    # The browser keeps its shortcuts, such as Alt+Left.
    kept = page.evaluate("""() => ["altKey", "ctrlKey", "metaKey", "shiftKey"].filter((modifier) => {
        const options = { key: "ArrowLeft", bubbles: true, cancelable: true, [modifier]: true };
        return document.activeElement.dispatchEvent(new KeyboardEvent("keydown", options));
    })""")
    assert kept == ["altKey", "ctrlKey", "metaKey"]
    page.get_by_role("link", name="Map").press("Enter")
    page.wait_for_function("() => document.activeElement.id === 'map-title'")
    assert page.title() == "Map \u2013 zpoint 7"


def test_dragging_sends_one_request_at_a_time_and_the_last_position(open_page, page_url):
    page = open_page(page_url)
    reload_until_counted(page)
    sent: list[dict[str, float]] = []
    held: list[Any] = []

    def hold_the_first(route: Any, *_: Any) -> None:
        sent.append(json.loads(route.request.post_data)["parameters"])
        if len(sent) == 1:
            held.append(route)
        else:
            route.continue_()

    page.route("**/sample", hold_the_first)
    slider = page.get_by_role("slider", name="temperature")
    box = slider.bounding_box()
    with page.expect_request("**/sample"):
        page.mouse.move(box["x"] + 85, box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] - 20, box["y"] + box["height"] / 2, steps=60)
        page.mouse.up()
    while not held:  # the route is called just after the event of its request
        page.wait_for_timeout(10)
    last = {"temperature": slider.evaluate("slider => slider.valueAsNumber")}
    with page.expect_request(lambda request: json.loads(request.post_data or "{}").get("parameters") == last):
        held[0].continue_()
    wait_until_idle(page)
    assert sent == [sent[0], last]


def test_token_dialog_accepts_the_token_and_the_tab_keeps_it(open_page, serve):
    url = serve(make_slot(), token=TOKEN)
    page = open_page(url, allowed="401")
    for wrong in ("wrong", "\u201cquoted\u201d"):
        page.get_by_role("textbox", name="Token").fill(wrong)
        page.keyboard.press("Enter")
        page.wait_for_selector("text=The endpoint rejected this token")
    page.get_by_role("textbox", name="Token").fill(TOKEN)
    page.get_by_role("button", name="Continue", exact=True).click()
    image_urls(page, "#samples")
    page.reload()
    image_urls(page, "#samples")
    assert not page.locator("#token-dialog").is_visible()


def test_docs_need_no_token_until_a_route_is_tried(open_page, serve):
    """Swagger UI works under the Content-Security-Policy, reached by its URL or from the page."""
    url = serve(make_slot(), token=TOKEN)
    page = open_page(f"{url}/docs")
    page.get_by_role("button", name="Authorize").click()
    page.locator(".auth-container input").fill(TOKEN)
    page.locator(".auth-btn-wrapper .authorize").click()
    page.locator(".btn-done").click()
    page.get_by_role("button", name="POST /v1/sample Sample").click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    page.wait_for_function("() => document.querySelector('.response img')?.naturalWidth > 0")
    page = open_page(url, allowed="401")
    page.get_by_role("textbox", name="Token").fill(TOKEN)
    page.get_by_role("button", name="Continue", exact=True).click()
    page.get_by_role("link", name="Model").click()
    page.get_by_role("link", name="/docs").click()
    page.get_by_role("button", name="POST /v1/decode Decode").wait_for()


def test_page_retries_an_overloaded_endpoint_and_reports_an_unreachable_one(open_page, page_url):
    page = open_page(page_url, allowed="Failed to load resource")
    reload_until_counted(page)  # else the routes below may catch that request
    overloaded = {"status": 503, "headers": {"Retry-After": "1"}, "body": "{}"}
    page.route("**/sample", lambda route: route.fulfill(**overloaded), times=1)
    changed_image_urls(page, "#samples", lambda: page.get_by_role("button", name="New samples").click())
    page.route("**/sample", lambda route: route.abort(), times=1)
    page.get_by_role("button", name="New samples").click()
    page.wait_for_selector("text=Cannot reach the endpoint")
    changed_image_urls(page, "#samples", lambda: page.get_by_role("button", name="New samples").click())
    assert not page.locator("#notice").is_visible()


def test_sliders_of_edit_wait_for_an_image_to_move(open_page, page_url):
    page = open_page(f"{page_url}/#model", allowed="Failed to load resource")
    page.wait_for_selector(".bar")
    page.route("**/sample", lambda route: route.fulfill(status=500, body='{"detail": "out of memory"}'), times=1)
    page.evaluate("location.hash = 'edit'")
    page.wait_for_selector("text=out of memory")
    slider = page.get_by_role("slider", name="Smiling")
    assert slider.is_disabled()
    page.get_by_role("button", name="Random", exact=True).click()
    image_urls(page, "#edited-image")
    changed_image_urls(page, "#edited-image", lambda: slider.press("ArrowRight"))


def record_samples(page) -> list[Any]:
    """Stop the clock of a page that is idle; return the list of the samples that it requests from now on."""
    reload_until_counted(page)
    page.clock.install()
    requests: list[Any] = []
    page.on("request", lambda request: request.url.endswith("/sample") and requests.append(request))
    return requests


def test_page_waits_as_long_as_an_overloaded_endpoint_asks_for(open_page, page_url):
    page = open_page(page_url, allowed="Failed to load resource")
    requests = record_samples(page)
    overloaded = {"status": 503, "headers": {"Retry-After": "20"}, "body": "{}"}
    page.route("**/sample", lambda route: route.fulfill(**overloaded), times=1)
    page.get_by_role("button", name="New samples").click()
    page.wait_for_selector("text=The endpoint is overloaded; the page tries again in 20 s.")
    page.clock.fast_forward(15_000)
    wait_until_idle(page)
    assert len(requests) == 1
    changed_image_urls(page, "#samples", lambda: page.clock.fast_forward(5_000))
    assert len(requests) == 2
    assert not page.locator("#notice").is_visible()


def test_page_does_not_repeat_a_request_that_took_the_endpoint_too_long(open_page, page_url):
    """That is a 503 without Retry-After."""
    page = open_page(page_url, allowed="Failed to load resource")
    requests = record_samples(page)
    page.route("**/sample", lambda route: route.fulfill(status=503, body='{"detail": "the request took 30 s"}'))
    page.get_by_role("button", name="New samples").click()
    page.wait_for_selector("text=the request took 30 s")
    page.clock.fast_forward(60_000)
    wait_until_idle(page)
    assert len(requests) == 1


def test_page_reloads_if_another_model_is_served_and_drops_the_old_z(open_page, serve):
    slot = make_slot()
    url = serve(slot)
    page = open_page(f"{url}/#edit", allowed="Failed to load resource")
    image_urls(page, "#edited-image")
    old = address(page)
    notices: list[str] = []
    page.expose_function("recordNotice", lambda text: notices.append(text))
    page.evaluate("""() => {
        const notice = document.getElementById("notice");
        new MutationObserver(() => recordNotice(notice.textContent)).observe(notice, { childList: true });
    }""")
    slot.current = make_slot("8").current
    page.get_by_role("button", name="Mean").click()
    page.wait_for_function("() => document.title.endsWith('zpoint 8')")
    image_urls(page, "#edited-image")
    assert address(page) != old  # the z-point in the old address is of version 7
    assert notices == ["The endpoint now serves zpoint/8; this page reloads."]


def test_page_reloads_for_another_model_with_the_last_change(open_page, serve):
    slot = make_slot()
    page = open_page(f"{serve(slot)}/#sample?sampler=cube&boundary=2&seed=1", allowed="Failed to load resource")
    image_urls(page, "#samples")
    slot.current = make_slot("8").current
    page.evaluate("""() => {
        const seed = document.getElementById("seed");
        setInterval(() => {
            seed.value++;
            seed.dispatchEvent(new Event("input"));
        }, 50);
    }""")
    page.wait_for_function("() => document.title.endsWith('zpoint 8')")
    image_urls(page, "#samples")
    assert int(page.get_by_label("Seed").input_value()) > 1


def test_page_recovers_if_its_first_request_fails(open_page, page_url):
    page = open_page(page_url, allowed="Failed to load resource")
    image_urls(page, "#samples")
    page.route("**/v1/models", lambda route: route.abort(), times=2)
    page.reload()
    page.wait_for_selector("text=Cannot reach the endpoint")
    page.get_by_role("button", name="Try again").click()
    image_urls(page, "#samples")  # the second failure is followed by a try of its own
    assert not page.locator("#loading").is_visible()


@pytest.mark.parametrize(
    ("link", "route", "images"),
    [
        ("map?x=0.5&y=-0.25", "**/points", "#map-decoded"),
        ("sample?sampler=cube&boundary=2&seed=5", "**/near-ae/model", "#samples"),
    ],
)
def test_a_view_that_cannot_load_says_so_and_loads_later_with_the_state_of_its_link(
    open_page, serve, link, route, images
):
    page = open_page(f"{serve(make_slot(), make_slot('3', 'near-ae', 1e-6))}/#model", allowed="Failed to load resource")
    page.wait_for_selector(".bar")
    page.route(route, lambda route: route.abort())  # also when the page tries again, before it has been left below
    page.evaluate("link => location.hash = link", link)
    page.wait_for_selector("text=Cannot reach the endpoint")
    assert page.get_by_text("Loading the real images").is_visible() == link.startswith("map")
    view = link.partition("?")[0]
    page.evaluate("location.hash = 'model'")  # before the view has loaded
    page.locator("#view-model").wait_for()
    page.unroute(route)
    page.evaluate("view => location.hash = view", view)
    image_urls(page, images)
    wait_until_idle(page)
    assert not page.locator("#notice").is_visible()
    assert not page.get_by_text("Loading the real images").is_visible()
    assert address(page).endswith(f"#{link}")


@pytest.mark.parametrize("view", VIEWS)
def test_controls_are_large_enough_to_touch_and_the_first_image_is_above_the_fold(open_page, page_url, view):
    """WCAG 2.2 asks for 44 pixels each way (2.5.5)."""
    page = open_page(f"{page_url}/#{view}", viewport={"width": 390, "height": 844})
    wait_until_idle(page)
    script = """() => [...document.querySelectorAll("button, .logo, nav a, select, summary, .radio-group label, input")]
        .filter(e => e.checkVisibility() && !e.closest(".strip") && !["radio", "file"].includes(e.type))
        .map(e => [e.innerText || e.id || e.className, e.getBoundingClientRect()])
        .filter(([, { width, height }]) => Math.min(width, height) < 43.5)"""
    assert page.evaluate(script) == []
    if view == "sample":
        for width, height in ((390, 844), (768, 1024)):
            page.set_viewport_size({"width": width, "height": height})
            for name in ("New samples", "Sample 1 of VAE: champion"):
                box = page.get_by_role("button", name=name).bounding_box()
                assert box["y"] + box["height"] < height


def test_the_picture_stays_in_view_on_narrow_screens(open_page, page_url):
    """Beside the last slider of Edit, and above the map."""
    page = open_page(f"{page_url}/#edit", viewport={"width": 390, "height": 844})
    image_urls(page, "#edited-image")
    slider = page.get_by_role("slider").last
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    slider.scroll_into_view_if_needed()
    header, picture, moved = (x.bounding_box() for x in (page.locator("header"), page.locator("#edited-copy"), slider))
    assert picture["y"] >= header["y"] + header["height"]
    assert picture["y"] + picture["height"] < 844
    assert picture["x"] + picture["width"] <= moved["x"]
    before = page.locator("#edited-copy img").get_attribute("src")
    slider.press("ArrowRight")
    page.wait_for_function("src => document.querySelector('#edited-copy img').src !== src", arg=before)
    page.set_viewport_size({"width": 768, "height": 900})
    page.get_by_role("link", name="Map").click()
    image_urls(page, "#map-decoded")
    canvas = page.get_by_label("Map of the real images")
    page.evaluate("scrollTo(0, document.querySelector('#map-canvas').getBoundingClientRect().bottom - innerHeight)")
    box = canvas.bounding_box()
    canvas.hover(position={"x": 50, "y": box["height"] - 50})
    header, picture = (page.locator(selector).bounding_box() for selector in ("header", "#map-decoded"))
    assert header["y"] + header["height"] <= picture["y"] < picture["y"] + picture["height"] < 300


def test_map_on_a_phone_has_a_visible_ring_and_no_hint_for_a_mouse(open_page, page_url):
    viewport = {"width": 390, "height": 844}
    page = open_page(f"{page_url}/#map?x=0.98&y=0.98", viewport=viewport, has_touch=True, is_mobile=True)
    image_urls(page, "#map-decoded")
    assert not page.get_by_text("follows the mouse").is_visible()
    ring = page.get_by_label("Map of the real images").evaluate("""canvas => {
        const { data, width } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        const colour = getComputedStyle(canvas).color.match(/[0-9]+/g).map(Number);
        const columns = [];
        for (let i = 0; i < data.length; i += 4)
            if (colour.every((value, channel) => data[i + channel] === value)) columns.push((i / 4) % width);
        columns.sort((a, b) => a - b);
        return (columns.at(-1) - columns[0]) * canvas.clientWidth / width;
    }""")
    assert 18 < ring < 26  # pixels of the page
    # A tap, or a finger that moves sideways, chooses a position; one that scrolls the page leaves it.
    box = page.get_by_label("Map of the real images").bounding_box()
    changed_image_urls(page, "#map-decoded", lambda: page.touchscreen.tap(60, box["y"] + 200))
    position = page.locator("#map-position").inner_text()
    devtools = page.context.new_cdp_session(page)

    def drag(dx: int, dy: int) -> None:
        box = page.get_by_label("Map of the real images").bounding_box()
        for step in range(10):
            point = {"x": 100 + dx * step, "y": box["y"] + 250 + dy * step}
            kind = "touchMove" if step else "touchStart"
            devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
        devtools.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    drag(0, -15)
    page.wait_for_function("() => scrollY > 50")
    wait_until_idle(page)
    assert page.locator("#map-position").inner_text() == position
    changed_image_urls(page, "#map-decoded", lambda: drag(15, 0))


@pytest.mark.parametrize("width", [320, 390, 768, 1920])
def test_no_view_is_wider_than_the_screen(open_page, page_url, width):
    page = open_page(page_url, viewport={"width": width, "height": 700})
    for view in ("docs", "#sample", "#map", "#edit", "#interpolate", "#reconstruct", "#model"):
        page.goto(f"{page_url}/{view}")
        wait_until_idle(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, view
        assert page.evaluate("window.scrollY") == 0, view  # the hash is a view's name, no element's id
        assert page.evaluate("() => [...document.querySelectorAll('nav')].every(e => e.scrollWidth <= e.clientWidth)")
    page.goto(f"{page_url}/#sample")
    page.get_by_role("button", name="Sample 1 of VAE: champion").click()
    page.locator("#image-dialog").wait_for()
    box = page.locator("#image-dialog").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    is_cut = "all => all.some(e => e.scrollWidth > e.clientWidth)"
    assert not page.eval_on_selector_all(".actions > *", is_cut)


@pytest.mark.parametrize("width", [320, 1280])
def test_long_names_are_broken_to_fit_the_screen(open_page, serve, width):
    name = "a_name_of_seventy_characters_without_a_space_" * 2
    slots = make_slot(alias=name), make_slot("3", f"other_{name}", 1e-6)
    for slot in slots:
        info = slot.current.info
        directions = {f"direction.{name}": info.latents["direction.Smiling"]}
        slot.current.info = replace(info, name=name, sampler="normal", latents={**info.latents, **directions})
    url = serve(*slots)
    page = open_page(url, viewport={"width": width, "height": 700})
    for view in VIEWS:
        page.goto(f"{url}/#{view}")
        wait_until_idle(page)
        overflowing = page.evaluate("""() => [...document.querySelectorAll("main *, header *")]
            .filter(element => !element.matches(".image-button img")) // a sheet of which the button shows a cell
            .filter(element => element.getBoundingClientRect().right > innerWidth + 0.5)
            .map(element => element.tagName + element.id + element.className)""")
        assert overflowing == [], view
        assert page.evaluate("document.documentElement.scrollWidth") <= width, view
        cut = page.eval_on_selector_all(
            "nav a, h2, figcaption, label, .secondary:not(#model-label)",
            "all => all.filter(e => e.clientWidth && e.scrollWidth > e.clientWidth).map(e => e.textContent)",
        )
        assert cut == [], view
    page.evaluate("name => import('./static/dom.js').then(({ notify }) => notify(name, 'permanent'))", name)
    assert page.evaluate("() => notice.scrollWidth <= notice.clientWidth")
    page.goto(f"{url}/#sample")
    page.get_by_role("button", name="Sample 1 of", exact=False).first.click()
    page.locator("#image-dialog").wait_for()
    assert page.evaluate(
        "() => { const e = document.querySelector('dialog[open]'); return e.scrollWidth <= e.clientWidth; }"
    )


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_axe_finds_no_violation_in_any_view(open_page, page_url, width, scheme):
    """WCAG 2.2 A and AA, contrast included, and axe's best practices."""
    page = open_page(page_url, viewport={"width": width, "height": 860}, color_scheme=scheme)
    red = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).map(Number)[0]")
    assert (red < 128) == (scheme == "dark")
    for view in VIEWS:
        page.goto(f"{page_url}/#{view}")
        wait_until_idle(page)
        results = Axe().run(page)
        assert results.violations_count == 0, f"{view}: {results.generate_report()}"
    page.goto(f"{page_url}/#sample")
    page.get_by_role("button", name="Sample 1 of VAE: champion").click()
    page.locator("#image-dialog").wait_for()
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
