// The way from one point to another: all its pictures are fetched at once, so the slider needs no request.

import { interpolate, latest, likely, model } from "./api.js";
import { byId, choice, picture, slider } from "./dom.js";

const FRAMES = 33;
const SHOWN = 9;
const ABOUT = {
  straight: "The straight line; between far points it passes nearer the middle than real pictures lie.",
  spherical: "Around the middle, keeping the distance from it.",
  neighbours: "From real picture to real picture, each near the one before.",
};

const percent = (frame) => `${Math.round((100 * frame) / (FRAMES - 1))} %`;

export function startBetween(pick) {
  const start = picture("The start", pick);
  const end = picture("The end", pick);
  const middle = picture("The picture at the slider", pick);
  const steps = Array.from({ length: SHOWN }, (_, i) => picture(`Step ${i + 1} of ${SHOWN}`, pick));
  for (const [id, shown] of Object.entries({ start, end, middle })) byId(id).append(shown.element);
  byId("steps").append(...steps.map((p) => p.element));
  let ends = [null, null];
  let frames = [];

  const way = choice(byId("ways"), model.paths, ABOUT, () => refresh());
  const position = slider({
    label: "Where between them", min: 0, max: FRAMES - 1, step: 1, value: (FRAMES - 1) / 2, ends: ["start", "end"],
    format: percent, onInput: showMiddle,
  });
  byId("position").append(position.element);

  function showMiddle() {
    if (!frames.length) return;
    middle.show(frames[position.value]);
    byId("middle-caption").textContent = `${percent(position.value)} of the way`;
  }

  const refresh = latest(async () => {
    if (ends.includes(null)) return;
    const points = await interpolate(ends[0].z, ends[1].z, FRAMES, way.value);
    frames = points.map((point, i) => ({ ...point, about: `${percent(i)} of the way, ${way.value}` }));
    steps.forEach((shown, i) => shown.show(frames[(i * (FRAMES - 1)) / (SHOWN - 1)]));
    showMiddle();
  });

  function take(points) {
    ends = points;
    ends.forEach((point, i) => point && [start, end][i].show(point));
    refresh();
  }

  /** Random points for the ends that have none. */
  const fill = latest(async () => {
    const points = await likely(2);
    take(ends.map((end, i) => end ?? points[i]));
  });

  byId("between-again").addEventListener("click", () => {
    ends = [null, null];
    fill();
  });
  byId("between-swap").addEventListener("click", () => take([ends[1], ends[0]]));
  fill();
  return { takeStart: (point) => take([point, ends[1]]), takeEnd: (point) => take([ends[0], point]) };
}
