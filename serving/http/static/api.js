// The endpoint's routes as functions. A point is {z, src, about}: its components, its picture as a data: URL, and
// a line about where it comes from; a picture that is no point's has no z.

import { calm, tell } from "./dom.js";

const TRIES = 5;

export class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

/** What /v1/model told, once `load` is done. */
export let model = null;
let token = sessionStorage.getItem("zpoint-token") ?? "";

export function useToken(value) {
  token = value;
  sessionStorage.setItem("zpoint-token", value);
}

export async function load() {
  model = await (await ask("GET", "v1/model")).json();
  return model;
}

/** The pictures of z-points. */
export async function decode(points) {
  const answer = await post("v1/decode", { z: points });
  return answer.images.map((image, i) => ({ z: points[i], src: url(image) }));
}

/** n points of a sampler with their pictures. */
export async function sample(sampler, n, seed, parameters) {
  const answer = await post("v1/sample", { sampler, n, seed, parameters });
  return answer.images.map((image, i) => ({ z: answer.z[i], src: url(image) }));
}

/** `steps` points on a path (one of model.paths) from z-point a to b, both included. */
export async function interpolate(a, b, steps, path) {
  const answer = await post("v1/interpolate", { z: [a, b], steps, path });
  return answer.images.map((image, i) => ({ z: answer.z[i], src: url(image) }));
}

/** A picture (a data: URL) through the model, changed by a task first: {seen, after}; the second is a point. */
export async function reconstruct(src, task, parameters, seed) {
  const answer = await post("v1/reconstruct", { images: [src], task, parameters, seed });
  return { seen: { src: url(answer.seen[0]) }, after: { z: answer.z[0], src: url(answer.images[0]) } };
}

/** n new points of the sampler that follows the training images' points best. */
export async function likely(n) {
  const sampler = ["gmm", "gaussian", "normal"].find((name) => name in model.samplers);
  const seed = Math.floor(Math.random() * 1e6);
  const points = await sample(sampler, n, seed, {});
  return points.map((point, i) => ({ ...point, about: `${sampler}, seed ${seed}, number ${i + 1}` }));
}

/**
 * A function that calls `work` with one call under way at a time. Of the calls that come meanwhile the last one
 * runs next and the others never do, so that a dragged slider never falls behind. Failures are told to the user.
 */
export function latest(work) {
  let busy = false;
  let next = null;
  return async (...given) => {
    next = given;
    if (busy) return;
    busy = true;
    while (next) {
      const now = next;
      next = null;
      try {
        await work(...now);
        calm();
      } catch (error) {
        tell(error.message, "trouble");
      }
    }
    busy = false;
  };
}

const url = (base64) => `data:image/png;base64,${base64}`;

async function post(path, body) {
  return (await ask("POST", path, JSON.stringify(body), "application/json")).json();
}

async function ask(method, path, body, type) {
  const headers = { Accept: "application/json" };
  if (type) headers["Content-Type"] = type;
  if (!/^[\x20-\x7e]*$/.test(token)) throw new Refused(401, "No token has such characters.");
  if (token) headers.Authorization = `Bearer ${token}`;
  for (let tried = 1; ; tried++) {
    let answer;
    try {
      answer = await fetch(path, { method, headers, body, signal: AbortSignal.timeout(30_000) });
    } catch (error) {
      const late = error.name === "TimeoutError";
      throw new Refused(0, late ? "The endpoint took longer than 30 s." : "The endpoint does not answer.");
    }
    if (answer.ok) {
      noticeSwap(answer);
      return answer;
    }
    if (answer.status !== 503 || tried === TRIES) throw new Refused(answer.status, await reason(answer));
    const seconds = Math.min(10, Number(answer.headers.get("Retry-After")) || 0.2 * 2 ** tried);
    await new Promise((done) => setTimeout(done, 1000 * seconds));
  }
}

async function reason(answer) {
  try {
    return (await answer.json()).detail;
  } catch {
    return `The endpoint answered ${answer.status} ${answer.statusText}`;
  }
}

/** Another model answers than the one whose facts are shown: its points mean something else. */
function noticeSwap(answer) {
  const served = answer.headers.get("X-Zpoint-Model");
  if (model && served && served !== `${model.name}/${model.version}`) {
    tell(`The endpoint serves ${served} now: reload this page to see it.`, "stay");
  }
}
