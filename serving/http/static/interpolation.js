// The view that interpolates between two points, and adds the same change to another one. It fetches all images at
// once, so that its slider needs no request.

import { decodeSheet, interpolateSheet, latestOnly, model, sampleLikeData } from "./api.js";
import { byId, createImageButton, createRadioGroup, createSlider } from "./dom.js";
import { moveAlong } from "./latent_space.js";
import { packPoint, unpackPoint, writeState } from "./state.js";

const FRAME_COUNT = 33;
const STRIP_LENGTH = 9;
const POINTS = ["start", "end", "other"];
const DESCRIPTIONS = {
  straight: "The straight line. Between distant points it passes closer to the mean than images do.",
  spherical: "Around the mean, with a radius that changes evenly.",
  neighbours: "From training image to training image, each near the previous one.",
};

const percent = (frame) => `${Math.round((100 * frame) / (FRAME_COUNT - 1))} %`;

export function startInterpolation(onSelect, values) {
  const startButton = createImageButton("The start", onSelect);
  const endButton = createImageButton("The end", onSelect);
  const currentButton = createImageButton("The image at the slider's position", onSelect);
  const strip = Array.from({ length: STRIP_LENGTH }, (_, i) =>
    createImageButton(`Step ${i + 1} of ${STRIP_LENGTH}`, onSelect),
  );
  byId("start-image").append(startButton.element);
  byId("end-image").append(endButton.element);
  byId("current-image").append(currentButton.element);
  byId("interpolation-strip").append(...strip.map((button) => button.element));
  const changedStrip = Array.from({ length: STRIP_LENGTH }, (_, i) =>
    createImageButton(`The other image after step ${i + 1} of ${STRIP_LENGTH}`, onSelect),
  );
  byId("changed-strip").append(...changedStrip.map((button) => button.element));
  let points = [null, null, null]; // start, end, and the one to which their difference is added
  let frames = [];

  const path = createRadioGroup(byId("paths"), model.paths, DESCRIPTIONS, () => refresh(), values.get("path"));
  const position = createSlider({
    label: "Position", min: 0, max: FRAME_COUNT - 1, step: 1, value: (FRAME_COUNT - 1) / 2, ends: ["start", "end"],
    format: percent, onInput: showCurrentFrame,
  });
  byId("position").append(position.element);

  function showCurrentFrame() {
    if (!frames.length) return;
    currentButton.show(frames[position.value]);
    byId("current-caption").textContent = `${percent(position.value)} from start to end`;
  }

  const frameOfStep = (i) => (i * (FRAME_COUNT - 1)) / (STRIP_LENGTH - 1);

  const refresh = latestOnly(async () => {
    if (points.includes(null)) return;
    const [start, end, other] = points.map(({ z }) => z);
    const packed = points.map(({ z }, i) => [POINTS[i], packPoint(z, model)]);
    writeState("interpolate", { path: path.value, ...Object.fromEntries(packed) });
    const change = { step: end.map((value, i) => value - start[i]) };
    const [between, changed] = await Promise.all([
      interpolateSheet(start, end, FRAME_COUNT, path.value),
      decodeSheet(strip.map((_, i) => moveAlong(other, change, i / (STRIP_LENGTH - 1)))),
    ]);
    const description = `${path.value} path`;
    frames = between.map((point, i) => ({ ...point, description: `${description}, ${percent(i)} from start to end` }));
    strip.forEach((button, i) => button.show(frames[frameOfStep(i)]));
    changedStrip.forEach((button, i) => {
      button.show({ ...changed[i], description: `another image + ${percent(frameOfStep(i))} of the change` });
    });
    showCurrentFrame();
  });

  function setPoints(newPoints) {
    points = newPoints;
    [startButton, endButton].forEach((button, i) => points[i] && button.show(points[i]));
    refresh();
  }

  /** Set random points for those that are not set. */
  const fillPoints = latestOnly(async () => {
    const random = await sampleLikeData(points.length);
    setPoints(points.map((point, i) => point ?? random[i]));
  });

  function renew(...names) {
    points = points.map((point, i) => (names.includes(POINTS[i]) ? null : point));
    fillPoints();
  }

  const setPoint = (name) => (point) => setPoints(points.map((old, i) => (POINTS[i] === name ? point : old)));

  /** Show the points of the URL. */
  const restorePoints = latestOnly(async (zs) => {
    const decodedPoints = await decodeSheet(zs);
    const names = POINTS.map((name) => `the ${name} of this page's address`);
    setPoints(points.map((point, i) => point ?? { ...decodedPoints[i], z: zs[i], description: names[i] }));
  });

  byId("new-ends").addEventListener("click", () => renew("start", "end"));
  byId("swap-ends").addEventListener("click", () => setPoints([points[1], points[0], points[2]]));
  byId("new-other").addEventListener("click", () => renew("other"));
  const initialZs = POINTS.map((name) => unpackPoint(values.get(name), model));
  if (initialZs.includes(null)) fillPoints();
  else restorePoints(initialZs);
  return { setStart: setPoint("start"), setEnd: setPoint("end"), setOther: setPoint("other") };
}
