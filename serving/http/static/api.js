// The endpoint's routes as functions. A point is {z, src, description}: its z_dim numbers, its image as a data: URL and
// a line about its origin. An image that was not decoded from a point has no z. A point on a sheet has a `cell` (see
// showCell) and `load()`, which returns its z and src: a sheet of WebP is a tenth of the images as JSON.

import { clearError, notify } from "./dom.js";
import { updateUrl } from "./state.js";

const MAX_ATTEMPTS = 5;
const RETRY_MS = 2000;
const SILENT_WAIT_S = 3; // a longer wait is announced
const RELOAD_MS = 1500;

/** A failed request; `isTransient` if the same request may succeed later. */
export class RequestError extends Error {
  constructor(status, detail, isTransient = false) {
    super(detail);
    this.status = status;
    this.isTransient = isTransient;
  }
}

/** The model of each alias (/v1/models), and of the one in use the response of /v1/model, after `loadModels`. */
export let models = [];
export let model = null;
let token = sessionStorage.getItem("zpoint-token") ?? "";

export function setToken(value) {
  token = value;
  sessionStorage.setItem("zpoint-token", value);
}

/** Load the served models; the one in use is that of `alias`, by default the first. */
export async function loadModels(alias) {
  ({ models } = await (await request("GET", "v1/models")).json());
  model = await loadModel((models.find((served) => served.alias === alias) ?? models[0]).alias);
}

export const loadModel = async (alias) => (await request("GET", `v1/models/${alias}/model`)).json();

/** Draw `options.n` points and return {cells, faces}: their images; the number with a face if `count_faces` is set. */
export async function sampleSheet(of, options) {
  const { cells, headers } = await postForSheet("sample", options, options.n, of);
  return { cells, faces: headers.get("X-Zpoint-Faces") };
}

/** Decode z-points to points on one sheet. */
export async function decodeSheet(zs) {
  const { cells } = await postForSheet("decode", { z: zs }, zs.length);
  return cells.map((cell, i) => ({ cell, load: async () => (await decode([zs[i]]))[0] }));
}

/** Return `steps` points on a path (one of model.paths) from z-point `start` to `end`, both included, on one sheet. */
export async function interpolateSheet(start, end, steps, path) {
  const body = { z: [start, end], steps, path };
  const { cells } = await postForSheet("interpolate", body, steps);
  const loadPoints = memoize(async () => toPoints(await post("interpolate", body)));
  return cells.map((cell, i) => ({ cell, load: async () => (await loadPoints())[i] }));
}

/** Return a function that calls the asynchronous `load` once, and again only if it failed. */
export function memoize(load) {
  let result = null;
  return () => {
    result ??= load().catch((error) => {
      result = null;
      throw error;
    });
    return result;
  };
}

/** Return the map of the stored real images (/v1/points); null if the model has none. */
export const loadMap = memoize(async () => {
  try {
    const headers = { "X-Zpoint-Model": label(model) };
    const [points, sprites] = await Promise.all(
      ["points", "points/thumbnails"].map((path) => request("GET", `${base(model)}/${path}`, undefined, headers)),
    );
    return { ...(await points.json()), sheet: await createImageBitmap(await sprites.blob()) };
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
});

/** Decode a position on the map: {point, nearest}, the rows of the nearest real images. */
export async function decodeAt(x, y) {
  const response = await post("points/at", { x, y });
  return { point: toPoints(response)[0], nearest: response.nearest.map(({ index }) => index) };
}

/** Return the rows of the nearest stored images of each z-point, and their distances. */
export async function neighbours(zs, k) {
  return (await post("neighbours", { z: zs, k })).neighbours;
}

/** Decode z-points to points. */
async function decode(zs) {
  const { images } = await post("decode", { z: zs });
  return images.map((image, i) => ({ z: zs[i], src: dataUrl(image) }));
}

/** Draw n points of a model with a sampler. */
export async function sample(sampler, n, seed, parameters, of = model) {
  return toPoints(await post("sample", { sampler, n, seed, parameters }, of));
}

/** Draw n points with the sampler that fits the training images best. */
export async function sampleLikeData(n, seed = Math.floor(Math.random() * 1e6)) {
  const sampler = ["gmm", "gaussian", "normal"].find((name) => name in model.samplers);
  const points = await sample(sampler, n, seed, {});
  return points.map((point, i) => ({ ...point, description: `${sampler}, seed ${seed}, sample ${i + 1}` }));
}

/**
 * Return {left, top, size} in pixels: the square of an image file that frames its face as those of the training images
 * are framed. Null if it shows none; undefined if the model has no stored images, or these show none.
 */
export async function findFrame(file) {
  try {
    const headers = { "Content-Type": file.type, "X-Zpoint-Model": label(model) };
    return (await (await request("POST", `${base(model)}/frames`, file, headers)).json()).frames?.[0];
  } catch (error) {
    if (error.status === 404) return undefined;
    throw error;
  }
}

/** Return an image file that the browser does not read, such as HEIC, as a JPEG. */
export async function convert(file) {
  const headers = { Accept: "image/jpeg", "Content-Type": "application/octet-stream" };
  return (await request("POST", "v1/convert", file, headers)).blob();
}

/** Corrupt an image (a data: URL) by a task, encode and decode it: {corrupted, reconstruction}; the latter has z. */
export async function reconstruct(src, task, parameters, seed, of = model) {
  const response = await post("reconstruct", { images: [src], task, parameters, seed }, of);
  return { corrupted: { src: dataUrl(response.corrupted[0]) }, reconstruction: toPoints(response)[0] };
}

/**
 * Return a function that runs `task` one call at a time. Of the calls during a run only the last one runs next, so that
 * a dragged slider never lags behind. Errors are shown to the user.
 */
export function latestOnly(task) {
  let isRunning = false;
  let pendingArgs = null;
  return async (...args) => {
    pendingArgs = args;
    if (isRunning) return;
    isRunning = true;
    while (pendingArgs) {
      const currentArgs = pendingArgs;
      pendingArgs = null;
      try {
        await task(...currentArgs);
        clearError();
      } catch (error) {
        notify(error.message, "error");
        // Out of reach or overloaded: try again, unless other arguments have come.
        if (error.isTransient) {
          await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
          pendingArgs ??= currentArgs;
        }
      }
    }
    isRunning = false;
  };
}

const dataUrl = (base64) => `data:image/png;base64,${base64}`;
const toPoints = ({ images, z }) => images.map((image, i) => ({ z: z[i], src: dataUrl(image) }));

const label = ({ name, version }) => `${name}/${version}`;
const base = ({ alias }) => `v1/models/${alias}`;

/** Return {cells, headers} of a route that answers n images: the endpoint lays them out on a square sheet. */
async function postForSheet(route, body, n, of = model) {
  const headers = { Accept: "image/webp", "X-Zpoint-Model": label(of) };
  const response = await request("POST", `${base(of)}/${route}`, JSON.stringify(body), headers);
  const src = await readDataUrl(await response.blob());
  const columns = Math.ceil(Math.sqrt(n));
  const rows = Math.ceil(n / columns);
  return { cells: Array.from({ length: n }, (_, index) => ({ src, index, columns, rows })), headers: response.headers };
}

/** Return the content of a blob as a data: URL. */
export function readDataUrl(blob) {
  return new Promise((resolve) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.readAsDataURL(blob);
  });
}

async function post(route, body, of = model) {
  const headers = { "X-Zpoint-Model": label(of) };
  return (await request("POST", `${base(of)}/${route}`, JSON.stringify(body), headers)).json();
}

async function request(method, path, body, extraHeaders = {}) {
  const headers = { Accept: "application/json", ...extraHeaders };
  if (typeof body === "string") headers["Content-Type"] = "application/json";
  if (!/^[\x20-\x7e]*$/.test(token)) throw new RequestError(401, "A token has ASCII characters only.");
  if (token) headers.Authorization = `Bearer ${token}`;
  for (let attempt = 1; ; attempt++) {
    let response;
    try {
      response = await fetch(path, { method, headers, body, signal: AbortSignal.timeout(30_000) });
    } catch (error) {
      const isTimeout = error.name === "TimeoutError";
      throw new RequestError(0, isTimeout ? "The endpoint timed out after 30 s." : "Cannot reach the endpoint.", true);
    }
    if (response.ok) return response;
    if (response.status === 409) reloadForNewModel(response);
    // A 503 without Retry-After is final: the same request would take too long again.
    const isOverloaded = response.status === 503 && response.headers.has("Retry-After");
    if (!isOverloaded || attempt === MAX_ATTEMPTS) {
      const isTransient = isOverloaded || [502, 504].includes(response.status);
      throw new RequestError(response.status, await errorDetail(response), isTransient);
    }
    const seconds = Number(response.headers.get("Retry-After"));
    if (seconds > SILENT_WAIT_S) notify(`The endpoint is overloaded; the page tries again in ${seconds} s.`, "error");
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
  }
}

async function errorDetail(response) {
  try {
    return (await response.json()).detail;
  } catch {
    return `The endpoint responded with ${response.status} ${response.statusText}`;
  }
}

/** The z-points on the page belong to the version that was loaded with it; another one decodes them differently. */
function reloadForNewModel(response) {
  notify(`The endpoint now serves ${response.headers.get("X-Zpoint-Model")}; this page reloads.`, "permanent");
  setTimeout(() => {
    updateUrl();
    location.reload();
  }, RELOAD_MS);
}
