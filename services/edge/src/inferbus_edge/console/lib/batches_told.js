// What is told of one batch: its figures, its faults, its times, its metadata. Made of the API's object, and not
// followed here.

import {
  deadlineText,
  endOf,
  faultsText,
  isLate,
  isRunning,
  leftText,
  meanRate,
  MOST_FAULTS,
  progress,
  rateText,
  times,
} from "./batches_data.js";
import { nowSeconds } from "./batches_parts.js";
import { download, panel, stat, table } from "./controls.js";
import { csv } from "./csv.js";
import { el } from "./dom.js";
import { compact, count, duration, percent, time } from "./format.js";

export function figures(batch, rate) {
  const { total, completed, failed: faulty, part } = progress(batch);
  const running = isRunning(batch);
  const cutOff = faulty > 0 && (batch.status === "cancelled" || batch.status === "expired");
  const late = isLate(batch, rate, nowSeconds());
  const usage = batch.usage ?? {};
  const cached = usage.input_tokens_details?.cached_tokens;
  const reasoning = usage.output_tokens_details?.reasoning_tokens;
  const ended = endOf(batch);
  const shown = [
    stat("Lines", part === null ? "–" : count(total)),
    stat("Answered", count(completed), part ? percent(completed / total) : ""),
    stat(
      "With an error",
      count(faulty),
      cutOff ? "those that did not run among them" : faulty && total ? percent(faulty / total) : "",
      { tone: faulty ? "bad" : "" },
    ),
    stat("Rate", rateText(running ? rate : meanRate(batch)), running ? "over the last minute" : "of all of its time"),
    running
      ? stat("Time left", leftText(batch, rate), late ? "longer than until its deadline" : "at this rate", {
          tone: late ? "warn" : "",
        })
      : stat("Took", ended ? tookText(ended - batch.created_at) : "–", "from its creation"),
    running ? stat("Deadline", deadlineText(batch, nowSeconds()), `${time(batch.expires_at, "minute")} UTC`) : null,
    stat(
      "Input tokens",
      compact(usage.input_tokens ?? 0),
      cached ? `${percent(cached / usage.input_tokens)} from the cache` : "",
      { title: count(usage.input_tokens ?? 0) },
    ),
    stat("Output tokens", compact(usage.output_tokens ?? 0), reasoning ? `${compact(reasoning)} of reasoning` : "", {
      title: count(usage.output_tokens ?? 0),
    }),
  ];
  return shown.filter(Boolean);
}

/** The API's times are whole seconds. */
const tookText = (seconds) => (seconds < 1 ? "less than 1s" : duration(seconds));

export function faultPanel(batch) {
  const rows = batch.errors?.data ?? [];
  if (rows.length === 0) return null;
  const columns = [
    ["line", (row) => row.line ?? ""],
    ["code", (row) => row.code],
    ["message", (row) => row.message],
    ["param", (row) => row.param ?? ""],
  ];
  const save = el("button", {
    type: "button",
    class: "button",
    text: "Export CSV",
    onclick: () => download(csv(columns, rows), `${batch.id}_faults.csv`),
  });
  const box = panel("What is wrong with its file");
  box.append(
    el(
      "div",
      { class: "form-row" },
      el("p", {
        text:
          `${capital(faultsText(rows.length))}; nothing has run and nothing is charged. ` +
          "Correct the file and make a new batch.",
      }),
      save,
    ),
  );
  table(box, {
    caption: "Faults by line",
    rows,
    limit: MOST_FAULTS,
    columns: [
      {
        label: "Line",
        align: "right",
        value: (row) => (row.line ? count(row.line) : "file"),
        sort: (row) => row.line ?? 0,
      },
      { label: "Code", class: "mono", value: (row) => row.code ?? "", sort: (row) => row.code },
      { label: "What is wrong", class: "wrap", value: (row) => row.message ?? "" },
      { label: "Parameter", class: "mono", value: (row) => row.param ?? "", sort: (row) => row.param },
    ],
  });
  return box;
}

export function facts(batch) {
  const rows = [
    ["Endpoint", batch.endpoint],
    ["Model", batch.model ?? (progress(batch).total ? "several" : "")],
    ["Completion window", batch.completion_window],
    ...times(batch).map(([what, at]) => [what, `${time(at)} UTC`]),
    ["Deadline", `${time(batch.expires_at)} UTC`],
    ["Input file", batch.input_file_id],
    ["Output file", batch.output_file_id],
    ["Error file", batch.error_file_id],
  ];
  return panel("What it is", list(rows));
}

export function metadata(batch) {
  const entries = Object.entries(batch.metadata ?? {}).sort(); // they come in any order
  return panel("Metadata", entries.length ? list(entries) : el("p", { class: "muted", text: "It has none." }));
}

const list = (rows) =>
  el(
    "dl",
    { class: "facts" },
    rows.filter(([, value]) => value).map(([name, value]) => [el("dt", { text: name }), el("dd", { text: value })]),
  );
const capital = (text) => text[0].toUpperCase() + text.slice(1);
