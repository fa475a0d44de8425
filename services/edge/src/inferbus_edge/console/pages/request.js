// Requests: a list to be searched, and one request as one timeline.

import { badge, empty, failed, filters, loading, panel, stat, table, timeRange } from "../lib/controls.js";
import { el, replace } from "../lib/dom.js";
import { amountOf, count, milliseconds, money, time } from "../lib/format.js";
import { durationUs, read, STATES, word } from "../lib/request_data.js";
import { gapHistogram } from "../lib/request_histogram.js";
import { requestTimeline } from "../lib/request_timeline.js";

const OPERATOR = "/inferbus/v1/requests";
const TENANT = "/v1/organization/requests";
const REFRESH_MS = 3000;
const PAGE = 50;
const TONES = { stop: "good", length: "good", cancelled: "warn", error: "bad" };
const ORDERS = [["time", "latest"], ["e2e", "slowest, to the end"], ["ttft", "slowest to the first token"], ["tokens", "most tokens"], ["charge", "highest charge"]];

export const page = {
  name: "requests",
  title: "Requests",
  roles: ["admin", "tenant_admin"],
  async render(root, context) {
    return context.route[0] ? one(root, context, context.route[0]) : list(root, context);
  },
};

const isOperator = (context) => context.role === "admin";
const pathOf = (context) => (isOperator(context) ? OPERATOR : TENANT);
const ms = (text) => (text === undefined ? "–" : milliseconds(durationUs(text) / 1000));
const href = (id) => `#/requests/${encodeURIComponent(id)}`;

// --- the list ---

function list(root, context) {
  const operator = isOperator(context);
  let turn = 0;
  let shown = [];
  let next = "";
  const range = timeRange(context, load, { fallback: "24h" });
  const text = (name, label, placeholder) => ({ name, label, placeholder });
  const only = filters(context, [
    { name: "status", label: "Status", options: Object.keys(TONES).map((value) => ({ value, label: value })) },
    ...(operator ? [text("tenant", "Tenant")] : []), text("project", "Project"), text("key", "Key"), text("model", "Model"), text("user", "End user"),
    text("reason", "Error reason", "as queue_full"), ...(operator ? [text("worker", "Worker")] : []),
    { name: "order", label: "Order", options: ORDERS.map(([value, label]) => ({ value, label })), all: null },
  ], load);
  const id = el("input", { type: "search", name: "id", placeholder: "x-request-id, or the id of an answer", autocomplete: "off", spellcheck: "false", required: true });
  const search = el("form", { class: "request-search", onsubmit: (event) => { event.preventDefault(); context.navigate(href(id.value.trim())); } },
    el("label", {}, el("span", { text: "Open a request" }), id), el("button", { type: "submit", class: "button", text: "Open" }));
  const box = el("div", { class: "panel" });
  const found = table(null, { columns: columns(operator), nothing: "No request ended in this range.", caption: "Requests", limit: 5000 });
  const more = el("button", { type: "button", class: "button", text: "More", onclick: () => load(null, true) });
  const foot = el("div", { hidden: true }, more);
  root.append(el("div", { class: "page-head" }, el("h1", { text: "Requests" }), search),
    el("div", { class: "toolbar" }, range.element, only.element), box);
  replace(box, loading());

  async function load(_, further = false) {
    const mine = (turn += 1);
    const { from, to } = range.value();
    const params = { ...only.values(), start: rfc3339(from), end: rfc3339(to), limit: PAGE, page: further ? next : "" };
    more.disabled = true;
    try {
      const answer = await context.api.get(pathOf(context), params);
      if (mine !== turn) return;
      shown = further ? [...shown, ...(answer.requests ?? [])] : (answer.requests ?? []);
      next = answer.next_page_token ?? "";
      found.update(shown);
      foot.hidden = next === "";
      replace(box, found.element, foot);
    } catch (error) {
      if (mine === turn) replace(box, failed(error, () => load()));
    } finally {
      more.disabled = false;
    }
  }

  load();
  return () => {
    turn += 1;
    range.stop();
  };
}

function columns(operator) {
  const right = (label, value) => ({ label, value, align: "right" });
  return [
    { label: "Ended (UTC)", value: (row) => time(row.end_time, "second") },
    { label: "Request", class: "mono", value: (row) => el("a", { href: href(row.request_id), text: row.request_id }) },
    ...(operator ? [{ label: "Tenant", value: (row) => row.tenant_id ?? "" }] : []),
    { label: "Model", value: (row) => row.model ?? "" },
    { label: "Status", value: status },
    right("Input", (row) => count(row.input_tokens ?? 0)), right("Output", (row) => count(row.output_tokens ?? 0)),
    right("Queue", (row) => ms(row.queue)), right("TTFT", (row) => ms(row.ttft)), right("E2E", (row) => ms(row.e2e)),
    right("Charge", (row) => (row.currency ? money(row.charge, row.currency) : "–")),
    ...(operator ? [{ label: "Worker", value: (row) => row.worker ?? "" }] : []),
  ];
}

function status(row) {
  const finish = word(row.finish_reason, "FINISH_REASON_");
  if (row.state !== "REQUEST_STATE_ENDED") return badge(STATES[row.state] ?? "unknown", "warn");
  return badge(row.error_reason || finish || "ended", TONES[finish] ?? "");
}

const rfc3339 = (seconds) => new Date(seconds * 1000).toISOString();

// --- one request ---

async function one(root, context, id) {
  const path = `${pathOf(context)}/${encodeURIComponent(id)}`;
  let left = false;
  let timer = null;
  let parts = null;

  async function load() {
    try {
      const model = read(await context.api.get(path));
      if (left) return;
      if (parts === null) parts = draw(root, context, model);
      else parts.update(model);
      if (!model.ended) timer = setTimeout(load, REFRESH_MS);
    } catch (error) {
      if (left) return;
      if (parts === null) replace(root, head(id), failed(error, load));
      else timer = setTimeout(load, REFRESH_MS);
    }
  }

  await load();
  return () => {
    left = true;
    clearTimeout(timer);
    parts?.destroy();
  };
}

function head(id, ...more) {
  return el("div", { class: "page-head" },
    el("div", { class: "request-title" }, el("a", { href: "#/requests", text: "Requests" }), el("h1", { class: "mono", text: id })), more);
}

/** The whole page of one request. Returns {update(model), destroy()}. */
function draw(root, context, model) {
  let histogram = null;
  const top = el("div", { class: "stack" });
  const drawn = panel("Timeline");
  const below = el("div", { class: "stack" });
  replace(root, top, drawn, below);
  const body = el("div");
  drawn.append(body);
  const picture = requestTimeline(body, model);

  function fill(now) {
    histogram?.destroy();
    const unstored = now.request.state === "REQUEST_STATE_UNSTORED";
    drawn.hidden = unstored;
    replace(top, head(now.request.request_id, status(now.request)), notes(now), unstored ? null : figures(now));
    if (unstored) {
      histogram = null;
      replace(below, el("div", { class: "grid" }, facts(now, context), placed(now)));
      return;
    }
    const gaps = panel("Gaps between tokens");
    const space = el("div");
    gaps.append(now.gaps.length ? space : empty("There are no gaps: it has fewer than two tokens."));
    replace(below, el("div", { class: "grid" }, gaps, charged(now)), el("div", { class: "grid" }, facts(now, context), placed(now)), events(now));
    histogram = now.gaps.length ? gapHistogram(space, now) : null;
  }

  fill(model);
  return {
    update(now) {
      fill(now);
      picture.update(now);
    },
    destroy() {
      histogram?.destroy();
      picture.destroy();
    },
  };
}

function notes(model) {
  const said = [];
  if (model.request.state === "REQUEST_STATE_UNSTORED") said.push("Accepted. Nothing of it is stored yet; this is what the scheduler knows.");
  if (model.request.state === "REQUEST_STATE_RUNNING") said.push("It runs, or its end is not stored yet: tokens so far. The page follows it.");
  if (model.leftOut) said.push(`${count(model.leftOut)} further tokens are left out: an answer holds no more.`);
  if (model.request.estimated) said.push("Not all tokens were counted by the model's own tokenizer: the charge is an estimate.");
  return said.map((words) => el("p", { class: "muted", text: words }));
}

function figures({ request, charge, attempts, events, ended }) {
  const first = events.find((each) => each.kind === "TIMELINE_KIND_FIRST_TOKEN");
  const cached = request.cached_input_tokens ? `${count(request.cached_input_tokens)} from the cache` : "";
  const reasoning = request.reasoning_tokens ? `${count(request.reasoning_tokens)} reasoning` : "";
  const voids = attempts.reduce((sum, each) => sum + each.voids, 0);
  return el("div", { class: "stats" },
    stat("Queue", ms(request.queue), request.cold_start ? `${ms(request.cold_start)} of it without a worker` : "until an engine had it"), stat("First token", ms(request.ttft ?? first?.raw.gap), "TTFT"),
    stat("Last token", ms(request.e2e), "E2E"), stat("Mean gap", ms(request.tpot), "TPOT"),
    stat("Input tokens", ended ? count(request.input_tokens ?? 0) : "–", ended ? cached : "when it has ended"), stat("Output tokens", count(request.output_tokens ?? 0), reasoning),
    stat("Attempts", count(request.attempts ?? 0), voids ? `${count(voids)} tokens made anew` : "", { tone: (request.attempts ?? 0) > 1 ? "warn" : "" }),
    stat("Charge", charge?.currency ? amountOf(charge.amount, charge.currency) : "–", charge?.currency || (charge ? "no price" : "when it has ended")));
}

/** Tokens x rate = amount, to the last decimal. */
function charged({ charge }) {
  const box = panel("Charge");
  if (!charge?.lines?.length) {
    const nothing = charge?.rate_version ? "Nothing is charged: it used nothing." : "Nothing is charged: there was no price.";
    box.append(empty(charge ? nothing : "It is charged when it has ended."));
    return box;
  }
  const per = (line) => (line.unit_price === undefined ? "" : `${amountOf(line.unit_price, charge.currency)}${line.name.endsWith("tokens") ? " / M" : ""}`);
  const factors = charge.lines.some((line) => (line.factor ?? "1") !== "1"); // of class batch
  const total = { name: "total", amount: charge.amount, sum: true };
  table(box, {
    caption: "What the charge is made of", rows: [...charge.lines, total], columns: [
      { label: "For", value: (line) => (line.sum ? el("strong", { text: `All, in ${charge.currency}` }) : [line.name.replaceAll("_", " "), line.reason ? el("span", { class: "muted small", text: ` ${line.reason}` }) : null]) },
      { label: "Quantity", align: "right", value: (line) => (line.quantity === undefined ? "" : count(line.quantity)) },
      { label: "× price", align: "right", value: per },
      ...(factors ? [{ label: "× factor", align: "right", value: (line) => line.factor ?? "" }] : []),
      { label: "= amount", align: "right", value: (line) => (line.sum ? el("strong", { text: amountOf(line.amount, charge.currency) }) : amountOf(line.amount, charge.currency)) },
    ],
  });
  const versions = [charge.rate_version, charge.present_rate_version !== charge.rate_version ? charge.present_rate_version : ""].filter(Boolean);
  box.append(el("p", { class: "muted small", text: `Price: ${versions.join(", now ") || "none"}. "/ M": for a million tokens.` }));
  return box;
}

function facts({ request, storage }, context) {
  const rows = [
    ["Tenant", request.tenant_id], ["Project", request.project_id], ["Key", request.key_id], ["Model", request.model], ["Revision", request.revision],
    ["Operation", word(request.operation, "OPERATION_")], ["Class", word(request.priority_class, "PRIORITY_CLASS_")], ["End user", request.end_user],
    ["Tags", Object.entries(request.tags ?? {}).map(([name, value]) => `${name}=${value}`).join(", ")],
    ["Accepted", `${time(request.accepted_time, "millisecond")} UTC`], ["Ended", request.end_time ? `${time(request.end_time, "millisecond")} UTC` : ""],
    ["Ended how", [word(request.finish_reason, "FINISH_REASON_"), request.error_reason].filter(Boolean).join(", ")],
    ["Worker", request.worker], ["Edge", request.edge], ["Engine", request.engine],
    ["Energy", request.energy_joules === undefined ? "" : `${request.energy_joules.toPrecision(3)} J`],
  ];
  if (storage && isOperator(context)) {
    rows.push(["On the log", `sequence ${count(storage.stream_sequence)}`]);
    if (storage.holder) rows.push(["Stored by", `${storage.holder}, sequences ${count(storage.first_sequence)} to ${count(storage.last_sequence)}, try ${count(storage.tries)}`]);
  }
  const known = rows.filter(([, value]) => value);
  return panel("What it is", el("dl", { class: "facts" }, known.map(([name, value]) => [el("dt", { text: name }), el("dd", { text: value })])));
}

function placed({ placement }) {
  if (!placement) return null;
  const box = panel("Placement", el("p", { text: `${placement.outcome ?? ""}${placement.worker ? ` on ${placement.worker}` : ""}: ${placement.reason ?? ""}.` }));
  table(box, {
    caption: "Workers that were seen", rows: placement.verdicts ?? [], nothing: "No worker was seen.", columns: [
      { label: "Worker", value: (row) => row.worker ?? "" },
      { label: "Could take it", value: (row) => (row.eligible ? "yes" : `no: ${row.reason ?? ""}`) },
      { label: "Score", align: "right", value: (row) => (row.score ?? 0).toFixed(3) },
    ],
  });
  box.append(el("p", { class: "muted small", text: "As the scheduler remembers it; it forgets the oldest ones." }));
  return box;
}

function events(model) {
  const box = panel("Events");
  const details = ({ raw }) => [
    raw.detail, raw.gap === undefined ? "" : `token ${count(raw.index ?? 0)}, ${ms(raw.gap)} after ${raw.index ? "the one before" : "acceptance"}`,
    raw.kind === "TIMELINE_KIND_DELIVERED" ? `${count(raw.tokens ?? 0)} tokens` : "", raw.amount ? money(raw.amount, raw.currency ?? "") : "",
  ].filter(Boolean).join(", ");
  table(box, {
    caption: "Events in order of time", rows: model.events, nothing: "Nothing is stored yet.", columns: [
      { label: "After", align: "right", value: (event) => (event.at === 0 ? "0" : milliseconds(event.at / 1000)), title: (event) => event.raw.time },
      { label: "What", value: (event) => event.label },
      { label: "Attempt", align: "right", value: (event) => event.attempt || "" },
      { label: "Who", value: (event) => event.actor },
      { label: "Details", value: details },
    ],
  });
  return box;
}
