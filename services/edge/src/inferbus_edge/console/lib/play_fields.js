// The parameters as fields: once for all columns, and once more for each one's own.

import { el } from "./dom.js";
import { FIELDS } from "./play_form.js";

/** `values`: typed texts by name; `onChange()` after each change. `of`: what they belong to, for who hears them. Returns
 *  {element, values()}. */
export function parameterFields(values, onChange, of = "", placeholder = (field) => field.hint) {
  const inputs = new Map();
  const element = el("div", { class: "play-fields" },
    FIELDS.map((field) => {
      const many = field.kind === "lines" || field.kind === "object";
      const input = many
        ? el("textarea", { name: field.name, rows: "1", spellcheck: "false" })
        : el("input", { type: "text", name: field.name, inputmode: "decimal", autocomplete: "off" });
      input.placeholder = placeholder(field);
      input.value = values[field.name] ?? "";
      if (of) input.setAttribute("aria-label", `${field.label}, ${of}`);
      input.addEventListener("change", onChange);
      inputs.set(field.name, input);
      return el("label", { class: many ? "is-wide" : null }, el("span", { text: field.label }), input);
    }));
  return { element, values: () => Object.fromEntries([...inputs].map(([name, input]) => [name, input.value])) };
}
