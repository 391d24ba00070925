// What the semantic cache did, and what it may get wrong.
import { byId, make, whole } from "./dom.js";

const OFF = "The semantic cache was asked nothing in this span: it is off, or no request came. It takes "
  + "[cache.semantic] enabled = true and max_error above 0; until it has evidence, it only watches.";

export class Semantic {
  showHistory({ layers: { semantic } }) {
    byId("semantic").replaceChildren(semantic ? lookups(semantic) : make("p", { text: OFF, kind: "empty" }));
  }
}

function lookups({ asked, answered }) {
  const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
  const text = `In this span it was asked ${whole(sum(asked))} times and answered ${whole(sum(answered))}.`;
  return make("p", { text, kind: "note" });
}
