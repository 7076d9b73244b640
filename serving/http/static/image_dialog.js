// The dialog of a selected image: copy its z, download it, or use it in another view.

import { byId, formatNumber, notify } from "./dom.js";

/** Return the function that opens the dialog with a point; `actions` maps the id of a button to `action(point)`. */
export function createImageDialog(actions) {
  const dialog = byId("image-dialog");
  let point = null;

  byId("copy-z").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(JSON.stringify(point.z));
      notify(`Copied ${point.z.length} numbers`);
    } catch {
      notify("The browser does not let this page copy", "warning");
    }
    dialog.close();
  });
  byId("download").addEventListener("click", () => dialog.close());
  for (const [id, action] of Object.entries(actions)) {
    byId(id).addEventListener("click", () => {
      dialog.close();
      action(point);
    });
  }
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());

  return (selected, isOfThisModel) => {
    point = selected;
    byId("dialog-image").src = point.src;
    byId("download").href = point.src;
    const distance = point.z ? `; ${formatNumber(Math.hypot(...point.z))} from the origin` : "";
    byId("dialog-description").textContent = point.description + distance;
    byId("copy-z").hidden = !point.z;
    for (const id of ["edit-image", "use-as-start", "use-as-end", "use-as-other"]) {
      byId(id).hidden = !point.z || !isOfThisModel;
    }
    dialog.showModal();
  };
}
