// Batches: a list, a new one, one of them, and the files that they are made of. All are of the project of the key.

import { tabs } from "../lib/controls.js";
import { el, replace } from "../lib/dom.js";
import { renderFiles } from "../lib/batches_files.js";
import { renderList } from "../lib/batches_list.js";
import { renderNew } from "../lib/batches_new.js";
import { renderOne } from "../lib/batches_one.js";

const PARTS = [
  { name: "", label: "Batches", render: renderList },
  { name: "new", label: "New batch", render: renderNew },
  { name: "files", label: "Files", render: renderFiles },
];

export const page = {
  name: "batches",
  title: "Batches",
  roles: ["admin", "tenant_admin", "inference"],
  render(root, context) {
    const name = context.route[0] ?? "";
    const part = PARTS.find((one) => one.name === name);
    const tools = el("div", { class: "toolbar" });
    const body = el("div", { class: "stack" });
    const links = tabs(
      "Parts of batches",
      PARTS.map((one) => ({
        label: one.label,
        href: one.name ? `#/batches/${one.name}` : "#/batches",
        current: one === part,
      })),
    );
    replace(root, el("div", { class: "page-head" }, el("h1", { text: page.title }), tools));
    if (!context.scopes.includes("inference")) {
      root.append(withoutInference());
      return null;
    }
    root.append(links, body);
    return part ? part.render({ tools, body }, context) : renderOne({ tools, body }, context, name);
  },
};

/** A batch belongs to a project and is billed to a key: one that may not ask models has none. */
function withoutInference() {
  return el(
    "div",
    { class: "panel" },
    el(
      "div",
      { class: "stack tight" },
      el("p", {
        text:
          "Batches belong to the project of the key that makes them and are billed to it. Your key has not the scope " +
          "inference, so it has none.",
      }),
      el("p", {
        class: "muted",
        text:
          "Sign in with a key that has it, alone or beside this one's scope; without the scope of an administrator " +
          "the console shows batches only.",
      }),
    ),
  );
}
