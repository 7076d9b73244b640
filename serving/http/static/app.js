// Entry point: the token dialog, the views and the navigation between them.

import { loadModel, model, RequestError, setToken } from "./api.js";
import { byId, notify } from "./dom.js";
import { startEditing } from "./editing.js";
import { createImageDialog } from "./image_dialog.js";
import { startInterpolation } from "./interpolation.js";
import { showModelInfo } from "./model_info.js";
import { startReconstruction } from "./reconstruction.js";
import { startSampling } from "./sampling.js";

const startByView = {
  sample: startSampling,
  edit: startEditing,
  interpolate: startInterpolation,
  reconstruct: startReconstruction,
  model: showModelInfo,
};
const VIEWS = Object.keys(startByView);

/** Views by name; a view is started when it is first shown. */
const views = {};
const openImageDialog = createImageDialog({
  "edit-image": (point) => openView("edit").setPoint(point),
  "use-as-start": (point) => openView("interpolate").setStart(point),
  "use-as-end": (point) => openView("interpolate").setEnd(point),
  "reconstruct-image": (point) => openView("reconstruct").setImage(point),
});

function openView(name) {
  history.pushState(null, "", `#${name}`);
  return showView();
}

function showView() {
  const hash = location.hash.slice(1);
  const current = VIEWS.includes(hash) ? hash : VIEWS[0];
  for (const name of VIEWS) byId(`view-${name}`).hidden = name !== current;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${current}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  window.scrollTo(0, 0);
  if (!(current in views)) views[current] = startByView[current](openImageDialog);
  return views[current];
}

async function start() {
  try {
    await loadModel();
  } catch (error) {
    if (error instanceof RequestError && error.status === 401) byId("token-dialog").showModal();
    else notify(error.message, "permanent");
    return;
  }
  byId("model-label").textContent = `${model.name} ${model.version}, ${model.alias}`;
  document.title = `${model.name} ${model.version}`;
  window.addEventListener("hashchange", showView);
  showView();
}

// The default action would replace the hash, which names the view.
document.querySelector(".skip-link").addEventListener("click", (event) => {
  event.preventDefault();
  byId("main").focus();
});
byId("token-dialog").addEventListener("cancel", (event) => event.preventDefault()); // without a token the page is empty
byId("token-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  setToken(byId("token-value").value.trim());
  byId("token-dialog").close();
  await start();
  if (byId("token-dialog").open) byId("token-help").textContent = "The endpoint rejected this token.";
});

start();
