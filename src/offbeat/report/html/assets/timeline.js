"use strict";

const BARS = 4000; // Events drawn one by one; above that, shares of the time.
const ARROWS = 400;
const CELLS = 240;

/** Computing, waiting and transferring of one run, in a window that moves. */
class Timeline {
  constructor(root) {
    this.root = root;
    this.plot = root.querySelector("[data-plot=timeline]");
    this.hint = root.querySelector(".timeline .hint");
    this.messages = root.querySelector(".messages");
    this.messages.addEventListener("change", () => this.draw());
    for (const button of root.querySelectorAll("[data-move]")) {
      button.addEventListener("click", () => this.move(button.dataset.move));
    }
  }

  show(run) {
    const t = run.timeline;
    this.run = run;
    this.tables = {};
    for (const name of ["gradients", "waits", "messages"]) {
      this.tables[name] = Object.fromEntries(
        Object.entries(t[name]).map(([column, packed]) => [column, unpack(packed)])
      );
    }
    this.overview = { computing: unpackRows(t.computing), waiting: unpackRows(t.waiting) };
    this.view = [...t.view];
    this.draw();
  }

  move(how) {
    const [from, to] = this.view;
    const span = to - from;
    const middle = (from + to) / 2;
    if (how === "in") this.look(middle - span / 4, middle + span / 4);
    if (how === "out") this.look(middle - span, middle + span);
    if (how === "earlier") this.look(from - span / 2, to - span / 2);
    if (how === "later") this.look(from + span / 2, to + span / 2);
    if (how === "whole") this.look(0, this.run.timeline.seconds);
  }

  /** Moves the window, within the run. */
  look(from, to) {
    const end = this.run.timeline.seconds;
    const span = Math.min(Math.max(to - from, 1e-9), end);
    const start = Math.min(Math.max(from, 0), end - span);
    this.view = [start, start + span];
    this.draw();
  }

  draw() {
    const t = this.run.timeline;
    const rows = t.nodes.length;
    const tall = Math.max(5, Math.min(22, Math.floor(900 / rows)));
    const found = {
      gradients: this.within(this.tables.gradients),
      waits: this.within(this.tables.waits),
      messages: this.within(this.tables.messages),
    };
    const events = found.gradients.length + found.waits.length;
    const slack = 1e-9 * t.seconds;
    const kept = this.view[0] >= t.kept[0] - slack && this.view[1] <= t.kept[1] + slack;
    const each = kept && events <= BARS && found.messages.length <= 2 * BARS;
    const traces = each ? this.bars(found) : [this.shares(kept, found)];
    let drawn = 0;
    if (each && this.messages.checked) {
      const step = Math.max(1, Math.ceil(found.messages.length / ARROWS));
      const some = found.messages.filter((_, k) => k % step === 0);
      drawn = some.length;
      traces.push(this.arrows(some));
    }
    if (t.faults.length) traces.push(this.faults());
    this.hint.textContent = this.words(found, events, kept, each, drawn);
    Plotly.react(
      this.plot,
      traces,
      layout({
        height: rows * tall + 64,
        barmode: "overlay",
        bargap: 0,
        dragmode: "zoom",
        margin: nodeMargin(t.nodes),
        hovermode: "closest",
        xaxis: axis({
          range: this.view,
          tickformat: this.view[1] - this.view[0] < 1e-6 ? "" : "~s",
          ticksuffix: "s",
          nticks: Math.max(4, Math.floor(this.plot.clientWidth / 110)),
          title: { text: this.run.virtual ? "virtual time" : "wall time", standoff: 6 },
        }),
        yaxis: axis({
          range: [rows - 0.4, -0.6],
          fixedrange: true,
          showgrid: false,
          ...nodeTicks(t.nodes, tall >= 12 ? 40 : 20),
        }),
      }),
      CONFIG
    ).then(() => this.listen());
  }

  listen() {
    if (this.listening) return;
    this.listening = true;
    this.plot.on("plotly_relayout", (change) => {
      const from = change["xaxis.range[0]"] ?? change["xaxis.range"]?.[0];
      const to = change["xaxis.range[1]"] ?? change["xaxis.range"]?.[1];
      if (change["xaxis.autorange"]) this.move("whole");
      else if (from !== undefined && to !== undefined) this.look(Number(from), Number(to));
    });
  }

  /** Numbers of the rows of a table that touch the window. */
  within(table) {
    const [from, to] = this.view;
    const rows = [];
    for (let k = 0; k < table.start.length; k++) {
      if (table.start[k] <= to && table.start[k] + table.length[k] >= from) rows.push(k);
    }
    return rows;
  }

  bars(found) {
    const nodes = this.run.timeline.nodes;
    const make = (table, rows, node, fill, word, place) => ({
      type: "bar",
      orientation: "h",
      name: word,
      y: rows.map((k) => table[node][k]),
      base: rows.map((k) => table.start[k]),
      x: rows.map((k) => table.length[k]),
      marker: { color: fill, line: { color: colour("ground"), width: word === "transferring" ? 0 : 0.5 } },
      customdata: rows.map((k) => [
        escapeText(nodes[table[node][k]]),
        secondsText(table.start[k]),
        secondsText(table.start[k] + table.length[k]),
        secondsText(table.length[k]),
      ]),
      hovertemplate: `%{customdata[0]} ${word} for %{customdata[3]}<br>%{customdata[1]} to %{customdata[2]}<extra></extra>`,
      ...place,
    });
    const { gradients, waits, messages } = this.tables;
    const row = { width: 0.84 };
    const strip = { width: 0.26, offset: 0.12 };
    return [
      make(waits, found.waits, "node", colour("waiting"), "waiting", row),
      make(gradients, found.gradients, "node", colour("computing"), "computing", row),
      make(messages, found.messages, "source", colour("sending"), "transferring", strip),
    ];
  }

  arrows(rows) {
    const { nodes, kinds } = this.run.timeline;
    const m = this.tables.messages;
    const line = { x: [], y: [], text: [], sizes: [] };
    const narrow = this.plot.clientWidth < 500;
    for (const k of rows) {
      const end = m.start[k] + m.length[k];
      const what =
        `${kinds[m.kind[k]]}, ${bytesText(m.bytes[k])}: ${nodes[m.source[k]]} → ${nodes[m.to[k]]}, ` +
        (m.lost[k] ? "lost" : `${secondsText(m.start[k])} to ${secondsText(end)}`);
      line.x.push(m.start[k], end, null);
      line.y.push(m.source[k], m.to[k], null);
      line.text.push(escapeText(what), escapeText(what), "");
      line.sizes.push(0, narrow ? 4 : 7, 0);
    }
    return {
      type: "scatter",
      mode: "lines+markers",
      name: "messages",
      x: line.x,
      y: line.y,
      text: line.text,
      hovertemplate: "%{text}<extra></extra>",
      line: { color: colour("sending"), width: narrow ? 0.5 : 1 },
      opacity: 0.6,
      marker: { symbol: "arrow", angleref: "previous", size: line.sizes, color: colour("sending") },
    };
  }

  /** Share of the time that each node computed, by cell of the window. */
  shares(kept, found) {
    const t = this.run.timeline;
    let { computing, waiting } = this.overview;
    let from = 0;
    let cell = t.seconds / computing[0].length;
    if (kept) {
      from = this.view[0];
      cell = (this.view[1] - this.view[0]) / CELLS;
      computing = this.binned(this.tables.gradients, found.gradients, from, cell);
      waiting = this.binned(this.tables.waits, found.waits, from, cell);
    }
    return {
      type: "heatmap",
      name: "shares",
      z: computing.map((row) => Array.from(row)),
      x0: from + cell / 2,
      dx: cell,
      zmin: 0,
      zmax: 1,
      colorscale: [[0, colour("waiting")], [1, colour("computing")]],
      showscale: false,
      ygap: 1,
      customdata: waiting.map((row) => Array.from(row)),
      text: t.nodes.map((name) => Array(computing[0].length).fill(escapeText(name))),
      hovertemplate:
        "%{text} around %{x:.4s}s<br>computing %{z:.0%}, waiting %{customdata:.0%}<extra></extra>",
    };
  }

  binned(table, rows, from, cell) {
    const sums = this.run.timeline.nodes.map(() => new Float64Array(CELLS));
    for (const k of rows) {
      const start = (table.start[k] - from) / cell;
      const end = start + table.length[k] / cell;
      const last = Math.min(CELLS - 1, Math.floor(end));
      for (let b = Math.max(0, Math.floor(start)); b <= last; b++) {
        sums[table.node[k]][b] += Math.max(0, Math.min(end, b + 1) - Math.max(start, b));
      }
    }
    return sums;
  }

  faults() {
    const { faults } = this.run.timeline;
    return {
      type: "scatter",
      mode: "markers",
      name: "faults",
      x: faults.map((fault) => fault.at),
      y: faults.map((fault) => fault.node),
      text: faults.map((fault) => escapeText(fault.text)),
      hovertemplate: "%{text}<extra></extra>",
      marker: { symbol: "x", size: 10, color: colour("bad"), line: { color: colour("ground"), width: 1 } },
    };
  }

  words(found, events, kept, each, drawn) {
    const t = this.run.timeline;
    const count = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
    const window = `${secondsText(this.view[0])} to ${secondsText(this.view[1])} of ${secondsText(t.seconds)}`;
    if (!kept) {
      const held = `${secondsText(t.kept[0])} to ${secondsText(t.kept[1])}`;
      return (
        `${window}: shades are shares of the time spent computing. This file holds ` +
        `${t.events_kept.toLocaleString("en")} of ${count(t.events, "event")} one by one, those of ${held}.`
      );
    }
    if (!each) {
      const all = events + found.messages.length;
      return `${window}: ${count(all, "event")} are too many to draw. Shades are shares of the time spent computing; zoom in to see each event.`;
    }
    const total = found.messages.length;
    const arrows =
      !this.messages.checked || drawn === total
        ? count(total, "message")
        : `${count(total, "message")}, arrows for ${drawn} of them`;
    return `${window}: ${count(found.gradients.length, "computation")}, ${count(found.waits.length, "wait")}, ${arrows}.`;
  }
}
