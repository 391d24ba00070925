// What `auto` gives up and saves: quality against the share of calls that go to the large model, where
// the tenant's policy operates, and what it promises.
import { ask, attempt } from "./ask.js";
import { Chart } from "./charts.js";
import { byId, make, percent, whole } from "./dom.js";

const PROMISED = "promised at least";
const CHOSEN = "operating point";
const COLOURS = { random: "plain", "prompt length": "2", router: "join", "router + judge": "exact", oracle: "cascade",
  [PROMISED]: "promise", [CHOSEN]: "point" };

export class Cascade {
  constructor() {
    this.chart = new Chart(byId("curve"), {
      label: "Quality against the share of calls to the large model", kind: "curves",
      caption: "share of labelled questions answered well, by share of large calls",
      format: (v) => percent(v), axis: (v) => percent(v, 0),
    });
    this.select = byId("cascade-tenant");
    this.select.addEventListener("change", () => attempt(() => this.refresh()));
  }

  async refresh() {
    const { tenants } = await ask("/admin/cascade");
    this.offer(tenants.map((one) => one.tenant));
    const mine = tenants.find((one) => one.tenant === this.select.value);
    if (!mine) return this.showNothing("This gateway has no cascade to tell of.", "");
    if (!mine.calibrated) {
      return this.showNothing(
        `No calibrated policy serves “${mine.tenant}”: \`sluice calibrate\` measures one, and draws this.`,
        mine.why);
    }
    const curve = await ask(`/admin/cascade/${encodeURIComponent(mine.tenant)}/curve`);
    this.showCurve(curve);
    byId("promise").textContent = [promise(mine), point(curve)].filter(Boolean).join(" ");
  }

  offer(names) {
    const had = [...this.select.options].map((one) => one.value);
    if (had.join("|") === names.join("|")) return;
    const chosen = this.select.value;
    this.select.replaceChildren(...names.map((text) => make("option", { text })));
    if (names.includes(chosen)) this.select.value = chosen;
  }

  showNothing(empty, why) {
    this.chart.show([], [], empty);
    byId("promise").textContent = why;
  }

  showCurve({ curves, chosen, large, target }) {
    const lines = curves.map((one) => ({ name: one.name, xs: one.large_share, ys: one.quality }));
    if (target !== undefined) lines.push({ name: PROMISED, xs: [0, 1], ys: [large - target, large - target], dash: true });
    if (chosen) lines.push({ name: CHOSEN, xs: [chosen.large_share], ys: [chosen.quality], points: true });
    const xs = [...new Set(lines.flatMap((one) => one.xs))].sort((a, b) => a - b);
    this.chart.show(xs, lines.map((one) => ({
      name: one.name, dash: one.dash, points: one.points,
      colour: COLOURS[one.name] ?? "1",
      values: placed(xs, one),
    })), "The policy's file holds no curve.", chosen ? xs.indexOf(chosen.large_share) : undefined);
  }
}

// A curve's quality at every x: between two of its points on the line that joins them.
function placed(xs, { xs: own, ys, points: apart }) {
  return xs.map((x) => {
    const right = own.findIndex((one) => one >= x);
    if (right < 0) return null;
    if (own[right] === x) return ys[right];
    if (apart || right === 0) return null;
    const share = (x - own[right - 1]) / (own[right] - own[right - 1]);
    return ys[right - 1] + share * (ys[right] - ys[right - 1]);
  });
}

const points = (share) => `${Number((100 * share).toFixed(2))} point${share === 0.01 ? "" : "s"}`;

function promise({ policy, promise: own, with_semantic_cache: both, why }) {
  if (!own) return `Policy “${policy}” promises nothing: ${why}`;
  const more = both ? ` With the semantic cache: at most ${points(both.max_loss)}.` : "";
  return `Policy “${policy}” promises to lose at most ${points(own.max_loss)} against the large model `
    + `alone, with ${percent(own.confidence, 0)} confidence, from ${whole(own.labels)} labelled calls.${more}`;
}

function point({ chosen, large, small }) {
  if (!chosen) return "";
  return `It sends ${percent(chosen.large_share)} of calls to the large model for a quality of `
    + `${percent(chosen.quality)} (large alone ${percent(large)}, small alone ${percent(small)}).`;
}
