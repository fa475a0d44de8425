// What the API of analytics answers, as the series of plots. Nothing here touches the page.

const NICE_MINUTES = [1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440, 2880, 10080];
const POINTS = 120;
const CLASS = "PRIORITY_CLASS_";
const AMOUNT = "ANALYTICS_UNIT_AMOUNT";
const ZERO = new Set(["ANALYTICS_UNIT_COUNT", "ANALYTICS_UNIT_PER_SECOND"]);

// By what groups are told apart: the name in a query, and the text of a group of the answer.
export const DIMENSIONS = {
  tenant: { label: "Tenant", of: (group) => group.tenant_id ?? "" },
  project: { label: "Project", of: (group) => group.project_id ?? "" },
  model: { label: "Model", of: (group) => group.model ?? "" },
  revision: { label: "Revision", of: (group) => group.revision ?? "" },
  worker: { label: "Worker", of: (group) => group.worker ?? "" },
  class: { label: "Class", of: (group) => className(group.priority_class) },
};

/** PRIORITY_CLASS_BATCH → batch. */
export function className(value) {
  return (value ?? "").replace(CLASS, "").toLowerCase();
}

/** Minutes of a step, so that a range of `seconds` has about 120 points and each begins at a round time. */
export function stepMinutes(seconds) {
  return NICE_MINUTES.find((minutes) => seconds / (minutes * 60) <= POINTS) ?? NICE_MINUTES.at(-1);
}

/** Where each step of the answer begins, in Unix seconds. */
export function timesOf(answer) {
  const step = Number.parseFloat(answer.step);
  const start = Math.floor(seconds(answer.start_time) / step) * step;
  const times = [];
  for (let at = start; at < seconds(answer.end_time); at += step) times.push(at);
  return times;
}

/** [{label, values, colour?}] in step with `timesOf`. `columns`: [[name, label, colour?]]; `by`: a dimension's name or "".
 *  The reasons of errors are told apart where no groups are. A step in which a group had nothing is a zero where that is what nothing means, and a gap elsewhere. Counts of several
 *  currencies are one series; amounts are one a currency, and estimated tokens are apart. */
export function seriesOf(answer, columns, by) {
  const times = timesOf(answer);
  const places = new Map(times.map((time, place) => [time, place]));
  const units = new Map(answer.columns.map((column) => [column.name, column.unit]));
  const found = new Map();
  for (const row of answer.rows ?? []) {
    columns.forEach(([name, called, colour], order) => {
      const value = valueOf(row, name);
      if (value === null) return;
      const counts = ZERO.has(units.get(name));
      const currency = units.get(name) === AMOUNT ? row.currency : "";
      const label = texts([groupName(row, by), by ? "" : reasonOf(row), called, currency, row.estimated ? "(estimated)" : ""]);
      if (!found.has(label)) {
        found.set(label, { label, colour, order, estimated: Boolean(row.estimated), values: new Array(times.length).fill(counts ? 0 : null) });
      }
      const { values } = found.get(label);
      const place = places.get(seconds(row.time));
      values[place] = counts ? values[place] + value : value;
    });
  }
  return [...found.values()].sort((one, other) =>
    one.estimated - other.estimated || one.order - other.order || one.label.localeCompare(other.label));
}

/** A column's number; of an amount only what a plot can show of it: it is never added up. Null: it is not known. */
export function valueOf(row, name) {
  const value = row?.numbers?.[name] ?? row?.amounts?.[name];
  return value === undefined ? null : Number(value);
}

/** The text of a row's group. */
export function groupName(row, by) {
  return by ? DIMENSIONS[by].of(row.group ?? {}) || "(none)" : "";
}

function reasonOf({ group = {} }) {
  return [...new Set([group.error_class, group.error_reason])].filter(Boolean).join(": ");
}

const texts = (parts) => parts.filter(Boolean).join(" ");

function seconds(text) {
  return Date.parse(text) / 1000;
}
