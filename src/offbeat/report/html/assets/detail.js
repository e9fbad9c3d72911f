"use strict";

/** Histogram of staleness: in all, and for each node. */
function drawStaleness(figure, run) {
  const plot = figure.querySelector(".plot");
  const hint = figure.querySelector(".hint");
  const s = run.staleness;
  const uncounted = s?.averaging ? " Averaging with neighbours is no optimizer step, and is not counted." : "";
  const none = s === null ? "No gradient was applied." : s.max === 0 ? `Staleness was 0 throughout.${uncounted}` : "";
  plot.hidden = none !== "";
  if (none) {
    hint.textContent = none;
    return;
  }
  hint.textContent = s.by_worker
    ? "Rows: the worker that computed the gradient. Shades: the share of its gradients."
    : "Rows: the node that applied the gradient; its messages do not tell whose it was.";
  const from = Array.from(unpack(s.from));
  const label = (k) => (s.width === 1 ? `${from[k]}` : `${from[k]} to ${from[k] + s.width - 1}`);
  const total = Array.from(unpack(s.total));
  const all = total.reduce((a, b) => a + b, 0);
  const counts = unpackRows(s.counts).map((row) => Array.from(row));
  const sums = counts.map((row) => row.reduce((a, b) => a + b, 0));
  const rows = s.nodes.length;
  const tall = Math.max(6, Math.min(20, Math.floor(640 / rows)));
  const height = 150 + rows * tall + 80;
  const inner = height - 54;
  Plotly.react(
    plot,
    [
      {
        type: "bar",
        name: "all",
        x: from,
        y: total.map((n) => n / all),
        customdata: total.map((n, k) => [label(k), n.toLocaleString("en")]),
        marker: { color: isDark() ? run.dark : run.light },
        hovertemplate: "staleness %{customdata[0]}<br>%{customdata[1]} gradients, %{y:.1%}<extra></extra>",
        yaxis: "y",
      },
      {
        type: "heatmap",
        name: "by node",
        x: from,
        z: counts.map((row, n) => row.map((count) => (count ? count / sums[n] : null))),
        customdata: counts.map((row, n) =>
          row.map((count, k) => [label(k), count.toLocaleString("en"), escapeText(s.nodes[n]), s.means[n]])
        ),
        zmin: 0,
        colorscale: [[0, colour("low")], [1, colour("high")]],
        showscale: false,
        ygap: 1,
        hoverongaps: false,
        hovertemplate:
          "%{customdata[2]}, mean %{customdata[3]}<br>staleness %{customdata[0]}: %{customdata[1]} gradients, %{z:.1%}<extra></extra>",
        yaxis: "y2",
      },
    ],
    layout({
      height,
      bargap: 0.1,
      margin: nodeMargin(s.nodes),
      xaxis: axis({ title: { text: "staleness" }, anchor: "y2", showgrid: false, tickformat: ",d", ...(from.length < 12 && s.width === 1 ? { dtick: 1, range: [-0.5, 11.5] } : {}) }),
      yaxis: axis({ domain: [(rows * tall + 34) / inner, 1], tickformat: ".0%", nticks: 5, rangemode: "tozero" }),
      yaxis2: axis({ domain: [0, (rows * tall) / inner], range: [rows - 0.5, -0.5], showgrid: false, fixedrange: true, ...nodeTicks(s.nodes, tall >= 12 ? 40 : 16) }),
    }),
    CONFIG
  );
}

/** Bytes per second: in all, out of each node and into each. */
function drawNetwork(figure, run) {
  const plot = figure.querySelector(".plot");
  const hint = figure.querySelector(".hint");
  const n = run.network;
  plot.hidden = n === null;
  if (n === null) {
    hint.textContent = "No message was sent.";
    return;
  }
  hint.textContent = `Averages over ${secondsText(n.width)}; each message is spread evenly over its transfer.`;
  const x = Array.from(unpack(n.seconds));
  const ways = { out: unpackRows(n.out), in: unpackRows(n.in) };
  const most = Object.values(ways).flat().reduce((top, row) => row.reduce((a, b) => Math.max(a, b), top), 0);
  const rows = n.nodes.length;
  const tall = Math.max(4, Math.min(16, Math.floor(420 / rows)));
  const band = rows * tall;
  const gap = 30;
  const height = 150 + 2 * (band + gap) + 54;
  const inner = height - 54;
  const heat = (way, y) => ({
    type: "heatmap",
    name: way,
    x,
    z: ways[way].map((row) => Array.from(row)),
    customdata: ways[way].map((row, k) => Array.from(row, (v) => [escapeText(n.nodes[k]), bytesText(v)])),
    zmin: 0,
    zmax: most,
    colorscale: [[0, colour("low")], [1, colour("high")]],
    showscale: false,
    ygap: tall > 6 ? 1 : 0,
    hovertemplate: `${way === "out" ? "out of" : "into"} %{customdata[0]}: %{customdata[1]}/s<br>around %{x:.4s}s<extra></extra>`,
    yaxis: y,
  });
  const nodeAxis = (bottom) =>
    axis({
      domain: [bottom / inner, (bottom + band) / inner],
      range: [rows - 0.5, -0.5],
      showgrid: false,
      fixedrange: true,
      ...nodeTicks(n.nodes, Math.max(2, Math.floor(band / 16))),
    });
  const heading = (text, top) => ({
    text, x: 0, xref: "paper", xanchor: "left", y: top / inner, yref: "paper", yanchor: "bottom", showarrow: false,
    font: { color: colour("ink") },
  });
  Plotly.react(
    plot,
    [
      {
        type: "scatter",
        mode: "lines",
        name: "total",
        x,
        y: Array.from(unpack(n.total)),
        fill: "tozeroy",
        line: { color: isDark() ? run.dark : run.light, width: 1.5, shape: "hvh" },
        hovertemplate: "%{y:.3s}B/s around %{x:.4s}s<extra></extra>",
      },
      heat("out", "y2"),
      heat("in", "y3"),
    ],
    layout({
      height,
      hovermode: "closest",
      margin: nodeMargin(n.nodes),
      annotations: [heading("out of each node", 2 * band + gap), heading("into each node", band)],
      xaxis: axis({ anchor: "y3", tickformat: "~s", ticksuffix: "s", showgrid: false, title: { text: run.virtual ? "virtual time" : "wall time", standoff: 6 } }),
      yaxis: axis({ domain: [(2 * (band + gap)) / inner, 1], tickformat: "~s", ticksuffix: "B/s", nticks: 5, rangemode: "tozero" }),
      yaxis2: nodeAxis(band + gap),
      yaxis3: nodeAxis(0),
    }),
    CONFIG
  );
}
