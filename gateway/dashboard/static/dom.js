// Small parts of the page, and numbers as people read them. All text goes in through textContent,
// so nothing that a caller can name (a tenant, a model) is ever read as markup.

export const byId = (id) => document.getElementById(id);

export function make(tag, { text, kind, ...properties } = {}, ...children) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

const wholeNumber = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const whole = (n) => (n === null || n === undefined ? "–" : wholeNumber.format(n));
export const compact = (n) => (Math.abs(n) < 10000 ? wholeNumber.format(n) : short.format(n));
export const percent = (share, digits = 1) =>
  share === null || share === undefined ? "–" : `${(100 * share).toFixed(digits)} %`;

export function usd(n) {
  if (n === null || n === undefined) return "–";
  if (n === 0) return "0";
  return Math.abs(n) >= 100 ? wholeNumber.format(n) : plain(n);
}

// Three digits that say something, and never 1e-7.
function plain(n) {
  const digits = Math.max(2, 2 - Math.floor(Math.log10(Math.abs(n))));
  return n.toFixed(Math.min(digits, 9));
}

export function ms(n) {
  if (n === null || n === undefined) return "–";
  return n >= 1000 ? `${Number((n / 1000).toPrecision(3))} s` : `${Number(n.toPrecision(2))} ms`;
}

export const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString("en-GB");

// Rows of cells: text, numbers, or nodes. `titles`: names, with a leading "#" for numbers. Where there is
// no room for the columns each row is a card, in which a cell's title stands over it
// (data-title); the roles say then that it is a table all the same.
export function table(id, titles, rows, empty) {
  const names = titles.map((title) => title.replace("#", ""));
  const kinds = titles.map((title) => (title.startsWith("#") ? "number" : title === "why" ? "why" : ""));
  const head = make("tr", { role: "row" }, ...names.map((text, i) => (
    make("th", { text, scope: "col", kind: kinds[i], role: "columnheader" }))));
  const lines = rows.map(({ cells, kind }) => make("tr", { kind, role: "row" }, ...cells.map((cell, i) => {
    const made = make("td", { kind: kinds[i], role: "cell" }, cell instanceof Node ? cell : String(cell));
    made.dataset.title = names[i];
    return made;
  })));
  if (!rows.length) {
    const cell = make("td", { text: empty, kind: "empty", colSpan: titles.length, role: "cell" });
    lines.push(make("tr", { role: "row" }, cell));
  }
  byId(id).setAttribute("role", "table");
  byId(id).replaceChildren(
    make("thead", { role: "rowgroup" }, head), make("tbody", { role: "rowgroup" }, ...lines));
  fit(byId(id));
}

// Nobody scrolls sideways for a reason: a table that is broader than its box becomes cards.
function fit(one) {
  one.classList.remove("cards");
  one.classList.toggle("cards", one.parentElement.scrollWidth > one.parentElement.clientWidth);
}

addEventListener("resize", () => document.querySelectorAll(".scroll > table").forEach(fit));

const SVG = "http://www.w3.org/2000/svg";

// A bar with its words: how much of a whole is used.
export function meter(share, text) {
  const picture = document.createElementNS(SVG, "svg");
  picture.setAttribute("aria-hidden", "true");
  const filled = document.createElementNS(SVG, "rect");
  filled.setAttribute("width", `${100 * Math.min(1, Math.max(0, share))}%`);
  filled.setAttribute("height", "100%");
  if (share >= 0.9) filled.setAttribute("class", "over");
  picture.append(filled);
  return make("div", { kind: "meter" }, make("span", { text }), picture);
}

// A row of buttons of which one is pressed. `choices`: {value: label}.
export function choice(id, choices, chosen, onChoose) {
  const buttons = Object.entries(choices).map(([value, text]) => {
    const button = make("button", { text, type: "button" });
    button.setAttribute("aria-pressed", String(value === chosen));
    button.addEventListener("click", () => {
      for (const one of buttons) one.setAttribute("aria-pressed", String(one === button));
      onChoose(value);
    });
    return button;
  });
  byId(id).append(...buttons);
}

// One colour for a technique, the origin that it makes, and the model that it spares.
const COLOURS = {
  exact: "exact", semantic: "semantic", join: "join", joined: "join", prefix: "prefix",
  cascade: "cascade", small: "cascade", large: "large",
};
const others = new Map();

export function colourName(name) {
  if (COLOURS[name]) return COLOURS[name];
  if (!others.has(name)) others.set(name, String((others.size % 3) + 1));
  return others.get(name);
}

export function swatch(name) {
  const made = make("span", { kind: "swatch" });
  made.style.background = `var(--c-${name})`;
  return made;
}

export const origin = (name) =>
  make("span", { kind: "origin" }, swatch(colourName(name)), make("span", { text: name }));
