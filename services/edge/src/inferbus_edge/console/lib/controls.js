// The parts that pages are made of. Each returns an element, or an object with one.

import { el, replace } from "./dom.js";
import { time } from "./format.js";

const PRESETS = [["15m", 900], ["1h", 3600], ["6h", 21600], ["24h", 86400], ["7d", 604800], ["30d", 2592000]];
const LIVE_MS = 10_000;

/** The range of a page, in its address: `from=-1h` (until now) or `from=…&to=…` in Unix seconds.
 *
 *  `onChange({from, to, live})` (Unix seconds) when it is changed, and every 10 s while it is live. Returns {element,
 *  value() → the same object, anew up to now, set(from, to), stop()}. `fallback`: the preset without one in the address. */
export function timeRange(context, onChange, { fallback = "1h" } = {}) {
  let live = context.query.live === "1";
  let timer = null;
  const presets = PRESETS.map(([name]) =>
    el("button", { type: "button", class: "segment", text: name, onclick: () => choose({ from: `-${name}`, to: null }) }));
  const custom = el("button", { type: "button", class: "segment", text: "Custom", "aria-expanded": "false", onclick: () => unfold(form.hidden) });
  const from = el("input", { type: "datetime-local", step: "60", required: true });
  const to = el("input", { type: "datetime-local", step: "60", required: true });
  const form = el("form", { class: "range-custom", hidden: true, onsubmit: (event) => { event.preventDefault(); apply(); } },
    el("label", {}, "From (UTC)", from), el("label", {}, "To (UTC)", to), el("button", { type: "submit", class: "button", text: "Apply" }));
  const refresh = el("button", { type: "button", class: "segment live", title: "Refresh every 10 seconds", onclick: () => setLive(!live) },
    el("span", { class: "live-dot", "aria-hidden": "true" }), "Live");
  const element = el("div", { class: "range" },
    el("div", { class: "segments", role: "group", "aria-label": "Time range" }, presets, custom),
    el("div", { class: "segments" }, refresh), form);

  function value() {
    const now = Date.now() / 1000;
    const given = context.query.from ?? `-${fallback}`;
    const preset = PRESETS.find(([name]) => given === `-${name}`);
    if (preset) return { from: Math.floor(now - preset[1]), to: Math.ceil(now), live };
    const end = Number(context.query.to) || now;
    const start = Number(given);
    return Number.isFinite(start) && start > 0 && start < end
      ? { from: Math.floor(start), to: Math.ceil(end), live }
      : { from: Math.floor(now - 3600), to: Math.ceil(now), live };
  }

  function mark() {
    const given = context.query.from ?? `-${fallback}`;
    PRESETS.forEach(([name], at) => pressed(presets[at], given === `-${name}`));
    pressed(custom, !given.startsWith("-"));
    pressed(refresh, live);
    const now = value();
    from.value = time(now.from, "minute").replace(" ", "T");
    to.value = time(now.to, "minute").replace(" ", "T");
  }

  function unfold(open) {
    form.hidden = !open;
    custom.setAttribute("aria-expanded", String(open));
    if (open) from.focus();
  }

  function choose(range) {
    unfold(false);
    context.setQuery(range);
    mark();
    onChange(value());
  }

  function apply() {
    const start = Date.parse(`${from.value}Z`) / 1000;
    const end = Date.parse(`${to.value}Z`) / 1000;
    to.setCustomValidity(start < end ? "" : "The end must be after the start.");
    if (!form.reportValidity()) return;
    choose({ from: start, to: end });
  }
  to.addEventListener("input", () => to.setCustomValidity(""));

  function setLive(on) {
    live = on;
    context.setQuery({ live: on ? "1" : null });
    mark();
    schedule();
    if (on) onChange(value());
  }

  function schedule() {
    clearInterval(timer);
    timer = live ? setInterval(() => { if (!document.hidden) onChange(value()); }, LIVE_MS) : null;
  }

  mark();
  schedule();
  return { element, value, set: (start, end) => choose({ from: start, to: end }), stop: () => clearInterval(timer) };
}

/** Choices kept in the address. `fields`: [{name, label, options?: [{value, label}] (a list; else a text), placeholder?,
 *  all? (what the empty choice is called)}]; `onChange(values)`. Returns {element, values(), set(name, value),
 *  setOptions(name, options), failed(error, retry): why there are no options, null takes it away}. */
export function filters(context, fields, onChange) {
  const inputs = new Map();
  const element = el("div", { class: "filters" });
  for (const field of fields) {
    const input = field.options
      ? el("select", { name: field.name })
      : el("input", { type: "search", name: field.name, placeholder: field.placeholder ?? "any", autocomplete: "off", spellcheck: "false" });
    inputs.set(field.name, { field, input });
    if (field.options) fill(input, field, field.options);
    else input.value = context.query[field.name] ?? "";
    input.addEventListener("change", () => set(field.name, input.value));
    element.append(el("label", {}, el("span", { text: field.label }), input));
  }
  const problem = el("div", { hidden: true });
  element.append(problem);

  function fill(input, field, options) {
    const chosen = context.query[field.name] ?? "";
    const known = chosen === "" || options.some((one) => one.value === chosen);
    const listed = known ? options : [...options, { value: chosen, label: chosen }];
    const none = field.all === null ? [] : [el("option", { value: "", text: field.all ?? "all" })];
    replace(input, none, listed.map((one) => el("option", { value: one.value, text: one.label })));
    input.value = chosen === "" && field.all === null ? (options[0]?.value ?? "") : chosen;
  }

  function set(name, value) {
    inputs.get(name).input.value = value;
    context.setQuery({ [name]: value.trim() || null });
    onChange(values());
  }

  const values = () => Object.fromEntries([...inputs].map(([name, { input }]) => [name, input.value.trim()]));
  return {
    element, values, set,
    setOptions(name, options) {
      const { field, input } = inputs.get(name);
      fill(input, field, options);
    },
    failed(error, retry) {
      problem.hidden = error === null;
      replace(problem, error === null ? null : failed(error, retry));
    },
  };
}

/** A table that scrolls in its own box. `columns`: [{label, value(row) → text or node, sort?(row) → what is compared (or
 *  has compareTo),
 *  align?: "right", class?, title?(row)}]; `sort`: {by: label, descending}; `nothing`: what an empty one says; `caption`.
 *  Returns {element, update(rows)}. */
export function table(root, { columns, rows = [], sort = null, nothing = "Nothing here.", caption = "Table", limit = 500 }) {
  let shown = rows;
  let order = sort;
  const head = el("tr");
  const body = el("tbody");
  const box = el("div", { class: "table-scroll", tabindex: "0", role: "region", "aria-label": caption },
    el("table", {}, el("caption", { class: "unseen", text: caption }), el("thead", {}, head), body));
  const more = el("p", { class: "table-more", hidden: true });
  const none = empty(nothing);
  const element = el("div", { class: "table" }, box, none, more);
  root?.append(element);

  function draw() {
    replace(head, columns.map((column) => heading(column)));
    const column = order && columns.find((one) => one.label === order.by);
    const listed = column?.sort ? [...shown].sort((one, other) => compared(column.sort(one), column.sort(other)) * (order.descending ? -1 : 1)) : shown;
    replace(body, listed.slice(0, limit).map(line));
    box.hidden = listed.length === 0;
    none.hidden = listed.length > 0;
    more.hidden = listed.length <= limit;
    more.textContent = `The first ${limit} of ${listed.length} rows.`;
  }

  function heading(column) {
    const here = order?.by === column.label;
    const attributes = { scope: "col", class: cell(column), "aria-sort": here ? (order.descending ? "descending" : "ascending") : null };
    if (!column.sort) return el("th", attributes, column.label);
    const mark = el("span", { class: "sort-mark", "aria-hidden": "true", text: here ? (order.descending ? "↓" : "↑") : "" });
    const parts = column.align === "right" ? [mark, column.label] : [column.label, mark];
    return el("th", attributes, el("button", { type: "button", class: "sort", onclick: () => by(column) }, parts));
  }

  function by(column) {
    order = { by: column.label, descending: order?.by === column.label ? !order.descending : column.align === "right" };
    draw();
    [...head.children][columns.indexOf(column)].querySelector("button")?.focus();
  }

  const line = (row) => el("tr", {}, columns.map((column) => el("td", { class: cell(column), title: column.title?.(row) }, column.value(row))));
  draw();
  return {
    element,
    update(changed) {
      shown = changed;
      draw();
    },
  };
}

function cell(column) {
  return [column.align === "right" ? "right" : "", column.class ?? ""].join(" ").trim() || null;
}

function compared(one, other) {
  if (one === other) return 0;
  if (one === null || one === undefined) return -1;
  if (other === null || other === undefined) return 1;
  if (typeof one.compareTo === "function") return one.compareTo(other);
  return one < other ? -1 : one > other ? 1 : 0;
}

/** One figure. `note`: a line below it. `tone`: good, warn or bad. */
export function stat(label, value, note = "", { tone = "", title = null } = {}) {
  return el("div", { class: `stat ${tone}`.trim(), title }, el("span", { class: "stat-label", text: label }),
    el("span", { class: "stat-value" }, value), el("span", { class: "stat-note", text: note || "\u00a0" }));
}

/** A box with a heading. */
export function panel(title, ...children) {
  return el("section", { class: "panel" }, title ? el("header", { class: "panel-head" }, el("h3", { text: title })) : null, children);
}

export function empty(text) {
  return el("p", { class: "message empty", text });
}

export function loading(text = "Loading …") {
  return el("p", { class: "message loading", role: "status", text });
}

/** What went wrong, in the API's words; `retry`: for a button that tries again. */
export function failed(error, retry = null) {
  return el("div", { class: "message failed", role: "alert" },
    el("p", { text: error?.message || "This did not work." }),
    error?.requestId ? el("p", { class: "muted small mono", text: `request ${error.requestId}` }) : null,
    retry ? el("button", { type: "button", class: "button", text: "Try again", onclick: retry }) : null);
}

/** Links to the parts of a page. `tabs`: [{label, href, current}]. */
export function tabs(label, entries) {
  const nav = el("nav", { class: "tabs", "aria-label": label },
    entries.map((one) => el("a", { href: one.href, text: one.label, "aria-current": one.current ? "page" : null })));
  requestAnimationFrame(() => seen(nav));
  return nav;
}

/** Scroll a row of links so far that the current one is seen. */
export function seen(nav) {
  const current = nav.querySelector("[aria-current]");
  if (current) nav.scrollLeft = current.offsetLeft - nav.offsetLeft - (nav.clientWidth - current.clientWidth) / 2;
}

export function badge(text, tone = "") {
  return el("span", { class: `badge ${tone}`.trim(), text });
}

/** Give the browser a file to keep. */
export function download(blob, name) {
  const url = URL.createObjectURL(blob);
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

function pressed(button, on) {
  button.setAttribute("aria-pressed", String(on));
}
