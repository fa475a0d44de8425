// Usage and cost over time, by groups, as plots, a table and a CSV file.

import { badge, download, failed, filters, loading, panel, stat, table, timeRange } from "./controls.js";
import { csv } from "./csv.js";
import { compare, sum } from "./decimal.js";
import { el, replace } from "./dom.js";
import { amountOf, compact, count, money, percent, time } from "./format.js";
import { timeSeries } from "./plot.js";
import { bucketTimes, GROUPS, loadUsage, SECONDS, totals } from "./usage_data.js";
import { listTenants, tenantField } from "./usage_tenants.js";

const DRAWN = 7; // groups with a series of their own
const OTHERS = "others";

export function renderReport({ tools, body }, context) {
  const operator = context.role === "admin";
  const choices = GROUPS.filter((one) => one.value !== "" && (operator || one.tenant)).map(({ value, label }) => ({ value, label }));
  const range = timeRange(context, () => load(), { fallback: "24h" });
  const chosen = filters(context, [
    ...(operator ? [tenantField()] : []),
    { name: "by", label: "Group by", options: choices, all: "nothing" },
    { name: "bucket", label: "Bucket", options: ["minute", "hour", "day"].map((one) => ({ value: one, label: one })), all: "automatic" },
  ], () => load());
  const save = el("button", { type: "button", class: "button", text: "Export CSV", disabled: true, onclick: () => download(file(), fileName()) });
  replace(tools, range.element, chosen.element, save);
  replace(body, loading());

  let asking = null;
  let plots = [];
  let data = null;
  let shape = "";
  let parts = null;

  listTenants(context, chosen);
  load();

  async function load() {
    asking?.abort();
    const mine = (asking = new AbortController());
    const { tenant = "", by, bucket } = chosen.values();
    const asked = range.value();
    try {
      const found = await loadUsage(context, { range: asked, bucket, group: by, tenant, signal: mine.signal });
      if (mine.signal.aborted) return;
      data = { ...found, range: asked, by };
      save.disabled = false;
      show();
    } catch (error) {
      if (mine.signal.aborted) return;
      clear();
      save.disabled = true;
      replace(body, failed(error, load));
    }
  }

  function show() {
    const rows = totals(data.usage, data.costs);
    const currencies = [...new Set(data.costs.map((one) => one.currency))].sort();
    const now = `${data.by}|${currencies}`;
    if (shape !== now || !parts) build(now, currencies);
    replace(parts.stats, figures(rows, currencies));
    parts.table.update(rows);
    for (const plot of plots) plot.draw();
  }

  /** Made anew when there is another group or another currency; a refresh only fills it. */
  function build(now, currencies) {
    clear();
    shape = now;
    const grid = el("div", { class: "grid" });
    const stats = el("div", { class: "stats" });
    const onSelect = (from, to) => range.set(from, to);
    const add = (options, series) => {
      const plot = timeSeries(grid, { kind: "bars", onSelect, ...options });
      plots.push({ destroy: plot.destroy, draw: () => plot.update(series()) });
    };
    add({ title: "Requests", unit: "per bucket" }, () => groupSeries((row) => row.requests));
    add({ title: "Tokens", unit: "per bucket" }, () => (data.by ? groupSeries((row) => row.input + row.output) : tokenSeries()));
    for (const currency of currencies) {
      add({ title: `Cost in ${currency}`, unit: "", format: (value) => compact(value) }, () => costSeries(currency));
    }
    parts = { stats, table: table(null, tableOf(currencies)) };
    replace(body, stats, grid, panel(data.by ? `By ${GROUPS.find((one) => one.value === data.by).label}` : "In all", parts.table.element));
  }

  function figures(rows, currencies) {
    const added = (name) => rows.reduce((total, row) => total + row[name], 0);
    const [requests, errors, input, cached] = ["requests", "errors", "input", "cached"].map(added);
    return [
      stat("Requests", compact(requests), requests > 999 ? count(requests) : ""),
      stat("Errors", compact(errors), requests ? percent(errors / requests) : "", { tone: errors ? "bad" : "" }),
      stat("Input tokens", compact(input), input ? `${percent(cached / input)} from the cache` : ""),
      stat("Output tokens", compact(added("output")), added("reasoning") ? `${compact(added("reasoning"))} of reasoning` : ""),
      ...currencies.map((currency) => {
        const amount = sum(rows.map((row) => row.costs[currency] ?? "0"));
        return stat(`Cost, ${currency}`, amountOf(amount, currency, shortPlaces(amount)), rows.some((row) => row.estimated && row.costs[currency]) ? "in part by estimated tokens" : "",
          { title: money(amount, currency) });
      }),
    ];
  }

  function tableOf(currencies) {
    const number = (label, field) => ({ label, align: "right", value: (row) => count(row[field]), sort: (row) => row[field] });
    return {
      caption: "Usage and cost by group",
      nothing: "Nothing was used in this range.",
      sort: { by: "Output", descending: true },
      columns: [
        { label: data.by ? capital(GROUPS.find((one) => one.value === data.by).label) : "Group", class: "wrap", sort: (row) => row.name,
          value: (row) => [row.name, row.estimated ? [" ", badge("estimated", "warn")] : null].flat() },
        number("Requests", "requests"), number("Errors", "errors"), number("Input", "input"), number("Cached", "cached"),
        number("Output", "output"), number("Reasoning", "reasoning"),
        ...currencies.map((currency) => ({
          label: `Cost, ${currency}`, align: "right", value: (row) => amountOf(row.costs[currency] ?? "0", currency), sort: (row) => new Amount(row.costs[currency] ?? "0"),
        })),
      ],
    };
  }

  /** All groups, the largest first: the same order, and so the same colours, in every plot. */
  function groups() {
    const sizes = new Map(data.costs.map((row) => [row.name, 0]));
    for (const row of data.usage) sizes.set(row.name, (sizes.get(row.name) ?? 0) + row.input + row.output);
    return [...sizes.keys()].sort((one, other) => sizes.get(other) - sizes.get(one) || (one < other ? -1 : 1));
  }

  function groupSeries(value) {
    return seriesOf(data.usage.map((row) => [row.time, row.name, value(row)]), data.bucket);
  }

  function costSeries(currency) {
    const rows = data.costs.filter((row) => row.currency === currency);
    // A float is good enough for a bar's height; figures and table add up the decimals.
    return { ...seriesOf(rows.map((row) => [row.time, row.name, Number(row.amount)]), data.costBucket), unit: `per ${data.costBucket}` };
  }

  function tokenSeries() {
    const rows = data.usage.flatMap((row) => [
      [row.time, "input, not cached", row.input - row.cached], [row.time, "input, cached", row.cached], [row.time, "output", row.output],
    ]);
    return seriesOf(rows, data.bucket, ["input, not cached", "input, cached", "output"]);
  }

  /** One series for each of the first names, and one for all others. */
  function seriesOf(rows, bucket, names = groups()) {
    const times = bucketTimes(data.range, bucket);
    const places = new Map(times.map((one, at) => [one, at]));
    const own = names.length > DRAWN + 1 ? names.slice(0, DRAWN) : names;
    const listed = own.length < names.length ? [...own, OTHERS] : own;
    const values = new Map(listed.map((name) => [name, new Array(times.length).fill(0)]));
    for (const [moment, name, value] of rows) {
      const at = places.get(moment);
      if (at !== undefined) values.get(own.includes(name) ? name : OTHERS)[at] += value;
    }
    return { times, series: listed.map((name) => ({ label: name, values: values.get(name) })), unit: `per ${bucket}`, step: SECONDS[bucket] };
  }

  function file() {
    const columns = [
      ["bucket", (row) => time(row.time).replace(" ", "T") + "Z"], ["what", (row) => (row.currency ? "cost" : "usage")],
      [data.by || "group", (row) => row.name], ["estimated", (row) => row.estimated],
      ["requests", (row) => row.requests], ["errors", (row) => row.errors], ["input_tokens", (row) => row.input], ["cached_input_tokens", (row) => row.cached],
      ["output_tokens", (row) => row.output], ["reasoning_tokens", (row) => row.reasoning], ["amount", (row) => row.amount], ["currency", (row) => row.currency],
    ];
    return csv(columns, [...data.usage, ...data.costs].sort((one, other) => one.time - other.time));
  }

  const fileName = () => `usage_${time(data.range.from, "day")}_${time(data.range.to, "day")}.csv`;

  function clear() {
    for (const plot of plots) plot.destroy();
    plots = [];
    parts = null;
  }

  return () => {
    asking?.abort();
    range.stop();
    clear();
  };
}

const capital = (text) => text[0].toUpperCase() + text.slice(1);

/** Four decimals, or as many as it takes to show three digits of a small amount. */
function shortPlaces(amount) {
  const small = /^-?0\.(0*)/.exec(amount);
  return Math.max(4, small ? small[1].length + 3 : 0);
}

/** A decimal text that can be sorted. */
class Amount {
  constructor(text) {
    this.text = text;
  }

  compareTo(other) {
    return compare(this.text, other.text);
  }
}
