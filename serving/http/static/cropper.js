// A square frame over one's own picture, moved by dragging or arrow keys and enlarged by a slider or the wheel.

import { byId, make, slider } from "./dom.js";

const LARGEST = 1024; // pixels; more are of no use in pictures of at most 512
const MOST = 5; // times the size that just fills the frame

/** `onFrame()` is called when the frame shows another part. Gives `open(file)`, `close()` and `crop(size)`. */
export function makeCropper(onFrame) {
  const canvas = byId("cropper");
  const paint = canvas.getContext("2d");
  const side = canvas.width;
  let bitmap = null;
  let [x, y] = [0.5, 0.5]; // the part of the picture that is in the frame's middle, as shares of its width and height
  const zoom = slider({
    label: "Enlarge", min: 1, max: MOST, step: 0.02, value: 1,
    format: (value) => `${value.toFixed(1)} ×`, onInput: reframe,
  });
  byId("zoom").append(zoom.element);

  const scale = () => (zoom.value * side) / Math.min(bitmap.width, bitmap.height);

  function show() {
    const [width, height] = [bitmap.width * scale(), bitmap.height * scale()];
    const inside = (share, length) => Math.min(1 - side / 2 / length, Math.max(side / 2 / length, share));
    [x, y] = [inside(x, width), inside(y, height)];
    paint.imageSmoothingQuality = "high";
    paint.clearRect(0, 0, side, side);
    paint.drawImage(bitmap, side / 2 - x * width, side / 2 - y * height, width, height);
  }

  function reframe() {
    show();
    onFrame();
  }

  function move(right, down) {
    x -= right / (bitmap.width * scale());
    y -= down / (bitmap.height * scale());
    reframe();
  }

  let last = null; // where the pointer that drags was before
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    last = event;
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!canvas.hasPointerCapture(event.pointerId)) return;
    const shown = side / canvas.clientWidth;
    move((event.clientX - last.clientX) * shown, (event.clientY - last.clientY) * shown);
    last = event;
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-6, 0], ArrowRight: [6, 0], ArrowUp: [0, -6], ArrowDown: [0, 6] }[event.key];
    if (!step) return;
    event.preventDefault();
    move(...step);
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
    /** Frame a picture file. Throws when the browser cannot read it. */
    async open(file) {
      const whole = await createImageBitmap(file);
      const shrink = Math.min(1, LARGEST / Math.min(whole.width, whole.height));
      bitmap = await createImageBitmap(whole, {
        resizeWidth: Math.round(whole.width * shrink),
        resizeHeight: Math.round(whole.height * shrink),
        resizeQuality: "high",
      });
      [x, y] = [0.5, 0.5];
      zoom.set(1);
      byId("crop").hidden = false;
      show();
    },
    close() {
      bitmap = null;
      byId("crop").hidden = true;
    },
    /** What the frame shows as a PNG's data: URL, `size` pixels a side. */
    crop(size) {
      const small = make("canvas", { width: size, height: size });
      const target = small.getContext("2d");
      target.imageSmoothingQuality = "high";
      const part = side / scale();
      target.drawImage(bitmap, x * bitmap.width - part / 2, y * bitmap.height - part / 2, part, part, 0, 0, size, size);
      return small.toDataURL("image/png");
    },
  };
}
