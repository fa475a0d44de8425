// What the API says of revisions and rollouts, as rows and texts. Nothing here asks or touches the page. 64-bit numbers
// are texts in protobuf's JSON, and what is zero, empty or false is left out.

import { count, milliseconds, percent } from "./format.js";

const TIMES = new Set(["ttft", "ttft_p95", "itl", "itl_p95"]);
const FIGURES = {
  error_rate: "Failed requests", ttft: "TTFT, median", ttft_p95: "TTFT, P95", itl: "ITL, median", itl_p95: "ITL, P95",
  agreement: "Agreement on the probes", length_rate: "Ran into their limit", empty_rate: "Empty answers",
};
const VERDICTS = { good: "good", bad: "bad", open: "" };
export const STATES = {
  warming: { label: "warming", tone: "warn" },
  running: { label: "running", tone: "good" },
  paused: { label: "paused", tone: "warn" },
  promoted: { label: "promoted", tone: "good" },
  rolled_back: { label: "rolled back", tone: "bad" },
};
export const STAGES = ["stable", "canary", "draft", "deprecated", "retired"];

/** ROLLOUT_STATE_ROLLED_BACK → rolled_back. */
export function word(value, prefix) {
  return (value ?? "").replace(prefix, "").toLowerCase();
}

export const stateOf = (record) => word(record?.state, "ROLLOUT_STATE_");
export const stageOf = (revision) => word(revision?.stage, "REVISION_STAGE_");

/** Thousandths as people say them: 50 → 5 %. */
export function part(permille) {
  return `${(permille ?? 0) / 10}\u202f%`;
}

/** Rows of the list, by model: those that have a rollout, and those with no more than revisions. */
export function models(rollouts, revisions) {
  const rows = new Map();
  for (const { rollout = {}, workers = {} } of rollouts) rows.set(rollout.model, rowOf(rollout, workers));
  for (const { revision = {}, workers = 0 } of revisions) {
    if (!rows.has(revision.model)) rows.set(revision.model, rowOf({ model: revision.model }, {}));
    const row = rows.get(revision.model);
    row.revisions += 1;
    if (workers) row.workers[revision.revision] = workers;
  }
  return [...rows.values()].sort((one, other) => one.model.localeCompare(other.model));
}

function rowOf(record, workers) {
  return {
    model: record.model, stable: record.stable_revision ?? "", candidate: record.candidate_revision ?? "",
    weight: record.weight_permille ?? 0, state: stateOf(record), workers: { ...workers }, revisions: 0,
    last: (record.events ?? []).at(-1) ?? null,
  };
}

/** {"f16": 2, "q8": 1} → "f16: 2, q8: 1". */
export function workersText(workers) {
  const names = Object.keys(workers ?? {}).filter((name) => workers[name]).sort();
  return names.map((name) => `${name || "(none)"}: ${count(workers[name])}`).join(", ") || "none";
}

/** Of one model, by stage as STAGES has them, the newest of each first as the API lists them. */
export function revisionRows(revisions) {
  const rank = (one) => (STAGES.indexOf(stageOf(one.revision)) + STAGES.length + 1) % (STAGES.length + 1);
  return [...revisions].sort((one, other) => rank(one) - rank(other));
}

/** Bytes of all files of a revision; null: it names none. */
export function sizeOf(revision) {
  const files = revision.artifacts ?? [];
  return files.length ? files.reduce((sum, one) => sum + Number(one.size_bytes ?? 0), 0) : null;
}

/** The steps of a rollout: [{permille, label, state: done, now or next}]. One that is over without a promotion has gone as
 *  far as the weight that it was left with. */
export function steps(record) {
  const state = stateOf(record);
  const reached = record.candidate_revision ? (record.weight_permille ?? 0) : leftAt(record);
  const under = Boolean(record.candidate_revision);
  return (record.step_permille ?? []).map((permille) => ({
    permille, label: part(permille),
    state: state === "promoted" || permille < reached ? "done" : under && permille === reached ? "now" : permille === reached ? "left" : "next",
  }));
}

function leftAt(record) {
  const last = [...(record.events ?? [])].reverse().find((one) => one.action === "rolled_back");
  return last?.weight_permille ?? 0;
}

/** Of a rollout's figures: texts by column, and how it was judged. */
export function figureRows(figures) {
  return (figures ?? []).map((one) => {
    const verdict = word(one.verdict, "ROLLOUT_VERDICT_");
    return {
      name: one.name, label: FIGURES[one.name] ?? one.name, candidate: valueText(one, "candidate"), stable: valueText(one, "stable"),
      allowed: valueText(one, "limit"), p: one.p_value === undefined ? "" : probability(one.p_value),
      samples: `${count(one.candidate_samples ?? 0)} / ${count(one.stable_samples ?? 0)}`,
      verdict: verdict || "open", tone: VERDICTS[verdict] ?? "",
    };
  });
}

function valueText(figure, field) {
  const value = figure[field];
  if (value === undefined || value === null) return "";
  return TIMES.has(figure.name) ? milliseconds(Number(value) * 1000) : percent(value);
}

/** Two digits; what is all but impossible by its power of ten. */
export function probability(value) {
  const number = Number(value);
  if (!Number.isFinite(number)) return "–";
  return number !== 0 && number < 0.001 ? number.toExponential(1) : String(Number(number.toPrecision(2)));
}

/** What was done, the newest first: {time, action, tone, revision, weight, reason, message, by, figures}. */
export function events(record) {
  return [...(record.events ?? [])].reverse().map((one) => ({
    time: one.event_time, action: (one.action ?? "").replaceAll("_", " "), tone: toneOf(one.action), revision: one.revision ?? "",
    weight: one.weight_permille ? part(one.weight_permille) : "", reason: (one.reason ?? "").replaceAll("_", " "),
    message: one.message ?? "", by: one.actor_key_id || "by rule", figures: figureRows(one.figures),
  }));
}

function toneOf(action) {
  if (action === "rolled_back") return "bad";
  if (["promoted", "advanced", "warm"].includes(action)) return "good";
  return action === "paused" ? "warn" : "";
}

/** Of how a revision compares with what it was made from: {name, value, bounds, passed, detail}. */
export function validationRows(validation) {
  return (validation?.figures ?? []).map((one) => ({
    name: (one.name ?? "").replaceAll("_", " "), value: measured(one.value ?? 0, one.unit), passed: Boolean(one.passed), detail: one.detail ?? "",
    bounds: [["≥", one.at_least], ["≤", one.at_most]].filter(([, bound]) => bound !== undefined).map(([sign, bound]) => `${sign} ${short(bound)}`).join(", "),
  }));
}

const measured = (value, unit) => (unit && unit !== "1" ? `${short(value)} ${unit}` : short(value));
const short = (value) => String(Number(Number(value).toPrecision(4)));

/** What can be done by hand with a rollout as it is: [{move, label, danger, asked: what is confirmed}]. */
export function moves(record) {
  const { candidate_revision: candidate = "", stable_revision: stable = "", previous_revision: previous = "" } = record;
  const state = stateOf(record);
  const found = [];
  const add = (move, label, asked, danger = false) => found.push({ move, label, asked, danger });
  if (candidate) {
    add("promote", "Promote", `Have ${candidate} serve all requests now, whatever its figures say?`);
    if (state === "running") add("pause", "Pause", `Take no further step by itself? A bad figure still takes ${candidate} back.`);
    if (state === "paused") add("resume", "Resume", "Go on? The step begins anew.");
    add("roll_back", "Roll back", `Take ${candidate} back now? ${stable} serves all requests; what runs ends well.`, true);
  } else if (previous) {
    add("return", `Return to ${previous}`, `Have ${previous} serve all requests again, in the place of ${stable}?`, true);
    if (record.keep_previous) add("let_go", `Let ${previous} go`, `Keep the workers of ${previous} no longer? A return then has to start them again.`);
  }
  return found;
}

/** The pins with this tenant's in its place; `revision` "": without it. */
export function pinsWith(pins, tenant, revision) {
  const others = (pins ?? []).filter((one) => one.tenant_id !== tenant);
  return revision ? [...others, { tenant_id: tenant, revision }] : others;
}

/** Names of the revisions that may serve: none that failed its validation or is retired. */
export function servable(revisions) {
  return revisions.map((one) => one.revision).filter((one) => stageOf(one) !== "retired" && (!one.validation || one.validation.passed))
    .map((one) => one.revision);
}

/** Those that a rollout can bring: of the servable ones, none that serves already. */
export function deployable(revisions, record) {
  return servable(revisions).filter((name) => name !== record.stable_revision && name !== record.candidate_revision);
}
