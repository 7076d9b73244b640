// Entry point: the token dialog, the views and the navigation between them.

import { latestOnly, loadModels, model, models, RequestError, setToken } from "./api.js";
import { byId, createElement, notify } from "./dom.js";
import { startEditing } from "./editing.js";
import { createImageDialog } from "./image_dialog.js";
import { startInterpolation } from "./interpolation.js";
import { startMap } from "./map.js";
import { showModelInfo } from "./model_info.js";
import { startReconstruction } from "./reconstruction.js";
import { startSampling, typeName } from "./sampling.js";
import { isForeignState, readAlias, readState, updateUrl } from "./state.js";

const startByView = {
  sample: startSampling,
  map: startMap,
  edit: startEditing,
  interpolate: startInterpolation,
  reconstruct: startReconstruction,
  model: showModelInfo,
};
const RETRY_MS = 3000;
const VIEWS = Object.keys(startByView);

/** Views by name; a view is started when it is first shown. */
const views = {};
const openImageDialog = createImageDialog({
  "edit-image": (point) => openView("edit").setPoint(point),
  "use-as-start": (point) => openView("interpolate").setStart(point),
  "use-as-end": (point) => openView("interpolate").setEnd(point),
  "use-as-other": (point) => openView("interpolate").setOther(point),
  "reconstruct-image": (point) => openView("reconstruct").setImage(point),
});

function openView(name) {
  history.pushState(null, "", `#${name}`);
  return changeView();
}

/** Show the view of the URL, and move the focus from the link or button to its heading. */
function changeView() {
  const view = showView();
  document.querySelector("section:not([hidden]) h1").focus({ preventScroll: true });
  return view;
}

/** Open the dialog of a point. One of another model than the page's is used by a page of that model. */
const selectPoint = latestOnly(async (point, alias = model.alias) => {
  const loaded = point.load ? { description: point.description, ...(await point.load()) } : point;
  openImageDialog(loaded, alias === model.alias);
});

function showView() {
  const { view, values } = readState();
  const current = VIEWS.includes(view) ? view : VIEWS[0];
  for (const name of VIEWS) byId(`view-${name}`).hidden = name !== current;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${current}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const title = document.querySelector("nav [aria-current]").textContent;
  document.title = `${title} – ${model.name} ${model.version}`;
  window.scrollTo(0, 0);
  if (current in views) updateUrl();
  else startView(current, values);
  return views[current];
}

/** Start a view with the state of its link, and again until its data can be loaded. */
async function startView(name, values) {
  try {
    views[name] = startByView[name](selectPoint, values);
    await views[name];
  } catch (error) {
    notify(error.message, "error");
    setTimeout(startView, RETRY_MS, name, values);
  }
}

let retryTimer = 0;

async function start() {
  clearTimeout(retryTimer);
  try {
    await loadModels(readAlias());
  } catch (error) {
    byId("loading-text").textContent = error.message;
    const needsToken = error instanceof RequestError && error.status === 401;
    byId("retry").hidden = needsToken;
    if (needsToken) byId("token-dialog").showModal();
    else retryTimer = setTimeout(start, RETRY_MS);
    return;
  }
  byId("loading").hidden = true;
  byId("model-label").textContent = `${model.name} ${model.version}`;
  const options = models.map(({ alias, kl_factor }) => {
    const text = `${alias} (${typeName(kl_factor)})`;
    return createElement("option", { value: alias, selected: alias === model.alias }, text);
  });
  byId("alias").replaceChildren(...options);
  byId("model-choice").hidden = models.length < 2;
  const alias = readAlias() ?? model.alias;
  if (alias !== model.alias) notify(`No model ${alias} is served here: this is ${model.alias}.`, "warning");
  window.addEventListener("hashchange", () => (isForeignState() ? location.reload() : changeView()));
  showView();
}

// The default action would replace the hash, which names the view.
document.querySelector(".skip-link").addEventListener("click", (event) => {
  event.preventDefault();
  byId("main").focus();
});
byId("retry").addEventListener("click", start);
// The page starts anew with the view's state: seed and sampler stay, while z-points of another version are dropped.
byId("alias").addEventListener("change", () => {
  updateUrl();
  location.href = `?model=${encodeURIComponent(byId("alias").value)}${location.hash}`;
});
// The browser may show the page again as it was left, with the alias that was selected then.
window.addEventListener("pageshow", (event) => {
  if (event.persisted && model) byId("alias").value = model.alias;
});
// What sticks to the top of a narrow screen sticks below the header, whose lines depend on the width.
const header = document.querySelector("header");
new ResizeObserver(() => {
  document.documentElement.style.setProperty("--header-height", `${header.offsetHeight}px`);
}).observe(header);
byId("token-dialog").addEventListener("cancel", (event) => event.preventDefault()); // without a token the page is empty
byId("token-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  setToken(byId("token-value").value.trim());
  byId("token-dialog").close();
  await start();
  if (byId("token-dialog").open) byId("token-help").textContent = "The endpoint rejected this token.";
});

start();
