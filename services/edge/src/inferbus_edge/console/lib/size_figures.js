// Figures that open: what each is, how it was worked out, and from what. And the memory of a GPU as a bar.

import { badge, panel } from "./controls.js";
import { el } from "./dom.js";
import { compact, count, milliseconds } from "./format.js";

const THIN = "\u202f";
const GROUPS = [
  ["What it needs", ["gpus", "replicas", "gpus_per_replica", "sequences", "sequences_fit", "power", "power_gpus", "energy_per_million"]],
  ["How fast it is", ["ttft", "itl", "tokens_per_second", "tokens_per_second_user", "tokens_per_second_gpu", "requests_per_second",
                      "prefill", "decode_step", "ttft_idle"]],
  ["What it costs", ["cost_per_hour", "cost_per_month", "cost_per_million_in", "cost_per_million_out", "cost_per_million", "cost_per_request"]],
  ["Against the API", ["crossover", "capacity", "api_per_request", "api_per_month", "own_per_month"]],
  ["The model and its memory", ["parameters", "active_parameters", "weights", "kv_per_token", "kv_per_sequence", "weights_per_gpu",
                                "reserve_per_gpu", "memory_per_gpu"]],
];
const PARTS = [["weights", "Weights", "--series-1"], ["kv", "KV cache", "--series-3"], ["reserve", "Runtime, activations", "--series-5"], ["spare", "Free", "--edge"]];

/** A figure of the API as a text: {value, unit, …}. */
export function shownFigure({ value, unit }) {
  if (value === null) return "never";
  const shown = {
    bytes: () => gigabytes(value),
    seconds: () => milliseconds(value * 1000),
    dollars: () => dollars(value),
    watts: () => `${compact(value)}W`,
    parameters: () => compact(value).replace("G", "B"),
    "tokens/s": () => `${compact(value)}${THIN}tok/s`,
    "requests/s": () => `${compact(value)}${THIN}/s`,
    "requests/month": () => `${compact(value)}${THIN}/month`,
    kWh: () => `${compact(value)}${THIN}kWh`,
  }[unit];
  return shown ? shown() : count(value);
}

/** Decimal, as GPUs and models are sold. */
export function gigabytes(value) {
  return `${compact(value)}B`;
}

/** Cents, or two digits of what is less than ten of them. */
export function dollars(value) {
  if (value >= 1000) return `$${count(value)}`;
  return value >= 0.1 ? `$${value.toFixed(2)}` : `$${compact(value)}`;
}

/** All figures of a plan in groups. `opened`: names of those that are open, kept from one plan to the next. */
export function figureGroups(plan, opened) {
  return GROUPS.filter(([, names]) => names.some((name) => plan.figures[name])).map(([title, names]) =>
    panel(title, el("div", { class: "stats sizing-figures" },
      names.filter((name) => plan.figures[name]).map((name) => figure(name, plan.figures[name], opened)))));
}

function figure(name, said, opened) {
  const element = el("details", { class: "stat", open: opened.has(name), ontoggle: () => {
    if (element.open) opened.add(name);
    else opened.delete(name);
  } },
    el("summary", { "data-focus": name }, el("span", { class: "stat-label", text: said.title }), el("span", { class: "stat-value", text: shownFigure(said) })),
    el("p", { class: "sizing-formula", text: `= ${said.formula}` }), el("p", { class: "stat-note", text: `From ${said.source}` }));
  return element;
}

/** Of the fullest GPU. */
export function memoryBar(plan) {
  const { memory } = plan;
  const parts = PARTS.map(([name, label, colour]) => {
    const bar = el("span", { title: `${label}: ${gigabytes(memory[name])}` });
    bar.style.width = `${(100 * memory[name]) / memory.total}%`;
    bar.style.background = `var(${colour})`;
    const mark = el("span", { class: "plot-mark" });
    mark.style.backgroundColor = `var(${colour})`;
    return { bar, key: el("li", {}, mark, el("span", { text: label }), el("strong", { text: gigabytes(memory[name]) })) };
  });
  const told = PARTS.map(([name, label]) => `${label} ${gigabytes(memory[name])}`).join(", ");
  return panel(`Memory of each GPU: ${gigabytes(memory.total)}`, el("div", { class: "stack tight" },
    el("div", { class: "meter parted sizing-memory", role: "img", "aria-label": told }, parts.map((one) => one.bar)),
    el("ul", { class: "timeline-key" }, parts.map((one) => one.key)), el("p", { class: "muted", text: roomOf(plan) })));
}

function roomOf({ figures, parallel }) {
  const [planned, room] = [figures.sequences.value, figures.sequences_fit.value];
  const replicas = figures.replicas.value > 1 ? `each of ${count(figures.replicas.value)} replicas` : "one replica";
  return `A replica is ${parallel}, ${count(figures.gpus_per_replica.value)} such GPUs, with room for ${count(room)} sequences of the whole context; planned are ${count(planned)} on ${replicas}.`;
}

/** Columns of the table of GPUs. `choose(gpu)`; `chosen()`: the name of the one that is shown. */
export function gpuColumns(choose, chosen, { priced }) {
  const of = (name) => (row) => (row.fits ? shownFigure(row.figures[name]) : "–");
  const sorted = (name) => (row) => (row.fits ? (row.figures[name].value ?? Infinity) : Infinity);
  const column = (label, name) => ({ label, align: "right", value: of(name), sort: sorted(name) });
  return [
    { label: "GPU", sort: (row) => row.title, value: (row) => el("button", {
      type: "button", class: "button small", text: row.title, "aria-pressed": String(row.gpu === chosen()), "data-focus": `gpu-${row.gpu}`, onclick: () => choose(row.gpu),
    }) },
    { label: "Fits", value: (row) => (row.fits ? badge(row.parallel, "good") : badge("no", "bad")), title: (row) => row.reason },
    column("GPUs", "gpus"), column("Output", "tokens_per_second"), column("ITL", "itl"), column("TTFT", "ttft"), column("Power", "power"),
    column("$ a month", "cost_per_month"), column("$/M in", "cost_per_million_in"), column("$/M out", "cost_per_million_out"),
    ...(priced ? [column("Cheaper than the API from", "crossover")] : []),
  ];
}
