// The view of the served model: tables and a chart of the response of /v1/model.

import { model } from "./api.js";
import { byId, createElement, createSvg, formatNumber } from "./dom.js";
import { explainedVariance, geometry } from "./latent_space.js";
import { typeName } from "./sampling.js";

const METRICS = {
  loss: "loss, nats per image", recon: "pixel loss, nats per image", kl: "KL divergence, nats per image",
  mse: "squared error per pixel", psnr: "PSNR, dB", ssim: "SSIM, at most 1", active_units: "active dimensions",
  hog_frechet: "Fréchet distance of HOG features",
  core_hours: "CPU time, core hours", gpu_hours: "GPU time, hours", data_wait: "time waiting for data, 0 to 1",
  epoch_seconds: "time per epoch, s", images_per_second: "images per second", memory_mb: "memory, MB",
  gpu_memory_mb: "GPU memory, MB",
};
const TYPES = { AE: "autoencoder", "Near-AE": "near-autoencoder", VAE: "variational autoencoder" };
const SPLITS = { train: "training images", valid: "validation images", test: "test images" };

/** Return a metric's name in words: `test_psnr` is of a split, `hog_frechet_gmm` of the samples of a sampler. */
function metricName(name) {
  if (name in METRICS) return METRICS[name];
  const [split, ...rest] = name.split("_");
  if (split in SPLITS) return `${METRICS[rest.join("_")] ?? rest.join(" ")}: ${SPLITS[split]}`;
  const sampler = Object.keys(model.samplers).find((sampler) => name.endsWith(`_${sampler}`));
  const measured = sampler && name.slice(0, -sampler.length - 1);
  return sampler ? `${METRICS[measured] ?? measured.replaceAll("_", " ")}: ${sampler} samples` : name.replaceAll("_", " ");
}

export function showModelInfo() {
  const { recipe, image, refused } = model;
  const { radius, priorRadius } = geometry();
  const klFactor = recipe.loss.kl_factor;
  const metrics = Object.entries(model.metrics).map(([name, value]) => [metricName(name), formatNumber(value)]);
  const docsLink = createElement("a", { href: "docs" }, "/docs");
  byId("model-info").append(
    createTable("Served model", {
      model: `${model.name}, version ${model.version} (${model.alias})`,
      run: model.run_id,
      type: `${TYPES[typeName(klFactor)]}, kl_factor ${formatNumber(klFactor)}`,
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
  const text = `${total} % of the total variance lies along ${axes}, ${first} % along the first.`;
  const svg = createSvg("svg", { viewBox: "0 0 600 120", role: "img", "aria-label": text }, ...bars);
  const figure = createElement("figure", { className: "chart" }, svg, createElement("figcaption", {}, text));
  return createElement("div", {}, createElement("h2", {}, "Principal axes"), figure);
}
