// Usage and costs by buckets and groups, from the operator's API or from a tenant's own, in one shape:
// usage {time, name, estimated, requests, errors, input, cached, output, reasoning}, cost {time, name, estimated, amount, currency}.

import { sum } from "./decimal.js";

export const SECONDS = { minute: 60, hour: 3600, day: 86400 };
const WIDTHS = { minute: "1m", hour: "1h", day: "1d" };
const PAGE = { minute: 1440, hour: 168, day: 31 }; // the most buckets that the API gives at once
const MOST_BUCKETS = 1500;
const KINDS = ["completions", "embeddings", "inference"];
const COUNTS = ["requests", "errors", "input", "cached", "output", "reasoning"];
// By what rows are told apart: the names in the operator's API and in the tenant's.
export const GROUPS = [
  { value: "", label: "nothing" },
  { value: "tenant", label: "tenant", operator: "tenant" },
  { value: "project", label: "project", operator: "project", tenant: "project_id" },
  { value: "model", label: "model", operator: "model", tenant: "model" },
  { value: "key", label: "API key", operator: "key", tenant: "api_key_id" },
  { value: "user", label: "end user", operator: "user", tenant: "inferbus_end_user" },
  { value: "tags", label: "tags", operator: "tags", tenant: "inferbus_tags" },
];

/** The bucket to ask for: the chosen one, or a longer one where there would be too many; without a choice what fits. */
export function bucketOf({ from, to }, chosen) {
  const span = to - from;
  const wanted = chosen || (span <= 3 * 3600 ? "minute" : span <= 7 * 86400 ? "hour" : "day");
  return ["minute", "hour", "day"].find((one) => SECONDS[one] >= SECONDS[wanted] && span / SECONDS[one] <= MOST_BUCKETS) ?? "day";
}

/** {usage, costs, bucket, costBucket}. `group`: one of GROUPS' values; `tenant`: an operator's choice, "" for all. */
export async function loadUsage({ api, role }, { range, bucket, group, tenant, signal }) {
  const width = bucketOf(range, bucket);
  const asked = { api, range, bucket: width, group: GROUPS.find((one) => one.value === group) ?? GROUPS[0], tenant, signal };
  if (role === "admin") {
    const [usage, costs] = await Promise.all([operatorUsage(asked), operatorCosts(asked)]);
    return { usage, costs, bucket: width, costBucket: width };
  }
  const [usage, costs] = await Promise.all([tenantUsage(asked), tenantCosts(asked)]);
  return { usage, costs, bucket: width, costBucket: "day" };
}

/** The beginnings of all buckets of a range. */
export function bucketTimes({ from, to }, bucket) {
  const step = SECONDS[bucket];
  const first = Math.floor(from / step) * step;
  return Array.from({ length: Math.ceil((to - first) / step) }, (_, at) => first + at * step);
}

/** Rows of usage by group, with all buckets added up; counted and estimated ones apart. */
export function totals(usage, costs) {
  const groups = new Map();
  const of = (row) => {
    const key = `${row.estimated}\n${row.name}`;
    if (!groups.has(key)) groups.set(key, { name: row.name, estimated: row.estimated, ...Object.fromEntries(COUNTS.map((one) => [one, 0])), amounts: {} });
    return groups.get(key);
  };
  for (const row of usage) {
    const group = of(row);
    for (const name of COUNTS) group[name] += row[name];
  }
  for (const row of costs) {
    const { amounts } = of(row);
    (amounts[row.currency] ??= []).push(row.amount);
  }
  const rows = [...groups.values()];
  for (const row of rows) row.costs = Object.fromEntries(Object.entries(row.amounts).map(([currency, list]) => [currency, sum(list)]));
  return rows;
}

async function operatorUsage({ api, range, bucket, group, tenant, signal }) {
  const { rows = [] } = await api.get("/inferbus/v1/usage/query", operatorQuery(range, bucket, group, tenant), { signal });
  return rows.map((row) => ({
    ...operatorGroup(row, group), requests: whole(row.requests), errors: whole(row.errors), input: whole(row.input_tokens),
    cached: whole(row.cached_input_tokens), output: whole(row.output_tokens), reasoning: whole(row.reasoning_tokens),
  }));
}

async function operatorCosts({ api, range, bucket, group, tenant, signal }) {
  const { rows = [] } = await api.get("/inferbus/v1/costs", operatorQuery(range, bucket, group, tenant), { signal });
  return rows.map((row) => ({ ...operatorGroup(row, group), amount: row.amount || "0", currency: row.currency ?? "" }));
}

function operatorQuery({ from, to }, bucket, group, tenant) {
  const text = (second) => new Date(second * 1000).toISOString();
  return { start: text(from), end: text(to), bucket, by: group.operator ?? "", tenant };
}

function operatorGroup({ bucket_time: begins, group: values = {}, estimated = false }, group) {
  const field = { tenant: "tenant_id", project: "project_id", key: "key_id", model: "model", user: "end_user", tags: "tags" }[group.value];
  return { time: Date.parse(begins) / 1000, name: nameOf(group, values[field]), estimated };
}

async function tenantUsage({ api, range, bucket, group, signal }) {
  const all = await Promise.all(KINDS.map((kind) => pages(api, `/v1/organization/usage/${kind}`, {
    start_time: range.from, end_time: range.to, bucket_width: WIDTHS[bucket], limit: PAGE[bucket], "group_by[]": group.tenant,
  }, signal)));
  return all.flat().map(([begins, row]) => ({
    time: floor(begins, bucket), name: nameOf(group, row[group.tenant]), estimated: row.inferbus_estimated,
    requests: row.num_model_requests, errors: row.inferbus_errors, input: row.input_tokens ?? 0, cached: row.input_cached_tokens ?? 0,
    output: row.output_tokens ?? 0, reasoning: row.inferbus_output_reasoning_tokens ?? 0,
  }));
}

/** Costs are told apart by model in their line items only: "MODEL, input_tokens". */
async function tenantCosts({ api, range, group, signal }) {
  const by = group.value === "model" ? "line_item" : group.tenant;
  const rows = await pages(api, "/v1/organization/costs", {
    start_time: range.from, end_time: range.to, bucket_width: "1d", limit: 180, "group_by[]": by,
  }, signal);
  return rows.map(([begins, row]) => ({
    time: floor(begins, "day"), estimated: row.inferbus_estimated, amount: row.amount.value, currency: row.amount.currency.toUpperCase(),
    name: nameOf(group, group.value === "model" ? row.line_item.replace(/, [a-z_]+$/, "") : row[by]),
  }));
}

async function pages(api, path, params, signal) {
  const found = [];
  let page = null;
  do {
    const answer = await api.exact(path, { ...params, page }, { signal });
    for (const bucket of answer.data) for (const row of bucket.results) found.push([bucket.start_time, row]);
    page = answer.next_page;
  } while (page);
  return found;
}

function nameOf(group, value) {
  if (group.value === "") return "all";
  if (group.value === "tags") {
    const pairs = Object.entries(value ?? {}).sort(([one], [other]) => (one < other ? -1 : 1));
    return pairs.map(([name, text]) => `${name}=${text}`).join(", ") || "(none)";
  }
  return value || "(none)";
}

const floor = (second, bucket) => Math.floor(second / SECONDS[bucket]) * SECONDS[bucket];
const whole = (text) => Number(text ?? 0);
