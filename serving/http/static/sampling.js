// The first view: random samples of one model, or of an AE beside a VAE, by the same sampler, parameters and seed.

import { latestOnly, loadModel, memoize, model, models, sample, sampleSheet } from "./api.js";
import {
  arrowStep, byId, changedValues, createElement, createParameterSliders, createRadioGroup, createSvg, formatNumber,
  setSliders, showCell, sliderValues,
} from "./dom.js";
import { geometry } from "./latent_space.js";
import { writeState } from "./state.js";
import { showSteps } from "./steps.js";

const SAMPLE_COUNT = 24;
const COUNT_DELAY_MS = 300; // faces are counted once the controls rest
const NEAR_AE = 1e-3; // a smaller kl_factor does not draw the z-points to the origin
const WEAK = 0.1; // with a smaller one the encoder's noise does not reach the radius of N(0, 1)
const withoutFaces = new Set(); // runs whose stored images show no faces
const DESCRIPTIONS = {
  normal: "N(0, 1): 0 on average, rarely beyond 2. A VAE is trained for these.",
  cube: "Each number evenly between − boundary and + boundary.",
  sphere: "All at the same distance from the origin.",
  diagonal: "As the numbers of the training images vary, each by itself.",
  gaussian: "As the numbers of the training images vary, together.",
  gmm: "From several clouds, fitted to the numbers of the training images.",
};

/** Return the summary of the model to show beside the one in use, whose kl_factor differs most; undefined if none. */
export function otherModel() {
  const distance = ({ kl_factor }) => Math.abs(Math.log(kl_factor + 1e-9) - Math.log(model.recipe.loss.kl_factor + 1e-9));
  const others = models.filter(({ alias }) => alias !== model.alias);
  return others.sort((a, b) => distance(b) - distance(a))[0];
}

/** Return the models to show, in the order of their aliases. */
async function loadCompared() {
  const other = otherModel();
  if (!other) return [model];
  const compared = [model, await loadModel(other.alias)];
  const position = ({ alias }) => models.findIndex((served) => served.alias === alias);
  return compared.sort((a, b) => position(a) - position(b));
}

export const typeName = (klFactor) => (klFactor === 0 ? "AE" : klFactor < NEAR_AE ? "Near-AE" : "VAE");

export async function startSampling(onSelect, values) {
  const compared = await loadCompared();
  showSteps(); // its success would hide that the models cannot be loaded
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
    const isValid = byId("seed").checkValidity();
    byId("seed").setAttribute("aria-invalid", !isValid);
    byId("seed-error").hidden = isValid;
    if (!isValid) return;
    clearTimeout(countTimer);
    const options = readOptions();
    writeState("sample", { sampler: options.sampler, ...changedValues(sliders), seed: options.seed });
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
    button.tabIndex = i === 0 ? 0 : -1; // the arrow keys move within the sheet, Tab leaves it
    return button;
  });
  const grid = createElement("div", { className: "image-grid" }, ...buttons);
  grid.addEventListener("keydown", (event) => {
    const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
    const step = arrowStep(event, { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns });
    if (!step) return;
    event.preventDefault();
    buttons[buttons.indexOf(event.target) + step]?.focus();
  });
  grid.addEventListener("focusin", (event) => {
    for (const button of buttons) button.tabIndex = button === event.target ? 0 : -1;
  });
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
        if (faces === null) withoutFaces.add(of.run_id);
        if (counted === options) count.textContent = faces === null ? "" : `${faces} of ${SAMPLE_COUNT} show a face`;
      } catch {
        count.textContent = ""; // the samples are there; the next change counts again
      }
    },
  };
}

/** Return whether the model is of faces; true until its samples have been counted for the first time. */
const showsFaces = ({ run_id }) => !withoutFaces.has(run_id);

/** Return the root mean square distance of the samples from the origin. */
export function expectedDistance(of, { sampler, parameters }) {
  const { mean, variance } = geometry(of);
  const { boundary, radius, temperature } = parameters;
  if (sampler === "cube") return boundary * Math.sqrt(of.z_dim / 3);
  if (sampler === "sphere") return radius;
  if (sampler === "normal") return temperature * Math.sqrt(of.z_dim);
  // The temperature scales the distance from the mean of a component, not from that of all.
  if (sampler === "gmm") return Math.sqrt(of.latents.mixture.mean_square + temperature ** 2 * of.latents.mixture.variance);
  return Math.sqrt(mean.reduce((sum, value) => sum + value * value, 0) + temperature ** 2 * variance);
}

/** Say where these samples lie, and where the training images do: the plot's box, two sd around their distance. */
export function explain(of, sampler, distance) {
  const { radius, radiusSd, priorRadius } = geometry(of);
  const klFactor = of.recipe.loss.kl_factor;
  const strength = klFactor < NEAR_AE ? "almost no" : klFactor < WEAK ? "a weak" : "an N(0, 1)";
  const prior = klFactor === 0 ? "without a" : `with ${strength}`;
  const average = formatNumber(radius);
  const images = `This model was trained ${prior} prior: its training images lie about ${average} from the origin.`;
  if (Math.abs(distance - radius) <= 2 * radiusSd) {
    const isFitted = ["diagonal", "gaussian", "gmm"].includes(sampler);
    if (isFitted) return `${images} These samples are drawn where they lie.`;
    return `${images} These samples lie as far from it${klFactor < WEAK ? ", but in all directions" : ""}.`;
  }
  const samples = `${images} These samples lie at ${formatNumber(distance)}`;
  if (klFactor >= WEAK) {
    if (distance < radius) return `${samples}, nearer to it, where pictures resemble the average one.`;
    // The plot's box is of the encoder's means.
    if (distance <= 1.01 * priorRadius) return `${samples}, as far as the encoder's noise reaches in training.`;
  }
  const pictures = klFactor < WEAK ? "gray or brown squares, blur or noise" : "distorted pictures or noise";
  return `${samples}, in a region without training images. The decoder often returns ${pictures} there.`;
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
