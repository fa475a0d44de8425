// The playground: one conversation, up to four models side by side, and what each answer takes and costs while it streams.

import { empty, failed, loading } from "../lib/controls.js";
import { sum } from "../lib/decimal.js";
import { el, replace } from "../lib/dom.js";
import { count, money } from "../lib/format.js";
import { playColumn } from "../lib/play_column.js";
import { parameterFields } from "../lib/play_fields.js";
import { fromQuery, MOST_COLUMNS, toQuery } from "../lib/play_form.js";
import { keyForm } from "../lib/play_key.js";

const RATES = "/inferbus/v1/rates";
const FRESH_MS = 60_000; // of a rate: prices change seldom, and the charge is the meter's
const SUM_EVERY_MS = 250;
const ADMIN = "admin";
const TENANT_ADMIN = "tenant_admin";

export const page = {
  name: "play",
  title: "Playground",
  roles: ["admin", "tenant_admin", "inference"],
  render(root, context) {
    let leave = null;
    const tools = el("div", { class: "toolbar" });
    const body = el("div", { class: "stack" });
    replace(root, el("div", { class: "page-head" }, el("h1", { text: page.title }), tools), body);

    function begin(caller) {
      leave = playground({ tools, body }, context, caller);
    }

    /** Somebody who may ask no models; `problem`: with the key that was entered before. */
    function ask(problem = null) {
      leave?.();
      leave = null;
      replace(tools);
      replace(body, keyForm(begin, ask, problem));
    }

    if (context.scopes.includes("inference")) begin({ api: context.api, tenant: context.tenant, name: "" });
    else ask();
    return () => leave?.();
  },
};

/** `caller`: {api, tenant, project, name (of a key that was entered here, or "")}. Returns what is to be done at the end. */
function playground({ tools, body }, context, caller) {
  const leaving = new AbortController();
  const given = fromQuery(context.query);
  const said = [];
  const columns = [];
  const costs = []; // of each answer that was asked for, since the page was opened
  const known = new Map(); // what the API said of rates, by what was asked: {at, rates}
  let models = [];
  let ready = false;
  let frame = 0;
  let addedAt = 0;

  const button = (text, onclick, more = "") => el("button", { type: "button", class: `button ${more}`.trim(), text, onclick });
  const system = el("textarea", { name: "system", rows: "2", placeholder: "none" });
  const message = el("textarea", { name: "message", rows: "3", required: true, "aria-describedby": "play-how" });
  const fields = parameterFields(given.shared, () => shared.changed());
  const problem = el("div");
  const run = button("Run", () => ask(false), "main");
  const again = button("Run again", () => ask(true));
  const stop = button("Stop all", () => columns.forEach((one) => one.stop()));
  const clear = button("Clear", wipe);
  const add = button("Add a model", () => addColumn(columns.at(-1)?.model() ?? models[0] ?? "", {}));
  const total = el("p", { class: "muted small play-total" });
  const heard = el("p", { class: "unseen", role: "status" });
  const grid = el("div", { class: "play-columns" });
  const form = el("section", { class: "panel", "aria-label": "What is asked" }, el("div", { class: "stack" },
    el("div", { class: "play-prompt" },
      el("label", {}, el("span", { text: "System prompt" }), system),
      el("label", {}, el("span", { text: "Message" }), message)),
    fields.element, problem,
    el("div", { class: "form-row" }, run, again, stop, clear, el("p", { class: "muted small", id: "play-how", text: "Ctrl+Enter runs it" }))));

  const shared = {
    said,
    api: () => caller.api,
    get models() { return models; },
    shared: fields.values,
    system: () => system.value,
    draft: () => message.value,
    hrefOf: (id) => (mayLook() ? `#/requests/${encodeURIComponent(id)}` : null),
    ratesOf, inputOf, remove,
    changed() {
      if (ready) context.setQuery(toQuery({ models: columns.map((one) => one.model()), shared: fields.values(), own: columns.map((one) => one.own()) }));
    },
    began(cost) {
      costs.push(cost);
      show();
      wake();
    },
    priced: show,
    ended(column) {
      const { state, usage, finish } = column.figures();
      shared.say(`Column ${columns.indexOf(column) + 1}, ${column.model()}: ${state}${finish ? `, ${finish}` : ""}, ${count(usage.output)} tokens.`);
      show();
    },
    say: (text) => replace(heard, text),
  };

  /** Whether the page about one request would show what is asked here. */
  function mayLook() {
    return context.role === ADMIN || (context.role === TENANT_ADMIN && caller.tenant === context.tenant);
  }

  // --- rates and counts ---

  async function ratesOf(model, revision = "") {
    const name = `${model}\n${revision}`;
    const before = known.get(name);
    if (before && performance.now() - before.at < FRESH_MS) return before.rates;
    const rates = caller.api.get(RATES, { model, revision }, { signal: leaving.signal }).then((answer) => answer.rates);
    known.set(name, { at: performance.now(), rates });
    rates.catch(() => known.delete(name)); // it is asked again, and told by who waits for it
    return rates;
  }

  /** The input's tokens, which an answer's usage tells at its end only; null where that would use up what the key may ask in a
   *  minute, or nobody knows. */
  async function inputOf({ model, messages, tools: functions }, response) {
    if (response.headers.get("x-ratelimit-limit-requests") !== null) return null;
    try {
      const asked = { model, messages, ...(functions ? { tools: functions } : {}) };
      return (await caller.api.post("/v1/tokenize", asked, { signal: leaving.signal })).count;
    } catch {
      return null; // an engine without a tokenizer: the cost says that it is without its input
    }
  }

  // --- columns ---

  function addColumn(model, own) {
    const column = playColumn(shared, model, own);
    columns.push(column);
    grid.append(column.element);
    named();
    shared.changed();
    return column;
  }

  function remove(column) {
    const at = columns.indexOf(column);
    columns.splice(at, 1);
    column.element.remove();
    named();
    shared.changed();
    (columns[at] ?? columns.at(-1)).element.querySelector("select").focus();
  }

  function named() {
    columns.forEach((one, at) => one.name(at + 1, columns.length > 1));
    show();
  }

  // --- what is done ---

  /** The message to all columns, or the last one once more. */
  function ask(repeated) {
    if (columns.some((one) => one.running())) return;
    replace(problem);
    if (!repeated) {
      if (message.value.trim() === "") {
        replace(problem, el("p", { class: "message failed", role: "alert", text: "Write a message first." }));
        message.focus();
        return;
      }
      said.push(message.value);
      message.value = "";
    }
    for (const one of columns) one.ask(said.length - 1);
  }

  function wipe() {
    for (const one of columns) one.clear();
    said.length = 0;
    replace(problem);
    show();
    message.focus();
  }

  // --- what is seen ---

  function show() {
    const running = columns.some((one) => one.running());
    run.disabled = running || columns.length === 0;
    again.disabled = running || said.length === 0;
    stop.disabled = !running;
    add.disabled = columns.length >= MOST_COLUMNS;
    addUp();
  }

  function addUp() {
    const charged = costs.map((cost) => cost()).filter(Boolean);
    const currencies = [...new Set(charged.map((one) => one.currency))];
    const texts = currencies.map((currency) => money(sum(charged.filter((one) => one.currency === currency).map((one) => one.amount)), currency));
    const open = charged.some((one) => one.note !== "exact");
    total.textContent = texts.length ? `Since the page was opened: ${open ? "about " : ""}${texts.join(" and ")}, ${count(costs.length)} asked` : "";
  }

  function wake() {
    frame ||= requestAnimationFrame((at) => {
      frame = 0;
      for (const one of columns) one.draw(at);
      if (at - addedAt > SUM_EVERY_MS) {
        addedAt = at;
        addUp();
      }
      if (columns.some((one) => one.running())) wake();
    });
  }

  function keys(event) {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    ask(false);
  }

  async function load() {
    replace(body, loading());
    try {
      const listed = (await caller.api.get("/v1/models", {}, { signal: leaving.signal })).data;
      models = listed.filter((one) => one.capabilities.includes("chat")).map((one) => one.id);
    } catch (error) {
      if (!leaving.signal.aborted) replace(body, failed(error, load));
      return;
    }
    if (!models.length) {
      replace(body, empty("This key may use no model that chats."));
      return;
    }
    replace(tools, caller.name ? el("span", { class: "muted small", text: `key: ${caller.name}, ${caller.tenant} · ${caller.project}` }) : null, add);
    replace(body, form, grid, total, heard);
    const wanted = given.models.length ? given.models : models.slice(0, 2);
    wanted.forEach((model, at) => addColumn(model, given.own[at] ?? {}));
    ready = true;
    message.focus();
  }

  body.addEventListener("keydown", keys);
  load();
  return () => {
    body.removeEventListener("keydown", keys);
    cancelAnimationFrame(frame);
    for (const one of columns) one.clear();
    leaving.abort();
  };
}
