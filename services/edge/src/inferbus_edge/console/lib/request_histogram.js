// The gaps between the tokens of one request, as a histogram over a logarithmic axis.

import { el, replace, svg } from "./dom.js";
import { count, milliseconds, percent } from "./format.js";
import { firstFrom, quantile, STALL_US } from "./request_data.js";

const HEIGHT = 180;
const BARS = 32;
const FOOT = 24;
const LEFT = 44;

/** Draws the gaps of `model` (of request_data.js) into `root`. Returns {destroy()}. */
export function gapHistogram(root, model) {
  const figure = el("div", { class: "histogram" });
  root.append(figure);
  const note = [`P50 ${us(quantile(model.gaps, 0.5))}`, `P95 ${us(quantile(model.gaps, 0.95))}`, `P99 ${us(quantile(model.gaps, 0.99))}`, `longest ${us(model.gaps.at(-1))}`];
  if (model.sameStep) note.push(`${count(model.sameStep)} tokens came in one step with the one before`);
  root.append(el("p", { class: "muted small", text: note.join(" · ") }));

  function draw() {
    const width = figure.clientWidth;
    if (width === 0) return;
    const bars = binned(model.gaps, model.slow);
    const highest = Math.max(...bars.map((one) => one.number));
    const step = (width - LEFT) / bars.length;
    const tall = HEIGHT - FOOT - 6;
    const shapes = bars.map((one, at) => {
      const high = one.number ? Math.max(2, (one.number / highest) * tall) : 0;
      return svg("rect", { x: LEFT + at * step + 0.5, y: HEIGHT - FOOT - high, width: Math.max(1, step - 1), height: high, fill: `var(${one.tone})` },
        svg("title", {}, `${us(one.from)} to ${us(one.to)}: ${count(one.number)} gaps, ${percent(one.number / model.gaps.length)}`));
    });
    const marks = [0, Math.floor(bars.length / 2), bars.length - 1].map((at) => svg("text", {
      x: at === 0 ? LEFT : at === bars.length - 1 ? width : LEFT + at * step, y: HEIGHT - 6, class: "histogram-text",
      "text-anchor": at === 0 ? "start" : at === bars.length - 1 ? "end" : "middle",
    }, us(at === bars.length - 1 ? bars[at].to : bars[at].from)));
    const scale = [svg("text", { x: LEFT - 6, y: 14, class: "histogram-text", "text-anchor": "end" }, count(highest)),
      svg("line", { x1: LEFT, x2: width, y1: HEIGHT - FOOT + 0.5, y2: HEIGHT - FOOT + 0.5, stroke: "var(--edge)" })];
    replace(figure, svg("svg", { width, height: HEIGHT, role: "img", "aria-label": `Histogram of ${count(model.gaps.length)} gaps. ${note.join(", ")}` }, shapes, marks, scale));
  }

  const sizes = new ResizeObserver(draw);
  sizes.observe(figure);
  draw();
  return { destroy: () => sizes.disconnect() };
}

/** `gaps` sorted, not empty. Bars are of one width on the logarithmic axis. */
function binned(gaps, slow) {
  const low = Math.log(Math.max(1, gaps[0]) * 0.98);
  const high = Math.max(Math.log(gaps.at(-1) * 1.02), low + 0.2);
  const border = (at) => Math.exp(low + ((high - low) * at) / BARS);
  return Array.from({ length: BARS }, (_, at) => {
    const [from, to] = [border(at), border(at + 1)];
    const end = at === BARS - 1 ? gaps.length : firstFrom(gaps, to);
    return { from, to, number: end - (at === 0 ? 0 : firstFrom(gaps, from)), tone: from >= STALL_US ? "--bad" : from >= slow ? "--warn" : "--series-1" };
  });
}

const us = (value) => (value === null || value === undefined ? "–" : milliseconds(value / 1000));
