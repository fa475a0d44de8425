// A form's rows of names and values: a batch's metadata.

import { MAX_ENTRIES } from "./batches_form.js";
import { el } from "./dom.js";
import { count } from "./format.js";

/** Rows of a name and a value. Returns {element, values() → [[name, value]]}. */
export function metadataRows() {
  const rows = el("div", { class: "stack tight" });
  const add = el("button", {
    type: "button",
    class: "button small",
    text: "Add metadata",
    onclick: () => line().focus(),
  });

  function line() {
    const at = count(rows.children.length + 1);
    const field = (what, most) =>
      el("input", {
        type: "text",
        maxlength: String(most),
        placeholder: what,
        "aria-label": `Metadata ${at}, ${what}`,
        autocomplete: "off",
      });
    const [name, value] = [field("name", 64), field("value", 512)];
    const row = el(
      "div",
      { class: "form-row" },
      name,
      value,
      el("button", {
        type: "button",
        class: "button small",
        text: "Remove",
        "aria-label": `Remove metadata ${at}`,
        onclick: () => {
          row.remove();
          add.disabled = false;
          add.focus();
        },
      }),
    );
    rows.append(row);
    add.disabled = rows.children.length >= MAX_ENTRIES;
    return name;
  }

  const values = () =>
    [...rows.children].map((row) => [...row.querySelectorAll("input")].map((one) => one.value.trim()));
  return {
    element: el(
      "div",
      {},
      el("span", { class: "label", text: "Metadata: names and values of your own, shown with the batch" }),
      rows,
      add,
    ),
    values,
  };
}
