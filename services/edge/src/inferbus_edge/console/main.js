// The console's frame: login, navigation by role, one page at a time. A page is a module that exports
// `page = {name, title, roles, render(root, context) → clean-up}`; its address is `#/name/parts?query`.

import { createApi, query as queryText } from "./lib/api.js";
import { applyBrand, brandMark, loadBrand } from "./lib/brand.js";
import { failed, loading, seen } from "./lib/controls.js";
import { el, replace } from "./lib/dom.js";
import { theme } from "./lib/theme.js";

const KEY = "inferbus.key"; // of the tab only: sessionStorage
const OPERATOR = "admin";
const TENANT = "tenant_admin";
const CALLER = "inference"; // who has no more than that sees its project's batches, and asks models
// Loaded when it is first shown.
const PAGES = [
  { name: "analytics", title: "Analytics", roles: [OPERATOR, TENANT], load: () => import("./pages/analytics.js") },
  { name: "requests", title: "Requests", roles: [OPERATOR, TENANT], load: () => import("./pages/request.js") },
  { name: "batches", title: "Batches", roles: [OPERATOR, TENANT, CALLER], load: () => import("./pages/batches.js") },
  { name: "play", title: "Playground", roles: [OPERATOR, TENANT, CALLER], load: () => import("./pages/play.js") },
  { name: "usage", title: "Usage and cost", roles: [OPERATOR, TENANT], load: () => import("./pages/usage.js") },
  { name: "deployments", title: "Deployments", roles: [OPERATOR], load: () => import("./pages/deployments.js") },
  { name: "size", title: "Sizing", roles: [OPERATOR, TENANT], load: () => import("./pages/size.js") },
  { name: "brand", title: "Brands", roles: [OPERATOR], load: () => import("./pages/brand.js") },
];
const app = document.getElementById("app");

let session = null; // {key, role, scopes, tenant, project, keyName}
let leave = null; // the page's own clean-up
let shown = 0; // counts what was asked to be shown, so that a slow page does not come after a later one

// --- login ---

function login(problem = "") {
  end();
  session = null;
  const input = el("input", {
    id: "key", type: "password", autocomplete: "off", spellcheck: "false", required: true, "aria-describedby": "key-help",
  });
  const message = el("div", { role: "alert" }, problem ? el("p", { class: "message failed", text: problem }) : null);
  const button = el("button", { type: "submit", class: "button main", text: "Sign in" });
  const form = el("form", { onsubmit: (event) => { event.preventDefault(); enter(); } },
    el("label", { for: "key" }, el("span", { text: "API key" }), input), message, button);

  async function enter() {
    button.disabled = true;
    replace(message);
    try {
      await begin(input.value.trim());
      route();
    } catch (error) {
      replace(message, el("p", { class: "message failed", text: error.message }));
      button.disabled = false;
      input.select();
    }
  }

  replace(app, el("main", { class: "login" }, el("div", { class: "login-box" },
    el("div", { class: "brand" }, brandMark()), el("h1", { class: "unseen", text: "Sign in" }),
    window.isSecureContext ? null : el("p", { class: "message failed", text: "This connection is not encrypted: others can read a key that is entered here. Use HTTPS." }),
    form,
    el("div", { class: "login-foot" },
      el("p", { id: "key-help", text: "A key with the scope admin or tenant_admin, or one for inference, which shows batches and the playground. It stays in this tab and is forgotten with it." }),
      themeButton()))));
  input.focus();
}

/** Ask the API what the key may do, and keep it for this tab. Throws what to tell the person. */
async function begin(key) {
  if (!/^[\x21-\x7e]+$/.test(key)) throw new Error("Enter an API key.");
  const { key: found } = await createApi(key, () => {}).get("/inferbus/v1/key");
  const scopes = found.scopes ?? [];
  const role = [OPERATOR, TENANT, CALLER].find((one) => scopes.includes(one));
  if (!role) throw new Error("This key has no scope that the console has a page for: admin, tenant_admin or inference.");
  sessionStorage.setItem(KEY, key);
  const { tenant_id: tenant, project_id: project } = found;
  session = { key, role, scopes, tenant, project, keyName: found.name || found.key_id };
}

function signOut(problem = "") {
  sessionStorage.removeItem(KEY);
  login(problem);
}

// --- frame and routes ---

function frame(current) {
  const links = allowed().map((one) =>
    el("a", { href: `#/${one.name}`, text: one.title, "aria-current": one === current ? "page" : null }));
  const content = el("main", { class: "page", id: "content", tabindex: "-1" });
  replace(app,
    el("button", { type: "button", class: "skip", text: "Skip to the content", onclick: () => content.focus() }),
    el("header", { class: "bar" }, el("a", { class: "brand", href: `#/${allowed()[0].name}` }, brandMark()),
      el("nav", { "aria-label": "Pages" }, links),
      el("div", { class: "who" },
        el("span", { class: "role", text: whose(), title: `key: ${session.keyName}` }),
        themeButton(), el("button", { type: "button", class: "button plain", text: "Sign out", onclick: () => signOut() }))),
    content);
  seen(app.querySelector(".bar nav"));
  return content;
}

function themeButton() {
  const button = el("button", { type: "button", class: "button plain icon", onclick: () => { theme.toggle(); name(); } });
  function name() {
    const other = theme.shown === "dark" ? "Light" : "Dark";
    button.textContent = other;
    button.setAttribute("aria-label", `${other} colours`);
  }
  name();
  return button;
}

/** What the key sees: a key for inference its project only. */
function whose() {
  if (session.role === OPERATOR) return "operator";
  return session.role === TENANT ? session.tenant : `${session.tenant} · ${session.project}`;
}

const allowed = () => PAGES.filter((one) => one.roles.includes(session.role));

/** The address: page, parts after it, query. */
function address() {
  const [path, search = ""] = window.location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/").map(decoded);
  return { name, route: rest, query: Object.fromEntries(new URLSearchParams(search)) };
}

async function route() {
  if (!session) return;
  const { name, route: parts, query } = address();
  const entry = allowed().find((one) => one.name === name);
  if (!entry) {
    navigate(`#/${allowed()[0].name}`, true);
    return;
  }
  end();
  const turn = (shown += 1);
  const content = frame(entry);
  document.title = `${entry.title} · ${applyBrand().display_name}`;
  replace(content, loading());
  try {
    const { page } = await entry.load();
    if (turn !== shown) return;
    replace(content);
    const cleanUp = await page.render(content, contextOf(parts, query));
    if (turn === shown) leave = cleanUp ?? null;
    else cleanUp?.();
  } catch (error) {
    if (turn === shown && session) replace(content, failed(error, route));
  }
}

function contextOf(parts, query) {
  const context = {
    api: createApi(session.key, (error) => signOut(error.message)),
    role: session.role,
    scopes: session.scopes,
    tenant: session.tenant,
    route: parts,
    query,
    theme,
    /** Put these into the address without showing the page anew; null takes one out. */
    setQuery(changes) {
      for (const [name, value] of Object.entries(changes)) {
        if (value === null || value === undefined || value === "") delete context.query[name];
        else context.query[name] = String(value);
      }
      const [path] = window.location.hash.split("?");
      history.replaceState(null, "", path + queryText(context.query));
    },
    navigate: (hash) => navigate(hash),
  };
  return context;
}

function navigate(hash, replaced = false) {
  if (replaced) history.replaceState(null, "", hash);
  if (replaced || window.location.hash === hash) route();
  else window.location.hash = hash;
}

function end() {
  shown += 1;
  const last = leave;
  leave = null;
  last?.();
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

window.addEventListener("hashchange", route);
await loadBrand();
const kept = sessionStorage.getItem(KEY);
if (kept === null) login();
else {
  try {
    await begin(kept);
    await route();
  } catch (error) {
    if (error.status === 401 || error.status === 403) sessionStorage.removeItem(KEY);
    login(error.message);
  }
}
