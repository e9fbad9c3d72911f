"use strict";

const EQUAL = 1e-5; // A consensus distance below is that of equal parameters, up to rounding.

/** Accuracy, loss and consensus of a group's runs against what its switch says. */
class Progress {
  constructor(root, group) {
    this.root = root;
    this.group = group;
    this.hidden = new Set();
    this.pointed = null; // The run that stands out from the others.
    this.columns = group.runs.map((run) =>
      Object.fromEntries(
        Object.entries(run.progress.columns).map(([name, packed]) => [name, unpack(packed)])
      )
    );
    for (const input of root.querySelectorAll(".switch input")) {
      input.addEventListener("change", () => this.draw());
    }
    for (const button of root.querySelectorAll(".legend button")) {
      const run = Number(button.dataset.run);
      const over = (event) => event.pointerType === "mouse" && this.point(run);
      button.addEventListener("click", () => this.toggle(button));
      button.addEventListener("pointerenter", over);
      button.addEventListener("pointerleave", () => this.point(null));
      button.addEventListener("focus", () => button.matches(":focus-visible") && this.point(run));
      button.addEventListener("blur", () => this.point(null));
    }
  }

  toggle(button) {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", shown);
    const run = Number(button.dataset.run);
    if (shown) this.hidden.delete(run);
    else this.hidden.add(run);
    this.draw();
  }

  point(run) {
    if (run === this.pointed) return;
    this.pointed = run;
    for (const plot of this.root.querySelectorAll("[data-curve]")) {
      if (!plot.data) continue;
      Plotly.restyle(plot, { opacity: plot.data.map((trace) => this.opacity(trace.meta)) });
    }
  }

  opacity(run) {
    const all = this.pointed === null || this.hidden.has(this.pointed);
    return all || run === this.pointed ? 1 : 0.12;
  }

  draw() {
    const against = this.root.querySelector(".switch input:checked").value;
    for (const plot of this.root.querySelectorAll("[data-curve]")) this.curve(plot, against);
  }

  curve(plot, against) {
    const name = plot.dataset.curve;
    const hint = plot.nextElementSibling;
    const least = name === "consensus" ? EQUAL : -Infinity;
    const known = this.columns.some((c) => c[name].some((v) => !Number.isNaN(v) && v > least));
    plot.hidden = !known;
    hint.hidden = known;
    plot.parentElement.hidden = !known && name === "accuracy";
    if (!known) {
      hint.textContent =
        name === "consensus"
          ? "The workers' parameters were equal at every evaluation."
          : "No evaluation gave a finite number.";
      return;
    }
    const decades = name === "accuracy" ? 0 : this.decades(name, least);
    const log = decades > 0.8;
    const traces = this.group.runs.flatMap((run, k) => this.traces(run, k, name, against, least));
    Plotly.react(
      plot,
      traces,
      layout({
        height: name === "accuracy" ? 380 : 300,
        hovermode: "closest",
        xaxis: axis({ title: { text: this.title(against) }, ...this.range(against) }),
        yaxis: axis({
          type: log ? "log" : "linear",
          exponentformat: "power",
          ...(log && decades <= 4 ? { tickformat: "~g" } : {}),
          ...(name === "accuracy" ? { tickformat: ".0%" } : {}),
          ...(log ? { dtick: decades > 2 ? Math.ceil(decades / 8) : "D2" } : {}),
        }),
      }),
      CONFIG
    );
  }

  traces(run, k, name, against, least) {
    const columns = this.columns[k];
    const stroke = isDark() ? run.dark : run.light;
    const y = Array.from(columns[name], (v) => (Number.isNaN(v) || v < least ? null : v));
    const format = name === "accuracy" ? ".2%" : ".4g";
    const unit = against === "seconds" ? " s" : against === "bytes" ? "B" : "";
    const number = against === "seconds" ? ".3f" : against === "bytes" ? ".3s" : ",";
    const common = {
      visible: !this.hidden.has(k),
      name: escapeText(run.name),
      meta: k,
      opacity: this.opacity(k),
    };
    const line = {
      ...common,
      type: "scatter",
      mode: columns.seconds.length < 4 ? "lines+markers" : "lines",
      x: Array.from(columns[against]),
      y,
      line: { color: stroke, width: 2, dash: run.dash },
      hovertemplate: `%{y:${format}} at %{x:${number}}${unit}`,
    };
    const text = run.progress.faults.text;
    if (!text.length) return [line];
    const marks = {
      ...common,
      type: "scatter",
      mode: "markers",
      x: Array.from(unpack(run.progress.faults[against])),
      y: Array.from(unpack(run.progress.faults[name]), (v) => (v < least ? null : v)),
      text: text.map(escapeText),
      marker: { symbol: "x", size: 9, color: colour("bad") },
      hovertemplate: "%{text}",
    };
    return [line, marks];
  }

  title(against) {
    if (against === "seconds") return this.group.second_word;
    return against === "samples" ? "samples, in gradients of all workers" : "bytes sent";
  }

  /** Runs that end at very different times need a logarithmic axis. */
  range(against) {
    const format = against === "bytes" ? { tickformat: "~s", ticksuffix: "B" } : { tickformat: "~s" };
    if (against === "seconds") format.tickformat = "~g";
    const ends = this.columns.filter((c) => c[against].length > 2).map((c) => c[against].at(-1)).filter((end) => end > 0);
    if (Math.max(...ends) < 5 * Math.min(...ends)) return { rangemode: "tozero", ...format };
    return { type: "log", dtick: "D2", ...format };
  }

  /** Powers of ten that a curve spans; 0 if some of it is negative. */
  decades(name, least) {
    const all = this.columns.flatMap((c) => Array.from(c[name])).filter((v) => v > least);
    const values = all.filter((v) => v > 0);
    if (!values.length || all.some((v) => v < 0)) return 0;
    return Math.log10(Math.max(...values) / Math.min(...values));
  }
}
