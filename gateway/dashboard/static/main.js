// One loop: asks for what is due, hands it to the panels, says whether it worked.
import { ask, hideLogin, onTrouble, Refused, setUpLogin, showLogin } from "./ask.js";
import { Cascade } from "./cascade.js";
import { redrawAll } from "./charts.js";
import { Decisions } from "./decisions.js";
import { byId, choice } from "./dom.js";
import { Engine } from "./engine.js";
import { Overview } from "./overview.js";
import { Semantic } from "./semantic.js";
import { Tenants } from "./tenants.js";

const TICK_MS = 2000;
const SPANS = { "15m": "15 min", "1h": "1 h", "24h": "24 h", "7d": "7 days", "90d": "90 days" };
// Ticks between two looks: what changes slowly is asked seldom.
const SLOWLY = 8;
const THEMES = { system: "light", light: "dark", dark: "system" };
const THEME = "sluice-theme";

const overview = new Overview();
const engine = new Engine();
const cascade = new Cascade();
const semantic = new Semantic();
const tenants = new Tenants();
const decisions = new Decisions();
let span = "15m";
let ticks = 0;
let waiting;

function say(text, kind) {
  byId("state").textContent = text;
  byId("state").className = kind;
}

async function look(slowly) {
  const asked = span;
  const [now, history] = await Promise.all([ask("/dashboard/data"), ask(`/dashboard/history?span=${span}`)]);
  if (asked !== span) return;
  hideLogin();
  byId("part").textContent = now.part;
  byId("part").hidden = !now.part;
  overview.showNow(now);
  overview.showHistory(history);
  engine.showNow(now);
  engine.showHistory(history);
  await decisions.refresh();
  if (slowly) await Promise.all([cascade.refresh(), semantic.refresh(history), tenants.refresh(history)]);
  say(now.draining ? "shutting down" : "live", now.draining ? "bad" : "good");
}

async function tick(fresh = false) {
  clearTimeout(waiting);
  if (fresh) ticks = 0;
  try {
    await look(ticks % SLOWLY === 0);
    ticks += 1;
    schedule();
  } catch (error) {
    fail(error);
  }
}

function fail(error) {
  clearTimeout(waiting);
  if (error instanceof Refused) {
    say("a key is needed", "bad");
    showLogin(error);
    return;
  }
  say(`not connected: ${error.message}`, "bad");
  ticks = 0;
  schedule();
}

function schedule() {
  clearTimeout(waiting);
  waiting = setTimeout(tick, document.hidden ? 5 * TICK_MS : TICK_MS);
}

function setTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  localStorage.setItem(THEME, theme);
  byId("theme").textContent = `Theme: ${theme}`;
  redrawAll();
}

byId("theme").addEventListener("click", () => setTheme(THEMES[localStorage.getItem(THEME) ?? "system"]));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
setTheme(localStorage.getItem(THEME) ?? "system");
choice("spans", SPANS, span, (chosen) => {
  span = chosen;
  tick(true);
});
onTrouble(fail);
setUpLogin(() => tick(true));
tick(true);
