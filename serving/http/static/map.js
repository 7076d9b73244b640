// The map: the z-points of real images in the plane. The pointer or the arrow keys choose a position, which is decoded.

import { decodeAt, latestOnly, loadMap, model, neighbours, sample } from "./api.js";
import { arrowStep, byId, createElement, createImageButton, createRadioGroup, formatNumber } from "./dom.js";
import { writeState } from "./state.js";
import { storedImage } from "./steps.js";

const NEAREST = 6;
const STEP = 0.03; // of an arrow key, on a map of -1 to 1
const SAMPLE_COUNT = 24;
const MARGIN = 0.06;
const SIDEWAYS = 16; // pixels, after which the browser has decided that a finger does not scroll
const SAMPLE_SIDE = 30; // pixels of the page, at most a sixteenth of the map
const FAR_QUANTILE = 0.99; // of the real images' distances to their nearest neighbours on the map

export async function startMap(onSelect, values) {
  const map = await loadMap();
  if (!map) {
    byId("map-status").textContent =
      "This model was stored without points of real images: train with points.images above 0, and promote the run.";
    return;
  }
  for (const element of byId("view-map").querySelectorAll("[hidden]")) element.hidden = false;
  byId("map-status").hidden = true;
  const canvas = byId("map-canvas");
  const context = canvas.getContext("2d");
  const decoded = createImageButton("The picture at this position", onSelect);
  byId("map-decoded").append(decoded.element);
  const nearest = Array.from({ length: NEAREST }, (_, i) => createElement("img", { alt: `Real image ${i + 1} near here` }));
  byId("map-nearest").append(...nearest);
  const startAt = (key) => Math.min(1, Math.max(-1, parseFloat(values.get(key)) || 0));
  let [x, y] = [startAt("x"), startAt("y")];
  let samples = []; // {image, at}
  const farDistance = neighbourDistance(map.points, FAR_QUANTILE);

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
    for (const sample of samples) drawSample(sample, caretColor);
    drawRing(x, y, 10, color);
  }

  /** Draw a sample's decoded image in a frame. */
  function drawSample({ image, at: [px, py] }, colour) {
    const pixelRatio = canvas.width / canvas.clientWidth;
    const side = Math.min(SAMPLE_SIDE * pixelRatio, canvas.width / 16);
    const [left, top] = [toPixel(px) - side / 2, toPixel(-py) - side / 2];
    context.drawImage(image, left, top, side, side);
    context.lineWidth = 2 * pixelRatio;
    context.strokeStyle = colour;
    context.strokeRect(left, top, side, side);
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
    const distance = Math.min(...map.points.map(([px, py]) => Math.hypot(px - x, py - y)));
    const isFar = distance > farDistance;
    byId("map-nearest-title").textContent = isFar ? "No real image near here" : "Real images near here";
    byId("map-position").textContent = `Position ${position}; nearest at ${distance.toFixed(2)}`;
    saveState();
  });

  function moveTo(newX, newY) {
    // To the digits of the URL, so that a reload shows the same position.
    [x, y] = [newX, newY].map((value) => Math.round(1000 * Math.min(1, Math.max(-1, value))) / 1000);
    draw();
    refresh();
  }

  const saveState = () => writeState("map", { x, y, sampler: sampler.value === "none" ? null : sampler.value });

  const onPointer = (event) => {
    const box = canvas.getBoundingClientRect();
    moveTo(toCoordinate((event.clientX - box.x) / box.width), -toCoordinate((event.clientY - box.y) / box.height));
  };
  // A position that was clicked stays, so that the mouse can go from it to the decoded image.
  let isPinned = false;
  let startX = null; // of a finger that has not moved sideways yet: it may be about to scroll the page
  canvas.addEventListener("pointermove", (event) => {
    if (Math.abs(event.clientX - startX) > SIDEWAYS) startX = null;
    const isDragging = event.buttons && startX === null;
    if (isDragging || (event.pointerType === "mouse" && !isPinned)) onPointer(event);
  });
  canvas.addEventListener("pointerdown", (event) => {
    isPinned = true;
    startX = event.pointerType === "mouse" ? null : event.clientX;
  });
  canvas.addEventListener("click", onPointer); // a finger that scrolls does not click
  canvas.addEventListener("dblclick", () => (isPinned = false));
  canvas.addEventListener("keydown", (event) => {
    const step = arrowStep(event, { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] });
    if (!step) return;
    event.preventDefault();
    moveTo(x + STEP * step[0], y + STEP * step[1]);
  });

  /** Draw decoded random samples in, each at the position of its nearest real images. */
  const showSamples = latestOnly(async () => {
    const name = sampler.value;
    saveState();
    samples = [];
    byId("map-distance").textContent = "";
    if (name !== "none") {
      const points = await sample(name, SAMPLE_COUNT, 0, {});
      const nearestOfSamples = await neighbours(points.map(({ z }) => z), 3);
      const images = await Promise.all(points.map(({ src }) => loadImage(src)));
      samples = nearestOfSamples.map((rows, i) => {
        const weights = rows.map(({ distance }) => 1 / (distance * distance + 1e-9));
        const total = weights.reduce((a, b) => a + b);
        const weighted = (axis) => rows.reduce((sum, { index }, j) => sum + map.points[index][axis] * weights[j], 0);
        return { image: images[i], at: [weighted(0) / total, weighted(1) / total] };
      });
      const distances = nearestOfSamples.map(([{ distance }]) => distance).sort((a, b) => a - b);
      const median = formatNumber(distances[SAMPLE_COUNT / 2]);
      byId("map-distance").textContent = `Median distance of a sample to its nearest real image: ${median}.`;
    }
    draw();
  });
  const options = ["none", ...Object.keys(model.samplers)];
  const sampler = createRadioGroup(byId("map-samplers"), options, {}, showSamples, values.get("sampler"));
  if (sampler.value !== "none") showSamples();
  new ResizeObserver(draw).observe(canvas); // draws now and when the view is shown
  refresh();
}

/** Return a quantile of the distances of points [x, y] to their nearest neighbours. */
function neighbourDistance(points, quantile) {
  const distances = points.map(([x, y], i) => {
    let least = Infinity; // squared: 5,000 points have 25 million pairs
    for (let j = 0; j < points.length; j++) {
      if (j !== i) least = Math.min(least, (points[j][0] - x) ** 2 + (points[j][1] - y) ** 2);
    }
    return Math.sqrt(least);
  });
  return distances.sort((a, b) => a - b)[Math.floor(quantile * (points.length - 1))];
}

async function loadImage(src) {
  const image = Object.assign(new Image(), { src });
  await image.decode();
  return image;
}
