// The plots of the analytics page: what each asks, shows, and in which unit.

import { compact, count, milliseconds, percent } from "./format.js";

const latency = (value) => milliseconds(value * 1000);
const PERCENTILES = [["p50", "P50"], ["p95", "P95"], ["p99", "P99"]];

/** `columns`: of the answer, and how they are called. `grouped`: those that are shown of each group instead. `operator`:
 *  shown to operators only, who alone may ask for it. */
export const PANELS = [
  {
    measure: "requests", title: "Requests", unit: "per second", kind: "stacked", format: compact,
    note: "Requests that ended, by how they ended.",
    columns: [["answered_rate", "answered", "--series-1"], ["cancelled_rate", "left by the client", "--series-5"], ["failed_rate", "failed", "--bad"]],
    grouped: [["request_rate", ""]], groupedNote: "Requests that ended.",
  },
  {
    measure: "tokens", title: "Tokens", unit: "per second", kind: "line", format: compact,
    note: "Of requests that ended; cached input is a part of the input.",
    columns: [["input_rate", "input"], ["cached_input_rate", "cached input"], ["output_rate", "output"]],
    grouped: [["output_rate", ""]], groupedNote: "Output tokens of requests that ended.",
  },
  { measure: "ttft", title: "Time to first token", note: "From acceptance to the first token.", ...latencies() },
  { measure: "itl", title: "Inter-token latency", note: "Every gap between two tokens, by the minute of the token.", ...latencies() },
  { measure: "queue", title: "Queue time", note: "From acceptance until the engine had it.", ...latencies() },
  { measure: "e2e", title: "End to end", note: "From acceptance to the last token.", ...latencies() },
  { measure: "tpot", title: "Time per output token", note: "The mean gap of each request.", ...latencies() },
  {
    measure: "goodput", title: "Goodput", unit: "requests per second", kind: "line", format: compact,
    note: "Answered within the targets, against all but what clients left.",
    columns: [["good_rate", "within targets"], ["offered_rate", "offered"]],
    grouped: [["good_rate", ""]], groupedNote: "Answered within the targets.",
  },
  {
    measure: "errors", title: "Failed requests", unit: "requests per step", kind: "bars", format: compact,
    note: "By class and reason.", columns: [["failed", ""]], grouped: [["failed", ""]], groupedNote: "For all reasons.",
  },
  {
    measure: "cache", title: "Cache hit rate", unit: "share of input tokens", kind: "line", format: percent,
    note: "Input that came from the KV cache.", columns: [["hit_rate", "hit rate"]], grouped: [["hit_rate", ""]],
  },
  {
    measure: "in_flight", title: "In flight", unit: "requests at a time", kind: "line", format: compact,
    note: "The mean of each step. What still runs is not in it, so the end of the line is low.",
    columns: [["in_flight", "in flight"]], grouped: [["in_flight", ""]],
  },
  {
    measure: "stalls", title: "Stalls", unit: "gaps per step", kind: "bars", format: compact,
    note: "Gaps of more than a second between two tokens.", columns: [["stalls", "stalls"]], grouped: [["stalls", ""]],
  },
  {
    measure: "cost", title: "Price of a million tokens", unit: "currency of the price", kind: "line", format: compact,
    note: "Charges over input and output tokens, corrections included.",
    columns: [["per_million", ""]], grouped: [["per_million", ""]],
  },
  {
    measure: "output", title: "Output as it is made", unit: "tokens per second", kind: "line", format: compact, operator: true,
    note: "With what still runs, and with void tokens of superseded attempts.",
    columns: [["output_rate", "output"]], grouped: [["output_rate", ""]],
  },
  {
    measure: "interruptions", title: "Interrupted requests", unit: "requests per step", kind: "bars", format: compact, operator: true,
    note: "Requests that another attempt had to finish.",
    columns: [["interrupted", "interrupted"]], grouped: [["interrupted", ""]],
  },
  {
    measure: "interruptions", title: "Tokens made in vain", unit: "tokens per step", kind: "bars", format: compact, operator: true,
    note: "Void tokens of interrupted requests; they are not charged.",
    columns: [["void_tokens", "in vain"]], grouped: [["void_tokens", ""]],
  },
  {
    measure: "billing_lag", title: "Billing lag", operator: true,
    note: "From a request's end until it could be billed.", ...latencies(),
  },
  {
    measure: "energy", title: "Energy of a token", unit: "joules", kind: "line", format: compact, operator: true,
    note: "Input and output tokens of requests whose energy was measured.",
    columns: [["per_token", "joules"]], grouped: [["per_token", ""]],
  },
];

function latencies() {
  return {
    unit: "time", kind: "line", format: latency, columns: PERCENTILES, grouped: [["p99", ""]], groupedTitle: "P99",
  };
}

/** The row of figures: each is one number of one measure over the whole range. `tone(value)`: good, warn or bad. */
export const FIGURES = [
  { measure: "requests", label: "Requests", column: "request_rate", shown: (value) => `${compact(value)}/s`, note: (row) => `${count(row.numbers?.requests)} ended` },
  { measure: "tokens", label: "Output tokens", column: "output_rate", shown: (value) => `${compact(value)}/s`, note: (row) => `${count(row.numbers?.output_tokens)} in all` },
  { measure: "ttft", label: "First token, P99", column: "p99", shown: latency, note: (row) => `P50 ${latency(row.numbers?.p50)}` },
  { measure: "itl", label: "Token gap, P99", column: "p99", shown: latency, note: (row) => `P50 ${latency(row.numbers?.p50)}` },
  {
    measure: "requests", label: "Failed", column: "failed_share", shown: percent, note: (row) => `${count(row.numbers?.failed)} requests`,
    tone: (value) => (value >= 0.05 ? "bad" : value >= 0.01 ? "warn" : ""),
  },
  { measure: "cache", label: "Cache hit rate", column: "hit_rate", shown: percent, note: () => "of input tokens" },
  { measure: "goodput", label: "Goodput", column: "good_share", shown: percent, note: (row) => `${compact(row.numbers?.good_rate)}/s within targets` },
  { measure: "in_flight", label: "In flight", column: "in_flight", shown: compact, note: () => "on average" },
];

// Of each group, over the whole range.
export const GROUP_COLUMNS = [
  { label: "Requests", measure: "requests", column: "requests", shown: count },
  { label: "Failed", measure: "requests", column: "failed_share", shown: percent },
  { label: "First token P99", measure: "ttft", column: "p99", shown: latency },
  { label: "Token gap P99", measure: "itl", column: "p99", shown: latency },
  { label: "End to end P99", measure: "e2e", column: "p99", shown: latency },
  { label: "Within targets", measure: "goodput", column: "good_share", shown: percent },
];
