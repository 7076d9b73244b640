// The view that edits one image along the principal axes and the attribute directions of the latent space.

import { decodeSheet, latestOnly, model, sampleLikeData } from "./api.js";
import { byId, createElement, createImageButton, createSlider, formatNumber, showCell } from "./dom.js";
import { packPoint, unpackPoint, writeState } from "./state.js";
import { coordinate, directions, geometry, moveAlong } from "./latent_space.js";

const STRIP_LENGTH = 9;
const MAX_NAME_LENGTH = 30;
const RANGE = 3; // standard deviations of the training images' z-points, each way from the mean

function formatSigned(value) {
  return Math.abs(value) < 0.05 ? "0.0" : `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(1)}`;
}

export function startEditing(onSelect, values) {
  const edited = createImageButton("The edited image", onSelect);
  byId("edited-image").append(edited.element);
  const strip = Array.from({ length: STRIP_LENGTH }, (_, i) =>
    createImageButton(`Step ${i + 1} of ${STRIP_LENGTH} along the direction`, onSelect),
  );
  byId("direction-strip").append(...strip.map((button) => button.element));
  let z = null;
  const redoStack = []; // states {z, description} to which Redo goes
  const undoStack = []; // those to which Undo goes
  let draggedDirection = null; // of the slider that has moved since the last state in the stacks
  let description = "";
  let stripDirection = directions()[0];

  const initialZ = unpackPoint(values.get("z"), model);
  const axisNames = {}; // the user's, by their keys in the URL; null if there is none

  const refresh = latestOnly(async (newZ) => {
    const [point] = await decodeSheet([newZ]);
    edited.show({ ...point, description });
    showCell(byId("edited-copy").firstElementChild, point.cell); // beside the sliders of a narrow screen
    saveState();
  });

  const saveState = () => writeState("edit", { z: packPoint(z, model), ...axisNames });

  /** Push the state before a change, so that Undo returns to it. */
  function pushUndoState() {
    if (z) undoStack.push({ z, description });
    redoStack.length = 0;
  }

  /** Go to the last state of `from`, and push the present one to `to`. */
  function step(from, to) {
    if (!from.length) return;
    to.push({ z, description });
    show(from.pop());
  }

  /** Show the image at evenly spaced coordinates of the direction that was moved last. */
  const refreshStrip = latestOnly(async () => {
    const from = coordinate(z, stripDirection);
    const coordinates = strip.map((_, i) => RANGE * ((2 * i) / (STRIP_LENGTH - 1) - 1));
    const points = await decodeSheet(coordinates.map((to) => moveAlong(z, stripDirection, to - from)));
    const name = axisNames[stripDirection.key] ?? stripDirection.name;
    byId("direction-title").textContent = `${name} from −${RANGE} to +${RANGE}`;
    points.forEach((point, i) => {
      const position = `${name} at ${formatNumber(coordinates[i])}`;
      strip[i].show({ ...point, description: `${description}, ${position}` });
    });
  });

  const controls = directions().map((direction) => ({
    direction,
    slider: createSlider({
      label: direction.label,
      min: -RANGE,
      max: RANGE,
      step: 0.05,
      value: 0,
      format: formatSigned,
      onInput(value) {
        if (draggedDirection !== direction) pushUndoState();
        draggedDirection = direction;
        z = moveAlong(z, direction, value - coordinate(z, direction));
        updateSliders(direction);
        updateButtons();
        refresh(z);
      },
      onChange() {
        draggedDirection = null;
        stripDirection = direction;
        refreshStrip();
      },
    }),
  }));

  /** Set the sliders to the coordinates of z, except the one that is being dragged. */
  function updateSliders(dragged) {
    for (const { direction, slider } of controls) {
      const position = coordinate(z, direction);
      if (direction !== dragged) slider.set(position, position); // shown also if it is beyond the slider's range
    }
  }

  function updateButtons() {
    byId("edit-undo").disabled = undoStack.length === 0;
    byId("edit-redo").disabled = redoStack.length === 0;
  }

  function setPoint(point) {
    pushUndoState();
    show({ z: point.z, description: `${point.description}, edited` });
  }

  function show(state) {
    ({ z, description } = state);
    draggedDirection = null; // a slider that was dragged back to its first value fires no `change`
    byId("direction-sliders").disabled = false; // there was nothing to move before
    updateSliders();
    updateButtons();
    refresh(z);
    refreshStrip();
  }

  const setRandomPoint = latestOnly(async () => {
    const zBefore = z;
    const [point] = await sampleLikeData(1);
    if (z === zBefore) setPoint(point); // no other point was set meanwhile
  });

  function nameAxis({ direction: { key, label }, slider }, name) {
    axisNames[key] = name || null;
    slider.rename(name ? `${name} (${label})` : label);
  }

  for (const control of controls.filter(({ direction }) => direction.key)) {
    const { key, name } = control.direction;
    const input = createElement("input", { maxLength: MAX_NAME_LENGTH, autocomplete: "off" });
    input.value = (initialZ && values.get(key)) ?? ""; // the axes of another version are others
    nameAxis(control, input.value);
    input.addEventListener("input", () => {
      nameAxis(control, input.value.trim());
      if (z) saveState();
    });
    input.addEventListener("change", () => z && refreshStrip());
    byId("axis-names").append(createElement("label", {}, name, input));
  }

  const groups = Map.groupBy(controls, ({ direction }) => direction.group);
  for (const [group, members] of groups) {
    byId("directions").append(createElement("h2", {}, group), ...members.map(({ slider }) => slider.element));
  }
  byId("edit-random").addEventListener("click", setRandomPoint);
  byId("edit-mean").addEventListener("click", () => {
    setPoint({ z: geometry().mean, description: "the mean of the training images' z-points" });
  });
  byId("edit-undo").addEventListener("click", () => step(undoStack, redoStack));
  byId("edit-redo").addEventListener("click", () => step(redoStack, undoStack));
  document.addEventListener("keydown", (event) => {
    if (byId("view-edit").hidden || !(event.ctrlKey || event.metaKey) || event.key.toLowerCase() !== "z") return;
    if (event.target.matches("input:not([type=range])")) return; // the browser undoes text
    event.preventDefault();
    if (event.shiftKey) step(redoStack, undoStack);
    else step(undoStack, redoStack);
  });
  if (initialZ) setPoint({ z: initialZ, description: "the point of this page's address" });
  else setRandomPoint();
  return { setPoint };
}
