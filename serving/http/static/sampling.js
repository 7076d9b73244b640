// The view of random samples: a sampler, its parameters, and the samples' distance from the origin.

import { latestOnly, model, sample } from "./api.js";
import {
  byId, createElement, createImageButton, createParameterSliders, createRadioGroup, createSvg, formatNumber,
  sliderValues,
} from "./dom.js";
import { geometry } from "./latent_space.js";

const SAMPLE_COUNT = 24;
const DESCRIPTIONS = {
  normal: "N(0, 1), the prior of a VAE.",
  cube: "Uniform in a cube around the origin.",
  sphere: "Uniform on a sphere around the origin.",
  diagonal: "A Gaussian with the mean and the variances of the training images.",
  gaussian: "A Gaussian with the mean and the full covariance of the training images.",
  gmm: "A mixture of Gaussians, fitted to the training images.",
};

export function startSampling(onSelect) {
  const buttons = Array.from({ length: SAMPLE_COUNT }, (_, i) => createImageButton(`Sample ${i + 1}`, onSelect));
  byId("samples").append(...buttons.map((button) => button.element));
  const names = new Set([...Object.keys(DESCRIPTIONS), ...Object.keys(model.samplers)]);
  const available = [...names].filter((name) => name in model.samplers);
  available.sort((a, b) => (b === model.sampler) - (a === model.sampler)); // the model's best one first
  const sampler = createRadioGroup(byId("samplers"), available, DESCRIPTIONS, () => {
    createSliders();
    refresh();
  });
  let sliders = {};

  const refresh = latestOnly(async () => {
    const seed = byId("seed");
    if (!seed.checkValidity()) return;
    const parameters = sliderValues(sliders);
    const name = sampler.value;
    const points = await sample(name, SAMPLE_COUNT, Number(seed.value), parameters);
    const settings = Object.entries(parameters).map(([key, value]) => `${key} ${formatNumber(value)}`);
    const description = [name, ...settings, `seed ${seed.value}`].join(", ");
    points.forEach((point, i) => buttons[i].show({ ...point, description: `${description}, sample ${i + 1}` }));
    showDistances(points);
  });

  function createSliders() {
    const ranges = Object.entries(model.samplers[sampler.value]).map(([name, defaultValue]) => {
      const value = defaultValue ?? geometry().priorRadius;
      return { name, min: 0, max: sliderMax(sampler.value, name) ?? 4 * value, value };
    });
    sliders = createParameterSliders(byId("parameters"), ranges, refresh);
  }

  function drawNewSamples() {
    byId("seed").value = Math.floor(Math.random() * 1e6);
    refresh();
  }

  byId("new-samples").addEventListener("click", drawNewSamples);
  byId("seed").addEventListener("input", refresh);
  createSliders();
  drawNewSamples();
}

/** Return a parameter's largest value: well beyond the training images' z-points. */
function sliderMax(sampler, parameter) {
  const { radius, priorRadius } = geometry();
  if (parameter === "radius") return 2.5 * Math.max(priorRadius, radius);
  // The root mean square radius of a cube is boundary * sqrt(z_dim / 3).
  if (parameter === "boundary") return Math.max(20, (2.5 * Math.sqrt(3) * radius) / priorRadius);
  if (sampler === "normal") return Math.max(4, (2.5 * radius) / priorRadius);
  return undefined;
}

/** Plot the samples' distances from the origin over the range of the training images' distances. */
function showDistances(points) {
  const { radius, radiusSd } = geometry();
  const distances = points.map(({ z }) => Math.hypot(...z));
  const largest = 1.1 * Math.max(radius + 2 * radiusSd, ...distances);
  const x = (distance) => (300 * Math.max(0, distance)) / largest;
  const [left, right] = [x(radius - 2 * radiusSd), x(radius + 2 * radiusSd)];
  const meanDistance = distances.reduce((a, b) => a + b) / distances.length;
  byId("distances").hidden = false;
  byId("distances").replaceChildren(
    createSvg(
      "svg",
      { viewBox: "0 0 300 34", role: "img", "aria-label": "Distances from the origin" },
      createSvg("line", { class: "axis-line", x1: 0, x2: 300, y1: 15, y2: 15 }),
      createSvg("rect", { class: "data-range", x: left, y: 4, width: right - left, height: 22, rx: 6 }),
      ...distances.map((distance) => createSvg("circle", { class: "dot", cx: x(distance), cy: 15, r: 4 })),
    ),
    createElement(
      "figcaption",
      {},
      `Mean distance from the origin: ${formatNumber(meanDistance)} (dots).`,
      ` Training images: about ${formatNumber(radius)} (box).`,
    ),
  );
}
