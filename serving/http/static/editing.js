// The view that edits one image along the principal axes and the attribute directions of the latent space.

import { decode, latestOnly, sampleLikeData } from "./api.js";
import { byId, createElement, createImageButton, createSlider, formatNumber } from "./dom.js";
import { coordinate, directions, geometry, moveAlong } from "./latent_space.js";

const STRIP_LENGTH = 9;
const RANGE = 3; // standard deviations of the training images' z-points, each way from the mean

function formatSigned(value) {
  return Math.abs(value) < 0.05 ? "0.0" : `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(1)}`;
}

export function startEditing(onSelect) {
  const edited = createImageButton("The edited image", onSelect);
  byId("edited-image").append(edited.element);
  const strip = Array.from({ length: STRIP_LENGTH }, (_, i) =>
    createImageButton(`Step ${i + 1} of ${STRIP_LENGTH} along the direction`, onSelect),
  );
  byId("direction-strip").append(...strip.map((button) => button.element));
  let original = null;
  let z = null;
  let description = "";
  let stripDirection = directions()[0];

  const refresh = latestOnly(async (newZ) => {
    const [point] = await decode([newZ]);
    edited.show({ ...point, description });
  });

  /** Show the image at evenly spaced coordinates of the direction that was moved last. */
  const refreshStrip = latestOnly(async () => {
    const from = coordinate(z, stripDirection);
    const coordinates = strip.map((_, i) => RANGE * ((2 * i) / (STRIP_LENGTH - 1) - 1));
    const points = await decode(coordinates.map((to) => moveAlong(z, stripDirection, to - from)));
    byId("direction-title").textContent = `${stripDirection.name} from −${RANGE} to +${RANGE}`;
    points.forEach((point, i) => {
      const position = `${stripDirection.name} at ${formatNumber(coordinates[i])}`;
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
        z = moveAlong(z, direction, value - coordinate(z, direction));
        byId("edit-undo").disabled = false;
        updateSliders(direction);
        refresh(z);
      },
      onChange() {
        stripDirection = direction;
        refreshStrip();
      },
    }),
  }));

  /** Set the sliders to the coordinates of z, except the one that is being dragged. */
  function updateSliders(dragged) {
    for (const { direction, slider } of controls) if (direction !== dragged) slider.set(coordinate(z, direction));
  }

  function setPoint(point) {
    original = point;
    z = point.z;
    description = `${point.description}, edited`;
    byId("edit-undo").disabled = true;
    updateSliders();
    refresh(z);
    refreshStrip();
  }

  const setRandomPoint = latestOnly(async () => {
    const zBefore = z;
    const [point] = await sampleLikeData(1);
    if (z === zBefore) setPoint(point); // no other point was set meanwhile
  });

  const groups = Map.groupBy(controls, ({ direction }) => direction.group);
  for (const [group, members] of groups) {
    byId("directions").append(createElement("h2", {}, group), ...members.map(({ slider }) => slider.element));
  }
  byId("edit-random").addEventListener("click", setRandomPoint);
  byId("edit-mean").addEventListener("click", () => {
    setPoint({ z: geometry().mean, description: "the mean of the training images' z-points" });
  });
  byId("edit-undo").addEventListener("click", () => setPoint(original));
  setRandomPoint();
  return { setPoint };
}
