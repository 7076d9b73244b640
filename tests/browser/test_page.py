"""The page in a browser: every control of every view changes its images.

An error on the console, a request to another origin or a violation of the Content-Security-Policy fails a test
(open_page in conftest.py).
"""

import io
import json
import re
from dataclasses import replace
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch
from PIL import Image

from aecore.data.images import encode_image, register_heif
from aecore.data.synthetic_faces import draw_face
from aecore.latent.points import StoredPoints, make_points
from aecore.model.autoencoder import ImageShape, build_model
from serving.runtime.model_loading import LoadedModel
from tests.browser.page_actions import (
    address,
    changed_image_urls,
    choose,
    decode_data_url,
    image_urls,
    is_count,
    looks_like,
    pixels,
    press_slider,
    wait_until_idle,
)
from tests.serving.app_server import IMAGE, RECIPE, Z_DIM, make_slot

pytestmark = pytest.mark.browser


def make_face_points() -> StoredPoints:
    faces = np.stack([draw_face(seed, 0, 32)[0] for seed in range(12)])
    return make_points(torch.randn(12, Z_DIM), faces, torch.zeros(12, dtype=torch.uint8), {})


def test_samples_change_with_each_control(open_page, page_url):
    page = open_page(page_url)
    assert len(image_urls(page, "#samples")) == 24
    assert page.title() == "Sample \u2013 zpoint 7"
    changed_image_urls(page, "#samples", lambda: page.get_by_role("button", name="New samples").click())
    changed_image_urls(page, "#samples", lambda: page.get_by_label("Seed").fill("12"))
    names = page.locator("#samplers label").all_inner_texts()
    assert set(names) == {"cube", "normal", "sphere", "diagonal", "gaussian", "gmm"}
    parameters = {"cube": "boundary", "sphere": "radius"}
    for name in [*names[1:], names[0]]:
        changed_image_urls(page, "#samples", lambda name=name: choose(page, name))
        label = parameters.get(name, "temperature")
        changed_image_urls(page, "#samples", lambda label=label: press_slider(page, label))
    assert "Distance from the origin" in page.locator(".distances").inner_text()
    page.get_by_label("Seed").fill("abc")
    assert page.get_by_text("A seed is a whole number").is_visible()
    assert page.get_by_label("Seed").get_attribute("aria-invalid") == "true"
    # The same seed repeats the images, after a reload too.
    shown = []
    for seed in ("13", "14", "13"):
        changed_image_urls(page, "#samples", lambda seed=seed: page.get_by_label("Seed").fill(seed))
        shown.append(pixels(page, "#samples")[0])
    assert shown[0] == shown[2] != shown[1]
    assert not page.get_by_text("A seed is a whole number").is_visible()
    before_reload = address(page)
    page.reload()
    assert pixels(page, "#samples")[0] == shown[2]
    assert address(page) == before_reload


def test_an_ae_stands_beside_a_vae_with_the_same_seed_and_faces_counted(open_page, monkeypatch, serve):
    monkeypatch.setattr("aecore.metrics.face_detector.face_hits", lambda images: np.arange(len(images)) < 17)
    slots = make_slot(), make_slot("3", "near-ae", 1e-6)
    for slot in slots:
        metrics = {"hog_frechet_normal": 2.5, "test_psnr": 20.0}
        slot.current.info = replace(slot.current.info, points=make_face_points(), metrics=metrics)
    url = serve(*slots)
    page = open_page(url)
    assert len(image_urls(page, "#samples")) == 48
    assert page.locator(".model-panel h2").all_inner_texts() == ["VAE: champion", "Near-AE: near-ae"]
    page.wait_for_function("() => document.body.innerText.split('17 of 24 show a face').length === 3")
    requests = []
    page.on("request", lambda request: is_count(request) or requests.append((request.url, request.post_data)))
    changed_image_urls(page, "#samples", lambda: choose(page, "cube"))
    sent = {request_url.removeprefix(url): json.loads(body) for request_url, body in requests if body}
    assert sent["/v1/models/champion/sample"] == sent["/v1/models/near-ae/sample"]
    assert "This model was trained with almost no prior" in page.locator(".model-panel").nth(1).inner_text()
    seed = page.get_by_label("Seed").input_value()
    assert address(page) == f"{url}/#sample?sampler=cube&seed={seed}"  # without the defaults, which are the model's
    page.get_by_role("combobox", name="Model").select_option("near-ae")
    page.wait_for_function("() => document.title .endsWith('zpoint 3')")
    assert len(image_urls(page, "#samples")) == 48
    assert (page.get_by_label("cube").is_checked(), page.get_by_label("Seed").input_value()) == (True, seed)
    page.evaluate("location.hash = 'model'")
    page.wait_for_selector("#model-info .bar")
    text = page.locator("#model-info").inner_text()
    for value in ("near-autoencoder", "Fréchet distance of HOG features: normal samples", "PSNR, dB: test images"):
        assert value in text
    page.goto(f"{url}/?model=gone#sample?sampler=cube&boundary=1000&seed=1")
    page.wait_for_selector("text=No model gone is served here: this is champion.")
    image_urls(page, "#samples")
    boundary = page.get_by_role("slider", name="boundary")
    largest = float(boundary.get_attribute("max"))
    assert boundary.evaluate("slider => slider.valueAsNumber") == largest
    assert float(page.locator("#parameters output").inner_text()) == pytest.approx(largest, rel=0.01)
    assert address(page).endswith(f"#sample?sampler=cube&boundary={largest:g}&seed=1")


def test_the_page_names_its_model_after_going_back_to_it(open_page, serve):
    """Chromium keeps no page for going back while it is debugged: the test sends the event of a browser that did."""
    page = open_page(serve(make_slot(), make_slot("3", "near-ae", 1e-6)))
    image_urls(page, "#samples")
    shown = page.evaluate("""() => {
        document.getElementById("alias").value = "near-ae";
        dispatchEvent(new PageTransitionEvent("pageshow", { persisted: true }));
        return document.getElementById("alias").value;
    }""")
    assert shown == "champion"


def test_faces_are_not_counted_for_a_model_of_other_images(open_page, page_url):
    page = open_page(page_url)
    with page.expect_response(lambda response: is_count(response.request)) as counted:
        page.reload()
    image_urls(page, "#samples")
    wait_until_idle(page)
    assert (counted.value.status, page.locator(".model-panel .count").inner_text()) == (200, "")
    changed_image_urls(page, "#samples", lambda: page.get_by_role("button", name="New samples").click())
    assert page.locator(".model-panel .count").inner_text() == ""


def test_the_text_below_samples_says_where_they_lie_by_their_distance(open_page, page_url):
    page = open_page(f"{page_url}/#model")
    page.wait_for_selector(".bar")
    explained = page.evaluate("""async () => {
        const { model } = await import("./static/api.js");
        const { explain } = await import("./static/sampling.js");
        const { geometry } = await import("./static/latent_space.js");
        const { radius, radiusSd } = geometry();
        const of = (kl_factor) => ({ ...model, recipe: { loss: { kl_factor } } });
        const [near, far] = [radius + 1.9 * radiusSd, radius + 2.1 * radiusSd];
        const cases = [[0, "normal", far], [1e-6, "normal", far], [0.005, "normal", far], [0.005, "gmm", near],
            [0.005, "cube", near], [1, "normal", far], [1, "normal", near], [1, "gmm", 0]];
        return cases.map(([klFactor, sampler, distance]) => explain(of(klFactor), sampler, distance));
    }""")
    expected = [
        ("without a prior", "gray or brown squares"), ("with almost no prior", "gray or brown squares"),
        ("with a weak prior", "gray or brown squares"),
        ("with a weak prior", "drawn where they lie"), ("with a weak prior", "as far from it, but in all directions"),
        ("with an N(0, 1) prior", "in a region without training images"), ("with an N(0, 1) prior", "as far from it."),
        ("with an N(0, 1) prior", "resemble the average one"),
    ]  # fmt: skip
    for text, parts in zip(explained, expected, strict=True):
        assert [part for part in parts if part not in text] == []


def test_the_distance_of_samples_of_a_mixture_is_that_of_its_components(open_page, page_url):
    page = open_page(f"{page_url}/#model")
    page.wait_for_selector(".bar")
    for temperature in (0, 1, 2):
        distance, z = page.evaluate(
            """async (temperature) => {
            const { model, sample } = await import("./static/api.js");
            const { expectedDistance } = await import("./static/sampling.js");
            const options = { sampler: "gmm", parameters: { temperature } };
            const points = await sample("gmm", 2000, 0, options.parameters);
            return [expectedDistance(model, options), points.map(({ z }) => z)];
        }""",
            temperature,
        )
        assert distance == pytest.approx(np.sqrt(np.square(z).sum(1).mean()), rel=0.05)


def test_map_decodes_the_position_of_the_pointer_or_the_keys(open_page, page_url):
    page = open_page(f"{page_url}/#map?x=0.5&y=0.5")
    image_urls(page, "#map-decoded")
    assert len(image_urls(page, "#map-nearest")) == 6
    canvas = page.get_by_label("Map of the real images")
    before = pixels(page, "#map-decoded")
    changed_image_urls(page, "#map-decoded", lambda: canvas.hover(position={"x": 60, "y": 90}))
    assert pixels(page, "#map-decoded") != before
    changed_image_urls(page, "#map-decoded", lambda: canvas.press("ArrowRight"))
    choose(page, "normal")
    distance = page.get_by_text("Median distance of a sample to its nearest real image")
    distance.wait_for()
    before_reload = address(page)
    position = page.locator("#map-position").inner_text()
    page.reload()
    image_urls(page, "#map-decoded")
    page.wait_for_function("text => document.getElementById('map-position').textContent === text", arg=position)
    distance.wait_for()
    assert address(page) == before_reload
    gap = page.evaluate("""async () => {
        const { points } = await (await import("./static/api.js")).loadMap();
        const distance = ([x, y]) => Math.min(...points.map(([px, py]) => Math.hypot(px - x, py - y)));
        const grid = Array.from({ length: 400 }, (_, i) => [(i % 20) / 10 - 0.95, Math.floor(i / 20) / 10 - 0.95]);
        return grid.sort((a, b) => distance(b) - distance(a))[0];
    }""")
    page.goto(f"{page_url}/?again#map?x={gap[0]}&y={gap[1]}")
    page.get_by_text("No real image near here").wait_for()


def test_a_clicked_position_stays_on_the_way_to_its_image_until_a_double_click(open_page, page_url):
    page = open_page(f"{page_url}/#map")
    image_urls(page, "#map-decoded")
    canvas = page.get_by_label("Map of the real images")
    shown = page.locator("#map-position")
    for position in ({"x": 300, "y": 200}, {"x": 400, "y": 500}):  # each click chooses, not only the first
        changed_image_urls(page, "#map-decoded", lambda position=position: canvas.click(position=position))
        clicked = shown.inner_text()
        canvas.hover(position={"x": 20, "y": 300})
        page.locator("#map-decoded").hover()
        wait_until_idle(page)
        assert shown.inner_text() == clicked
    canvas.dblclick(position={"x": 400, "y": 500})
    changed_image_urls(page, "#map-decoded", lambda: canvas.hover(position={"x": 20, "y": 300}))
    assert shown.inner_text() != clicked


@pytest.mark.parametrize("has_points", [True, False])
def test_all_views_load_the_stored_images_once(open_page, serve, has_points):
    slot = make_slot()
    if not has_points:
        gray = ImageShape(16, 1)
        info = replace(slot.current.info, points=None, image=gray)
        slot.current = LoadedModel(info, build_model(RECIPE, gray).eval().requires_grad_(False))
    requests: list[str] = []
    page = open_page(f"{serve(slot)}/#model", allowed="Failed to load resource")
    page.on("request", lambda request: requests.append(request.url.rpartition("/")[2]))
    for view in ("sample", "map", "reconstruct"):
        page.evaluate("view => location.hash = view", view)
        wait_until_idle(page)
        if view == "map":
            assert page.get_by_label("Map of the real images").is_visible() == has_points
            assert page.locator("#map-samplers").is_visible() == has_points
            assert page.get_by_text("train with points.images above 0").is_visible() != has_points
    changed_image_urls(page, "#reconstruction", lambda: page.get_by_role("button", name="Random", exact=True).click())
    each = "768 numbers: one for each pixel and colour." if has_points else "256 numbers: one for each pixel."
    assert page.locator("#step-pixels").text_content() == each
    assert "face.png" not in requests
    assert sorted(name for name in requests if name in ("points", "thumbnails")) == ["points", "thumbnails"]


def test_edit_moves_an_image_along_each_direction(open_page, page_url):
    page = open_page(f"{page_url}/#edit")
    image_urls(page, "#edited-image")
    labels = page.locator("#directions label").all_inner_texts()
    assert labels[:2] == ["Smiling", "dark hair"]
    assert len(labels) == 2 + Z_DIM
    for label in labels:
        changed_image_urls(page, "#edited-image", lambda label=label: press_slider(page, label))
    assert len(set(pixels(page, "#direction-strip"))) == 9
    mean_image = changed_image_urls(page, "#edited-image", lambda: page.get_by_role("button", name="Mean").click())
    undo, redo = page.get_by_role("button", name="Undo"), page.get_by_role("button", name="Redo")
    first = changed_image_urls(page, "#edited-image", lambda: press_slider(page, "Smiling", times=1))
    second = changed_image_urls(page, "#edited-image", lambda: press_slider(page, "dark hair", times=1))
    assert changed_image_urls(page, "#edited-image", undo.click) == first
    assert changed_image_urls(page, "#edited-image", lambda: page.keyboard.press("Control+z")) == mean_image
    changed_image_urls(page, "#edited-image", redo.click)
    assert changed_image_urls(page, "#edited-image", redo.click) == second
    assert redo.is_disabled()
    before_reload = address(page)
    page.reload()
    assert image_urls(page, "#edited-image") == second
    assert address(page) == before_reload
    changed_image_urls(page, "#edited-image", lambda: page.get_by_role("button", name="Random", exact=True).click())


def test_undo_returns_to_an_image_chosen_after_a_slider_was_dragged_and_returned(open_page, page_url):
    """Such a slider fires no `change`."""
    page = open_page(f"{page_url}/#edit")
    changed_image_urls(page, "#edited-image", lambda: page.get_by_role("button", name="Mean").click())
    slider = page.get_by_role("slider", name="Smiling")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 50, y, steps=5)
    page.mouse.move(x, y, steps=5)
    page.mouse.up()
    assert slider.input_value() == "0"
    wait_until_idle(page)
    random = changed_image_urls(
        page, "#edited-image", lambda: page.get_by_role("button", name="Random", exact=True).click()
    )
    changed_image_urls(page, "#edited-image", lambda: press_slider(page, "dark hair", times=1))
    undo = page.get_by_role("button", name="Undo")
    assert changed_image_urls(page, "#edited-image", undo.click) == random


def test_ctrl_z_in_the_name_of_an_axis_undoes_the_text(open_page, page_url):
    page = open_page(f"{page_url}/#edit")
    shown = changed_image_urls(page, "#edited-image", lambda: page.get_by_role("button", name="Mean").click())
    page.get_by_text("Name the axes").click()
    name = page.get_by_label("Axis 2", exact=True)
    name.press_sequentially("beard")
    name.press("Control+z")
    wait_until_idle(page)
    assert name.input_value() != "beard"
    assert image_urls(page, "#edited-image") == shown


def test_edit_sliders_show_the_coordinates_of_the_decoded_z(open_page, page_url):
    page = open_page(f"{page_url}/#edit")
    changed_image_urls(page, "#edited-image", lambda: page.get_by_role("button", name="Mean").click())
    assert page.locator("#directions output").all_inner_texts() == ["0.0"] * (2 + Z_DIM)
    latents = httpx2.get(f"{page_url}/v1/model").json()["latents"]
    with page.expect_request("**/decode") as sent:
        page.get_by_role("slider", name="Axis 1,").fill("2")
    [z] = json.loads(sent.value.post_data)["z"]
    first = latents["axes"][0]
    expected = np.array(latents["mean"]) + 2 * first["sd"] * np.array(first["direction"])
    np.testing.assert_allclose(z, expected, atol=1e-6)
    shown = page.evaluate("""async () => {
        const { createSlider } = await import("./static/dom.js");
        const slider = createSlider({ label: "", min: 0, max: 4, step: 1, value: 1 });
        return [[7], [7, 7]].map((values) => {
            slider.set(...values);
            return [slider.value, slider.element.querySelector("output").value];
        });
    }""")
    assert shown == [[4, "4"], [4, "7"]]


def test_interpolate_decodes_from_start_to_end(open_page, page_url):
    page = open_page(f"{page_url}/#interpolate")
    # Between the first two random ends of the fixed seed two paths coincide.
    changed_image_urls(page, "#interpolation-strip", lambda: page.get_by_role("button", name="New ends").click())
    steps = pixels(page, "#interpolation-strip")
    [start, end] = pixels(page, "#start-image") + pixels(page, "#end-image")
    assert looks_like(steps[0], start, end)
    assert looks_like(steps[-1], end, start)
    assert pixels(page, "#current-image") == [steps[4]]
    requests: list[str] = []
    page.on("request", lambda request: request.url.startswith("data:") or requests.append(request.url))
    for key, step in (("Home", steps[0]), ("End", steps[-1])):
        changed_image_urls(page, "#current-image", lambda key=key: press_slider(page, "Position", key, 1))
        assert pixels(page, "#current-image") == [step]
    assert requests == []  # all images were fetched before
    assert page.locator("#paths label").all_inner_texts() == ["straight", "spherical", "neighbours"]
    for path in ("spherical", "neighbours", "straight"):
        changed_image_urls(page, "#interpolation-strip", lambda path=path: choose(page, path))
        changed = pixels(page, "#interpolation-strip")
        assert looks_like(changed[0], start, end)
        assert looks_like(changed[-1], end, start)
    changed_image_urls(page, "#interpolation-strip", lambda: page.get_by_role("button", name="Swap").click())
    assert looks_like(pixels(page, "#interpolation-strip")[0], end, start)
    changed_image_urls(page, "#interpolation-strip", lambda: page.get_by_role("button", name="New ends").click())


def test_the_change_from_start_to_end_is_added_to_another_image(open_page, page_url):
    page = open_page(f"{page_url}/#interpolate")
    strip = pixels(page, "#changed-strip")
    assert len(set(strip)) == 9
    with page.expect_request("**/interpolate") as between, page.expect_request("**/decode") as changed:
        page.get_by_role("button", name="Swap").click()
    start, end = (np.array(z) for z in json.loads(between.value.post_data)["z"])
    zs = np.array(json.loads(changed.value.post_data)["z"])
    np.testing.assert_allclose(zs, zs[0] + np.linspace(0, 1, 9)[:, None] * (end - start), atol=1e-5)
    wait_until_idle(page)
    changed_image_urls(page, "#changed-strip", lambda: page.get_by_role("button", name="Another image").click())
    changed_image_urls(page, "#interpolation-strip", lambda: choose(page, "spherical"))
    before_reload, shown = address(page), pixels(page, "#changed-strip") + pixels(page, "#interpolation-strip")
    page.reload()
    assert pixels(page, "#changed-strip") + pixels(page, "#interpolation-strip") == shown
    assert address(page) == before_reload


def test_a_view_keeps_its_address_and_a_link_opened_in_its_tab_is_followed(open_page, page_url):
    page = open_page(f"{page_url}/#edit")
    image_urls(page, "#edited-image")
    page.wait_for_function("() => location.hash.startsWith('#edit?z=')")
    first, shown = address(page), pixels(page, "#edited-image")
    changed_image_urls(page, "#edited-image", lambda: page.get_by_role("button", name="Mean").click())
    second = address(page)
    page.get_by_role("link", name="Map").click()
    page.get_by_role("link", name="Edit").click()
    page.wait_for_function("url => location.href === url", arg=second)  # hashchange comes after the click
    with page.expect_event("load"):
        page.evaluate("link => location.assign(link)", first)
    page.wait_for_selector("#edited-image img[src]")
    assert pixels(page, "#edited-image") == shown


def test_going_back_to_a_view_that_has_changed_since_does_not_reload_the_page(open_page, page_url):
    page = open_page(f"{page_url}/#sample?sampler=cube&seed=1")
    image_urls(page, "#samples")
    assert address(page).endswith("seed=1")
    page.evaluate("window.isFirstLoad = true")
    for name in ("Model", "Sample"):
        page.get_by_role("link", name=name, exact=True).click()
    page.wait_for_url("**/#sample?*")
    changed_image_urls(page, "#samples", lambda: page.get_by_label("Seed").fill("2"))
    assert address(page).endswith("seed=2")
    page.go_back()
    page.locator("#view-model").wait_for()
    page.go_back()
    page.locator("#view-sample").wait_for()
    wait_until_idle(page)
    assert page.evaluate("window.isFirstLoad")
    assert (page.get_by_label("Seed").input_value(), address(page).rpartition("=")[2]) == ("2", "2")


def test_changes_in_a_row_change_the_address_once(open_page, page_url):
    """Safari refuses more than 100 calls of history.replaceState in 30 s."""
    page = open_page(f"{page_url}/#edit")
    image_urls(page, "#edited-image")
    address(page)
    page.evaluate("""() => {
        const replace = history.replaceState.bind(history);
        window.replacements = 0;
        history.replaceState = (...state) => { window.replacements++; replace(...state); };
        const input = document.querySelector("#axis-names input");
        for (let i = 0; i < 150; i++) {
            input.value = `name ${i}`;
            input.dispatchEvent(new Event("input"));
        }
    }""")
    page.wait_for_function("() => location.hash.endsWith('axis1=name+149')")
    assert page.evaluate("window.replacements") == 1


@pytest.mark.parametrize("target", ["#map", "docs"])
def test_a_change_just_before_the_page_is_left_is_there_after_going_back(open_page, page_url, target):
    page = open_page(f"{page_url}/#sample?sampler=cube&boundary=2&seed=1")
    image_urls(page, "#samples")
    page.evaluate(
        """target => {
        const seed = document.getElementById("seed");
        seed.value = "77";
        seed.dispatchEvent(new Event("input"));
        const link = document.createElement("a");
        link.href = target;
        document.body.append(link);
        link.click();
    }""",
        target,
    )
    page.wait_for_url(f"**/{target}*")
    page.go_back()
    page.locator("#view-sample").wait_for()
    assert page.get_by_label("Seed").input_value() == "77"
    assert address(page).endswith("seed=77")


def test_principal_axes_have_the_users_names_which_the_address_keeps(open_page, page_url):
    page = open_page(f"{page_url}/#edit")
    image_urls(page, "#edited-image")
    page.get_by_text("Name the axes").click()
    page.get_by_label("Axis 2", exact=True).fill("turns the head")
    named = re.compile("^turns the head .Axis 2, ")
    changed_image_urls(page, "#direction-strip", lambda: press_slider(page, named))
    assert page.locator("#direction-title").inner_text().startswith("turns the head from ")
    before_reload = address(page)
    page.reload()
    page.get_by_role("slider", name=named).wait_for()
    page.get_by_role("slider", name=re.compile("^Axis 1, ")).wait_for()
    image_urls(page, "#edited-image")
    assert address(page) == before_reload
    page.goto(before_reload.replace("z=7.", "z=6."))  # of another version, whose axes are others
    page.get_by_role("slider", name=re.compile("^Axis 2, ")).wait_for()


def test_reconstruct_a_random_image_by_each_task(open_page, page_url):
    page = open_page(f"{page_url}/#reconstruct")
    image_urls(page, "#reconstruction")
    original, corrupted, reconstruction = pixels(page, "#reconstruction")
    assert len({original, corrupted, reconstruction}) == 3  # a task that shows something
    assert page.get_by_text("This model was not trained on this task, but on reconstruct.").is_visible()
    changed_image_urls(page, "#reconstruction", lambda: choose(page, "reconstruct"))
    assert pixels(page, "#reconstruction")[:2] == [original, original]
    original = image_urls(page, "#reconstruction")[0]
    assert page.locator("#tasks label").all_inner_texts() == ["reconstruct", "denoise", "drop", "recolor", "inpaint"]
    sliders = {"denoise": ["sigma"], "drop": ["keep"], "recolor": [], "inpaint": ["block", "share"]}
    for task, labels in sliders.items():
        stages = changed_image_urls(page, "#reconstruction", lambda task=task: choose(page, task))
        assert stages[0] == original
        assert stages[1] != original
        for label in labels:
            changed_image_urls(page, "#reconstruction", lambda label=label: press_slider(page, label, times=25))
    changed_image_urls(page, "#reconstruction", lambda: page.get_by_role("button", name="Random", exact=True).click())
    before_reload, shown = address(page), pixels(page, "#reconstruction")
    page.reload()
    assert pixels(page, "#reconstruction") == shown
    assert address(page) == before_reload


def test_reconstruct_starts_at_the_trained_task_and_shows_the_other_model_beside(open_page, serve):
    slots = make_slot(), make_slot("3", "near-ae", 1e-6)
    slots[0].current.info.recipe["task"] = {"kind": "denoise", "sigma": 0.4}
    page = open_page(f"{serve(*slots)}/#reconstruct", allowed="Failed to load resource")
    assert len(image_urls(page, "#reconstruction")) == 4
    assert page.get_by_label("denoise").is_checked()
    assert page.get_by_text("This model was trained on this task, denoise.").is_visible()
    captions = page.locator("#reconstruction figcaption").all_inner_texts()
    assert captions[2:] == ["Reconstruction by champion", "Reconstruction by near-ae"]
    with page.expect_request("**/champion/reconstruct") as own, page.expect_request("**/near-ae/reconstruct") as other:
        changed_image_urls(page, "#reconstruction", lambda: choose(page, "drop"))
    assert own.value.post_data == other.value.post_data
    before, held = image_urls(page, "#reconstruction"), []
    page.route("**/near-ae/reconstruct", lambda route: held.append(route))
    for name in ("inpaint", "denoise"):  # the other model, still busy with the first one, holds up neither
        with page.expect_response("**/champion/reconstruct"):
            choose(page, name)
    third = "before => document.querySelectorAll('#reconstruction img')[2].src !== before"
    page.wait_for_function(third, arg=before[2])
    held[0].fulfill(status=500, body='{"detail": "out of memory"}')
    page.wait_for_selector("text=out of memory")
    after = image_urls(page, "#reconstruction")
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, False, True]


def test_a_photo_that_the_browser_does_not_read_is_converted_by_the_endpoint(open_page, page_url):
    page = open_page(f"{page_url}/#reconstruct", allowed="Failed to load resource")
    register_heif()
    buffer = io.BytesIO()
    face = Image.fromarray(draw_face(3, 0, 64)[0])
    face.save(buffer, "HEIF", quality=90)
    upload = {"name": "IMG_1.HEIC", "mimeType": "image/heic", "buffer": buffer.getvalue()}
    [sent, *_] = changed_image_urls(page, "#reconstruction", lambda: page.set_input_files("#file", upload))
    expected = np.asarray(face.resize((IMAGE.size,) * 2, Image.Resampling.BOX)).astype(int)
    shown = np.asarray(Image.open(io.BytesIO(decode_data_url(sent))).convert("RGB"))
    assert np.abs(shown - expected).mean() < 12
    assert page.get_by_label("Your image.").is_visible()


@pytest.mark.parametrize("later", ["file", "random"])
def test_a_photo_that_is_converted_after_a_later_choice_is_dropped(open_page, page_url, later):
    page = open_page(f"{page_url}/#reconstruct", allowed="Failed to load resource")
    before = image_urls(page, "#reconstruction")
    conversions = []
    page.route("**/v1/convert", lambda *arguments: conversions.append(arguments[0]))
    page.set_input_files("#file", {"name": "IMG_1.HEIC", "mimeType": "image/heic", "buffer": b"no browser reads this"})
    while not conversions:
        page.wait_for_timeout(10)
    photos = [encode_image(draw_face(seed, 0, 64)[0], "jpeg") for seed in range(2)]
    if later == "file":
        page.set_input_files("#file", {"name": "later.jpg", "mimeType": "image/jpeg", "buffer": photos[1]})
    else:
        page.locator("#reconstruct-random").click()
    page.wait_for_function("src => document.querySelector('#reconstruction img').src !== src", arg=before[0])
    chosen = image_urls(page, "#reconstruction")[0]
    conversions[0].fulfill(status=200, content_type="image/jpeg", body=photos[0])
    wait_until_idle(page)
    page.wait_for_timeout(300)
    assert image_urls(page, "#reconstruction")[0] == chosen
    assert page.get_by_label("Your image.").is_visible() == (later == "file")


def test_a_random_image_that_waits_does_not_replace_a_photo_chosen_later(open_page, page_url):
    page = open_page(f"{page_url}/#reconstruct")
    held = []
    page.route("**/champion/points", lambda *arguments: held.append(arguments[0]))
    page.reload()
    while not held:
        page.wait_for_timeout(10)
    for _ in range(2):
        page.locator("#reconstruct-random").click()
    photo = encode_image(draw_face(1, 0, 64)[0], "jpeg")
    page.set_input_files("#file", {"name": "later.jpg", "mimeType": "image/jpeg", "buffer": photo})
    page.wait_for_selector("#reconstruction img")
    chosen = image_urls(page, "#reconstruction")[0]
    for route in held:
        route.continue_()
    page.wait_for_timeout(300)
    wait_until_idle(page)
    assert image_urls(page, "#reconstruction")[0] == chosen
    assert page.get_by_label("Your image.").is_visible()


def test_reconstruct_an_uploaded_image(open_page, page_url):
    """The frame's content is sent, in the size of the model's images."""
    page = open_page(f"{page_url}/#reconstruct", allowed="Failed to load resource")
    face = encode_image(np.pad(draw_face(3, 0, 64)[0], ((0, 0), (20, 20), (0, 0)), mode="edge"), "png")
    upload = {"name": "face.png", "mimeType": "image/png", "buffer": face}
    first = changed_image_urls(page, "#reconstruction", lambda: page.set_input_files("#file", upload))
    sent = np.asarray(Image.open(io.BytesIO(decode_data_url(first[0]))).convert("RGB"))
    assert sent.shape == (IMAGE.size, IMAGE.size, 3)
    centre = Image.open(io.BytesIO(face)).crop((20, 0, 84, 64)).resize((16, 16), Image.Resampling.BOX)
    assert np.abs(sent.astype(int) - np.asarray(centre)).mean() < 12
    changed_image_urls(page, "#reconstruction", lambda: press_slider(page, "Zoom", times=20))
    frame = page.get_by_label("Your image.")
    changed_image_urls(page, "#reconstruction", lambda: frame.press("ArrowLeft"))
    box = frame.bounding_box()

    def drag() -> None:
        page.mouse.move(box["x"] + 100, box["y"] + 100)
        page.mouse.down()
        page.mouse.move(box["x"] + 60, box["y"] + 80, steps=4)
        page.mouse.up()

    changed_image_urls(page, "#reconstruction", drag)
    page.set_input_files("#file", {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no picture"})
    page.wait_for_selector("text=Cannot read notes.txt as an image")
    changed_image_urls(
        page, "#reconstruction", lambda: frame.press("ArrowRight")
    )  # a successful request does not hide the warning
    assert page.locator("#notice").is_visible()


def test_the_face_of_a_photo_is_framed_as_the_training_images_are(open_page, serve):
    slot = make_slot()
    slot.current.info = replace(slot.current.info, points=make_face_points())
    page = open_page(f"{serve(slot)}/#reconstruct", allowed="Failed to load resource")
    image_urls(page, "#reconstruction")
    photo = np.full((500, 300, 3), 110, np.uint8)
    photo[80:200, 120:240] = draw_face(3, 0, 120)[0]
    upload = {"name": "photo.png", "mimeType": "image/png", "buffer": encode_image(photo, "png")}
    page.set_input_files("#file", upload)
    page.wait_for_function("() => document.querySelector('#zoom output').value.startsWith('2.')")  # 300 / 120 = 2.5
    wait_until_idle(page)
    shown = np.asarray(Image.open(io.BytesIO(decode_data_url(image_urls(page, "#reconstruction")[0]))).convert("RGB"))
    expected = np.asarray(Image.fromarray(photo[80:200, 120:240]).resize((IMAGE.size,) * 2, Image.Resampling.BOX))
    assert np.abs(shown.astype(int) - expected).mean() < 30
    assert page.locator("#frame-status").inner_text() == ""
    upload["buffer"] = encode_image(np.full_like(photo, 110), "png")
    page.set_input_files("#file", upload)
    page.get_by_text("The photo was not framed by a face: frame it yourself.").wait_for()
    # Models without stored images, and of other images.
    for status, answer in ((404, {}), (200, {"model": "zpoint/7", "frames": None})):
        page.route(
            "**/frames", lambda route, *_, status=status, answer=answer: route.fulfill(status=status, json=answer)
        )
        with page.expect_response("**/frames"):
            page.set_input_files("#file", upload)
        wait_until_idle(page)
        assert page.locator("#frame-status").inner_text() == ""


def test_selected_image_is_copied_downloaded_and_used_in_each_view(open_page, page_url):
    page = open_page(page_url, permissions=["clipboard-read", "clipboard-write"])
    image_urls(page, "#samples")

    def select() -> None:
        page.get_by_role("button", name="Sample 5 of VAE: champion").click()
        page.locator("#image-dialog").wait_for()

    select()
    url = page.locator("#dialog-image").get_attribute("src")
    page.get_by_role("button", name="Copy z").click()
    page.wait_for_selector("#notice:visible")
    z = json.loads(page.evaluate("navigator.clipboard.readText()"))
    response = httpx2.post(f"{page_url}/v1/decode", json={"z": [z]}, headers={"Accept": "image/png"})
    np.testing.assert_array_equal(
        np.asarray(Image.open(io.BytesIO(response.content))), np.asarray(Image.open(io.BytesIO(decode_data_url(url))))
    )
    select()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "zpoint.png"
    assert Path(download.value.path()).read_bytes() == decode_data_url(url)
    for name, selector in {"Interpolate from here": "#start-image", "Interpolate to here": "#end-image"}.items():
        page.get_by_role("link", name="Sample", exact=True).click()
        select()
        page.get_by_role("button", name=name).click()
        page.wait_for_function("([s, src]) => document.querySelector(`${s} img`).src === src", arg=[selector, url])
    page.get_by_role("link", name="Sample", exact=True).click()
    select()
    page.get_by_role("button", name="Edit").click()
    image_urls(page, "#edited-image")
    page.locator("#edited-image button").click()  # of a lossy image: the dialog has the exact one
    page.wait_for_function("src => document.getElementById('dialog-image').src === src", arg=url)
    page.get_by_role("button", name="Reconstruct").click()
    page.wait_for_function("src => document.querySelector('#reconstruction img').src === src", arg=url)


def test_model_view_shows_version_recipe_and_metrics(open_page, page_url):
    page = open_page(f"{page_url}/#model")
    page.wait_for_selector(".bar")
    text = page.locator("#model-info").inner_text()
    for value in ("zpoint, version 7 (champion)", "run-1", "kl_factor 1", "16 pixels, colour", "PSNR, dB"):
        assert value in text
    assert page.locator(".bar").count() == Z_DIM
