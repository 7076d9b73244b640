// The page's start: the token where one is asked for, the views, and the way from one view to another.

import { load, model, Refused, useToken } from "./api.js";
import { startBetween } from "./between.js";
import { startChange } from "./change.js";
import { byId, tell } from "./dom.js";
import { startFacts } from "./facts.js";
import { startPicked } from "./picked.js";
import { startRandom } from "./random.js";
import { startRebuild } from "./rebuild.js";

const starts = {
  random: startRandom,
  change: startChange,
  between: startBetween,
  rebuild: startRebuild,
  model: startFacts,
};
const VIEWS = Object.keys(starts);

/** A view is made when it is first looked at. */
const made = {};
const pick = startPicked({
  "to-change": (point) => open("change").take(point),
  "to-start": (point) => open("between").takeStart(point),
  "to-end": (point) => open("between").takeEnd(point),
  "to-rebuild": (point) => open("rebuild").take(point),
});

function open(view) {
  history.pushState(null, "", `#${view}`);
  return show();
}

function show() {
  const wanted = location.hash.slice(1);
  const view = VIEWS.includes(wanted) ? wanted : VIEWS[0];
  for (const name of VIEWS) byId(`view-${name}`).hidden = name !== view;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  window.scrollTo(0, 0);
  if (!(view in made)) made[view] = starts[view](pick);
  return made[view];
}

async function start() {
  try {
    await load();
  } catch (error) {
    if (error instanceof Refused && error.status === 401) byId("token").showModal();
    else tell(error.message, "stay");
    return;
  }
  byId("served").textContent = `${model.name} ${model.version}, ${model.alias}`;
  document.title = `${model.name} ${model.version}`;
  window.addEventListener("hashchange", show);
  show();
}

// Its link would take the hash, which names the view.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("main").focus();
});
byId("token").addEventListener("cancel", (event) => event.preventDefault()); // there is nothing to see without one
byId("token-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  useToken(byId("token-value").value.trim());
  byId("token").close();
  await start();
  if (byId("token").open) byId("token-about").textContent = "The endpoint does not take this token.";
});

start();
