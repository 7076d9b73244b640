// The statistics of the training images' z-points (/v1/model) as vectors to compute with.

import { model } from "./api.js";

const MAX_AXES = 10;

const sum = (values) => values.reduce((a, b) => a + b, 0);
const scale = (vector, factor) => vector.map((value) => value * factor);
const dot = (a, b) => sum(a.map((value, i) => value * b[i]));

/**
 * Return statistics of the training images' z-points: `mean`, total `variance`, `radius` (root mean square distance
 * from the origin) and its approximate standard deviation `radiusSd`; `priorRadius` is sqrt(z_dim), that of N(0, 1).
 */
export function geometry(of = model) {
  const { mean, sd, axes } = of.latents;
  const variance = dot(sd, sd);
  const radius = Math.sqrt(dot(mean, mean) + variance);
  // The variance of a Gaussian's |z|^2 is 2 tr(C^2) + 4 m'Cm, most of it along the first axes.
  const varianceAlongAxes = axes.map((axis) => 2 * axis.sd ** 4 + 4 * (axis.sd * dot(mean, axis.direction)) ** 2);
  const radiusSd = Math.sqrt(sum(varianceAlongAxes)) / (2 * radius);
  return { mean, variance, radius, radiusSd, priorRadius: Math.sqrt(of.z_dim) };
}

/** Return the fraction of the variance along each principal axis. */
export const explainedVariance = () => model.latents.axes.map((axis) => axis.sd ** 2 / geometry().variance);

/**
 * Return the directions of the sliders: {group, name, label, step}; a step is one standard deviation. Principal axes
 * have a `key` too, since the user may name them.
 */
export function directions() {
  const { axes, attributes } = model.latents;
  const fractions = explainedVariance();
  const attributeDirections = Object.entries(attributes).map(([key, direction]) => {
    const name = key.replaceAll("_", " ");
    // The unit of an attribute, none to all, may be far more or less than the images' standard deviation.
    const sd = Math.hypot(...axes.map((axis) => axis.sd * dot(axis.direction, direction))) / dot(direction, direction);
    return { group: "Attributes", name, label: name, step: scale(direction, sd) };
  });
  const axisDirections = axes.slice(0, MAX_AXES).map(({ sd, direction }, i) => {
    const percent = (100 * fractions[i]).toFixed(fractions[i] < 0.1 ? 1 : 0);
    const name = `Axis ${i + 1}`;
    const label = `${name}, ${percent} % of the variance`;
    return { group: "Principal axes", key: `axis${i + 1}`, name, label, step: scale(direction, sd) };
  });
  return [...attributeDirections, ...axisDirections].filter(({ step }) => dot(step, step) > 0);
}

/** Return the number of steps of a direction between the mean and z. */
export function coordinate(z, { step }) {
  const { mean } = geometry();
  return dot(z.map((value, i) => value - mean[i]), step) / dot(step, step);
}

/** Return z moved by `count` steps of a direction. */
export const moveAlong = (z, { step }, count) => z.map((value, i) => value + count * step[i]);
