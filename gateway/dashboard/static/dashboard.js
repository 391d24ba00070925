// Polls /dashboard/data and shows it. All text goes in through textContent, so nothing that a
// caller can name (a tenant, a model) is ever read as markup.
"use strict";

const EVERY_MS = 2000;
const byId = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat();
const sum = (counts) => Object.values(counts).reduce((a, b) => a + b, 0);

function cell(tag, text, kind) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function row(tag, values) {
  const made = document.createElement("tr");
  for (const value of values) {
    const isNumber = typeof value === "number";
    made.append(cell(tag, isNumber ? whole.format(value) : value, isNumber ? "number" : ""));
  }
  return made;
}

function table(id, titles, rows) {
  const head = document.createElement("thead");
  head.append(row("th", titles));
  const body = document.createElement("tbody");
  body.append(...rows);
  if (!rows.length) body.append(row("td", ["nothing yet"]));
  byId(id).replaceChildren(head, body);
}

function bar(share) {
  const space = "http://www.w3.org/2000/svg";
  const picture = document.createElementNS(space, "svg");
  picture.setAttribute("aria-hidden", "true");
  const filled = document.createElementNS(space, "rect");
  filled.setAttribute("width", `${Math.max(0.5, 100 * share)}%`);
  filled.setAttribute("height", "100%");
  filled.setAttribute("rx", "2");
  picture.append(filled);
  return picture;
}

function bars(id, counts) {
  const entries = Object.entries(counts).filter(([, n]) => n > 0).sort((a, b) => b[1] - a[1]);
  const most = entries.length ? entries[0][1] : 1;
  const parts = entries.flatMap(([name, n]) => [
    cell("span", name), bar(n / most), cell("span", whole.format(n), "number"),
  ]);
  byId(id).replaceChildren(...(parts.length ? parts : [cell("span", "nothing yet", "empty")]));
}

function percentiles(data) {
  const ms = (found, name) => (found && found[name] !== undefined ? String(found[name]) : "–");
  return Object.entries(data.latency_ms).map(([origin, all]) => row("td", [
    origin, ms(all, "p50"), ms(all, "p90"), ms(all, "p99"),
    ms(data.ttft_ms[origin], "p50"), ms(data.ttft_ms[origin], "p99"),
  ]));
}

function decision(one) {
  const made = row("td", [
    new Date(one.at * 1000).toLocaleTimeString(), one.tenant || "–", one.model || "–", one.origin,
    one.status, one.prompt_tokens, one.completion_tokens, one.ms,
    [...one.cache, ...one.why].join(" · "),
  ]);
  if (one.status >= 400) made.className = "bad";
  return made;
}

function show(data) {
  const answered = data.statuses["200"] || 0;
  const without = ["exact", "semantic", "joined"].reduce((n, o) => n + (data.requests[o] || 0), 0);
  const saved = sum(data.usd_avoided);
  byId("total").textContent = whole.format(sum(data.requests));
  byId("hit-rate").textContent = answered ? `${((100 * without) / answered).toFixed(1)} %` : "–";
  byId("tokens-avoided").textContent = whole.format(sum(data.tokens_avoided));
  byId("usd").textContent = `${saved.toFixed(6)} / ${data.usd_spent.toFixed(6)}`;
  byId("inflight").textContent = whole.format(data.inflight);
  bars("origins", data.requests);
  bars("avoided", data.tokens_avoided);
  table("latency", ["origin", "p50 ms", "p90 ms", "p99 ms", "first token p50", "p99"], percentiles(data));
  table("engine", ["model", "running", "waiting", "preempted", "pages"],
    Object.entries(data.engine).map(([name, s]) => row("td", [
      name, s.running, s.waiting, s.preemptions,
      Object.entries(s.pages).map(([state, n]) => `${state} ${n}`).join(", "),
    ])));
  table("recent", ["time", "tenant", "model", "origin", "status", "in", "out", "ms", "why"],
    data.recent.map(decision));
}

function say(text, kind) {
  byId("state").textContent = text;
  byId("state").className = kind;
}

async function poll() {
  try {
    const response = await fetch("/dashboard/data");
    if (!response.ok) throw new Error(`the server said ${response.status}`);
    const data = await response.json();
    show(data);
    say(data.draining ? "shutting down" : "live", data.draining ? "bad" : "good");
  } catch (error) {
    say(`not connected: ${error.message}`, "bad");
  }
  setTimeout(poll, document.hidden ? 5 * EVERY_MS : EVERY_MS);
}

poll();
