// Who is served: what they asked, what it cost, what they may.
import { ask, attempt } from "./ask.js";
import { byId, compact, make, meter, percent, table, usd, whole } from "./dom.js";

const MOST = 20;

export class Tenants {
  constructor() {
    byId("tenant-filter").addEventListener("input", () => attempt(() => this.refresh()));
  }

  async refresh(history) {
    this.history = history ?? this.history;
    const known = await ask("/admin/tenants");
    const used = new Map((this.history?.tenants ?? []).map((one) => [one.tenant, one]));
    const wanted = byId("tenant-filter").value.trim().toLowerCase();
    const names = [...new Set([...used.keys(), ...known.tenants])]
      .filter((name) => name.toLowerCase().includes(wanted));
    const shown = names.slice(0, MOST);
    const told = await Promise.all(shown.map((name) => (
      known.tenants.includes(name) ? ask(`/admin/tenants/${encodeURIComponent(name)}`) : { name })));
    this.show(told, used);
    const rest = names.length - shown.length;
    byId("tenants-note").textContent = [
      rest > 0 ? `${whole(rest)} more: narrow them down by name.` : "",
      known.problem ? `The newest sluice.toml is not in force: ${known.problem}` : "",
      known.waiting?.length ? `Changed, and waits for a restart: ${known.waiting.join(", ")}.` : "",
    ].join(" ").trim();
  }

  show(told, used) {
    const rows = told.map((tenant) => {
      const one = used.get(tenant.name);
      if (!tenant.policy) return { cells: [gone(tenant.name), ...spending(one), ...Array(7).fill("–")] };
      const policy = new Map(tenant.policy.map((line) => [line.name, line.value]));
      return { cells: [
        tenant.name, ...spending(one),
        limit(policy.get("rpm")), limit(policy.get("tpm")), limit(policy.get("max_concurrent")),
        budgets(tenant.budgets ?? []), policy.get("cascade_policy") ?? "–",
        policy.get("cache_scope") ?? "–", percent(policy.get("semantic_max_error") ?? null),
      ] };
    });
    table("tenants", [
      "tenant", "#requests", "#tokens", "#US$ spent", "#US$ avoided", "#requests/min", "#tokens/min",
      "#at one time", "budgets", "cascade", "cache shared by", "#semantic error",
    ], rows, "No tenant has such a name.");
  }
}

const spending = (one) => (one
  ? [compact(one.requests), compact(one.tokens), usd(one.spent_usd), usd(one.avoided_usd)] : ["0", "0", "0", "0"]);

// Who is in the account and not in the settings: a tenant of before, or who never was one.
const gone = (name) => make("span", {}, name || "nobody",
  make("span", { kind: "note", text: name ? " (no tenant now)" : " (refused before it was known who asks)" }));

const limit = (value) => (value === null || value === undefined ? "no limit" : whole(value));

function budgets(all) {
  if (!all.length) return "no budget";
  return make("div", {}, ...all.map(({ period, limit_usd: most, used_usd: used }) => (
    used === null
      ? make("span", { text: `${period}: US$ ${usd(most)}, used: unknown (the store is away)` })
      : meter(used / most, `${period}: US$ ${usd(used)} of ${usd(most)}`))));
}
