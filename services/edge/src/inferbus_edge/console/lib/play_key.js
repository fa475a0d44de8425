// A key of an administrator may ask no models. For this page another one can be entered; it is kept nowhere but here.

import { createApi } from "./api.js";
import { failed } from "./controls.js";
import { el, replace } from "./dom.js";

const SCOPE = "inference";

/** A form for it. `onKey({api, tenant, project, name})`; `onRefused(error)` when it is not taken any more; `problem`: what is
 *  said at first. */
export function keyForm(onKey, onRefused, problem = null) {
  const input = el("input", {
    type: "password", name: "inference-key", autocomplete: "off", spellcheck: "false", required: true,
    "aria-describedby": "play-key-help",
  });
  const message = el("div", {}, problem ? failed(problem) : null);
  const button = el("button", { type: "submit", class: "button main", text: "Use this key" });

  async function enter() {
    button.disabled = true;
    replace(message);
    const key = input.value.trim();
    try {
      if (!/^[\x21-\x7e]+$/.test(key)) throw new Error("Enter an API key.");
      const { key: found } = await createApi(key, () => {}).get("/inferbus/v1/key");
      if (!(found.scopes ?? []).includes(SCOPE)) throw new Error("This key has not the scope inference, either.");
      const name = found.name || found.key_id;
      onKey({ api: createApi(key, onRefused), tenant: found.tenant_id, project: found.project_id, name });
    } catch (error) {
      replace(message, failed(error));
      button.disabled = false;
      input.select();
    }
  }

  return el("section", { class: "panel" }, el("div", { class: "stack" },
    el("p", { text: "Your key has not the scope inference: it may ask no models, and nothing would be billed to it." }),
    el("p", { class: "muted", id: "play-key-help", text: "Enter one that has it, for this page only. It is forgotten when you leave the page; what you run is billed to its project." }),
    el("form", { class: "form", onsubmit: (event) => { event.preventDefault(); enter(); } },
      el("label", {}, el("span", { text: "Key for inference" }), input), message,
      el("div", { class: "form-row" }, button))));
}
