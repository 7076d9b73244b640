// The view of the served model: tables and a chart of the response of /v1/model.

import { model } from "./api.js";
import { byId, createElement, createSvg, formatNumber } from "./dom.js";
import { explainedVariance, geometry } from "./latent_space.js";

export function showModelInfo() {
  const { recipe, image, refused } = model;
  const { radius, priorRadius } = geometry();
  const klFactor = recipe.loss.kl_factor;
  const metrics = Object.entries(model.metrics).map(([name, value]) => [name, formatNumber(value)]);
  const docsLink = createElement("a", { href: "docs" }, "/docs");
  byId("model-info").append(
    createTable("Served model", {
      model: `${model.name}, version ${model.version} (${model.alias})`,
      run: model.run_id,
      type: klFactor === 0 ? "autoencoder" : `variational autoencoder, kl_factor ${formatNumber(klFactor)}`,
      z_dim: model.z_dim,
      images: `${image.size} × ${image.size} pixels, ${image.channels === 1 ? "gray" : "colour"}`,
      task: recipe.task.kind,
      dataset: recipe.data.uri,
      ...(refused && { "failed to load": `version ${refused.version}, to which the alias points: ${refused.reason}` }),
    }),
    createTable("Distance from the origin", {
      "training images (root mean square)": formatNumber(radius),
      "N(0, 1): sqrt(z_dim)": formatNumber(priorRadius),
    }),
    createVarianceChart(),
    createTable("Metrics", Object.fromEntries(metrics)),
    createElement("p", {}, "The HTTP API is described at ", docsLink, "."),
  );
}

function createTable(title, rows) {
  const tableRows = Object.entries(rows).map(([name, value]) =>
    createElement("tr", {}, createElement("th", { scope: "row" }, name), createElement("td", {}, String(value))),
  );
  const table = createElement("table", {}, createElement("tbody", {}, ...tableRows));
  return createElement("div", {}, createElement("h2", {}, title), table);
}

function createVarianceChart() {
  const fractions = explainedVariance();
  const width = 600 / fractions.length;
  const bars = fractions.map((fraction, i) => {
    const height = (110 * fraction) / fractions[0];
    const barWidth = Math.max(0.5, 0.8 * width);
    return createSvg("rect", { class: "bar", x: i * width, y: 120 - height, width: barWidth, height });
  });
  const total = (100 * fractions.reduce((a, b) => a + b)).toFixed(0);
  const first = (100 * fractions[0]).toFixed(1);
  const axes = `the first ${fractions.length} principal axes`;
  const text = `Variance along ${axes}: ${total} % of the total, ${first} % along the first.`;
  const svg = createSvg("svg", { viewBox: "0 0 600 120", role: "img", "aria-label": text }, ...bars);
  return createElement("figure", { className: "chart" }, svg, createElement("figcaption", {}, text));
}
