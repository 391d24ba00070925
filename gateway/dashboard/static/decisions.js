// The latest calls with their reasons, and the whole story of one.
import { ask, attempt, NotThere, Refused } from "./ask.js";
import { byId, clock, make, ms, origin, table, usd, whole } from "./dom.js";

const SHOWN = 50;
const HELD = "Held while you are in the list. It goes on when you leave it.";
const NONE_YET = "No request yet since this gateway's start: send one to /v1/chat/completions. An earlier one is "
  + "explained above, by its id.";

export class Decisions {
  constructor() {
    this.paused = false;
    byId("pause").addEventListener("click", () => this.pause());
    const list = byId("decisions");
    list.addEventListener("focusin", () => this.hold(true));
    list.addEventListener("focusout", (event) => this.hold(list.contains(event.relatedTarget)));
    byId("decision-layer").addEventListener("change", () => attempt(() => this.refresh(true)));
    byId("lookup").addEventListener("submit", (event) => {
      event.preventDefault();
      attempt(() => this.explain(byId("request-id").value.trim()));
    });
  }

  pause() {
    this.paused = !this.paused;
    byId("pause").setAttribute("aria-pressed", String(this.paused));
    byId("pause").textContent = this.paused ? "Paused" : "Pause";
  }

  // A reader who moves through the list with the keyboard keeps the place: nothing moves meanwhile,
  // and the page says so.
  hold(held) {
    byId("decisions-note").textContent = held ? HELD : "";
  }

  async refresh(forced = false) {
    const held = this.paused || byId("decisions").contains(document.activeElement);
    if (held && !forced) return;
    const layer = byId("decision-layer").value;
    const { decisions } = await ask(`/admin/decisions?limit=${SHOWN}${layer ? `&layer=${layer}` : ""}`);
    table("decisions",
      ["time", "request", "tenant", "model", "origin", "#status", "#in", "#out", "#time taken", "why"],
      decisions.map((one) => ({ kind: one.status >= 400 ? "bad" : "", cells: this.cells(one) })),
      layer ? `None of the last 1,000 requests was decided by “${layer}”.` : NONE_YET);
  }

  cells(one) {
    const button = make("button", { type: "button", text: one.id || "–", title: "Explain this request" });
    button.addEventListener("click", () => attempt(() => this.explain(one.id, true)));
    return [
      clock(one.at), button, one.tenant || "–", one.model || "–", origin(one.origin), one.status,
      whole(one.prompt_tokens), whole(one.completion_tokens), ms(one.ms), one.why ?? "",
    ];
  }

  async explain(id, fromList = false) {
    byId("request-id").value = id;
    if (fromList) byId("request-id").focus();
    try {
      const { decisions } = await ask(`/admin/decisions/${encodeURIComponent(id)}`);
      const several = `${whole(decisions.length)} requests have this id, the latest first:`;
      const head = decisions.length > 1 ? [make("p", { text: several, kind: "note" })] : [];
      byId("story").replaceChildren(...head, ...decisions.map(story));
    } catch (error) {
      if (error instanceof Refused) throw error;
      const text = error instanceof NotThere ? error.message : `It cannot be told: ${error.message}`;
      byId("story").replaceChildren(make("p", { text, kind: "empty" }));
    }
  }
}

function story(one) {
  const steps = one.story.map((step) => make("li", {},
    make("b", { text: `${step.layer}: ${step.outcome}. ` }), make("span", { text: step.text })));
  const facts = {
    id: one.id || "–", ...(one.client_id ? { "the caller's id": one.client_id } : {}),
    tenant: one.tenant || "–", model: one.model || "–", origin: one.origin,
    status: one.status, took: ms(one.ms), "first token": ms(one.ttft_ms),
    tokens: `${whole(one.prompt_tokens)} in, ${whole(one.completion_tokens)} out`,
    computed: whole(one.computed_tokens), ...money(one.money_nano),
  };
  const list = Object.entries(facts).map(([name, text]) => (
    make("div", {}, make("dt", { text: name }), make("dd", { text: String(text) }))));
  return make("article", {},
    make("p", { text: one.verdict, kind: "verdict" }),
    make("ol", { kind: "steps" }, ...steps), make("dl", { kind: "facts" }, ...list));
}

function money({ counterfactual, spent, waste, avoided }) {
  const dollars = (nano) => `US$ ${usd(nano * 1e-9)}`;
  return {
    "large alone": dollars(counterfactual), spent: dollars(spent), wasted: dollars(waste),
    ...Object.fromEntries(Object.entries(avoided).map(([by, nano]) => [`avoided by ${by}`, dollars(nano)])),
  };
}
