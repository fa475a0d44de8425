// An operator's margin: what each worker brought in, against what its GPUs and their energy cost.

import { failed, loading, panel, table, timeRange } from "./controls.js";
import { el, replace } from "./dom.js";
import { compact, count, duration, money } from "./format.js";

export function renderMargin({ tools, body }, context) {
  let asking = null;
  const range = timeRange(context, () => load(), { fallback: "24h" });
  replace(tools, range.element);
  replace(body, loading());
  load();

  async function load() {
    asking?.abort();
    const mine = (asking = new AbortController());
    const { from, to } = range.value();
    const text = (second) => new Date(second * 1000).toISOString();
    try {
      const answer = await context.api.get("/inferbus/v1/margin", { start: text(from), end: text(to) }, { signal: mine.signal });
      if (!mine.signal.aborted) replace(body, el("p", { class: "muted", text: terms(answer) }), panel("By worker", rows(answer)));
    } catch (error) {
      if (!mine.signal.aborted) replace(body, failed(error, load));
    }
  }

  return () => {
    asking?.abort();
    range.stop();
  };
}

// What is not written yet, and the minute in which the first meter began, are no gap. Seconds.
const SAID_FROM = 120;

function terms({ gpu_hour_price: hour, kwh_price: energy, currency = "", gpus_per_worker: gpus, unwatched = "0s" }) {
  const parts = [
    hour ? `a GPU's hour costs ${money(hour, currency)}, ${gpus ?? 1} of them a worker that names none` : "no price of a GPU's hour is set",
    energy ? `a kWh costs ${money(energy, currency)}` : "no price of a kWh is set",
  ];
  const gap = parseFloat(unwatched);
  const known = gap >= SAID_FROM ? ` No meter watched for ${duration(gap)} of this range: GPU-hours are at least these.` : "";
  return `By the meter's settings ${parts.join("; ")}.${known}`;
}

function rows({ rows: found = [], currency = "" }) {
  const own = (label, field) => ({ label, align: "right", value: (one) => (one[field] ? money(one[field], currency) : "not known") });
  return table(null, {
    caption: "Margin by worker",
    nothing: "No worker did anything in this range.",
    rows: found,
    columns: [
      { label: "Worker", value: (one) => one.worker, sort: (one) => one.worker },
      { label: "Model", class: "wrap", value: (one) => [one.model, one.revision].filter(Boolean).join(" @ "), sort: (one) => one.model },
      { label: "Engine", value: (one) => one.engine ?? "" },
      { label: "GPUs", value: (one) => [one.gpus ?? 0, one.gpu_names].filter((part) => part !== undefined).join(" × ") },
      { label: "GPU-hours up", align: "right", value: (one) => compact(one.gpu_hours ?? 0), sort: (one) => one.gpu_hours ?? 0 },
      { label: "Busy", align: "right", value: (one) => compact(one.busy_gpu_hours ?? 0), sort: (one) => one.busy_gpu_hours ?? 0 },
      { label: "Utilisation", align: "right", value: (one) => (one.up ? `${(100 * (one.utilization ?? 0)).toFixed(1)} %` : "not known"), sort: (one) => one.utilization ?? 0 },
      { label: "Input", align: "right", value: (one) => count(one.input_tokens ?? 0), sort: (one) => Number(one.input_tokens ?? 0) },
      { label: "Output", align: "right", value: (one) => count(one.output_tokens ?? 0), sort: (one) => Number(one.output_tokens ?? 0) },
      { label: "Revenue", align: "right", value: (one) => (one.revenue ?? []).map((part) => money(part.value, part.currency)).join(", ") || "none" },
      own("GPU cost", "gpu_cost"), own("Energy cost", "energy_cost"), own("Margin", "margin"),
    ],
  }).element;
}
