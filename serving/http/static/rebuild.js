// A picture through encoder and decoder: one's own or a random one, as it is or harmed by a task first.

import { latest, likely, model, reconstruct } from "./api.js";
import { makeCropper } from "./cropper.js";
import { byId, choice, make, picture, slider, tell } from "./dom.js";

const ABOUT = {
  reconstruct: "Nothing: what comes back is what the code keeps of the picture.",
  denoise: "Noise is laid over it.",
  drop: "Single pixels go missing.",
  recolor: "Its colours go.",
  inpaint: "Blocks are cut out of it.",
};
// From and to which value the sliders go; what a task takes beside these is left as it is.
const RANGES = { sigma: [0.01, 2], keep: [0, 0.99], block: [0.03, 1], share: [0.02, 1] };
const SEED = 0; // the same noise again, so that one sees what the sliders do
const PARTS = { before: "The picture", seen: "What the encoder sees", after: "What comes back" };

export function startRebuild(pick) {
  const pictures = {};
  for (const [part, caption] of Object.entries(PARTS)) {
    pictures[part] = picture(caption, pick);
    byId("rebuilt").append(make("figure", {}, pictures[part].element, make("figcaption", {}, caption)));
  }
  let source = null; // {src(), about}: gives the picture as a data: URL
  let sliders = {};
  const cropper = makeCropper(() => refresh());

  const refresh = latest(async () => {
    if (!source) return;
    const given = Object.fromEntries(Object.entries(sliders).map(([name, made]) => [name, made.value]));
    const { src, about } = source;
    const before = { src: src() };
    const parts = { before, ...(await reconstruct(before.src, task.value, given, SEED)) };
    for (const [part, point] of Object.entries(parts)) {
      pictures[part].show({ ...point, about: `${about}, ${task.value}: ${PARTS[part].toLowerCase()}` });
    }
  });
  const suits = (name) => name !== "recolor" || model.image.channels === 3;
  const task = choice(byId("tasks"), Object.keys(model.tasks).filter(suits), ABOUT, () => {
    makeSliders();
    refresh();
  });

  function makeSliders() {
    sliders = {};
    for (const [name, value] of Object.entries(model.tasks[task.value])) {
      if (!(name in RANGES)) continue;
      const [min, max] = RANGES[name];
      sliders[name] = slider({ label: name, min, max, step: "any", value, onInput: refresh });
    }
    byId("strength").replaceChildren(...Object.values(sliders).map((made) => made.element));
  }

  function take(point) {
    cropper.close();
    source = { src: () => point.src, about: point.about };
    refresh();
  }

  async function open(file) {
    if (!file) return;
    try {
      await cropper.open(file);
    } catch {
      tell(`${file.name} is no picture that this browser reads`, "refused");
      return;
    }
    source = { src: () => cropper.crop(model.image.size), about: file.name };
    refresh();
  }

  const another = latest(async () => {
    const before = source;
    const [point] = await likely(1);
    if (source === before) take(point); // nothing else was taken meanwhile
  });

  byId("file").addEventListener("change", (event) => {
    const [file] = event.target.files;
    open(file);
    event.target.value = ""; // so that the same file can be chosen again
  });
  byId("rebuild-random").addEventListener("click", another);
  const view = byId("view-rebuild");
  for (const kind of ["dragover", "dragleave", "drop"]) {
    view.addEventListener(kind, (event) => {
      event.preventDefault();
      view.classList.toggle("over", kind === "dragover");
      if (kind === "drop") open(event.dataTransfer.files[0]);
    });
  }
  document.addEventListener("paste", (event) => !view.hidden && open(event.clipboardData.files[0]));

  const { kind } = model.recipe.task;
  byId("trained").textContent = `This model learned the task ${kind}; at others it does what it can.`;
  makeSliders();
  another();
  return { take };
}
