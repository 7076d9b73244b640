// The few parts that the views are made of: elements, sliders, choices, pictures, and what is told to the user.

/** An element with attributes (or properties, where it has one of that name) and children. */
export function make(tag, given = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export const byId = (id) => document.getElementById(id);

/** A labelled range input; `onInput(value)` is called while it moves, `onChange()` once it rests; neither by `set`. */
export function slider({ label, min, max, step, value, ends, format = short, onInput, onChange }) {
  const input = make("input", { type: "range", min, max, step, value });
  const output = make("output", {}, format(value));
  const show = (now) => {
    output.value = format(now);
    input.setAttribute("aria-valuetext", format(now));
  };
  input.id = `slider-${++sliders}`;
  input.addEventListener("input", () => {
    show(input.valueAsNumber);
    onInput(input.valueAsNumber);
  });
  if (onChange) input.addEventListener("change", onChange);
  const element = make("div", { className: "slider" }, make("label", { htmlFor: input.id }, label), output, input);
  if (ends) element.append(make("div", { className: "ends-of quiet" }, ...ends.map((end) => make("span", {}, end))));
  return {
    element,
    get value() {
      return input.valueAsNumber;
    },
    set(now) {
      input.value = now;
      show(now);
    },
  };
}
let sliders = 0;

/** Fills `fieldset` with a radio button for each of `names`, the first chosen, and what `about` says of the chosen. */
export function choice(fieldset, names, about, onChange) {
  const line = make("p", { className: "about quiet" });
  const inputs = names.map((value) => make("input", { type: "radio", name: fieldset.id, value }));
  const chosen = () => inputs.find((input) => input.checked).value;
  const show = () => (line.textContent = about[chosen()] ?? "");
  inputs[0].checked = true;
  fieldset.addEventListener("change", () => {
    show();
    onChange();
  });
  fieldset.append(...inputs.map((input) => make("label", {}, input, input.value)), line);
  show();
  return {
    get value() {
      return chosen();
    },
  };
}

/** A picture that can be clicked; `show({src, z, about})` puts another one in its place. */
export function picture(name, onPick) {
  const image = make("img", { alt: name, decoding: "sync", draggable: false });
  let shown = null;
  const title = "Copy, download or go on from here";
  const element = make("button", { type: "button", className: "picture", title }, image);
  element.addEventListener("click", () => shown && onPick(shown));
  return {
    element,
    show(point) {
      shown = point;
      image.src = point.src;
    },
    get point() {
      return shown;
    },
  };
}

/** An SVG element. */
export function draw(tag, given = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(given)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/**
 * A line at the foot of the page: for two seconds; for eight where what the user wanted is "refused" by the page or the
 * browser; as "trouble" until the endpoint answers again; or to "stay".
 */
export function tell(text, kind = "") {
  const notice = byId("notice");
  clearTimeout(hiding);
  notice.textContent = text;
  notice.className = kind;
  notice.hidden = false;
  const seconds = { "": 2, refused: 8 }[kind];
  if (seconds) hiding = setTimeout(() => (notice.hidden = true), 1000 * seconds);
}
let hiding = 0;

/** Takes a trouble away once something works again. */
export function calm() {
  if (byId("notice").className === "trouble") byId("notice").hidden = true;
}

/** A number with three significant digits. */
export function short(value) {
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  return size >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)));
}
