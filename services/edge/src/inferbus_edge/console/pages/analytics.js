// How fast, how much, how well: one range of time and one set of filters for figures, plots, groups and slow requests. Each
// panel asks for itself, so that one that fails leaves the others as they are.

import { FIGURES, GROUP_COLUMNS, PANELS } from "../lib/analytics_panels.js";
import { DIMENSIONS, groupName, seriesOf, stepMinutes, timesOf, valueOf } from "../lib/analytics_series.js";
import { badge, empty, failed, filters, loading, panel, stat, table, timeRange } from "../lib/controls.js";
import { el, replace } from "../lib/dom.js";
import { count, duration, milliseconds, time } from "../lib/format.js";
import { timeSeries } from "../lib/plot.js";

const MOST_GROUPS = 8;
const SLOWEST = 20;
const COLOURS = 8; // --series-1 to --series-8
const TARGETS = { ttft: "1s", tpot: "50ms" };
const UNKNOWN = "not_known";
const CLASSES = ["interactive", "background", "batch"];
// A live page asks anew no more often than its plots can change.
const LEAST_MS = 9_000;

export const page = {
  name: "analytics",
  title: "Analytics",
  roles: ["admin", "tenant_admin"],

  async render(root, context) {
    const operator = context.role === "admin";
    const base = operator ? "/inferbus/v1" : "/v1/organization";
    const names = operator ? Object.keys(DIMENSIONS) : ["project", "model", "revision", "class"];
    const range = timeRange(context, () => refresh(false));
    const chosen = filters(context, fields(names), () => refresh(true));
    const shown = PANELS.filter((one) => operator || !one.operator);
    const figures = el("div", { class: "stats" });
    const groups = el("div", { class: "panels" });
    const slow = el("div", { class: "panels" });
    const plots = new Map(shown.map((one) => [one, plotOf(one)]));
    const colours = new Map(); // of groups, from 0
    let asking = null; // what the page waits for; a newer question takes its place
    let asked = { at: 0, range: "", live: false };

    root.append(
      el("div", { class: "page-head" }, el("h1", { text: "Analytics" }), range.element),
      chosen.element, figures,
      el("div", { class: "grid" }, [...plots.values()].map((one) => one.element)), groups, slow,
    );
    chosen.element.classList.add("dense");
    refresh(true);
    return () => {
      range.stop();
      asking?.abort();
      plots.forEach((one) => one.destroy());
    };

    // --- asking ---

    function refresh(changed) {
      const { from, to, live } = range.value();
      const shownRange = `${context.query.from ?? ""} ${context.query.to ?? ""}`;
      const again = !changed && live && asked.live && asked.range === shownRange;
      const pause = Math.max(LEAST_MS, Math.min(60_000, ((to - from) / 120) * 1000));
      // Not while the answers before are awaited.
      if (again && (asking || performance.now() - asked.at < pause)) return;
      asked = { at: performance.now(), range: shownRange, live };
      asking?.abort();
      const mine = new AbortController();
      asking = mine;
      if (!again) root.setAttribute("aria-busy", "true"); // what is still shown is of the question before
      const question = { from, to, by: chosen.values().by, signal: mine.signal, answers: new Map() };
      const parts = [listValues(question), showFigures(question), showGroups(question), showSlow(question),
                     ...shown.map((one) => showPlot(one, question))];
      Promise.allSettled(parts).then(() => {
        if (asking !== mine) return;
        asking = null;
        root.removeAttribute("aria-busy");
      });
    }

    /** One measure; the same question of two panels is asked once. */
    function ask(question, measure, more = {}) {
      const { by, ttft, tpot, ...only } = chosen.values();
      const params = {
        measure, start: iso(question.from), end: iso(question.to), ...only, ...more,
        ...(measure === "goodput" ? { ttft_target: ttft || TARGETS.ttft, tpot_target: tpot || TARGETS.tpot } : {}),
      };
      const key = JSON.stringify(params);
      if (!question.answers.has(key)) question.answers.set(key, context.api.get(`${base}/analytics`, params, { signal: question.signal }));
      return question.answers.get(key);
    }

    async function listValues(question) {
      let found;
      try {
        found = await context.api.get(`${base}/analytics/values`, { start: iso(question.from), end: iso(question.to) }, { signal: question.signal });
      } catch (error) {
        if (!question.signal.aborted) chosen.failed(error, () => refresh(true));
        return;
      }
      if (question.signal.aborted) return;
      chosen.failed(null);
      const lists = { tenant: found.tenant_ids, project: found.project_ids, model: found.models, revision: found.revisions, worker: found.workers };
      for (const [name, list] of Object.entries(lists)) {
        if (names.includes(name)) chosen.setOptions(name, (list ?? []).map((value) => ({ value, label: value })));
      }
    }

    // --- figures ---

    async function showFigures(question) {
      const made = await Promise.all(FIGURES.map((one) => figure(one, question)));
      if (!question.signal.aborted) replace(figures, made);
    }

    async function figure(one, question) {
      try {
        const rows = (await ask(question, one.measure)).rows ?? [];
        // Estimated tokens are a row of their own; the figure is of those that were counted, if there are any.
        const row = rows.find((candidate) => !candidate.estimated) ?? rows[0];
        const value = valueOf(row, one.column);
        if (value === null) return stat(one.label, "–", "nothing in this range");
        const note = row.estimated ? "estimated" : rows.length > 1 ? `${one.note(row)}, estimates apart` : one.note(row);
        return stat(one.label, one.shown(value), note, { tone: one.tone?.(value) ?? "" });
      } catch (error) {
        return stat(one.label, "–", error.code === UNKNOWN ? "not known of this choice" : error.message, { title: error.message });
      }
    }

    // --- plots ---

    function plotOf(one) {
      const element = el("div", {}, panel(one.title, loading()));
      element.style.display = "grid"; // the panels of a row are equally high
      element.style.gridTemplateColumns = "minmax(0, 1fr)";
      let plot = null;
      return {
        element,
        show(data) {
          if (!plot) replace(element);
          plot ??= timeSeries(element, {
            title: data.title, unit: one.unit, kind: one.kind, format: one.format, note: data.note,
            onSelect: (from, to) => range.set(from, to),
          });
          plot.update(data);
        },
        fail(title, error, again) {
          plot?.destroy();
          plot = null;
          // What cannot be known is no failure.
          replace(element, panel(title, error.code === UNKNOWN ? empty(error.message) : failed(error, again)));
        },
        destroy: () => plot?.destroy(),
      };
    }

    async function showPlot(one, question) {
      const place = plots.get(one);
      const title = question.by && one.groupedTitle ? `${one.title}, ${one.groupedTitle}` : one.title;
      try {
        const step = stepMinutes(question.to - question.from);
        const grouping = question.by ? { by: question.by, groups: MOST_GROUPS } : {};
        const answer = await ask(question, one.measure, { step: `${step}m`, ...grouping });
        if (question.signal.aborted) return;
        const note = noteOf(one, question.by);
        const series = seriesOf(answer, question.by ? one.grouped : one.columns, question.by);
        place.show({
          title, note, times: timesOf(answer), series: question.by ? coloured(series) : series,
          range: [question.from, question.to],
        });
      } catch (error) {
        if (!question.signal.aborted) place.fail(title, error, () => refresh(true));
      }
    }

    function noteOf(one, by) {
      const { ttft, tpot } = chosen.values();
      const targets = one.measure === "goodput" ? ` First token within ${ttft || TARGETS.ttft}, mean gap within ${tpot || TARGETS.tpot}.` : "";
      return by ? `${one.groupedNote ?? one.note}${targets} By ${by}, the ${MOST_GROUPS} largest at most.` : one.note + targets;
    }

    /** A group has one colour on the whole page, as far as colours go round. */
    function coloured(series) {
      const taken = new Set();
      return series.map((one) => {
        if (!colours.has(one.label)) colours.set(one.label, colours.size % COLOURS);
        let colour = colours.get(one.label);
        while (taken.size < COLOURS && taken.has(colour)) colour = (colour + 1) % COLOURS;
        taken.add(colour);
        return { ...one, colour: `--series-${colour + 1}` };
      });
    }

    // --- groups ---

    async function showGroups(question) {
      const by = question.by || "model";
      const wanted = [...new Set(GROUP_COLUMNS.map((one) => one.measure))];
      const answers = await Promise.allSettled(wanted.map((measure) => ask(question, measure, { by, groups: 100 })));
      if (question.signal.aborted) return;
      const first = answers[wanted.indexOf("requests")];
      const title = `By ${DIMENSIONS[by].label.toLowerCase()}`;
      if (first.status === "rejected") {
        replace(groups, panel(title, failed(first.reason, () => refresh(true))));
        return;
      }
      const rows = new Map();
      answers.forEach((answer, place) => {
        for (const row of answer.value?.rows ?? []) {
          if (row.estimated) continue;
          const name = groupName(row, by);
          if (!rows.has(name)) rows.set(name, { name, value: DIMENSIONS[by].of(row.group ?? {}), answers: {} });
          rows.get(name).answers[wanted[place]] = row;
        }
      });
      replace(groups, panel(title, table(null, {
        caption: title, nothing: "Nothing in this range.", sort: { by: "Requests", descending: true }, rows: [...rows.values()],
        columns: [
          { label: DIMENSIONS[by].label, value: (row) => narrowing(by, row), sort: (row) => row.name },
          ...GROUP_COLUMNS.map((one) => ({
            label: one.label, align: "right", value: (row) => number(row, one), sort: (row) => valueOf(row.answers[one.measure], one.column),
          })),
        ],
      }).element));
    }

    function narrowing(by, row) {
      if (!row.value) return row.name;
      return el("button", {
        type: "button", class: "button small", text: row.name, title: `Show this ${by} only`, onclick: () => chosen.set(by, row.value),
      });
    }

    // --- slow requests ---

    async function showSlow(question) {
      const { by, ttft, tpot, ...only } = chosen.values();
      const title = "The slowest requests";
      try {
        const params = { start: iso(question.from), end: iso(question.to), order: "e2e", limit: SLOWEST, ...only };
        const found = await context.api.get(`${base}/requests`, params, { signal: question.signal });
        if (!question.signal.aborted) replace(slow, panel(title, slowTable(found.requests ?? [])));
      } catch (error) {
        if (!question.signal.aborted) replace(slow, panel(title, failed(error, () => refresh(true))));
      }
    }

    function slowTable(rows) {
      return table(null, {
        caption: "The slowest requests", nothing: "Nothing in this range.", rows,
        columns: [
          { label: "Request", class: "mono", value: (row) => el("a", { href: `#/requests/${encodeURIComponent(row.request_id)}`, text: row.request_id }) },
          { label: "Ended (UTC)", value: (row) => time(row.end_time), sort: (row) => row.end_time },
          ...(operator ? [{ label: "Tenant", value: (row) => row.tenant_id ?? "", sort: (row) => row.tenant_id ?? "" }] : []),
          { label: "Model", value: (row) => row.model ?? "", sort: (row) => row.model ?? "" },
          ...(operator ? [{ label: "Worker", value: (row) => row.worker ?? "", sort: (row) => row.worker ?? "" }] : []),
          { label: "Ended by", value: (row) => ending(row) },
          ...[["End to end", "e2e"], ["First token", "ttft"], ["Queue", "queue"]].map(([label, name]) => ({
            label, align: "right", value: (row) => waited(row[name]), sort: (row) => Number.parseFloat(row[name] ?? "-1"),
          })),
          { label: "Output", align: "right", value: (row) => count(row.output_tokens ?? 0), sort: (row) => Number(row.output_tokens ?? 0) },
        ],
      }).element;
    }

    // --- controls ---

    function fields(offered) {
      const groupings = offered.map((value) => ({ value, label: DIMENSIONS[value].label.toLowerCase() }));
      return [
        { name: "by", label: "Split by", options: groupings, all: "nothing" },
        ...offered.map((name) => ({
          name, label: DIMENSIONS[name].label,
          options: name === "class" ? CLASSES.map((value) => ({ value, label: value })) : [],
        })),
        { name: "ttft", label: "Target: TTFT", placeholder: TARGETS.ttft },
        { name: "tpot", label: "Target: gap", placeholder: TARGETS.tpot },
      ];
    }
  },
};

function number(row, one) {
  const value = valueOf(row.answers[one.measure], one.column);
  return value === null ? "–" : one.shown(value);
}

function ending(row) {
  const reason = (row.finish_reason ?? "").replace("FINISH_REASON_", "").toLowerCase();
  if (reason !== "error") return reason || "–";
  return badge(row.error_reason || "error", "bad");
}

/** A duration of protobuf's JSON: "1.25s". */
function waited(text) {
  const seconds = Number.parseFloat(text ?? "");
  if (!Number.isFinite(seconds)) return "–";
  return seconds < 120 ? milliseconds(seconds * 1000) : duration(seconds);
}

function iso(seconds) {
  return new Date(seconds * 1000).toISOString();
}
