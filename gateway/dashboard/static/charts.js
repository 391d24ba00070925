// Charts with a legend of buttons: uPlot draws, the legend tells the values under the pointer (else the
// latest) and hides a series when pressed. What is drawn is also told in words, for who cannot see it.
/* global uPlot */
import { make, swatch } from "./dom.js";

const HEIGHT_REM = 12;
// A line goes on over so long a time without data, and ends before a longer one.
const BRIDGED_S = 60;
const charts = new Set();

const rem = () => parseFloat(getComputedStyle(document.documentElement).fontSize);

// The value of a colour that is named in the style sheet, for the theme in force.
function colour(name) {
  const probe = make("span");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

export function redrawAll() {
  for (const chart of charts) chart.redraw();
}

export class Chart {
  // kind: "lines" | "stack" | "curves" (x is a share, not a time); log: a logarithmic scale; `most`: what cannot be exceeded.
  constructor(box, { label, kind = "lines", format = String, axis = format, log = false, most = Infinity, caption = "" }) {
    Object.assign(this, { label, kind, format, axis, log, most });
    this.hiddenNames = new Set();
    this.series = [];
    this.plotBox = make("div", { kind: "plot" });
    this.plotBox.setAttribute("role", "img");
    this.plotBox.setAttribute("aria-label", label);
    this.empty = make("p", { kind: "empty", hidden: true });
    this.legend = make("ul", { kind: "legend" });
    const parts = caption ? [make("figcaption", { text: caption })] : [];
    box.append(make("figure", { kind: "chart" }, ...parts, this.plotBox, this.empty, this.legend));
    if (caption) this.empty.style.top = "1.3rem";
    new ResizeObserver(() => this.resize()).observe(this.plotBox);
    charts.add(this);
  }

  // series: [{name, colour, values, dash?, points?}] over xs; `empty`: what to say when there is nothing;
  // `rest`: the place whose values are told while no pointer is over the chart.
  show(xs, series, empty, rest = xs.length - 1) {
    this.rest = rest;
    const blank = !series.some((one) => one.values.some(known));
    this.empty.hidden = !blank;
    this.empty.textContent = blank ? empty : "";
    this.legend.hidden = blank;
    this.xs = xs;
    const names = (all) => all.map((one) => one.name).join("|");
    const same = this.plot && names(series) === names(this.series) && !blank;
    this.series = series;
    this.tell(blank, empty);
    if (blank) return this.clear();
    if (same) this.plot.setData(this.data());
    else {
      this.makeLegend();
      this.redraw();
    }
    this.tellLegend();
  }

  clear() {
    this.plot?.destroy();
    this.plot = undefined;
    this.legend.replaceChildren();
  }

  tell(blank, empty) {
    const latest = this.series.map((one) => `${one.name} ${this.text(one, null)}`).join(", ");
    const when = this.kind === "stack" ? "In all" : "Latest";
    this.plotBox.setAttribute("aria-label", `${this.label}. ${blank ? empty : `${when}: ${latest}`}`);
  }

  // The value at a place; with none given, a stack's sum, else at the place of interest or the latest.
  text(one, index) {
    if (index === null && this.kind === "stack") return this.format(one.values.reduce((a, b) => a + b, 0));
    const until = index ?? this.rest;
    const upTo = index === null ? one.values.slice(0, until + 1) : [one.values[index]];
    const value = upTo.findLast(known);
    return known(value) ? this.format(value) : "–";
  }

  visible() {
    return this.series.map((one) => !this.hiddenNames.has(one.name));
  }

  // A stack is drawn as sums, the topmost first, each lower one over it.
  data() {
    if (this.kind === "curves") return [this.xs, ...this.series.map((one) => one.values)];
    if (this.kind !== "stack") return [this.xs, ...this.series.map((one) => bridged(this.xs, one.values))];
    const sums = [];
    const shown = this.visible();
    const below = new Array(this.xs.length).fill(0);
    this.series.forEach((one, i) => {
      if (shown[i]) one.values.forEach((value, x) => { below[x] += value ?? 0; });
      sums.push([...below]);
    });
    return [this.xs, ...sums.reverse()];
  }

  redraw() {
    if (!this.series.length || !this.empty.hidden) return;
    this.plot?.destroy();
    this.plot = new uPlot(this.options(), this.data(), this.plotBox);
    this.tellLegend();
  }

  resize() {
    const width = this.plotBox.clientWidth;
    if (this.plot && width && width !== this.plot.width) {
      this.plot.setSize({ width, height: HEIGHT_REM * rem() });
    }
  }

  options() {
    const ink = colour("soft");
    const grid = { stroke: colour("line"), width: 1 };
    const font = `${Math.round(0.75 * rem())}px system-ui, sans-serif`;
    const common = { stroke: ink, grid, ticks: { ...grid, size: 4 }, font };
    const sparse = this.log ? { grid: { ...grid, filter: decades }, ticks: { ...grid, size: 4, filter: decades } } : {};
    const y = { ...common, ...sparse, size: 3.6 * rem(), values: (_, values) => values.map((v) => (v === null ? "" : this.axis(v))) };
    const time = this.kind !== "curves";
    const x = time
      ? { ...common, size: 2 * rem(), space: 4.5 * rem(), values: (_, values, _axis, _space, step) => values.map((v) => moment(v, step)) }
      : { ...common, size: 2 * rem(), space: 3.5 * rem(), values: (_, values) => values.map((v) => `${Math.round(100 * v)} %`) };
    return {
      width: this.plotBox.clientWidth || 300,
      height: HEIGHT_REM * rem(),
      padding: [null, 1.4 * rem(), null, null],
      legend: { show: false },
      cursor: { drag: { x: false, y: false }, points: { show: this.kind !== "stack" } },
      scales: { x: { time }, y: { distr: this.log ? 3 : 1, range: (_, low, high) => this.range(low, high) } },
      axes: [x, y],
      series: [{}, ...this.drawn()],
      hooks: { setCursor: [(plot) => this.tellLegend(plot.cursor.idx)] },
    };
  }

  drawn() {
    const shown = this.visible();
    const made = this.series.map((one, i) => {
      const stroke = colour(`c-${one.colour}`);
      const stack = this.kind === "stack";
      return {
        label: one.name, stroke, show: shown[i], spanGaps: this.kind === "curves",
        width: stack || one.points ? 0 : 2,
        dash: one.dash ? [6, 5] : undefined,
        fill: stack ? stroke : undefined,
        paths: stack ? uPlot.paths.bars({ size: [0.9, 40] }) : undefined,
        points: {
          show: false, size: one.points ? 14 : 6, fill: stroke,
          filter: (plot, place) => (stack ? [] : marked(plot.data[place], one)),
        },
      };
    });
    return this.kind === "stack" ? made.reverse() : made;
  }

  range(low, high) {
    if (this.kind === "curves") return [low - 0.02, Math.min(1, high + 0.02)];
    if (!this.log) return [0, Math.min(this.most, high > 0 ? high * 1.1 : 1)];
    return [10 ** Math.floor(Math.log10(low || 1)), 10 ** Math.ceil(Math.log10((high || 1) * 1.01))];
  }

  tellLegend(index) {
    const under = index ?? null;
    this.series.forEach((one, i) => {
      const button = this.legend.children[i].firstElementChild;
      button.lastElementChild.textContent = this.text(one, under);
    });
  }

  makeLegend() {
    this.legend.replaceChildren(...this.series.map((one) => {
      const button = make("button", { type: "button" },
        swatch(one.colour), make("span", { text: one.name }), make("b"));
      button.setAttribute("aria-pressed", String(!this.hiddenNames.has(one.name)));
      button.addEventListener("click", () => this.toggle(one.name, button));
      return make("li", {}, button);
    }));
  }

  toggle(name, button) {
    if (!this.hiddenNames.delete(name)) this.hiddenNames.add(name);
    button.setAttribute("aria-pressed", String(!this.hiddenNames.has(name)));
    this.redraw();
  }
}

const known = (v) => v !== null && v !== undefined;

// Short times without data as `undefined`, which uPlot draws a line across; long ones as null.
function bridged(xs, values) {
  const drawn = [...values];
  let last = -1;
  values.forEach((value, i) => {
    if (!known(value)) return;
    if (last >= 0 && xs[i] - xs[last] <= BRIDGED_S) drawn.fill(undefined, last + 1, i);
    last = i;
  });
  return drawn;
}

// Which values get a dot, looked at anew with each drawing: all of few, and those that no line reaches.
function marked(values, { points, dash }) {
  const places = values.flatMap((value, i) => (known(value) ? [i] : []));
  if (points || (!dash && places.length < 12)) return places;
  const broken = (from, to) => values.slice(from + 1, to).includes(null);
  return places.filter((place, i) => (
    (i === 0 || broken(places[i - 1], place))
    && (i === places.length - 1 || broken(place, places[i + 1]))));
}

const decades = (_, splits) => splits.map((v) => (Number.isInteger(Math.round(1e6 * Math.log10(v)) / 1e6) ? v : null));
const two = (n) => String(n).padStart(2, "0");

// A time on an axis whose ticks are `step` seconds apart, in the reader's zone.
function moment(seconds, step) {
  const at = new Date(seconds * 1000);
  if (step >= 86400) return `${at.getDate()} ${at.toLocaleString("en", { month: "short" })}`;
  const time = `${two(at.getHours())}:${two(at.getMinutes())}`;
  return step < 60 ? `${time}:${two(at.getSeconds())}` : time;
}
