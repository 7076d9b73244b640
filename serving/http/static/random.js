// Random points: a sheet of pictures from a sampler, its parameters as sliders, and how far out the points lie.

import { latest, model, sample } from "./api.js";
import { byId, choice, draw, make, picture, short, slider } from "./dom.js";
import { geometry } from "./latents.js";

const COUNT = 24;
const ABOUT = {
  normal: "N(0, 1), from which a VAE learns to decode.",
  cube: "Anywhere in a cube around the origin, each component alike.",
  sphere: "On a sphere around the origin.",
  diagonal: "With the mean and spread that each component has in the data.",
  gaussian: "With the data's mean and full covariance.",
  gmm: "From a mixture of Gaussians fitted to the data.",
};

export function startRandom(pick) {
  const pictures = Array.from({ length: COUNT }, (_, i) => picture(`Random picture ${i + 1}`, pick));
  byId("sheet").append(...pictures.map((p) => p.element));
  const names = [...new Set([...Object.keys(ABOUT), ...Object.keys(model.samplers)])].filter((name) => name in model.samplers);
  const sampler = choice(byId("samplers"), names, ABOUT, () => {
    makeSliders();
    refresh();
  });
  let sliders = {};

  const refresh = latest(async () => {
    const seed = byId("seed");
    if (!seed.checkValidity()) return;
    const given = Object.fromEntries(Object.entries(sliders).map(([name, made]) => [name, made.value]));
    const name = sampler.value;
    const points = await sample(name, COUNT, Number(seed.value), given);
    const about = [name, ...Object.entries(given).map(([key, value]) => `${key} ${short(value)}`), `seed ${seed.value}`];
    points.forEach((point, i) => pictures[i].show({ ...point, about: `${about.join(", ")}, number ${i + 1}` }));
    showDistance(points);
  });

  function makeSliders() {
    sliders = {};
    for (const [name, standard] of Object.entries(model.samplers[sampler.value])) {
      const value = standard ?? geometry().prior;
      const max = farthest(sampler.value, name) ?? 4 * value;
      sliders[name] = slider({ label: name, min: 0, max, step: "any", value, onInput: refresh });
    }
    byId("parameters").replaceChildren(...Object.values(sliders).map((made) => made.element));
  }

  function another() {
    byId("seed").value = Math.floor(Math.random() * 1e6);
    refresh();
  }

  byId("again").addEventListener("click", another);
  byId("seed").addEventListener("input", refresh);
  makeSliders();
  another();
}

/** Where a slider ends: well beyond the training images' points, wherever those lie. */
function farthest(sampler, parameter) {
  const { radius, prior } = geometry();
  if (parameter === "radius") return 2.5 * Math.max(prior, radius);
  // A cube's points lie at boundary * sqrt(z_dim / 3), root mean square.
  if (parameter === "boundary") return Math.max(20, (2.5 * Math.sqrt(3) * radius) / prior);
  if (sampler === "normal") return Math.max(4, (2.5 * radius) / prior);
  return undefined;
}

/** How far from the origin the shown points lie, beside where the data's points lie. */
function showDistance(points) {
  const { radius, spread } = geometry();
  const radii = points.map(({ z }) => Math.hypot(...z));
  const far = 1.1 * Math.max(radius + 2 * spread, ...radii);
  const x = (value) => (300 * Math.max(0, value)) / far;
  const low = x(radius - 2 * spread);
  const mean = radii.reduce((a, b) => a + b) / radii.length;
  byId("distance").hidden = false;
  byId("distance").replaceChildren(
    draw(
      "svg",
      { viewBox: "0 0 300 34", role: "img", "aria-label": "Distances from the origin" },
      draw("line", { class: "line", x1: 0, x2: 300, y1: 15, y2: 15 }),
      draw("rect", { class: "data", x: low, y: 4, width: x(radius + 2 * spread) - low, height: 22, rx: 6 }),
      ...radii.map((value) => draw("circle", { class: "dot", cx: x(value), cy: 15, r: 4 })),
    ),
    make(
      "figcaption",
      {},
      `These points lie ${short(mean)} from the origin on average, the training images' about ${short(radius)} (the box).`,
    ),
  );
}
