// Dollars a month over requests a month: one's own GPUs against an API. On uPlot (vendor/uplot.js defines window.uPlot).

import { el, replace } from "./dom.js";
import { compact } from "./format.js";
import { dollars } from "./size_figures.js";
import { theme } from "./theme.js";

const HEIGHT = 240;
const LINES = [["Own GPUs", "--series-1"], ["API", "--series-2"]];

/** A panel. Returns {element, update(crossover), destroy()}; `crossover`: of the API's answer. */
export function crossoverPlot() {
  const figure = el("div", { class: "plot-figure", role: "img", "aria-label": "Own GPUs against an API" });
  const note = el("p", { class: "plot-note" });
  const legend = el("ul", { class: "plot-legend" });
  const element = el("section", { class: "panel plot" },
    el("header", { class: "panel-head" }, el("h3", { text: "Own GPUs against the API" }), el("span", { class: "plot-unit", text: "$ a month, by requests a month" })),
    note, figure, legend);
  figure.style.minHeight = `${HEIGHT}px`;
  let shown = null;
  let plot = null;
  let width = 0;

  function draw() {
    plot?.destroy();
    plot = null;
    replace(figure);
    width = figure.clientWidth;
    if (!shown || width === 0) return;
    plot = new window.uPlot(settings(), columns(), figure);
    label(null);
  }

  const columns = () => [shown.points.map((one) => one.requests), shown.points.map((one) => one.own), shown.points.map((one) => one.api)];

  function settings() {
    const grid = { stroke: () => theme.colour("--line"), width: 1 };
    const axis = { stroke: () => theme.colour("--muted"), font: "11px system-ui, sans-serif", grid, ticks: { ...grid, size: 4 } };
    return {
      width, height: HEIGHT, legend: { show: false }, padding: [8, 26, 0, 0], cursor: { points: { size: 6 }, drag: { x: false, y: false } },
      scales: { x: { time: false }, y: { range: (_, __, high) => [0, high > 0 ? high * 1.08 : 1] } },
      axes: [
        { ...axis, space: 70, size: 30, values: (_, values) => values.map(compact) },
        { ...axis, size: (_, values) => 14 + 6.5 * Math.max(3, ...(values ?? []).map((text) => text.length)), values: (_, values) => values.map((one) => `$${compact(one)}`) },
      ],
      series: [{}, ...LINES.map(([name, colour], at) => ({
        label: name, stroke: () => theme.colour(colour), width: 2, points: { show: false },
        ...(at === 0 ? { paths: window.uPlot.paths.stepped({ align: 1 }) } : {}),
      }))],
      hooks: { draw: [(self) => line(self)], setCursor: [(self) => label(self.cursor.idx ?? null)] },
    };
  }

  /** Where both cost the same. */
  function line(self) {
    if (shown.requests === null) return;
    const at = Math.round(self.valToPos(shown.requests, "x", true));
    const { left, top, height, width: wide } = self.bbox;
    if (at < left || at > left + wide) return;
    self.ctx.save();
    self.ctx.strokeStyle = theme.colour("--muted");
    self.ctx.setLineDash([4, 4]);
    self.ctx.beginPath();
    self.ctx.moveTo(at, top);
    self.ctx.lineTo(at, top + height);
    self.ctx.stroke();
    self.ctx.restore();
  }

  function label(at) {
    const point = shown.points[at ?? shown.points.length - 1];
    replace(legend, el("li", { class: "plot-time", text: `${compact(point.requests)} requests` }),
      LINES.map(([name, colour], place) => {
        const mark = el("span", { class: "plot-mark" });
        mark.style.backgroundColor = `var(${colour})`;
        const value = place === 0 ? point.own : point.api;
        return el("li", { class: "plot-key" }, mark, el("span", { class: "plot-name", text: name }), el("span", { class: "plot-value", text: dollars(value) }));
      }));
  }

  const sizes = new ResizeObserver(() => {
    const now = figure.clientWidth;
    if (now === width || now === 0) return;
    width = now;
    if (plot) plot.setSize({ width, height: HEIGHT });
    else draw();
  });
  const forget = theme.onChange(draw);
  sizes.observe(figure);

  return {
    element,
    update(crossover) {
      shown = crossover;
      element.hidden = crossover === null;
      if (crossover === null) return;
      const { requests, capacity } = crossover;
      note.textContent = requests === null
        ? `The API is cheaper at any load that these GPUs can take (${compact(capacity)} requests a month).`
        : `From ${compact(requests)} requests a month on the own GPUs are cheaper; they can take ${compact(capacity)}, beyond that each step is one more replica.`;
      draw();
    },
    destroy() {
      sizes.disconnect();
      forget();
      plot?.destroy();
    },
  };
}
