// The page's state in its URL: ?model=ALIAS#VIEW?key=value&... So a reload, a bookmark and a link show the same again.

/** Return {view, values}: the name of the view and its state as URLSearchParams. */
export function readState() {
  const [view, query = ""] = location.hash.slice(1).split("?");
  return { view, values: new URLSearchParams(query) };
}

const written = {}; // the last state of each view

/** Replace the state of a view, in the URL if it is shown. Null values are left out. */
export function writeState(view, values) {
  const entries = Object.entries(values).filter(([, value]) => value !== null);
  written[view] = `#${view}?${new URLSearchParams(entries)}`;
  if ((readState().view || "sample") === view) history.replaceState(null, "", written[view]);
}

/** Put the state of a view that is shown again into the URL. */
export function restoreState(view) {
  if (written[view]) history.replaceState(null, "", written[view]);
}

/** Return true if the URL has a state that the page did not write: a link that was opened in this tab. */
export function isForeignState() {
  return location.hash.includes("?") && location.hash !== written[readState().view];
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
