// The view that reconstructs an image, the user's or a random one, after a task has corrupted it.

import { convert, findFrame, latestOnly, loadMap, model, reconstruct, sampleLikeData } from "./api.js";
import { createCropper, loadBitmap } from "./cropper.js";
import { otherModel } from "./sampling.js";
import { firstPicture, storedImage } from "./steps.js";
import {
  byId, changedValues, createElement, createImageButton, createParameterSliders, createRadioGroup, notify,
  setSliders, sliderValues,
} from "./dom.js";
import { writeState } from "./state.js";

const DESCRIPTIONS = {
  reconstruct: "No corruption.",
  denoise: "Adds noise.",
  drop: "Removes single pixels.",
  recolor: "Removes the colours.",
  inpaint: "Removes blocks of pixels.",
};
// The sliders' ranges by parameter; parameters without a range keep their default.
const FIRST_TASK = "inpaint"; // of a model that was trained without a corruption: it shows what is restored
const RANGES = { sigma: [0.01, 2], keep: [0, 0.99], block: [0.03, 1], share: [0.02, 1] };
const SEED = 0; // the same noise every time, so that only the sliders change the image
const CAPTIONS = { original: "Original", corrupted: "Encoder input", reconstruction: "Reconstruction" };

export function startReconstruction(onSelect, values) {
  const buttons = {};
  for (const [stage, caption] of Object.entries(CAPTIONS)) {
    buttons[stage] = createImageButton(caption, onSelect);
    const figcaption = createElement("figcaption", {}, caption);
    byId("reconstruction").append(createElement("figure", {}, buttons[stage].element, figcaption));
  }
  const other = otherModel();
  const hasOther = other && other.image.size === model.image.size && other.image.channels === model.image.channels;
  if (hasOther) {
    byId("reconstruction").lastChild.lastChild.textContent = `${CAPTIONS.reconstruction} by ${model.alias}`;
    buttons.other = createImageButton(`Reconstruction by ${other.alias}`, (point) => onSelect(point, other.alias));
    const figcaption = createElement("figcaption", {}, `${CAPTIONS.reconstruction} by ${other.alias}`);
    byId("reconstruction").append(createElement("figure", {}, buttons.other.element, figcaption));
  }
  let source = null; // {getSrc(), description, row}: the original image as a data: URL, its row if it is a stored one
  let sliders = {};
  const cropper = createCropper(() => refresh());

  const refresh = latestOnly(async () => {
    if (!source) return;
    const { getSrc, description, row } = source;
    writeState("reconstruct", { task: task.value, ...changedValues(sliders), row: row ?? null });
    const original = { src: getSrc() };
    const request = [original.src, task.value, sliderValues(sliders), SEED];
    const input = `${description}, ${task.value}`;
    show({ original, ...(await reconstruct(...request)) }, input);
    if (hasOther) refreshOther(request, input);
  });
  // Not awaited: if the other model is slow or fails, this one's images still change.
  const refreshOther = latestOnly(async (request, input) => {
    show({ other: (await reconstruct(...request, other)).reconstruction }, input);
  });

  function show(stages, input) {
    for (const [stage, point] of Object.entries(stages)) {
      const caption = CAPTIONS[stage] ?? `reconstruction by ${other.alias}`;
      buttons[stage].show({ ...point, description: `${input}: ${caption.toLowerCase()}` });
    }
  }

  const trainedTask = model.recipe.task.kind;
  const isApplicable = (name) => name !== "recolor" || model.image.channels === 3;
  const task = createRadioGroup(byId("tasks"), Object.keys(model.tasks).filter(isApplicable), DESCRIPTIONS, () => {
    createSliders();
    refresh();
  }, values.get("task") ?? (trainedTask === "reconstruct" ? FIRST_TASK : trainedTask));

  function createSliders() {
    byId("trained-task").textContent =
      task.value === trainedTask
        ? `This model was trained on this task, ${trainedTask}.`
        : `This model was not trained on this task, but on ${trainedTask}.`;
    const parameters = Object.entries(model.tasks[task.value]).filter(([name]) => name in RANGES);
    const ranges = parameters.map(([name, value]) => ({ name, min: RANGES[name][0], max: RANGES[name][1], value }));
    sliders = createParameterSliders(byId("task-parameters"), ranges, refresh);
  }

  async function setFirstImage() {
    const point = await firstPicture(parseInt(values.get("row")));
    if (!source) showImage(point);
  }

  let choices = 0; // of images by the user: one that arrives after a later choice is dropped

  function setImage(point) {
    choices++;
    showImage(point);
  }

  function showImage(point) {
    cropper.close();
    source = { getSrc: () => point.src, description: point.description, row: point.row };
    refresh();
  }

  async function openFile(file) {
    if (!file) return;
    const choice = ++choices;
    let bitmap;
    try {
      bitmap = await loadBitmap(file).catch(async () => loadBitmap(await convert(file)));
    } catch {
      notify(`Cannot read ${file.name} as an image: save it as JPEG or PNG`, "warning");
      return;
    }
    if (choice !== choices) return;
    cropper.open(bitmap);
    byId("frame-status").textContent = "";
    source = { getSrc: () => cropper.crop(model.image.size), description: file.name };
    refresh();
    frameFace(source);
  }

  /** Frame the face of a file as the training images are framed, unless another image has been opened meanwhile. */
  const frameFace = latestOnly(async (opened) => {
    const square = source === opened && (await findFrame(await cropper.smallCopy()));
    if (source !== opened) return;
    if (square) cropper.frame(square);
    else if (square === null)
      byId("frame-status").textContent = "The photo was not framed by a face: frame it yourself.";
  });

  let position = 0; // among the test images; the page begins with the first
  const setRandomImage = latestOnly(async (choice) => {
    if (choice !== choices) return; // it waited, or is tried again, and another image was chosen meanwhile
    const map = await loadMap();
    const tests = map?.splits.flatMap((split, row) => (split === "test" ? [row] : [])) ?? [];
    position = (position + 1 + Math.floor(Math.random() * (tests.length - 1))) % tests.length; // another one
    const row = tests[position];
    const point = row === undefined ? (await sampleLikeData(1))[0] : storedImage(map, row);
    if (choice === choices) showImage(point);
  });

  byId("file").addEventListener("change", (event) => {
    openFile(event.target.files[0]);
    event.target.value = ""; // so that the same file can be chosen again
  });
  byId("reconstruct-random").addEventListener("click", () => setRandomImage(++choices));
  const view = byId("view-reconstruct");
  for (const type of ["dragover", "dragleave", "drop"]) {
    view.addEventListener(type, (event) => {
      event.preventDefault();
      view.classList.toggle("drop-target", type === "dragover");
      if (type === "drop") openFile(event.dataTransfer.files[0]);
    });
  }
  document.addEventListener("paste", (event) => !view.hidden && openFile(event.clipboardData.files[0]));

  createSliders();
  setSliders(sliders, values);
  latestOnly(setFirstImage)();
  return { setImage };
}
