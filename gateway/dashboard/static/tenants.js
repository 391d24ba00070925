// Who is served: what they asked, what it cost, what they may.
import { ask } from "./ask.js";
import { byId, compact, make, meter, percent, table, usd, whole } from "./dom.js";

const MOST = 20;

export class Tenants {
  constructor() {
    byId("tenant-filter").addEventListener("input", () => this.refresh());
  }

  async refresh(history) {
    this.history = history ?? this.history;
    const known = await ask("/admin/tenants");
    const used = new Map((this.history?.tenants ?? []).map((one) => [one.tenant, one]));
    const wanted = byId("tenant-filter").value.trim().toLowerCase();
    const names = [...new Set([...used.keys(), ...known.tenants])]
      .filter((name) => known.tenants.includes(name) && name.toLowerCase().includes(wanted));
    const shown = names.slice(0, MOST);
    const told = await Promise.all(shown.map((name) => ask(`/admin/tenants/${encodeURIComponent(name)}`)));
    this.show(told, used);
    const rest = names.length - shown.length;
    byId("tenants-note").textContent = [
      rest > 0 ? `${whole(rest)} more: narrow them down by name.` : "",
      known.problem ? `The newest sluice.toml is not in force: ${known.problem}` : "",
    ].join(" ").trim();
  }

  show(told, used) {
    const rows = told.map((tenant) => {
      const one = used.get(tenant.name);
      const policy = new Map(tenant.policy.map((line) => [line.name, line.value]));
      return { cells: [
        tenant.name, one ? compact(one.requests) : "0", one ? compact(one.tokens) : "0",
        one ? usd(one.spent_usd) : "0", one ? usd(one.avoided_usd) : "0",
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

const limit = (value) => (value === null || value === undefined ? "no limit" : whole(value));

function budgets(all) {
  if (!all.length) return "no budget";
  return make("div", {}, ...all.map(({ period, limit_usd: most, used_usd: used }) => (
    used === null
      ? make("span", { text: `${period}: US$ ${usd(most)}, used: unknown (the store is away)` })
      : meter(used / most, `${period}: US$ ${usd(used)} of ${usd(most)}`))));
}
