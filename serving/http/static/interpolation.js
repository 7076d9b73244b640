// The view that interpolates between two points. It fetches all images at once, so that its slider needs no request.

import { interpolateSheet, latestOnly, model, sampleLikeData } from "./api.js";
import { byId, createImageButton, createRadioGroup, createSlider } from "./dom.js";

const FRAME_COUNT = 33;
const STRIP_LENGTH = 9;
const DESCRIPTIONS = {
  straight: "The straight line. Between distant points it passes closer to the mean than images do.",
  spherical: "Around the mean, with a radius that changes evenly.",
  neighbours: "From training image to training image, each near the previous one.",
};

const percent = (frame) => `${Math.round((100 * frame) / (FRAME_COUNT - 1))} %`;

export function startInterpolation(onSelect) {
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
  let ends = [null, null];
  let frames = [];

  const path = createRadioGroup(byId("paths"), model.paths, DESCRIPTIONS, () => refresh());
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

  const refresh = latestOnly(async () => {
    if (ends.includes(null)) return;
    const points = await interpolateSheet(ends[0].z, ends[1].z, FRAME_COUNT, path.value);
    const description = `${path.value} path`;
    frames = points.map((point, i) => ({ ...point, description: `${description}, ${percent(i)} from start to end` }));
    strip.forEach((button, i) => button.show(frames[(i * (FRAME_COUNT - 1)) / (STRIP_LENGTH - 1)]));
    showCurrentFrame();
  });

  function setEnds(points) {
    ends = points;
    ends.forEach((point, i) => point && [startButton, endButton][i].show(point));
    refresh();
  }

  /** Set random points for the ends that are not set. */
  const fillEnds = latestOnly(async () => {
    const points = await sampleLikeData(2);
    setEnds(ends.map((end, i) => end ?? points[i]));
  });

  byId("new-ends").addEventListener("click", () => {
    ends = [null, null];
    fillEnds();
  });
  byId("swap-ends").addEventListener("click", () => setEnds([ends[1], ends[0]]));
  fillEnds();
  return { setStart: (point) => setEnds([point, ends[1]]), setEnd: (point) => setEnds([ends[0], point]) };
}
