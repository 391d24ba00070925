// What the semantic cache did, what it may get wrong, how much of that it used up, and on what evidence.
import { ask } from "./ask.js";
import { byId, compact, make, meter, percent, table, whole } from "./dom.js";

const OFF = "The semantic cache is off: it takes its packages (sluice-gateway[semantic]), enabled not false "
  + "and max_error above 0 in [cache.semantic].";
const NOTHING = "No namespace yet: no request that may be answered by meaning was asked since the start.";
const MOST = 6;
const sum = (numbers) => (numbers ?? []).reduce((a, b) => a + b, 0);

export class Semantic {
  async refresh({ layers: { semantic } }) {
    const { semantic: told } = await ask(`/admin/caches?limit=${MOST}`);
    byId("semantic-note").textContent = told ? note(told, semantic) : "";
    table("semantic", ["namespace", "#promise", "error budget", "#wrong, proven", "#labels", "#entries", "why"],
      (told?.by_namespace ?? []).map((one) => ({ cells: cells(one) })), told ? told.problem || NOTHING : OFF);
  }
}

function note({ namespaces, problem }, asked) {
  return [
    namespaces ? problem : "",
    `Asked ${whole(sum(asked?.asked))} times in this span, answered ${whole(sum(asked?.answered))}.`,
    "The budget is the wrong answers that the promise allows for the requests so far.",
    namespaces > MOST ? `${whole(namespaces - MOST)} more namespaces are under /admin/caches.` : "",
  ].filter(Boolean).join(" ");
}

function cells({ scope, model, entries, promise, labels_by_source: sources }) {
  const name = make("span", { text: `${scope} → ${model}` });
  if (!promise) return [name, "–", "makes no promise", "–", whole(sum(Object.values(sources))), compact(entries), ""];
  return [
    name, `≤ ${percent(promise.max_error)}`, budget(promise),
    `${promise.proven_at_least.toFixed(0)} to ${promise.proven_at_most.toFixed(0)}`,
    labels(promise, sources), compact(entries),
    promise.reason || `serves what is wrong in at most ${percent(promise.threshold)}`,
  ];
}

function budget({ expected_wrong: spent, allowed_wrong: allowed, served, requests }) {
  const text = `${spent.toFixed(2)} of ${allowed.toFixed(2)}, ${whole(served)} of ${whole(requests)} served`;
  return meter(allowed ? spent / allowed : 0, text);
}

// How many labels, and where from, as far as that is known.
function labels({ labels: count, audited }, sources) {
  const from = Object.entries(sources).map(([source, n]) => `${source} ${whole(n)}`).join(", ");
  return make("span", { text: whole(count), title: `${from || "none yet"}; audited ${whole(audited)}` });
}
