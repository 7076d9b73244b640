// One picture, changed along the principal axes and the attribute directions of the latent space.

import { decode, latest, likely } from "./api.js";
import { byId, make, picture, short, slider } from "./dom.js";
import { coordinate, directions, geometry, moved } from "./latents.js";

const STRIP = 9;
const RANGE = 3; // standard deviations of the training images' points each way; whole differences for attributes

const signed = (value) => (Math.abs(value) < 0.05 ? "0.0" : `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(1)}`);

export function startChange(pick) {
  const shown = picture("The picture that the sliders change", pick);
  byId("changed").append(shown.element);
  let origin = null;
  let z = null;
  let about = "";

  const refresh = latest(async (now) => {
    const [point] = await decode([now]);
    shown.show({ ...point, about });
  });

  const strip = Array.from({ length: STRIP }, (_, i) => picture(`Along it, ${i + 1} of ${STRIP}`, pick));
  byId("along").append(...strip.map((p) => p.element));
  let along = directions()[0];

  /** What the direction that was moved last does to this picture, from end to end. */
  const refreshAlong = latest(async () => {
    const from = coordinate(z, along);
    const counts = strip.map((_, i) => RANGE * ((2 * i) / (STRIP - 1) - 1));
    const points = await decode(counts.map((count) => moved(z, along, count - from)));
    byId("along-title").textContent = `${along.name} from −${RANGE} to +${RANGE}`;
    points.forEach((point, i) => strip[i].show({ ...point, about: `${about}, ${along.name} at ${short(counts[i])}` }));
  });

  const controls = directions().map((direction) => ({
    direction,
    slider: slider({
      label: direction.label,
      min: -RANGE,
      max: RANGE,
      step: 0.05,
      value: 0,
      format: signed,
      onInput(value) {
        z = moved(z, direction, value - coordinate(z, direction));
        byId("change-undo").disabled = false;
        settle(direction);
        refresh(z);
      },
      onChange() {
        along = direction;
        refreshAlong();
      },
    }),
  }));

  /** Put the sliders where the point is; not the one that is being dragged. */
  function settle(dragged) {
    for (const { direction, slider } of controls) if (direction !== dragged) slider.set(coordinate(z, direction));
  }

  function take(point) {
    origin = z = point.z;
    about = `${point.about}, changed`;
    byId("change-undo").disabled = true;
    settle();
    refresh(z);
    refreshAlong();
  }

  const another = latest(async () => {
    const before = z;
    const [point] = await likely(1);
    if (z === before) take(point); // nothing else was taken meanwhile
  });

  const groups = Map.groupBy(controls, ({ direction }) => direction.group);
  for (const [group, members] of groups) {
    byId("directions").append(make("h2", {}, group), ...members.map(({ slider }) => slider.element));
  }
  byId("change-random").addEventListener("click", another);
  byId("change-mean").addEventListener("click", () => {
    take({ z: geometry().mean, about: "the mean of the training images' points" });
  });
  byId("change-undo").addEventListener("click", () => take({ z: origin, about: about.replace(/, changed$/, "") }));
  another();
  return { take };
}
