// The dialog of a clicked picture: its z, its file, and where to go on from it.

import { byId, short, tell } from "./dom.js";

/** Gives the function that opens the dialog; `go` maps a button's id to what it does with the point. */
export function startPicked(go) {
  const dialog = byId("picked");
  let point = null;

  byId("copy").addEventListener("click", async () => {
    const text = JSON.stringify(point.z);
    try {
      await navigator.clipboard.writeText(text);
      tell(`Copied ${point.z.length} numbers`);
    } catch {
      tell("The browser does not let this page copy", "refused");
    }
    dialog.close();
  });
  byId("download").addEventListener("click", () => dialog.close());
  for (const [id, act] of Object.entries(go)) {
    byId(id).addEventListener("click", () => {
      dialog.close();
      act(point);
    });
  }
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

  return (picked) => {
    point = picked;
    byId("picked-image").src = point.src;
    byId("download").href = point.src;
    const where = point.z ? `; ${short(Math.hypot(...point.z))} from the origin` : "";
    byId("picked-about").textContent = point.about + where;
    for (const id of ["copy", "to-change", "to-start", "to-end"]) byId(id).hidden = !point.z;
    dialog.showModal();
  };
}
