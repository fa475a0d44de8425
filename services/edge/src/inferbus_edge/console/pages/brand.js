// How the console looks under a tenant's domain: an operator edits it and sees it before anybody else does.

import { brandMark } from "../lib/brand.js";
import { LEAST_CONTRAST, leastContrast } from "../lib/contrast.js";
import { empty, failed, filters, loading, panel } from "../lib/controls.js";
import { el, replace } from "../lib/dom.js";
import { bytes } from "../lib/format.js";
import { tenantField, tenantOptions } from "../lib/usage_tenants.js";

const MAX_LOGO_BYTES = 64 * 1024;
const HOUSE = { accent_light: "#2456c7", accent_dark: "#8ab0ff" };
const ACCENTS = [["accent_light", "Accent on light ground"], ["accent_dark", "Accent on dark ground"]];

export const page = {
  name: "brand",
  title: "Brands",
  roles: ["admin"],
  render(root, context) {
    const asking = new AbortController();
    const body = el("div", { class: "stack" });
    const chosen = filters(context, [tenantField("choose a tenant")], () => load());
    replace(root, el("div", { class: "page-head" }, el("h1", { text: page.title }), el("div", { class: "toolbar" }, chosen.element)), body);
    let tenants = [];
    tenantOptions(context).then((options) => { tenants = options; chosen.setOptions("tenant", options); load(); }, (error) => replace(body, failed(error)));

    async function load() {
      const { tenant } = chosen.values();
      if (!tenant) {
        replace(body, empty("Choose a tenant: its name, logo and colours are shown to whoever opens the console under its domain."));
        return;
      }
      replace(body, loading());
      const path = `/inferbus/v1/tenants/${encodeURIComponent(tenant)}/brand`;
      try {
        const { api } = context;
        const brand = await stored(api, tenant, path, asking.signal);
        if (!asking.signal.aborted) replace(body, editor({ api, path, tenant, name: tenants.find((one) => one.value === tenant)?.name ?? tenant, brand, again: load }));
      } catch (error) {
        if (!asking.signal.aborted) replace(body, failed(error, load));
      }
    }

    return () => asking.abort();
  },
};

/** The brand that there is; null without one: the list says it, for the lack of one is no error. */
async function stored(api, tenant, path, signal) {
  const { brands = [] } = await api.get("/inferbus/v1/brands", {}, { signal });
  return brands.some((one) => one.tenant_id === tenant) ? (await api.get(path, {}, { signal })).brand : null;
}

function editor({ api, path, tenant, name: own, brand, again }) {
  const draft = { display_name: own, logo: "", logo_type: "", domain: "", accent_light: "", accent_dark: "", ...brand };
  const message = el("div", { role: "status" });
  const views = { accent_light: el("div", { class: "preview is-light" }), accent_dark: el("div", { class: "preview is-dark" }) };

  const name = el("input", { type: "text", maxlength: "200", required: true, value: draft.display_name, oninput: () => put("display_name", name.value.trim()) });
  const domain = el("input", { type: "text", placeholder: "console.example.com", value: draft.domain, spellcheck: "false", oninput: () => put("domain", domain.value.trim()) });
  const logo = el("input", { type: "file", accept: "image/png,image/svg+xml", onchange: () => read(logo.files[0]) });
  const remove = el("button", { type: "button", class: "button small", text: "Without a logo", onclick: () => { logo.value = ""; put("logo", ""); } });
  const form = el("form", { class: "form", onsubmit: (event) => { event.preventDefault(); save(); } },
    el("label", {}, el("span", { text: "Name" }), name),
    el("label", {}, el("span", { text: "Domain" }), domain, el("p", { class: "help", text: "The host that people type, without a port. The proxy in front must pass the Host header on." })),
    el("label", {}, el("span", { text: `Logo: PNG or SVG, at most ${bytes(MAX_LOGO_BYTES)}` }), logo),
    el("div", { class: "form-row" }, remove),
    ACCENTS.map(([field, label]) => accent(field, label)), message,
    el("div", { class: "form-row" }, el("button", { type: "submit", class: "button main", text: "Save" }),
      brand ? el("button", { type: "button", class: "button danger", text: "Delete this brand", onclick: drop }) : null));

  function accent(field, label) {
    const text = el("input", { type: "text", value: draft[field], placeholder: HOUSE[field], pattern: "#[0-9A-Fa-f]{6}", "aria-label": `${label}, as #2456c7`, oninput: () => take(text.value.trim()) });
    const picker = el("input", { type: "color", value: draft[field] || HOUSE[field], "aria-label": `${label}: choose`, oninput: () => { text.value = picker.value; take(picker.value); } });
    const help = el("p", { class: "help" });
    function take(value) {
      if (/^#[0-9a-f]{6}$/i.test(value)) picker.value = value;
      put(field, value);
      tell();
    }
    function tell() {
      const found = leastContrast(draft[field] || HOUSE[field], field);
      const enough = found !== null && found >= LEAST_CONTRAST;
      help.textContent = found === null ? "A colour as #2456c7." : `Contrast ${(Math.floor(found * 10) / 10).toFixed(1)} to 1; text needs ${LEAST_CONTRAST}.`;
      help.className = enough ? "help" : "help is-bad";
    }
    tell();
    return el("div", {}, el("span", { class: "label", text: label }), el("div", { class: "form-row" }, picker, text), help);
  }

  function put(field, value) {
    draft[field] = value;
    preview();
  }

  async function read(file) {
    replace(message);
    if (!file) return;
    if (file.size > MAX_LOGO_BYTES) {
      replace(message, failed(new Error(`This file has ${bytes(file.size)}; ${bytes(MAX_LOGO_BYTES)} are the most.`)));
      logo.value = "";
      return;
    }
    draft.logo_type = file.type;
    put("logo", base64(new Uint8Array(await file.arrayBuffer())));
  }

  function preview() {
    for (const [field, view] of Object.entries(views)) {
      view.style.setProperty("--brand-light", draft.accent_light || HOUSE.accent_light);
      view.style.setProperty("--brand-dark", draft.accent_dark || HOUSE.accent_dark);
      const source = draft.logo ? `data:${draft.logo_type};base64,${draft.logo}` : undefined;
      replace(view,
        el("div", { class: "bar" }, el("span", { class: "brand" }, brandMark({ display_name: draft.display_name || own, logo: source })),
          el("nav", { "aria-label": `Example, ${field}` }, el("a", { "aria-current": "page", text: "Usage and cost" }))),
        el("div", { class: "preview-body" }, el("span", { class: "preview-link", text: "A link in a text" }), el("span", { class: "button main", text: "Sign in" })));
    }
  }

  async function save() {
    replace(message);
    const { display_name, logo: image, accent_light, accent_dark, domain: host } = draft;
    try {
      await api.put(path, { display_name, logo: image, accent_light, accent_dark, domain: host });
      replace(message, el("p", { class: "message done", text: "Saved. It is shown from the next load of the page on." }));
    } catch (error) {
      replace(message, failed(error));
    }
  }

  async function drop() {
    if (!window.confirm(`Delete the brand of ${tenant}? Its domain shows the house's own again.`)) return;
    try {
      await api.remove(path);
      await again();
    } catch (error) {
      replace(message, failed(error));
    }
  }

  preview();
  return el("div", { class: "grid" }, panel(brand ? "Brand" : "A new brand", form), panel("Preview", el("div", { class: "stack" }, Object.values(views))));
}

function base64(octets) {
  let text = "";
  for (let at = 0; at < octets.length; at += 8192) text += String.fromCharCode(...octets.subarray(at, at + 8192));
  return btoa(text);
}
