// What the endpoint tells of its model, as tables and one chart.

import { model } from "./api.js";
import { byId, draw, make, short } from "./dom.js";
import { geometry, shares } from "./latents.js";

export function startFacts() {
  const { recipe, image, refused } = model;
  const { radius, prior } = geometry();
  const kl = recipe.loss.kl_factor;
  byId("facts").append(
    table("What is served", {
      model: `${model.name}, version ${model.version} (${model.alias})`,
      run: model.run_id,
      kind: kl === 0 ? "autoencoder" : `variational autoencoder, kl_factor ${short(kl)}`,
      z_dim: model.z_dim,
      images: `${image.size} × ${image.size} pixels, ${image.channels === 1 ? "gray" : "colour"}`,
      task: recipe.task.kind,
      "trained on": recipe.data.uri,
      ...(refused && { "not served": `version ${refused.version}, which the alias names: ${refused.reason}` }),
    }),
    table("Where the training images' points lie", {
      "distance from the origin (root mean square)": short(radius),
      "where N(0, 1) has its mass": `sqrt(z_dim) = ${short(prior)}`,
    }),
    spectrum(),
    table("Measured", Object.fromEntries(Object.entries(model.metrics).map(([name, value]) => [name, short(value)]))),
  );
  const link = make("a", { href: "docs" }, "/docs");
  byId("facts").append(make("p", {}, "Its routes are described at ", link, "."));
}

function table(title, rows) {
  const lines = Object.entries(rows).map(([name, value]) =>
    make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, String(value))),
  );
  return make("div", {}, make("h2", {}, title), make("table", {}, make("tbody", {}, ...lines)));
}

function spectrum() {
  const held = shares();
  const width = 600 / held.length;
  const bars = held.map((share, i) => {
    const height = (110 * share) / held[0];
    return draw("rect", { class: "bar", x: i * width, y: 120 - height, width: Math.max(0.5, 0.8 * width), height });
  });
  const all = held.reduce((a, b) => a + b);
  const text = `Variance along the first ${held.length} principal axes: ${(100 * all).toFixed(0)} % of all, ${(100 * held[0]).toFixed(1)} % along the first.`;
  const svg = draw("svg", { viewBox: "0 0 600 120", role: "img", "aria-label": text }, ...bars);
  return make("figure", { className: "chart" }, svg, make("figcaption", {}, text));
}
