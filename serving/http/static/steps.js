// The three steps at the top of the page, with a real picture: picture, numbers, picture.

import { latestOnly, loadMap, model, readDataUrl, reconstruct, sampleLikeData } from "./api.js";
import { byId, createSvg } from "./dom.js";

/**
 * Return a picture to begin with, as `storedImage` does: of `row`, else the first test image. Without stored images a
 * drawn face, or if the model's images are gray a random sample.
 */
export async function firstPicture(row = null) {
  const map = await loadMap();
  if (map && !(row in map.splits)) row = Math.max(0, map.splits.indexOf("test"));
  if (map) return storedImage(map, row);
  if (model.image.channels === 1) return (await sampleLikeData(1, 0))[0]; // the same after a reload
  return { src: await drawnFace(), description: "a drawn face" };
}

/** Return a stored image of the map as a point without z, with its row. */
export function storedImage({ sheet, sprites: { columns, size }, splits }, row) {
  const canvas = Object.assign(document.createElement("canvas"), { width: size, height: size });
  const [left, top] = [size * (row % columns), size * Math.floor(row / columns)];
  canvas.getContext("2d").drawImage(sheet, left, top, size, size, 0, 0, size, size);
  return { src: canvas.toDataURL("image/png"), description: `${splits[row]} image ${row + 1}`, row };
}

async function drawnFace() {
  return readDataUrl(await (await fetch("static/face.png")).blob());
}

export const showSteps = latestOnly(async () => {
  const picture = await firstPicture();
  const { reconstruction } = await reconstruct(picture.src, "reconstruct", {}, 0);
  byId("step-picture").src = picture.src;
  byId("step-again").src = reconstruction.src;
  const { size, channels } = model.image;
  const each = channels === 1 ? "pixel" : "pixel and colour";
  byId("step-pixels").textContent = `${(size * size * channels).toLocaleString("en")} numbers: one for each ${each}.`;
  byId("step-z").textContent = `${model.z_dim} numbers. The encoder finds them.`;
  const largest = Math.max(...reconstruction.z.map(Math.abs));
  const width = 100 / model.z_dim;
  const bars = reconstruction.z.map((value, i) => {
    const height = (45 * Math.abs(value)) / largest;
    return createSvg("rect", { class: "bar", x: i * width, y: value > 0 ? 50 - height : 50, width: 0.8 * width, height });
  });
  byId("step-numbers").replaceChildren(...bars);
});
