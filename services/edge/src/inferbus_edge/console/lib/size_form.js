// What the sizing page asks for: its fields, kept in the address, and the question that they make.

import { el } from "./dom.js";

const OWN = "config";
const FIRST_MODEL = "llama-3.1-70b";
const FIRST_PRECISION = "fp8";
const MOST_BYTES = 256 * 1024;
// A field's name is its place in the address. `per`: what a number is divided by on its way.
const NUMBERS = [
  { name: "context", field: "context", label: "Context, tokens", usual: 8192 },
  { name: "concurrency", field: "concurrency", label: "At once", usual: 32 },
  { name: "input", field: "input_tokens", label: "Prompt, tokens", usual: 1000 },
  { name: "output", field: "output_tokens", label: "Answer, tokens", usual: 500 },
  { name: "ttft", field: "ttft_seconds", label: "TTFT at most, ms", usual: "any", per: 1000 },
  { name: "itl", field: "itl_seconds", label: "ITL at most, ms", usual: "any", per: 1000 },
  { name: "price", field: "dollars_per_hour", label: "$ a GPU and hour", usual: "example" },
  { name: "kwh", field: "dollars_per_kwh", label: "$ a kWh", usual: "none" },
  { name: "api_in", field: "api_price_in", label: "API, $/M input", usual: "none" },
  { name: "api_out", field: "api_price_out", label: "API, $/M output", usual: "none" },
  { name: "requests", field: "requests_per_month", label: "Requests a month", usual: "none" },
];

/** `known`: what the API says that can be named; `onChange()` after each change. Returns {element, question() → the body
 *  without a GPU, or null while a config is asked for and there is none, price() → of the chosen GPU or null,
 *  fill({input: 100, …}): numbers by their places in the address}. */
export function sizeForm(context, known, onChange) {
  const model = chooser("model", "Model", [
    ...known.models.map((one) => ({ value: one.name, label: one.title })),
    { value: OWN, label: "A config.json …" },
  ], FIRST_MODEL);
  const precision = chooser("precision", "Weights", [
    { value: "native", label: "as published" }, ...known.precisions.map((one) => ({ value: one.name, label: one.title })),
  ], FIRST_PRECISION);
  const kv = chooser("kv", "KV cache", [
    { value: "usual", label: "as usual" }, ...known.kv_precisions.map((one) => ({ value: one.name, label: one.name.toUpperCase() })),
  ], "usual");
  const numbers = NUMBERS.map((one) => ({ ...one, ...typed(one) }));
  const text = el("textarea", { rows: "8", class: "mono sizing-config", spellcheck: "false", placeholder: "{ \"model_type\": \"llama\", … }", oninput: onChange });
  const file = el("input", { type: "file", accept: ".json,application/json", onchange: () => read(file.files[0]) });
  const help = el("p", { class: "help", text: "It goes to the API to be read and is kept nowhere, this page's address included." });
  const own = el("div", { class: "form sizing-own" },
    el("label", {}, el("span", { text: "config.json of the model" }), text),
    el("label", {}, el("span", { text: "or its file" }), file), help);
  const element = el("div", { class: "stack" },
    el("div", { class: "filters sizing-fields" }, model.element, precision.element, kv.element, numbers.map((one) => one.element)), own);
  unfold();

  function chooser(name, label, options, first) {
    const input = el("select", { name }, options.map((one) => el("option", { value: one.value, text: one.label })));
    const asked = context.query[name];
    input.value = options.some((one) => one.value === asked) ? asked : first;
    input.addEventListener("change", () => {
      context.setQuery({ [name]: input.value === first ? null : input.value });
      unfold();
      onChange();
    });
    return { input, element: el("label", {}, el("span", { text: label }), input) };
  }

  function typed({ name, label, usual }) {
    const input = el("input", { type: "number", name, min: "0", step: "any", inputmode: "decimal", placeholder: String(usual) });
    input.value = context.query[name] ?? "";
    input.addEventListener("input", () => {
      context.setQuery({ [name]: input.value || null });
      onChange();
    });
    return { input, element: el("label", {}, el("span", { text: label }), input) };
  }

  async function read(chosen) {
    if (!chosen) return;
    if (chosen.size > MOST_BYTES) {
      help.textContent = `This file is larger than ${MOST_BYTES / 1024} KiB: it is no config.json.`;
      return;
    }
    text.value = await chosen.text();
    onChange();
  }

  function unfold() {
    own.hidden = model.input.value !== OWN;
  }

  function question() {
    const said = {};
    if (model.input.value === OWN) {
      if (!text.value.trim()) return null;
      said.config = parsed(text.value);
    } else said.model = model.input.value;
    if (precision.input.value !== "native") said.precision = precision.input.value;
    if (kv.input.value !== "usual") said.kv_precision = kv.input.value;
    for (const { field, input, per = 1 } of numbers) {
      if (input.value !== "" && field !== "dollars_per_hour") said[field] = Number(input.value) / per;
    }
    return said;
  }

  function price() {
    const { input } = numbers.find((one) => one.field === "dollars_per_hour");
    return input.value === "" ? null : Number(input.value);
  }

  function fill(values) {
    for (const { name, input } of numbers.filter((one) => one.name in values)) input.value = String(values[name]);
    context.setQuery(values);
    onChange();
  }

  return { element, question, price, fill };
}

/** Throws what to tell the person. */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`This config.json is no JSON: ${error.message}`);
  }
}
