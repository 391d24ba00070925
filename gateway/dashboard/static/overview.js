// What was saved and how fast: tiles, hit rates, what was avoided, time to answer.
import { Chart } from "./charts.js";
import { byId, choice, colourName, compact, ms, origin, percent, table, usd, whole } from "./dom.js";

const NO_TRAFFIC = "No request was answered in this span. Send one to /v1/chat/completions.";
const TECHNIQUES = ["exact", "semantic", "join", "cascade", "prefix"];
const LAYERS = ["exact", "semantic", "join"];
const SMOOTH_S = 60;
const LEAST_STEPS = 24;
const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);

export class Overview {
  constructor() {
    this.layers = new Chart(byId("layers"), {
      label: "Share of look-ups that were answered, by layer", most: 1,
      format: (v) => percent(v), axis: (v) => `${Math.round(100 * v)} %`,
    });
    this.avoided = new Chart(byId("avoided"), {
      label: "Avoided per step, by technique", kind: "stack",
      format: (v) => this.amount(v), axis: (v) => this.amount(v),
    });
    this.latency = new Chart(byId("latency"), {
      label: "Time to answer, by origin", log: true, format: ms, axis: ms,
    });
    this.unit = "tokens";
    this.share = "p50";
    choice("unit", { tokens: "tokens", usd: "US$" }, this.unit, (unit) => this.again({ unit }));
    choice("share", { p50: "p50", p95: "p95" }, this.share, (share) => this.again({ share }));
  }

  amount(v) {
    return this.unit === "usd" ? usd(v) : compact(v);
  }

  again(changed) {
    Object.assign(this, changed);
    if (this.seen) this.showHistory(this.seen);
  }

  showNow(now) {
    const speed = sum(Object.values(now.engine).map((state) => state.tokens_per_s));
    byId("tile-speed").textContent = whole(speed);
    byId("tile-inflight").textContent = whole(now.inflight);
  }

  showHistory(told) {
    const history = trimmed(told);
    this.seen = told;
    this.showTiles(history);
    this.showLayers(history);
    const by = history[this.unit];
    const used = TECHNIQUES.filter((name) => by[name]?.some((v) => v > 0));
    this.avoided.show(history.at,
      used.map((name) => ({ name, colour: colourName(name), values: by[name] })),
      sum(history.requests) ? "Nothing was avoided in this span: each request was new, and was "
        + "answered by the large model." : NO_TRAFFIC);
    this.latency.show(history.at,
      Object.keys(history.latency_ms).sort().map((name) => (
        { name, colour: colourName(name), values: history.latency_ms[name][this.share] })),
      NO_TRAFFIC);
    this.showPercentiles(history.whole_span);
  }

  showTiles(history) {
    const shapes = history.whole_span;
    const answered = sum(Object.values(shapes).map((one) => one.count));
    const free = sum(["exact", "semantic", "joined"].map((name) => shapes[name]?.count ?? 0));
    const avoided = TECHNIQUES.map((name) => sum(history.usd[name]));
    const delivered = sum(history.delivered_tokens);
    byId("tile-requests").textContent = compact(sum(history.requests));
    byId("tile-hits").textContent = answered ? percent(free / answered) : "–";
    byId("tile-tokens").textContent =
      delivered ? percent(1 - sum(history.large_tokens) / delivered) : "–";
    byId("tile-avoided").textContent = usd(sum(avoided));
    byId("tile-spent").textContent = usd(sum(history.spent_usd));
  }

  showLayers(history) {
    const series = LAYERS.filter((name) => sum(history.layers[name]?.asked ?? [])).map((name) => {
      const { asked, answered } = history.layers[name];
      return {
        name, colour: colourName(name),
        values: rates(asked, answered, Math.max(1, Math.round(SMOOTH_S / history.step_s))),
      };
    });
    this.layers.show(history.at, series, sum(history.requests)
      ? "No request asked a cache in this span: each was drawn at random, or forbade it." : NO_TRAFFIC);
  }

  showPercentiles(shapes) {
    const rows = Object.entries(shapes).sort().map(([name, one]) => ({
      cells: [
        origin(name), whole(one.count),
        ms(one.request?.p50), ms(one.request?.p95), ms(one.request?.p99),
        ms(one.ttft?.p50), ms(one.ttft?.p95),
      ],
    }));
    table("latency-table",
      ["origin", "#answers", "#p50", "#p95", "#p99", "#first token p50", "#p95"], rows, NO_TRAFFIC);
  }
}

// A span that is older than the traffic begins where the traffic does.
function trimmed(history) {
  const first = history.requests.findIndex((n) => n > 0);
  const from = first < 0 ? 0 : Math.max(0, Math.min(first - 1, history.at.length - LEAST_STEPS));
  const cut = (value) => {
    if (Array.isArray(value) && value.length === history.at.length) return value.slice(from);
    if (value === null || typeof value !== "object" || Array.isArray(value)) return value;
    return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, cut(inner)]));
  };
  const { engine, tenants, whole_span: shapes, ...columns } = history;
  return { ...cut(columns), engine, tenants, whole_span: shapes };
}

// Answered of asked over the last `window` steps, for each step: few look-ups make no jumps.
function rates(asked, answered, window) {
  return asked.map((_, i) => {
    const from = Math.max(0, i - window + 1);
    const count = sum(asked.slice(from, i + 1));
    return count ? sum(answered.slice(from, i + 1)) / count : null;
  });
}
