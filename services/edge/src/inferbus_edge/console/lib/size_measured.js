// What the platform's own log says of a model that is served here, beside what was worked out for the chosen GPU.

import { empty, failed, loading, panel, table } from "./controls.js";
import { el, replace } from "./dom.js";
import { compact, count, milliseconds } from "./format.js";

// How a machine fares is its operator's to know; a tenant sees its own requests.
const PATHS = { admin: "/inferbus/v1/analytics", tenant_admin: "/v1/organization/analytics" };
const DAY_MS = 24 * 3600 * 1000;
const STEP = "1m";
const NONE = "";

/** `onLoad({input, output, concurrency})`: size for the load that was measured. Returns {element, start(signal),
 *  update(plan)}; `update` with what is shown now. */
export function measuredPanel(context, onLoad) {
  const operator = context.role === "admin";
  const input = el("select", { name: "measured", onchange: () => choose(input.value) });
  const body = el("div", { class: "stack tight" });
  const element = panel("Measured here, in the last day", el("div", { class: "stack tight" },
    el("div", { class: "filters" }, el("label", {}, el("span", { text: "Model that is served" }), input)), body));
  let plan = null;
  let load = null;
  let left = null;
  let asking = null;

  /** Until `signal`. What cannot be known here leaves the page as it is without. */
  async function start(signal) {
    left = signal;
    replace(body, loading());
    let rows = [];
    try {
      rows = (await ask("requests", { by: "model" }, signal)).rows ?? [];
    } catch (error) {
      if (!signal.aborted) replace(body, failed(error, () => start(signal)));
      return;
    }
    const names = [...new Set(rows.map((row) => row.group?.model ?? "").filter(Boolean))].sort();
    replace(input, [NONE, ...names].map((name) => el("option", { value: name, text: name || "none" })));
    const wanted = context.query.measured ?? NONE;
    input.value = names.includes(wanted) ? wanted : NONE;
    await read(names);
  }

  async function choose(name) {
    context.setQuery({ measured: name || null });
    await read();
  }

  async function read(names = null) {
    asking?.abort();
    const mine = (asking = new AbortController());
    const signal = AbortSignal.any([left, mine.signal]);
    const name = input.value;
    load = null;
    if (name === NONE) {
      replace(body, empty(names?.length === 0 ? "Nothing was measured here in the last day." : "Choose a model to compare with."));
      return;
    }
    replace(body, loading());
    try {
      const found = await loadOf(operator, (measure, more) => ask(measure, { model: name, ...more }, signal));
      if (signal.aborted) return;
      load = found;
      show();
    } catch (error) {
      if (!signal.aborted) replace(body, failed(error, () => read()));
    }
  }

  function ask(measure, more, signal) {
    return context.api.get(PATHS[context.role], { measure, start: new Date(Date.now() - DAY_MS).toISOString(), ...more }, { signal });
  }

  function show() {
    if (load === null) {
      replace(body, empty("No answers of this model were measured in the last day."));
      return;
    }
    const said = `${count(load.requests)} requests of ${count(Math.round(load.input))} tokens in and ${count(Math.round(load.output))} out on average, ${load.inFlight < 0.1 ? "hardly any" : load.inFlight.toFixed(1)} under way when one was.`;
    const button = el("button", { type: "button", class: "button small", text: "Size for this load", "data-focus": "measured-load", onclick: () => onLoad({
      input: Math.max(1, Math.round(load.input)), output: Math.max(1, Math.round(load.output)), concurrency: Math.max(1, Math.round(load.inFlight)),
    }) });
    replace(body, el("p", { text: said }), el("div", {}, button), plan?.fits ? compared() : null,
      el("p", { class: "muted", text: "Worked out are means of the load that is asked for above; they have no network, no scheduler and no KV cache hits in them." }));
  }

  function compared() {
    const figure = (name) => plan.figures[name].value;
    const rows = [
      { title: "TTFT, p50", expected: figure("ttft"), found: load.ttft, told: (value) => milliseconds(value * 1000) },
      { title: "ITL, p50", expected: figure("itl"), found: load.itl, told: (value) => milliseconds(value * 1000) },
    ];
    if (operator) rows.push({ title: "Output tokens/s, busiest minute", expected: figure("tokens_per_second"), found: load.outputRate, told: compact });
    const number = (label, value) => ({ label, align: "right", value });
    return table(null, { caption: "Worked out and measured", rows, columns: [
      { label: "Figure", value: (row) => row.title }, number(`Worked out, ${plan.title}`, (row) => row.told(row.expected)),
      number("Measured here", (row) => row.told(row.found)), number("Measured / worked out", (row) => (row.found / row.expected).toPrecision(3)),
    ] }).element;
  }

  function update(now) {
    plan = now;
    if (load !== null) show();
  }

  return { element, start, update };
}

/** Means and medians of what `ask(measure, more)` answers, as `inferbus size --measured` has them; null: no answers.
 *  `outputRate` is 0 for who may not know it. */
async function loadOf(operator, ask) {
  const asked = ["ttft", "itl", "requests", "tokens"].map((measure) => ask(measure, {}));
  const [ttft, itl, requests, tokens, busy, made] = (await Promise.all([...asked, ask("in_flight", { step: STEP }), operator ? ask("output", { step: STEP }) : {}]))
    .map((answer) => answer.rows ?? []);
  const sum = (rows, column, of = (value) => value) => rows.reduce((all, row) => all + of(Number(row.numbers?.[column] ?? 0)), 0);
  const answers = sum(requests, "requests");
  if (ttft.length === 0 || itl.length === 0 || answers === 0) return null;
  const running = sum(busy, "in_flight");
  return {
    requests: answers, input: sum(tokens, "input_tokens") / answers, output: sum(tokens, "output_tokens") / answers,
    // Each minute weighed by what was under way in it: idle ones say nothing of the load.
    inFlight: running ? sum(busy, "in_flight", (value) => value * value) / running : 0,
    outputRate: Math.max(0, ...made.map((row) => Number(row.numbers?.output_rate ?? 0))),
    ttft: Number(ttft[0].numbers.p50), itl: Number(itl[0].numbers.p50),
  };
}
