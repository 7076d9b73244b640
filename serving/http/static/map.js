// The map: the z-points of real images in the plane. The pointer or the arrow keys choose a position, which is decoded.

import { decodeAt, latestOnly, loadMap, model, neighbours, sample } from "./api.js";
import { byId, createElement, createImageButton, createRadioGroup } from "./dom.js";
import { writeState } from "./state.js";
import { storedImage } from "./steps.js";

const NEAREST = 6;
const STEP = 0.03; // of an arrow key, on a map of -1 to 1
const SAMPLE_COUNT = 24;
const MARGIN = 0.06;

export async function startMap(onSelect, values) {
  const map = await loadMap();
  byId("map-empty").hidden = map !== null;
  byId("map-content").hidden = map === null;
  if (!map) return;
  const canvas = byId("map-canvas");
  const context = canvas.getContext("2d");
  const decoded = createImageButton("The picture at this position", onSelect);
  byId("map-decoded").append(decoded.element);
  const nearest = Array.from({ length: NEAREST }, (_, i) => createElement("img", { alt: `Real image ${i + 1} near here` }));
  byId("map-nearest").append(...nearest);
  const startAt = (key) => Math.min(1, Math.max(-1, parseFloat(values.get(key)) || 0));
  let [x, y] = [startAt("x"), startAt("y")];
  let samples = [];

  const toPixel = (value) => (canvas.width * (1 + MARGIN + value)) / (2 + 2 * MARGIN);
  const toCoordinate = (fraction) => Math.min(1, Math.max(-1, fraction * (2 + 2 * MARGIN) - 1 - MARGIN));

  function draw() {
    const { columns, size } = map.sprites;
    const side = Math.max(14, Math.min(size, canvas.width / Math.sqrt(3 * map.points.length)));
    context.clearRect(0, 0, canvas.width, canvas.height);
    map.points.forEach(([px, py], i) => {
      const [left, top] = [size * (i % columns), size * Math.floor(i / columns)];
      context.drawImage(map.sheet, left, top, size, size, toPixel(px) - side / 2, toPixel(-py) - side / 2, side, side);
    });
    // A canvas resolves no CSS variables: its own colours are those of the page's scheme.
    const { color, caretColor } = getComputedStyle(canvas);
    for (const [px, py] of samples) drawRing(px, py, 5, caretColor);
    drawRing(x, y, 10, color);
  }

  /** Draw a ring whose radius is in pixels of the page, so that it is as large on a small screen. */
  function drawRing(px, py, radius, colour) {
    const pixelRatio = canvas.width / canvas.clientWidth;
    for (const [width, stroke] of [[4 * pixelRatio, "#fff"], [2 * pixelRatio, colour]]) {
      context.lineWidth = width;
      context.strokeStyle = stroke;
      context.beginPath();
      context.arc(toPixel(px), toPixel(-py), radius * pixelRatio, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  const refresh = latestOnly(async () => {
    const position = `${x.toFixed(2)}, ${y.toFixed(2)}`;
    const { point, nearest: rows } = await decodeAt(x, y);
    decoded.show({ ...point, description: `the map at ${position}` });
    nearest.forEach((image, i) => (image.src = storedImage(map, rows[i]).src));
    byId("map-position").textContent = `Position ${position}`;
    writeState("map", { x, y });
  });

  function moveTo(newX, newY) {
    // To the digits of the URL, so that a reload shows the same position.
    [x, y] = [newX, newY].map((value) => Math.round(1000 * Math.min(1, Math.max(-1, value))) / 1000);
    draw();
    refresh();
  }

  const onPointer = (event) => {
    const box = canvas.getBoundingClientRect();
    moveTo(toCoordinate((event.clientX - box.x) / box.width), -toCoordinate((event.clientY - box.y) / box.height));
  };
  // A position that was clicked stays, so that the mouse can go from it to the decoded image.
  let isPinned = false;
  canvas.addEventListener("pointermove", (event) => {
    if (event.buttons || (event.pointerType === "mouse" && !isPinned)) onPointer(event);
  });
  canvas.addEventListener("pointerdown", (event) => {
    isPinned = true;
    onPointer(event);
  });
  canvas.addEventListener("dblclick", () => (isPinned = false));
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
    if (!step) return;
    event.preventDefault();
    moveTo(x + STEP * step[0], y + STEP * step[1]);
  });

  /** Draw random samples in, each at the position of its nearest real images. */
  const showSamples = latestOnly(async () => {
    const name = sampler.value;
    samples = [];
    if (name !== "none") {
      const points = await sample(name, SAMPLE_COUNT, 0, {});
      const nearestOfSamples = await neighbours(points.map(({ z }) => z), 3);
      samples = nearestOfSamples.map((rows) => {
        const weights = rows.map(({ distance }) => 1 / (distance * distance + 1e-9));
        const total = weights.reduce((a, b) => a + b);
        return [0, 1].map((axis) => rows.reduce((sum, { index }, i) => sum + map.points[index][axis] * weights[i], 0) / total);
      });
    }
    draw();
  });
  const options = ["none", ...Object.keys(model.samplers)];
  const sampler = createRadioGroup(byId("map-samplers"), options, {}, showSamples);
  new ResizeObserver(draw).observe(canvas); // draws now and when the view is shown
  refresh();
}
