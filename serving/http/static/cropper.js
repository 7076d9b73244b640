// A square frame over the user's image, moved by dragging or arrow keys, zoomed by a slider or the wheel.

import { arrowStep, byId, createElement, createSlider } from "./dom.js";

const MAX_SIDE = 1024; // pixels; the model's images have at most 512
const MAX_ZOOM = 5; // relative to the size that just fills the frame
const SENT_SIDE = 640; // pixels of the longer side of the copy in which the endpoint finds the face

/** Return the bitmap of an image file. Throws if the browser cannot read it. */
export async function loadBitmap(file) {
  const original = await createImageBitmap(file);
  const shrink = Math.min(1, MAX_SIDE / Math.min(original.width, original.height));
  return createImageBitmap(original, {
    resizeWidth: Math.round(original.width * shrink),
    resizeHeight: Math.round(original.height * shrink),
    resizeQuality: "high",
  });
}

/** `onFrame()` is called when the frame moves. Returns `open(bitmap)`, `smallCopy()`, `frame()`, `close()` and `crop(size)`. */
export function createCropper(onFrame) {
  const canvas = byId("cropper");
  const context = canvas.getContext("2d");
  const side = canvas.width;
  let bitmap = null;
  let [x, y] = [0.5, 0.5]; // the frame's centre in the image, as fractions of its width and height
  const zoom = createSlider({
    label: "Zoom", min: 1, max: MAX_ZOOM, step: 0.02, value: 1,
    format: (value) => `${value.toFixed(1)} ×`, onInput: reframe,
  });
  byId("zoom").append(zoom.element);

  const scale = () => (zoom.value * side) / Math.min(bitmap.width, bitmap.height);

  function copySize() {
    const shrink = Math.min(1, SENT_SIDE / Math.max(bitmap.width, bitmap.height));
    return [bitmap.width, bitmap.height].map((length) => Math.round(shrink * length));
  }

  function draw() {
    const [width, height] = [bitmap.width * scale(), bitmap.height * scale()];
    const clampCentre = (fraction, length) => Math.min(1 - side / 2 / length, Math.max(side / 2 / length, fraction));
    [x, y] = [clampCentre(x, width), clampCentre(y, height)];
    context.imageSmoothingQuality = "high";
    context.clearRect(0, 0, side, side);
    context.drawImage(bitmap, side / 2 - x * width, side / 2 - y * height, width, height);
  }

  function reframe() {
    draw();
    onFrame();
  }

  function moveImage(dx, dy) {
    x -= dx / (bitmap.width * scale());
    y -= dy / (bitmap.height * scale());
    reframe();
  }

  let previousEvent = null; // of the pointer that drags
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    previousEvent = event;
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!canvas.hasPointerCapture(event.pointerId)) return;
    const pixelRatio = side / canvas.clientWidth;
    const [dx, dy] = [event.clientX - previousEvent.clientX, event.clientY - previousEvent.clientY];
    moveImage(dx * pixelRatio, dy * pixelRatio);
    previousEvent = event;
  });
  canvas.addEventListener("keydown", (event) => {
    const step = arrowStep(event, { ArrowLeft: [-6, 0], ArrowRight: [6, 0], ArrowUp: [0, -6], ArrowDown: [0, 6] });
    if (!step) return;
    event.preventDefault();
    moveImage(...step);
  });
  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      zoom.set(zoom.value * Math.exp(-event.deltaY / 500));
      reframe();
    },
    { passive: false },
  );

  return {
    /** Show the bitmap of `loadBitmap` in the frame. */
    open(newBitmap) {
      bitmap = newBitmap;
      [x, y] = [0.5, 0.5];
      zoom.set(1);
      byId("crop").hidden = false;
      draw();
    },
    /** Return a small JPEG file of the image. */
    smallCopy() {
      const [width, height] = copySize();
      const copy = createElement("canvas", { width, height });
      copy.getContext("2d").drawImage(bitmap, 0, 0, width, height);
      return new Promise((resolve) => copy.toBlob(resolve, "image/jpeg", 0.9));
    },
    /** Put a square of the small copy into the frame. */
    frame({ left, top, size }) {
      const [width, height] = copySize();
      [x, y] = [(left + size / 2) / width, (top + size / 2) / height];
      zoom.set(Math.min(width, height) / size);
      reframe();
    },
    close() {
      bitmap = null;
      byId("crop").hidden = true;
    },
    /** Return the frame's content as the data: URL of a PNG, `size` pixels a side. */
    crop(size) {
      const output = createElement("canvas", { width: size, height: size });
      const outputContext = output.getContext("2d");
      outputContext.imageSmoothingQuality = "high";
      const length = side / scale();
      const [left, top] = [x * bitmap.width - length / 2, y * bitmap.height - length / 2];
      outputContext.drawImage(bitmap, left, top, length, length, 0, 0, size, size);
      return output.toDataURL("image/png");
    },
  };
}
