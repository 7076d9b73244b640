// Elements that the views share: sliders, radio groups, image buttons, SVG and notices.

export const byId = (id) => document.getElementById(id);

/** Create an element with properties (or attributes, if it has no such property) and children. */
export function createElement(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Create an SVG element with attributes and children. */
export function createSvg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

let sliderCount = 0;

/**
 * Create a labelled slider. `onInput(value)` runs while it moves, `onChange()` once it rests; `set(value, shown)` calls
 * neither. Its text is `shown`, by default the value that the slider takes within its range.
 */
export function createSlider({ label, min, max, step, value, ends, format = formatNumber, onInput, onChange }) {
  const input = createElement("input", { type: "range", min, max, step, value });
  const output = createElement("output", {}, format(value));
  const showValue = (newValue) => {
    output.value = format(newValue);
    input.setAttribute("aria-valuetext", format(newValue));
  };
  const initialValue = input.valueAsNumber; // within the range
  input.id = `slider-${++sliderCount}`;
  input.addEventListener("input", () => {
    showValue(input.valueAsNumber);
    onInput(input.valueAsNumber);
  });
  if (onChange) input.addEventListener("change", onChange);
  const labelElement = createElement("label", { htmlFor: input.id }, label);
  const element = createElement("div", { className: "slider" }, labelElement, output, input);
  if (ends) {
    const captions = ends.map((end) => createElement("span", {}, end));
    element.append(createElement("div", { className: "slider-ends secondary" }, ...captions));
  }
  return {
    element,
    get value() {
      return input.valueAsNumber;
    },
    get isChanged() {
      return input.valueAsNumber !== initialValue;
    },
    rename(newLabel) {
      labelElement.textContent = newLabel;
    },
    set(newValue, shown) {
      input.value = newValue;
      showValue(shown ?? input.valueAsNumber);
    },
  };
}

/** Replace the children of `container` by a slider per parameter; return {name: slider}. */
export function createParameterSliders(container, ranges, onInput) {
  const sliders = {};
  for (const { name, min, max, value } of ranges) {
    sliders[name] = createSlider({ label: name, min, max, step: "any", value, onInput });
  }
  container.replaceChildren(...Object.values(sliders).map((slider) => slider.element));
  return sliders;
}

/** Set the sliders {name: slider} that have a number in `values`, URLSearchParams. */
export function setSliders(sliders, values) {
  for (const [name, slider] of Object.entries(sliders)) {
    const value = parseFloat(values.get(name));
    if (Number.isFinite(value)) slider.set(value);
  }
}

/** Return {name: value} of {name: slider}. */
export function sliderValues(sliders) {
  return Object.fromEntries(Object.entries(sliders).map(([name, slider]) => [name, slider.value]));
}

/** Return {name: value} of the sliders that differ from their default: the defaults of another model are others. */
export function changedValues(sliders) {
  return sliderValues(Object.fromEntries(Object.entries(sliders).filter(([, slider]) => slider.isChanged)));
}

/** Fill `fieldset` with a radio button per option, `initial` or the first checked, and the description of the checked one. */
export function createRadioGroup(fieldset, options, descriptions, onChange, initial) {
  const description = createElement("p", { className: "description secondary" });
  const inputs = options.map((value) => createElement("input", { type: "radio", name: fieldset.id, value }));
  const checkedValue = () => inputs.find((input) => input.checked).value;
  const showDescription = () => (description.textContent = descriptions[checkedValue()] ?? "");
  (inputs.find((input) => input.value === initial) ?? inputs[0]).checked = true;
  fieldset.addEventListener("change", () => {
    showDescription();
    onChange();
  });
  fieldset.append(...inputs.map((input) => createElement("label", {}, input, input.value)), description);
  showDescription();
  return {
    get value() {
      return checkedValue();
    },
  };
}

/** Return the step of an arrow key; undefined for other keys and for the browser's shortcuts, such as Alt+Left. */
export function arrowStep(event, steps) {
  return event.altKey || event.ctrlKey || event.metaKey ? undefined : steps[event.key];
}

/** Show one cell of a sheet in an image that fills its square: `columns` by `rows` cells, in the order of reading. */
export function showCell(image, { src, index, columns, rows }) {
  image.src = src;
  image.style.width = `${100 * columns}%`;
  image.style.height = `${100 * rows}%`;
  image.style.translate = `${(-100 * (index % columns)) / columns}% ${(-100 * Math.floor(index / columns)) / rows}%`;
}

/** Create a button that shows a point's image or cell; `show(point)` replaces it, a click calls `onSelect(point)`. */
export function createImageButton(name, onSelect) {
  const image = createElement("img", { alt: name, decoding: "sync", draggable: false });
  let current = null;
  const title = "Copy, download or use this image";
  const element = createElement("button", { type: "button", className: "image-button", title }, image);
  element.addEventListener("click", () => current && onSelect(current));
  return {
    element,
    show(point) {
      current = point;
      showCell(image, point.cell ?? { src: point.src, index: 0, columns: 1, rows: 1 });
    },
  };
}

let hideTimer = 0;

/**
 * Show a line at the foot of the page. `kind`: "info" for 2 s, "warning" for 8 s, "error" until a request succeeds,
 * "permanent" until the page is reloaded.
 */
export function notify(text, kind = "info") {
  const notice = byId("notice");
  if (notice.className === "permanent") return;
  clearTimeout(hideTimer);
  notice.textContent = text;
  notice.className = kind;
  notice.hidden = false;
  const seconds = { info: 2, warning: 8 }[kind];
  if (seconds) hideTimer = setTimeout(() => (notice.hidden = true), 1000 * seconds);
}

/** Hide an error notice. */
export function clearError() {
  if (byId("notice").className === "error") byId("notice").hidden = true;
}

/** Format a number with three significant digits. */
export function formatNumber(value) {
  if (!Number.isFinite(value)) return String(value);
  return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)));
}
