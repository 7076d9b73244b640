// The first view: random samples of one model, or of an AE beside a VAE, by the same sampler, parameters and seed.

import { latestOnly, loadModel, memoize, model, models, sample, sampleSheet } from "./api.js";
import {
  byId, createElement, createParameterSliders, createRadioGroup, createSvg, formatNumber, setSliders, showCell,
  sliderValues,
} from "./dom.js";
import { geometry } from "./latent_space.js";
import { writeState } from "./state.js";
import { showSteps } from "./steps.js";

const SAMPLE_COUNT = 24;
const COUNT_DELAY_MS = 300; // faces are counted once the controls rest
const NEAR_AE = 1e-3; // a smaller kl_factor does not draw the z-points to the origin
const WEAK = 0.1; // a smaller one switches no number off, so N(0, 1) may lie outside of the training images
const DESCRIPTIONS = {
  normal: "N(0, 1): 0 on average, rarely beyond 2. A VAE is trained for these.",
  cube: "Each number evenly between − boundary and + boundary.",
  sphere: "All at the same distance from the origin.",
  diagonal: "As the numbers of the training images vary, each by itself.",
  gaussian: "As the numbers of the training images vary, together.",
  gmm: "From several clouds, fitted to the numbers of the training images.",
};

/** Return the models to show: the one in use, and of the others the one whose kl_factor differs most. */
async function loadCompared() {
  const distance = ({ kl_factor }) => Math.abs(Math.log(kl_factor + 1e-9) - Math.log(model.recipe.loss.kl_factor + 1e-9));
  const others = models.filter(({ alias }) => alias !== model.alias);
  const other = others.sort((a, b) => distance(b) - distance(a))[0];
  if (!other) return [model];
  const compared = [model, await loadModel(other.alias)];
  const position = ({ alias }) => models.findIndex((served) => served.alias === alias);
  return compared.sort((a, b) => position(a) - position(b));
}

export const typeName = (klFactor) => (klFactor === 0 ? "AE" : klFactor < NEAR_AE ? "Near-AE" : "VAE");

export async function startSampling(onSelect, values) {
  showSteps();
  const compared = await loadCompared();
  const panels = compared.map((of) => createPanel(of, onSelect));
  byId("samples").replaceChildren(...panels.map((panel) => panel.element));
  byId("samples").classList.toggle("compared", panels.length > 1);
  byId("serve-two").hidden = panels.length > 1;
  const available = Object.keys(DESCRIPTIONS).filter((name) => compared.every(({ samplers }) => name in samplers));
  // Beside each other N(0, 1) comes first, since it shows what differs; of one model its best sampler.
  const first = panels.length > 1 ? "normal" : model.sampler;
  available.sort((a, b) => (b === first) - (a === first));
  let sliders = {};
  const sampler = createRadioGroup(byId("samplers"), available, DESCRIPTIONS, () => {
    createSliders();
    refresh();
  }, values.get("sampler"));
  let countTimer = 0;

  const readOptions = () => ({
    sampler: sampler.value, n: SAMPLE_COUNT, seed: Number(byId("seed").value), parameters: sliderValues(sliders),
  });

  const refresh = latestOnly(async () => {
    if (!byId("seed").checkValidity()) return;
    clearTimeout(countTimer);
    const options = readOptions();
    writeState("sample", { sampler: options.sampler, ...options.parameters, seed: options.seed });
    await Promise.all(panels.map((panel) => panel.show(options)));
    countTimer = setTimeout(() => panels.forEach((panel) => panel.countFaces(options)), COUNT_DELAY_MS);
  });

  function createSliders() {
    const ranges = Object.entries(model.samplers[sampler.value]).map(([name, defaultValue]) => {
      const value = defaultValue ?? geometry().priorRadius;
      const max = Math.max(...compared.map((of) => sliderMax(of, sampler.value, name) ?? 4 * value));
      return { name, min: 0, max, value };
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
  setSliders(sliders, values);
  byId("seed").value = values.get("seed") ?? "";
  if (byId("seed").checkValidity()) refresh();
  else drawNewSamples();
}

/** Create the panel of a model: `show(options)` its samples, `countFaces(options)` in them. */
function createPanel(of, onSelect) {
  const klFactor = of.recipe.loss.kl_factor;
  const name = `${typeName(klFactor)}: ${of.alias}`;
  let options = null;
  let loadPoints = null; // of the samples, called when one of them is selected

  function select(index) {
    if (!options) return;
    const { sampler, seed, parameters } = options;
    const settings = Object.entries(parameters).map(([key, value]) => `${key} ${formatNumber(value)}`);
    const description = [sampler, ...settings, `seed ${seed}`, `sample ${index + 1}`].join(", ");
    onSelect({ description, load: async () => (await loadPoints())[index] }, of.alias);
  }

  const images = Array.from({ length: SAMPLE_COUNT }, () => createElement("img", { alt: "", draggable: false }));
  const buttons = images.map((image, i) => {
    const label = `Sample ${i + 1} of ${name}`;
    const button = createElement("button", { type: "button", className: "image-button", "aria-label": label }, image);
    button.addEventListener("click", () => select(i));
    return button;
  });
  const grid = createElement("div", { className: "image-grid" }, ...buttons);
  const count = createElement("p", { className: "count", role: "status" });
  const reason = createElement("p", { className: "secondary" });
  const distances = createElement("figure", { className: "distances" });
  const title = createElement("h2", {}, name);
  const subtitle = `kl_factor ${formatNumber(klFactor)}, ${of.z_dim} numbers for a picture`;
  return {
    element: createElement(
      "article",
      { className: "model-panel", "aria-label": name },
      title, createElement("p", { className: "secondary" }, subtitle), grid, count, reason, distances,
    ),
    async show(newOptions) {
      grid.setAttribute("aria-busy", "true");
      const sheet = await sampleSheet(of, newOptions).finally(() => grid.removeAttribute("aria-busy"));
      const { sampler, seed, parameters } = newOptions;
      [options, loadPoints] = [newOptions, memoize(() => sample(sampler, SAMPLE_COUNT, seed, parameters, of))];
      images.forEach((image, i) => showCell(image, sheet.cells[i]));
      count.textContent = showsFaces(of) ? "Counting faces …" : "";
      const distance = expectedDistance(of, options);
      reason.textContent = explain(of, options.sampler, distance);
      distances.replaceChildren(...createDistances(of, distance));
    },
    async countFaces(counted) {
      if (!showsFaces(of)) return;
      try {
        const { faces } = await sampleSheet(of, { ...counted, count_faces: true });
        if (counted === options) count.textContent = `${faces} of ${SAMPLE_COUNT} show a face`;
      } catch {
        count.textContent = ""; // the samples are there; the next change counts again
      }
    },
  };
}

/** Faces are counted for colour images of a model whose metrics have a face rate. */
function showsFaces({ image, metrics }) {
  return image.channels === 3 && Object.keys(metrics).some((name) => name.includes("faces"));
}

/** Return the root mean square distance of the samples from the origin. */
function expectedDistance(of, { sampler, parameters }) {
  const { mean, variance } = geometry(of);
  const { boundary, radius, temperature } = parameters;
  if (sampler === "cube") return boundary * Math.sqrt(of.z_dim / 3);
  if (sampler === "sphere") return radius;
  if (sampler === "normal") return temperature * Math.sqrt(of.z_dim);
  return Math.sqrt(mean.reduce((sum, value) => sum + value * value, 0) + temperature ** 2 * variance);
}

/** Say in plain words why these samples look as they do. */
function explain(of, sampler, distance) {
  const { radius, priorRadius } = geometry(of);
  const isFitted = ["diagonal", "gaussian", "gmm"].includes(sampler);
  if (of.recipe.loss.kl_factor < NEAR_AE) {
    if (isFitted) return "These numbers are drawn where this model put the training images, so more of them are a picture.";
    const where = distance < 0.7 * radius ? "far inside" : distance > 1.4 * radius ? "far outside" : "between";
    return (
      `This model was trained with almost no prior: its training images lie about ${formatNumber(radius)} from the origin. ` +
      `These samples lie at ${formatNumber(distance)}, ${where} them, in a region without training images. ` +
      "Points there decode to gray or brown squares, blur or noise."
    );
  }
  const filled = of.recipe.loss.kl_factor < WEAK ? radius : Math.max(radius, priorRadius);
  if (!isFitted && distance > 1.4 * filled) return "These samples lie outside the region that training filled with pictures.";
  return "Training drew the numbers of all pictures together around the origin, so random numbers there are a picture.";
}

/** Return a parameter's largest value: well beyond the training images' z-points. */
function sliderMax(of, sampler, parameter) {
  const { radius, priorRadius } = geometry(of);
  if (parameter === "radius") return 2.5 * Math.max(priorRadius, radius);
  // The root mean square radius of a cube is boundary * sqrt(z_dim / 3).
  if (parameter === "boundary") return Math.max(20, (2.5 * Math.sqrt(3) * radius) / priorRadius);
  if (sampler === "normal") return Math.max(4, (2.5 * radius) / priorRadius);
  return undefined;
}

/** Plot the samples' distance from the origin over the range of the training images' distances. */
function createDistances(of, distance) {
  const { radius, radiusSd } = geometry(of);
  const largest = 1.1 * Math.max(radius + 2 * radiusSd, distance);
  const x = (value) => (300 * Math.max(0, value)) / largest;
  const [left, right] = [x(radius - 2 * radiusSd), x(radius + 2 * radiusSd)];
  const text = `Distance from the origin: samples ${formatNumber(distance)} (dot), training images ${formatNumber(radius)} (box).`;
  return [
    createSvg(
      "svg",
      { viewBox: "0 0 300 34", role: "img", "aria-label": text },
      createSvg("line", { class: "axis-line", x1: 0, x2: 300, y1: 15, y2: 15 }),
      createSvg("rect", { class: "data-range", x: left, y: 4, width: right - left, height: 22, rx: 6 }),
      createSvg("circle", { class: "dot", cx: x(distance), cy: 15, r: 5 }),
    ),
    createElement("figcaption", {}, text),
  ];
}
