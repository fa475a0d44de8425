// What is told of one model: its revisions, how they were validated, and its history.

import { badge, empty, panel, table } from "./controls.js";
import { revisionRows, sizeOf, stageOf, validationRows } from "./deployments_data.js";
import { figureTable, unfolding } from "./deployments_parts.js";
import { el } from "./dom.js";
import { bytes, count, duration, time } from "./format.js";

const TONES = { stable: "good", canary: "warn", retired: "bad" };
const MAY_RETIRE = new Set(["draft", "deprecated"]);

/** `retire(revision)`: the button for it. */
export function revisionPart(revisions, opened, retire) {
  const rows = revisionRows(revisions);
  const listed = table(null, {
    caption: "Revisions", rows, nothing: "No revision was made known: inferbus models, or POST /inferbus/v1/revisions, does that.",
    columns: [
      { label: "Revision", class: "mono", value: ({ revision }) => revision.revision, title: ({ revision }) => revision.source || null },
      { label: "Stage", value: ({ revision }) => badge(stageOf(revision), TONES[stageOf(revision)] ?? "") },
      { label: "Precision", value: ({ revision }) => revision.precision || "–" },
      { label: "Engine", value: ({ revision }) => revision.engine || "–" },
      { label: "Size", align: "right", value: ({ revision }) => (sizeOf(revision) === null ? "–" : bytes(sizeOf(revision))) },
      { label: "Memory", align: "right", value: ({ revision }) => (revision.memory_bytes ? bytes(revision.memory_bytes) : "–") },
      { label: "Validation", value: ({ revision }) => validationBadge(revision.validation) },
      { label: "Derived from", class: "mono", value: ({ revision }) => revision.derived_from || "–" },
      { label: "Workers", align: "right", value: ({ workers }) => count(workers ?? 0) },
      { label: "Made (UTC)", value: ({ revision }) => time(revision.create_time, "minute") },
      { label: "", value: ({ revision }) => (MAY_RETIRE.has(stageOf(revision)) ? retire(revision.revision) : "") },
    ],
  }).element;
  const validated = rows.filter(({ revision }) => revision.validation?.figures?.length);
  return panel("Revisions", listed,
    validated.length ? el("div", { class: "stack tight" }, validated.map(({ revision }) => validationOf(revision, opened))) : null);
}

function validationBadge(validation) {
  if (!validation) return "none";
  return validation.passed ? badge("passed", "good") : badge("failed", "bad");
}

function validationOf({ revision, validation }, opened) {
  const took = validation.duration ? `, in ${duration(Number.parseFloat(validation.duration))}` : "";
  const against = validation.reference ? ` against ${validation.reference}` : "";
  return unfolding(`validation-${revision}`, opened, { class: "deploy-fold" },
    [el("span", { class: "mono", text: revision }), " ", validationBadge(validation), el("span", { class: "muted", text: `${against}${took}` })],
    table(null, {
      caption: `Validation of ${revision}`, rows: validationRows(validation),
      columns: [
        { label: "Figure", value: (row) => row.name },
        { label: "Value", align: "right", value: (row) => row.value },
        { label: "Bounds", align: "right", value: (row) => row.bounds || "only told" },
        { label: "Verdict", value: (row) => (row.bounds ? badge(row.passed ? "passed" : "failed", row.passed ? "good" : "bad") : "") },
        { label: "Measured on", class: "wrap", value: (row) => row.detail },
      ],
    }).element);
}

/** `rows`: see events(). */
export function historyList(rows, opened) {
  if (rows.length === 0) return empty("Nothing was decided yet.");
  return el("ol", { class: "deploy-history" }, rows.map((one) => {
    const line = [
      el("span", { class: "muted small deploy-time", text: time(one.time) }), badge(one.action, one.tone),
      el("span", { text: [one.revision, one.weight].filter(Boolean).join(" · ") }), el("span", { class: "muted small", text: `${one.reason} · ${one.by}` }),
      el("span", { class: "deploy-message", text: one.message }),
    ];
    if (one.figures.length === 0) return el("li", { class: "deploy-event" }, line);
    return el("li", {}, unfolding(`event-${one.time}-${one.action}`, opened, { class: "deploy-fold" }, el("span", { class: "deploy-event" }, line),
      figureTable(one.figures, `Figures of ${one.action}, ${time(one.time)}`)));
  }));
}
