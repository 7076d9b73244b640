// The page's state in its URL: ?model=ALIAS#VIEW?key=value&... So a reload, a bookmark and a link show the same again.

/** Return {view, values}: the name of the view and its state as URLSearchParams. */
export function readState() {
  const [view, query = ""] = location.hash.slice(1).split("?");
  return { view, values: new URLSearchParams(query) };
}

const WRITE_DELAY_MS = 300; // after the last change: Safari refuses more than 100 calls of replaceState in 30 s
const OWN_ENTRY = { page: performance.timeOrigin }; // the state of history entries that this load of the page wrote
const hashes = {}; // the last state of each view, as the hash of its URL
let writeTimer = null; // set while the URL lacks the last state

/** Set the state of a view, without its null values. The URL has that of the shown view once it rests. */
export function writeState(view, values) {
  const entries = Object.entries(values).filter(([, value]) => value !== null);
  hashes[view] = `#${view}?${new URLSearchParams(entries)}`;
  clearTimeout(writeTimer);
  writeTimer = setTimeout(updateUrl, WRITE_DELAY_MS);
}

/** Put the last state of the shown view into the URL. */
export function updateUrl() {
  cancelWrite();
  const hash = hashes[readState().view || "sample"];
  if (hash) history.replaceState(OWN_ENTRY, "", hash);
}

function cancelWrite() {
  clearTimeout(writeTimer);
  writeTimer = null;
}

// Before the URL is left: a click may open another view.
for (const type of ["click", "pagehide"]) window.addEventListener(type, () => writeTimer && updateUrl(), true);
// The new URL is another view's, or a link whose state must not be replaced.
window.addEventListener("hashchange", cancelWrite);

/**
 * Return true if the URL has a state that the page did not write: a link that was opened in this tab. Going back to an
 * entry of the page is none, though its view has changed since.
 */
export function isForeignState() {
  const isOwn = history.state?.page === OWN_ENTRY.page;
  return location.hash.includes("?") && !isOwn && location.hash !== hashes[readState().view];
}

/** Return the alias that the URL asks for, null if none. */
export const readAlias = () => new URLSearchParams(location.search).get("model");

/** Encode a z-point for the URL, with the version that it belongs to. */
export function packPoint(z, { version }) {
  const bytes = new Uint8Array(new Float32Array(z).buffer);
  return `${version}.${btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "")}`;
}

/** Return the z-point of `packPoint`; null if there is none, or if it is of another version. */
export function unpackPoint(text, { version, z_dim }) {
  const [packedVersion, data] = (text ?? "").split(".");
  if (packedVersion !== version || !data) return null;
  try {
    const bytes = Uint8Array.from(atob(data.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
    const z = [...new Float32Array(bytes.buffer)];
    return z.length === z_dim && z.every(Number.isFinite) ? z : null;
  } catch {
    return null;
  }
}
