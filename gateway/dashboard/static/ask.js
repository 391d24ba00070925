// Asks the server, and asks the reader for an admin key where the server wants one. The key lives in
// sessionStorage: it is gone with the tab, and no other page's request carries it.
import { byId } from "./dom.js";

const KEY = "sluice-admin-key";
const LISTED = "Keys that are let in are those whose SHA-256 is listed under [admin] keys in sluice.toml.";

export class Refused extends Error {
  constructor(said, code) {
    super(said);
    this.code = code;
  }
}

export class NotThere extends Error {}

// What no header can carry: the browser would throw, and the same key would be tried at every tick.
const UNSENDABLE = /[^\x20-\x7e\xa0-\xff]/u;

function keyHeader() {
  const key = sessionStorage.getItem(KEY);
  const odd = key?.match(UNSENDABLE)?.[0];
  if (odd) throw new Refused(`No key can hold “${odd}”. ${LISTED}`, "admin_key_wrong");
  return key ? { authorization: `Bearer ${key}` } : {};
}

export async function ask(path) {
  const response = await fetch(path, { headers: keyHeader(), cache: "no-store", credentials: "omit" });
  if (response.ok) return response.json();
  const { message: said, code } = await response.json().then((body) => body.error, () => ({ message: "" }));
  if (response.status === 401) throw new Refused(said, code);
  if (response.status === 404) throw new NotThere(said);
  throw new Error(said || `the server said ${response.status}`);
}

let tell = () => {};

// `told`: called with what went wrong in what a reader set off.
export function onTrouble(told) {
  tell = told;
}

export const attempt = (work) => work().catch((error) => tell(error));

// `onKey`: called when a key was given, or taken back.
export function setUpLogin(onKey) {
  byId("login").addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(KEY, byId("key").value.trim());
    byId("key").value = "";
    onKey();
  });
  byId("leave").addEventListener("click", () => {
    sessionStorage.removeItem(KEY);
    onKey();
  });
}

// What the server says of headers is for programs; of where a key is missing it is for people, too.
export function showLogin({ code, message }) {
  const why = code === "admin_key_needed" ? LISTED : message;
  const tried = sessionStorage.getItem(KEY) !== null;
  sessionStorage.removeItem(KEY);
  const wasHidden = byId("login").hidden;
  byId("login-why").textContent = tried ? `This key was not accepted. ${why}` : why;
  byId("login").hidden = false;
  byId("numbers").hidden = true;
  byId("leave").hidden = true;
  if (wasHidden) byId("key").focus();
}

export function hideLogin() {
  const wasShown = !byId("login").hidden;
  byId("login").hidden = true;
  byId("numbers").hidden = false;
  if (wasShown) byId("main").focus({ preventScroll: true });
  byId("leave").hidden = sessionStorage.getItem(KEY) === null;
}
