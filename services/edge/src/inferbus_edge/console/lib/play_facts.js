// The figures of an answer, live: times, tokens, cost, who answered.

import { costOf } from "./play_cost.js";
import { el, replace } from "./dom.js";
import { count, milliseconds, money } from "./format.js";
import { rates } from "./play_figures.js";

const EVERY_MS = 100; // faster nobody reads
const NAMES = [
  ["ttft", "TTFT", "From sending to the first token, as seen here"],
  ["speed", "Tokens/s", "Output tokens over the time since the first one"],
  ["itl", "ITL", "The median gap between two tokens, and the longest, as they came here"],
  ["elapsed", "Elapsed", "From sending to the end"],
  ["input", "Input", "Tokens of the conversation; of these, read from the cache"],
  ["output", "Output", "Tokens of the answer"],
  ["cost", "Cost", "By the rates of the key"],
  ["finish", "Finish", "Why it ended"],
  ["revision", "Revision", "The model's build that answered"],
  ["request", "Request", "Its id; a link to its timeline"],
];

/** What the answer costs by what is known: {amount, currency, note}; null without a rate. `entry`: of the rates, null if it is
 *  not known. `input`: tokens of the conversation as they were counted beside it, null if they were not. */
export function priced(figures, entry, input = null) {
  if (!entry?.rate) return null;
  const { rate } = entry;
  const { usage, state } = figures;
  const known = usage.input ?? input;
  const all = { input: known ?? 0, cached: usage.cached ?? 0, output: usage.output, reasoning: usage.reasoning };
  const done = state === "done";
  const amount = costOf(all, rate, done);
  const open = known === null ? "without its input" : "";
  const note = done ? "exact" : state === "stopped" || state === "failed" ? ["about", open].join(" ").trim() : open || "so far";
  return { amount, currency: rate.currency, note };
}

/** Returns {element, draw(figures, {entry, input, href, problem}, at, whole: also if it was drawn just now), clear()}. */
export function factsList() {
  const values = new Map();
  const element = el("dl", { class: "play-facts" },
    NAMES.map(([name, label, title]) => {
      const value = el("dd", {});
      const note = el("dd", { class: "play-note" });
      values.set(name, { value, note });
      return el("div", { class: `play-fact is-${name}`, title }, el("dt", { text: label }), value, note);
    }));
  let drawnAt = -Infinity;

  function show(name, text, note = "") {
    const { value, note: below } = values.get(name);
    if (value.textContent !== text) value.textContent = text;
    if (below.textContent !== note) below.textContent = note;
  }

  function draw(figures, { entry, input, href, problem }, at, whole = false) {
    if (!whole && at - drawnAt < EVERY_MS) return;
    drawnAt = at;
    const times = rates(figures, at);
    const { usage } = figures;
    show("ttft", milliseconds(times.ttftMs));
    show("speed", times.tokensPerSecond === null ? "–" : times.tokensPerSecond.toFixed(1));
    show("itl", milliseconds(times.itlMs), times.longestMs === null ? "" : `max ${milliseconds(times.longestMs)}`);
    show("elapsed", milliseconds(times.elapsedMs));
    show("input", count(usage.input ?? input), usage.cached ? `${count(usage.cached)} cached` : "");
    show("output", count(usage.output), usage.reasoning ? `${count(usage.reasoning)} reasoning` : "");
    const cost = priced(figures, entry, input);
    if (cost) show("cost", money(cost.amount, cost.currency), cost.note);
    else if (entry) show("cost", "none", "no price");
    else show("cost", "–", problem);
    show("finish", figures.state === "done" ? figures.finish || "–" : { stopped: "stopped", failed: "failed" }[figures.state] ?? "–");
    show("revision", figures.revision || "–", figures.model && figures.model !== figures.asked ? `by ${figures.model}` : "");
    const shown = values.get("request").value;
    if (shown.textContent !== (figures.requestId || "–") || (href && !shown.firstElementChild))
      replace(shown, href && figures.requestId ? el("a", { href, text: figures.requestId }) : figures.requestId || "–");
  }

  function clear() {
    for (const [name] of NAMES) show(name, "–");
  }

  clear();
  return { element, draw, clear };
}
