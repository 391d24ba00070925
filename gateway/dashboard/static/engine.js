// What the engine is doing: sequences, speed, and where its KV pages are.
import { Chart } from "./charts.js";
import { byId, colourName, compact, meter, origin, table, whole } from "./dom.js";

const NONE = "No model runs in this process: all of them are behind other servers.";
const PLAIN = ["running", "waiting"];

export class Engine {
  constructor() {
    this.sequences = new Chart(byId("sequences"), {
      label: "Sequences and batch size", caption: "sequences", format: (v) => v.toFixed(0), axis: compact,
    });
    this.speed = new Chart(byId("speed"), {
      label: "Generated tokens per second, by model", caption: "generated tokens/s",
      format: (v) => v.toFixed(0), axis: compact,
    });
  }

  showHistory({ at: span, step_s: step, engine: { at, models } }) {
    const [wanted, kept] = [span.length * step, at.length ? at.at(-1) - at[0] : 0];
    byId("engine-note").textContent = at.length && kept < 0.9 * wanted
      ? `Drawn is the last ${lasting(kept)}: the engine's gauges are kept in memory, for an hour at most.` : "";
    const names = Object.keys(models);
    const total = (column) => at.map((_, i) => names.reduce((n, name) => n + (models[name][column][i] ?? 0), 0));
    const lines = names.length ? [
      { name: PLAIN[0], colour: "exact", values: total("running") },
      { name: PLAIN[1], colour: "large", values: total("waiting") },
      { name: "batch", colour: "prefix", values: total("batch_sequences"), dash: true },
    ] : [];
    this.sequences.show(at, lines, NONE);
    this.speed.show(at, names.map((name) => (
      { name, colour: colourName(name), values: models[name].tokens_per_s })), NONE);
  }

  showNow({ engine }) {
    const rows = Object.entries(engine).map(([name, state]) => ({
      cells: [
        origin(name), whole(state.running), whole(state.waiting),
        `${whole(state.batch_sequences)} (${whole(state.batch_tokens)})`,
        whole(state.tokens_per_s), pages(state.pages), whole(state.preemptions),
      ],
    }));
    table("engine-table",
      ["model", "#running", "#waiting", "#batch (tokens)", "#tokens/s", "KV pages: run + cached", "#preempted"],
      rows, NONE);
  }
}

const lasting = (seconds) => (seconds < 120 ? `${whole(seconds)} s` : `${whole(seconds / 60)} min`);

// free + running + cached are all; leased ones are part of the cached.
function pages({ free = 0, running = 0, cached = 0 }) {
  const all = free + running + cached;
  if (!all) return "–";
  return meter((running + cached) / all, `${whole(running)} + ${whole(cached)} of ${compact(all)}`);
}
