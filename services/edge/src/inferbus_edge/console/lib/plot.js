// Plots over time on uPlot (vendor/uplot.js, a script that defines window.uPlot).

import { el, replace } from "./dom.js";
import { compact, time } from "./format.js";
import { theme } from "./theme.js";

const CURSORS = "inferbus"; // all plots of a page show the same moment
const MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/** A plot below `root`, with a legend that says the values under the cursor.
 *
 *  `kind`: "line"; "bars" (a bar begins at its time; several series lie on top of each other); "stacked" (areas).
 *  `series`: [{label, values, colour?}] with null for what is not known; `times`: Unix seconds; `range`: [from, to] of the
 *  axis (default: the times); `step`: seconds of a bar (default: between the first two times); `format`: of a value; `note`: a line below the title; `onSelect(from, to)`: a range was drawn
 *  with the mouse. Returns {element, update({series, times, range, note, unit}), destroy()}. */
export function timeSeries(root, options) {
  const given = { height: 180, kind: "line", format: compact, unit: "", series: [], times: [], ...options };
  const figure = el("div", { class: "plot-figure", role: "img", "aria-label": given.title });
  const legend = el("ul", { class: "plot-legend" });
  const note = el("p", { class: "plot-note", hidden: true });
  const unit = el("span", { class: "plot-unit" });
  const element = el("section", { class: "panel plot" },
    el("header", { class: "panel-head" }, el("h3", { text: given.title }), unit), note, figure, legend);
  root.append(element);

  const hidden = new Set();
  let plot = null;
  let width = 0;
  let drawn = "";

  function draw() {
    plot?.destroy();
    plot = null;
    unit.textContent = given.unit;
    note.hidden = !given.note;
    note.textContent = given.note ?? "";
    drawn = names();
    const known = given.times.length > 0 && given.series.some((one) => one.values.some((value) => value !== null));
    figure.classList.toggle("is-empty", !known);
    figure.style.minHeight = `${given.height}px`;
    if (!known) {
      replace(figure, el("p", { class: "plot-empty", text: "Nothing in this range." }));
      replace(legend);
      return;
    }
    replace(figure);
    width = figure.clientWidth;
    if (width > 0) plot = new window.uPlot(settings(), columns(), figure);
    label(null);
  }

  /** What a plot cannot change once it is made. */
  const names = () => [given.unit, given.note, given.kind, ...shown().map((one) => one.label)].join("\n");
  const shown = () => given.series.filter((one) => !hidden.has(one.label));
  const stacks = () => given.kind !== "line" && shown().length > 0;

  /** Of stacked series each column is the sum of itself and those after it: drawn from the highest to the lowest. */
  function columns() {
    if (!stacks()) return [given.times, ...shown().map((one) => one.values)];
    const sums = new Array(given.times.length).fill(0);
    const tops = [...shown()].reverse().map((one) => one.values.map((value, at) => (sums[at] += value ?? 0)));
    return [given.times, ...tops.reverse()];
  }

  function settings() {
    const grid = { stroke: () => theme.colour("--line"), width: 1 };
    const axis = { stroke: () => theme.colour("--muted"), font: "11px system-ui, sans-serif", grid, ticks: { ...grid, size: 4 } };
    return {
      width, height: given.height, ms: 1e-3, tzDate: (second) => window.uPlot.tzDate(new Date(second * 1000), "Etc/UTC"),
      legend: { show: false }, padding: [8, 18, 0, 0],
      cursor: { sync: { key: CURSORS }, points: { size: 6 }, drag: { x: Boolean(given.onSelect), y: false, setScale: false } },
      scales: { x: { time: true, range: span }, y: { range: (_, low, high) => [Math.min(0, low ?? 0), high > 0 ? high * 1.08 : 1] } },
      axes: [
        { ...axis, space: 64, size: 34, values: (_, moments, __, ___, increment) => moments.map((one, at) => tick(one, increment, at === 0)) },
        { ...axis, size: (self, values) => 14 + 6.5 * Math.max(3, ...(values ?? []).map((text) => text.length)), values: (_, values) => values.map(given.format) },
      ],
      series: [{}, ...shown().map(lines)],
      hooks: {
        setCursor: [(self) => label(self.cursor.idx ?? null)],
        setSelect: [(self) => selected(self)],
      },
    };
  }

  /** Of the axis of time. */
  function span() {
    const { times, range, kind } = given;
    const step = given.step ?? (times.length > 1 ? times[1] - times[0] : 60);
    return range ?? [times[0], Math.max(times[times.length - 1] + (kind === "bars" ? step : 0), times[0] + 1)];
  }

  function lines(one) {
    const at = given.series.indexOf(one);
    const colour = () => (one.colour ? theme.colour(one.colour) : theme.series(at));
    const style = { label: one.label, stroke: colour, width: 1.5, points: { show: true, size: 4, filter: alone } };
    if (given.kind === "bars") {
      return { ...style, fill: colour, width: 0, points: { show: false }, paths: window.uPlot.paths.bars({ size: [0.85, 48], align: 1 }) };
    }
    return given.kind === "stacked" ? { ...style, fill: () => faded(colour(), 0.55), width: 1 } : style;
  }

  function selected(self) {
    const { left, width: wide } = self.select;
    if (!given.onSelect || wide < 4) return;
    const from = self.posToVal(left, "x");
    const to = self.posToVal(left + wide, "x");
    self.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    given.onSelect(Math.floor(from), Math.ceil(to));
  }

  /** The legend, with the values of the moment `at`; without one, of the last moment that has any. */
  function label(at) {
    const moment = at ?? lastKnown();
    replace(legend, el("li", { class: "plot-time", text: moment === null ? "" : time(given.times[moment], "minute") }),
      given.series.map((one, place) => {
        const mark = el("span", { class: "plot-mark" });
        mark.style.backgroundColor = one.colour ? `var(${one.colour})` : `var(--series-${(place % 8) + 1})`;
        const value = moment === null ? null : one.values[moment];
        const off = hidden.has(one.label);
        return el("li", {}, el("button", {
          type: "button", class: off ? "plot-key is-off" : "plot-key", "aria-pressed": String(!off), title: `Show or hide ${one.label}`,
          onclick: () => toggle(one.label),
        }, mark, el("span", { class: "plot-name", text: one.label }),
          el("span", { class: "plot-value", text: value === null || value === undefined ? "–" : given.format(value) })));
      }));
  }

  function lastKnown() {
    for (let at = given.times.length - 1; at >= 0; at -= 1) {
      if (given.series.some((one) => one.values[at] !== null && one.values[at] !== undefined)) return at;
    }
    return null;
  }

  function toggle(name) {
    if (hidden.has(name)) hidden.delete(name);
    else if (shown().length > 1) hidden.add(name);
    draw();
  }

  const sizes = new ResizeObserver(() => {
    const now = figure.clientWidth;
    if (now === width || now === 0) return;
    width = now;
    if (plot) plot.setSize({ width, height: given.height });
    else draw();
  });
  const forget = theme.onChange(draw);
  draw();
  sizes.observe(figure);

  return {
    element,
    update(changes) {
      Object.assign(given, changes);
      if (plot && names() === drawn && given.times.length > 1) {
        // The same lines with other values: the cursor stays where it is.
        plot.setData(columns());
        label(plot.cursor.idx ?? null);
      } else draw();
    },
    destroy() {
      sizes.disconnect();
      forget();
      plot?.destroy();
      element.remove();
    },
  };
}

/** Of an axis: days, or hours and minutes with the day at midnight and at the beginning. */
function tick(second, increment, first) {
  const date = new Date(second * 1000);
  const day = `${MONTHS[date.getUTCMonth()]} ${date.getUTCDate()}`;
  if (increment >= 86400) return day;
  const text = date.toISOString();
  const clock = increment < 60 ? text.slice(11, 19) : text.slice(11, 16);
  return first || clock.startsWith("00:00") ? `${clock}\n${day}` : clock;
}

/** Which values have no neighbour: a line does not show them. */
function alone(self, series) {
  const values = self.data[series];
  const known = (at) => values[at] !== null && values[at] !== undefined;
  return [...values.keys()].filter((at) => known(at) && !known(at - 1) && !known(at + 1));
}

function faded(colour, part) {
  const [red, green, blue] = colour.match(/[\d.]+/g);
  return `rgba(${red}, ${green}, ${blue}, ${part})`;
}
