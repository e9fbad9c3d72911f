"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const CONFIG = {
  displaylogo: false,
  responsive: true,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
};
const TYPES = { f8: Float64Array, f4: Float32Array, i4: Int32Array, i2: Int16Array, u1: Uint8Array };

/** The typed array that Python packed. */
function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed.bdata), (c) => c.charCodeAt(0));
  return new TYPES[packed.dtype](bytes.buffer);
}

/** The rows of a packed matrix. */
function unpackRows(packed) {
  const [rows, columns] = packed.shape.split(", ").map(Number);
  const flat = unpack(packed);
  return Array.from({ length: rows }, (_, k) => flat.subarray(k * columns, (k + 1) * columns));
}

function isDark() {
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function axis(settings) {
  return {
    gridcolor: colour("grid"),
    linecolor: colour("rule"),
    zeroline: false,
    ...settings,
  };
}

function layout(settings) {
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("soft") },
    margin: { l: 58, r: 14, t: 10, b: 44 },
    hoverlabel: {
      bgcolor: colour("panel"),
      bordercolor: colour("rule"),
      font: { color: colour("ink") },
      namelength: -1,
    },
    showlegend: false,
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("soft"), activecolor: colour("accent") },
    ...settings,
  };
}

/** Names as labels of an axis of nodes: at most about `most` of them. */
function nodeTicks(names, most) {
  const step = Math.ceil(names.length / most);
  const shown = names.map((_, k) => k).filter((k) => k % step === 0);
  return { tickvals: shown, ticktext: shown.map((k) => escapeText(names[k])) };
}

/** Room for the names of nodes beside a plot, in pixels. */
function nodeMargin(names) {
  return { l: Math.max(58, 14 + 6.6 * Math.max(...names.map((n) => n.length))), r: 14, t: 10, b: 44 };
}

/** Plotly reads a few tags in text. */
function escapeText(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function bytesText(count) {
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (count >= size) return `${(count / size).toPrecision(3)} ${unit}`;
  }
  return `${Math.round(count)} B`;
}

function secondsText(seconds) {
  if (seconds !== 0 && Math.abs(seconds) < 1e-3) return `${(seconds * 1e6).toPrecision(4)} µs`;
  if (seconds !== 0 && Math.abs(seconds) < 1) return `${(seconds * 1e3).toPrecision(4)} ms`;
  return `${seconds.toFixed(3)} s`;
}
