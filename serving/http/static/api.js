// The endpoint's routes as functions. A point is {z, src, description}: its z_dim numbers, its image as a data: URL and
// a line about its origin. An image that was not decoded from a point has no z.

import { clearError, notify } from "./dom.js";

const MAX_ATTEMPTS = 5;

export class RequestError extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

/** The response of /v1/model, after `loadModel`. */
export let model = null;
let token = sessionStorage.getItem("zpoint-token") ?? "";

export function setToken(value) {
  token = value;
  sessionStorage.setItem("zpoint-token", value);
}

export async function loadModel() {
  model = await (await request("GET", "v1/model")).json();
}

/** Decode z-points to points. */
export async function decode(zs) {
  const { images } = await post("v1/decode", { z: zs });
  return images.map((image, i) => ({ z: zs[i], src: dataUrl(image) }));
}

/** Draw n points with a sampler. */
export async function sample(sampler, n, seed, parameters) {
  return toPoints(await post("v1/sample", { sampler, n, seed, parameters }));
}

/** Draw n points with the sampler that fits the training images best. */
export async function sampleLikeData(n) {
  const sampler = ["gmm", "gaussian", "normal"].find((name) => name in model.samplers);
  const seed = Math.floor(Math.random() * 1e6);
  const points = await sample(sampler, n, seed, {});
  return points.map((point, i) => ({ ...point, description: `${sampler}, seed ${seed}, sample ${i + 1}` }));
}

/** Return `steps` points on a path (one of model.paths) from z-point `start` to `end`, both included. */
export async function interpolate(start, end, steps, path) {
  return toPoints(await post("v1/interpolate", { z: [start, end], steps, path }));
}

/** Corrupt an image (a data: URL) by a task, encode and decode it: {corrupted, reconstruction}; the latter has z. */
export async function reconstruct(src, task, parameters, seed) {
  const response = await post("v1/reconstruct", { images: [src], task, parameters, seed });
  return { corrupted: { src: dataUrl(response.seen[0]) }, reconstruction: toPoints(response)[0] };
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
      }
    }
    isRunning = false;
  };
}

const dataUrl = (base64) => `data:image/png;base64,${base64}`;
const toPoints = ({ images, z }) => images.map((image, i) => ({ z: z[i], src: dataUrl(image) }));

async function post(path, body) {
  return (await request("POST", path, JSON.stringify(body))).json();
}

async function request(method, path, body) {
  const headers = { Accept: "application/json" };
  if (body) headers["Content-Type"] = "application/json";
  if (!/^[\x20-\x7e]*$/.test(token)) throw new RequestError(401, "A token has ASCII characters only.");
  if (token) headers.Authorization = `Bearer ${token}`;
  for (let attempt = 1; ; attempt++) {
    let response;
    try {
      response = await fetch(path, { method, headers, body, signal: AbortSignal.timeout(30_000) });
    } catch (error) {
      const isTimeout = error.name === "TimeoutError";
      throw new RequestError(0, isTimeout ? "The endpoint timed out after 30 s." : "Cannot reach the endpoint.");
    }
    if (response.ok) {
      warnIfModelChanged(response);
      return response;
    }
    if (response.status !== 503 || attempt === MAX_ATTEMPTS) {
      throw new RequestError(response.status, await errorDetail(response));
    }
    const seconds = Math.min(10, Number(response.headers.get("Retry-After")) || 0.2 * 2 ** attempt);
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

/** The z-points on the page belong to the model that was loaded with it; another model decodes them differently. */
function warnIfModelChanged(response) {
  const label = response.headers.get("X-Zpoint-Model");
  if (model && label && label !== `${model.name}/${model.version}`) {
    notify(`The endpoint now serves ${label}. Reload this page to use it.`, "permanent");
  }
}
