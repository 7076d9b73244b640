// What /v1/model tells of where the training images' points lie, as vectors to compute with.

import { model } from "./api.js";

const AXES = 10;

const sum = (values) => values.reduce((a, b) => a + b, 0);
const scaled = (vector, size) => vector.map((value) => value * size);
const dot = (a, b) => sum(a.map((value, i) => value * b[i]));

/**
 * Of the training images' points: the mean, the variance in all, the distance from the origin (root mean square) and
 * about its sd; and `prior`, sqrt(z_dim), the distance of N(0, 1)'s points.
 */
export function geometry() {
  const { mean, sd, axes } = model.latents;
  const variance = dot(sd, sd);
  const radius = Math.sqrt(dot(mean, mean) + variance);
  // A Gaussian's |z|^2 has the variance 2 tr(C^2) + 4 m'Cm, most of it along the first axes.
  const parts = axes.map((axis) => 2 * axis.sd ** 4 + 4 * (axis.sd * dot(mean, axis.direction)) ** 2);
  const spread = Math.sqrt(sum(parts)) / (2 * radius);
  return { mean, variance, radius, spread, prior: Math.sqrt(model.z_dim) };
}

/** The share of the variance that each of the principal axes holds. */
export const shares = () => model.latents.axes.map((axis) => axis.sd ** 2 / geometry().variance);

/** Ways to move a point: {group, name, label, step}; a step is the training images' sd along the direction. */
export function directions() {
  const { axes, attributes } = model.latents;
  const share = shares();
  const named = Object.entries(attributes).map(([key, way]) => {
    const name = key.replaceAll("_", " ");
    // An attribute's own unit (its difference between none and all) may be far more or less than images differ by.
    const size = Math.hypot(...axes.map((axis) => axis.sd * dot(axis.direction, way))) / dot(way, way);
    return { group: "Attributes", name, label: name, step: scaled(way, size) };
  });
  const principal = axes.slice(0, AXES).map(({ sd, direction }, i) => {
    const percent = (100 * share[i]).toFixed(share[i] < 0.1 ? 1 : 0);
    const name = `Axis ${i + 1}`;
    return { group: "Principal axes", name, label: `${name}, ${percent} % of the variance`, step: scaled(direction, sd) };
  });
  return [...named, ...principal].filter(({ step }) => dot(step, step) > 0);
}

/** How many steps of a direction z lies from the mean. */
export function coordinate(z, { step }) {
  const { mean } = geometry();
  return dot(z.map((value, i) => value - mean[i]), step) / dot(step, step);
}

/** z moved by so many steps of a direction. */
export const moved = (z, { step }, count) => z.map((value, i) => value + count * step[i]);
