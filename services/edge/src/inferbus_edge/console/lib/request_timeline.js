// The picture of one request: lanes over time on a canvas, to be zoomed and moved. What it shows stands in the table of
// events as well, for who cannot see it.

import { el } from "./dom.js";
import { count, milliseconds } from "./format.js";
import { firstFrom, STALL_US } from "./request_data.js";
import { theme } from "./theme.js";

const LANE = 44;
const AXIS = 26;
const REACH = 7; // pixels within which the pointer finds something
const MOST_ZOOM_US = 50; // the narrowest view
const TONES = {
  TIMELINE_KIND_ACCEPTED: "--accent", TIMELINE_KIND_PLACED: "--series-3", TIMELINE_KIND_STARTED: "--series-3",
  TIMELINE_KIND_FIRST_TOKEN: "--series-1", TIMELINE_KIND_RESUMED: "--warn", TIMELINE_KIND_STALLED: "--bad",
  TIMELINE_KIND_LAST_TOKEN: "--series-1", TIMELINE_KIND_ENDED: "--text", TIMELINE_KIND_REFUSED: "--bad",
  TIMELINE_KIND_DELIVERED: "--good", TIMELINE_KIND_BILLED: "--series-4", TIMELINE_KIND_ADJUSTED: "--series-4",
};

/** Draws `model` (of request_data.js) below `root`. Returns {element, update(model), destroy()}. */
export function requestTimeline(root, model) {
  let lanes = lanesOf(model);
  let view = [0, model.end * 1.04];
  let touched = false; // by hand: then an update leaves the view alone
  let hover = null;
  const canvas = el("canvas", { class: "timeline-canvas", tabindex: "0", role: "img", "aria-label": spoken(model) });
  const tip = el("div", { class: "timeline-tip", hidden: true });
  const button = (text, label, act) => el("button", { type: "button", class: "button small", text, "aria-label": label, title: label, onclick: act });
  const tools = el("div", { class: "timeline-tools" },
    button("−", "Zoom out", () => zoom(2)), button("+", "Zoom in", () => zoom(0.5)),
    button("←", "Earlier", () => move(-0.25)), button("→", "Later", () => move(0.25)),
    button("Request", "Show the request", () => fit(model.end)), button("With billing", "Show the request and its billing", () => fit(model.all)));
  const key = el("ul", { class: "timeline-key" });
  const element = el("div", { class: "timeline" }, tools, el("div", { class: "timeline-box" }, canvas, tip), key,
    el("p", { class: "plot-note", text: "Drag to move, Ctrl and wheel or + and − to zoom, arrow keys to move. Hover says what it is." }));
  root.append(element);
  const pen = canvas.getContext("2d");
  // Measured once a drawing: asking the page for it at every token took most of the time.
  let width = 0;
  let gutter = 0;
  let plotWidth = 1;
  const x = (at) => gutter + ((at - view[0]) / (view[1] - view[0])) * plotWidth;
  const at = (pixel) => view[0] + ((pixel - gutter) / plotWidth) * (view[1] - view[0]);

  // --- the view ---

  function show(from, to) {
    const limit = model.all * 1.08 + 1000;
    const span = Math.min(Math.max(to - from, MOST_ZOOM_US), limit * 1.05);
    const start = Math.min(Math.max(from, -limit * 0.05), limit - span / 2);
    view = [start, start + span];
    hide();
    schedule();
  }

  function fit(end) {
    touched = true;
    show(0, end * 1.04);
  }

  function zoom(factor, around = (view[0] + view[1]) / 2) {
    touched = true;
    show(around - (around - view[0]) * factor, around + (view[1] - around) * factor);
  }

  function move(part) {
    touched = true;
    const by = (view[1] - view[0]) * part;
    show(view[0] + by, view[1] + by);
  }

  // --- drawing ---

  let waiting = 0;
  function schedule() {
    waiting ||= requestAnimationFrame(() => {
      waiting = 0;
      draw();
    });
  }

  function draw() {
    width = canvas.clientWidth;
    gutter = width < 640 ? 86 : 168;
    plotWidth = Math.max(10, width - gutter - 10);
    const height = lanes.length * LANE + AXIS;
    if (width === 0) return;
    const scale = window.devicePixelRatio || 1;
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, height);
    axis(height);
    lanes.forEach((lane, place) => {
      const top = place * LANE;
      pen.strokeStyle = theme.colour("--line");
      line(0, top + LANE - 0.5, width, top + LANE - 0.5);
      label(lane, top);
      pen.save();
      pen.beginPath();
      pen.rect(gutter - 6, top, width - gutter + 6, LANE);
      pen.clip();
      for (const bar of lane.bars) drawBar(bar, top);
      if (lane.attempt) drawTokens(lane.attempt, top);
      const taken = [];
      for (const mark of lane.marks) drawMark(mark, top, taken);
      pen.restore();
    });
  }

  function label(lane, top) {
    const wide = gutter - 12;
    text(lane.title, 4, top + 18, "--text", "600 12px system-ui, sans-serif", wide);
    if (lane.note) text(lane.note, 4, top + 33, "--muted", "11px system-ui, sans-serif", wide);
  }

  function axis(height) {
    const step = niceStep((view[1] - view[0]) / Math.max(2, plotWidth / 90));
    for (let mark = Math.ceil(view[0] / step) * step; mark <= view[1]; mark += step) {
      const place = Math.round(x(mark)) + 0.5;
      pen.strokeStyle = theme.colour("--line");
      line(place, 0, place, height - AXIS + 4);
      const shown = moment(mark, step);
      pen.font = "11px system-ui, sans-serif";
      const wide = pen.measureText(shown).width;
      const left = Math.min(Math.max(place - wide / 2, gutter - 6), width - wide - 2);
      text(shown, left, height - 8, "--muted", "11px system-ui, sans-serif");
    }
  }

  function drawBar({ from, to, tone, strength, name, quiet }, top) {
    const left = x(from);
    const wide = Math.max(1, x(to) - left);
    pen.globalAlpha = strength;
    pen.fillStyle = theme.colour(tone);
    pen.fillRect(left, top + 10, wide, LANE - 20);
    pen.globalAlpha = 1;
    pen.font = "11px system-ui, sans-serif";
    const shownFrom = Math.max(left, gutter - 6);
    if (name && !quiet && Math.min(x(to), width) - shownFrom > pen.measureText(name).width + 12) {
      text(name, shownFrom + 6, top + 26, "--text", "11px system-ui, sans-serif");
    }
  }

  /** A column of pixels is one tick, however many tokens it stands for: the worst of them gives the colour. */
  function drawTokens(one, top) {
    const columns = new Map();
    const last = firstFrom(one.offsets, view[1] + (view[1] - view[0]) * 0.01);
    for (let token = firstFrom(one.offsets, view[0]); token < last; token += 1) {
      const pixel = Math.round(x(one.offsets[token]));
      const column = columns.get(pixel) ?? { tokens: 0, gap: 0, voids: 0, wide: 0 };
      column.tokens += 1;
      if (one.isVoid(token)) column.voids += 1;
      else if (one.indexOf(token) > 0 && one.gaps[token] > column.gap) {
        column.gap = one.gaps[token];
        column.wide = x(one.offsets[token]) - x(one.offsets[token] - one.gaps[token]);
      }
      columns.set(pixel, column);
    }
    for (const [pixel, column] of columns) {
      const slow = column.gap > model.slow;
      if (slow && column.wide > 2) {
        pen.globalAlpha = 0.2;
        pen.fillStyle = theme.colour(column.gap > STALL_US ? "--bad" : "--warn");
        pen.fillRect(pixel - column.wide, top + 10, column.wide, LANE - 20);
        pen.globalAlpha = 1;
      }
      pen.fillStyle = theme.colour(toneOf(column, slow));
      const tall = Math.min(LANE - 20, 12 + 4 * Math.log2(column.tokens));
      pen.fillRect(pixel - 0.5, top + LANE / 2 - tall / 2, 1.5, tall);
    }
  }

  function toneOf(column, slow) {
    if (column.voids === column.tokens) return "--muted";
    return slow ? (column.gap > STALL_US ? "--bad" : "--warn") : "--series-1";
  }

  /** `taken`: where names stand in this lane already; one that has no room is left to the pointer. */
  function drawMark({ event, name }, top, taken) {
    const place = x(event.at);
    if (place < gutter - 8 || place > width + 8) return;
    const middle = top + LANE / 2;
    pen.fillStyle = theme.colour(TONES[event.kind] ?? "--text");
    pen.beginPath();
    pen.moveTo(place, middle - 7);
    pen.lineTo(place + 6, middle);
    pen.lineTo(place, middle + 7);
    pen.lineTo(place - 6, middle);
    pen.closePath();
    pen.fill();
    pen.strokeStyle = theme.colour("--surface");
    pen.stroke();
    taken.push([place - 6, place + 6]);
    if (!name) return;
    pen.font = "11px system-ui, sans-serif";
    const wide = pen.measureText(name).width;
    const free = (left) => left > gutter && left + wide < width - 2 && taken.every(([from, to]) => left > to || left + wide < from);
    const left = [place + 10, place - 10 - wide].find(free);
    if (left === undefined) return;
    taken.push([left - 4, left + wide + 4]);
    text(name, left, middle + 4, "--text", "11px system-ui, sans-serif");
  }

  function text(words, left, base, tone, font, most) {
    pen.font = font;
    pen.fillStyle = theme.colour(tone);
    let shown = words;
    while (most && shown.length > 2 && pen.measureText(shown).width > most) shown = `${shown.slice(0, -2)}…`;
    pen.fillText(shown, left, base);
  }

  function line(fromX, fromY, toX, toY) {
    pen.lineWidth = 1;
    pen.beginPath();
    pen.moveTo(fromX, fromY);
    pen.lineTo(toX, toY);
    pen.stroke();
  }

  // --- what is under the pointer ---

  function found(pixel, row) {
    const lane = lanes[Math.floor(row / LANE)];
    if (!lane || pixel < gutter - 6) return null;
    const mark = nearest(lane.marks, (one) => Math.abs(x(one.event.at) - pixel));
    if (mark) return describe(mark.event);
    const token = lane.attempt && nearestToken(lane.attempt, pixel);
    if (token) return token;
    const bar = lane.bars.find((one) => one.name && x(one.from) <= pixel && pixel <= Math.max(x(one.to), x(one.from) + 2));
    return bar ? [bar.name, `${milliseconds((bar.to - bar.from) / 1000)}, from ${milliseconds(bar.from / 1000)}`] : null;
  }

  function nearest(marks, distance) {
    const best = marks.reduce((low, one) => (low === null || distance(one) < distance(low) ? one : low), null);
    return best !== null && distance(best) <= REACH ? best : null;
  }

  function nearestToken(one, pixel) {
    const from = firstFrom(one.offsets, at(pixel - REACH));
    const to = firstFrom(one.offsets, at(pixel + REACH));
    if (from === to) return null;
    const wanted = firstFrom(one.offsets, at(pixel));
    const token = wanted >= to || (wanted > from && x(one.offsets[wanted]) - pixel > pixel - x(one.offsets[wanted - 1])) ? wanted - 1 : wanted;
    const beside = firstFrom(one.offsets, at(pixel + 0.5)) - firstFrom(one.offsets, at(pixel - 0.5));
    return [
      `Token ${count(one.indexOf(token))}${one.isVoid(token) ? ", void: a later attempt made it anew" : ""}`,
      `at ${milliseconds(one.offsets[token] / 1000)}, ${milliseconds(one.gaps[token] / 1000)} after ${one.indexOf(token) === 0 ? "acceptance" : "the one before"}`,
      beside > 1 ? `one of ${count(beside)} at this place: zoom in` : null,
    ];
  }

  function describe(event) {
    const { raw } = event;
    return [
      `${event.label}${event.attempt ? `, attempt ${event.attempt}` : ""}`, `at ${milliseconds(event.at / 1000)}`,
      event.actor || null, raw.detail || null, raw.amount ? `${raw.amount} ${raw.currency ?? ""}` : null,
      raw.tokens ? `${count(raw.tokens)} tokens` : null,
    ];
  }

  function hide() {
    hover = null;
    tip.hidden = true;
  }

  function point(event) {
    const box = canvas.getBoundingClientRect();
    const pixel = event.clientX - box.left;
    hover = found(pixel, event.clientY - box.top);
    tip.hidden = hover === null;
    canvas.style.cursor = hover ? "pointer" : "grab";
    if (hover === null) return;
    tip.replaceChildren(...hover.filter(Boolean).map((words, place) => el(place ? "span" : "strong", { text: words })));
    tip.style.left = `${Math.min(Math.max(0, pixel + 12), Math.max(0, box.width - tip.offsetWidth - 4))}px`;
    tip.style.top = `${event.clientY - box.top + 16}px`;
  }

  // --- moving it ---

  let dragged = null;
  canvas.addEventListener("pointerdown", (event) => {
    dragged = { pixel: event.clientX, view };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (dragged === null) return point(event);
    const by = ((dragged.pixel - event.clientX) / plotWidth) * (dragged.view[1] - dragged.view[0]);
    if (Math.abs(dragged.pixel - event.clientX) < 3) return undefined;
    touched = true;
    show(dragged.view[0] + by, dragged.view[1] + by);
    return undefined;
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => { dragged = null; point(event); });
  canvas.addEventListener("pointerleave", () => { if (dragged === null) hide(); });
  canvas.addEventListener("dblclick", (event) => zoom(0.4, at(event.clientX - canvas.getBoundingClientRect().left)));
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
    event.preventDefault();
    zoom(event.deltaY > 0 ? 1.25 : 0.8, at(event.clientX - canvas.getBoundingClientRect().left));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const act = { ArrowLeft: () => move(-0.2), ArrowRight: () => move(0.2), "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), 0: () => fit(model.end) }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });

  function keyOf() {
    const parts = [["--series-1", "token"], ["--warn", `gap over ${milliseconds(model.slow / 1000)}`], ["--bad", "gap over 1 s"]];
    if (model.attempts.some((one) => one.voids)) parts.push(["--muted", "void token"]);
    key.replaceChildren(...parts.map(([tone, name]) => {
      const mark = el("span", { class: "plot-mark" });
      mark.style.backgroundColor = `var(${tone})`;
      return el("li", {}, mark, name);
    }));
    key.hidden = model.attempts.every((one) => one.offsets.length === 0);
  }

  const sizes = new ResizeObserver(schedule);
  sizes.observe(canvas);
  const forget = theme.onChange(schedule);
  keyOf();
  draw();
  return {
    element,
    update(changed) {
      model = changed;
      lanes = lanesOf(model);
      canvas.setAttribute("aria-label", spoken(model));
      if (!touched) view = [0, model.end * 1.04];
      keyOf();
      schedule();
    },
    destroy() {
      cancelAnimationFrame(waiting);
      sizes.disconnect();
      forget();
      element.remove();
    },
  };
}

/** [{title, note, bars: [{from, to, tone, strength, name}], marks: [{event, name}], attempt?}]. */
function lanesOf(model) {
  const of = (...kinds) => model.events.filter((one) => kinds.includes(`${one.kind}`.replace("TIMELINE_KIND_", "")));
  const moment = (kind) => of(kind)[0]?.at ?? null;
  const marks = (events, named = true) => events.map((event) => ({ event, name: named ? event.label : "" }));
  const placed = moment("PLACED");
  const started = moment("STARTED");
  const refused = moment("REFUSED");
  const bar = (from, to, tone, strength, name, quiet = false) => (from === null || to === null || to <= from ? [] : [{ from, to, tone, strength, name, quiet }]);
  const delivered = of("DELIVERED");
  const last = model.attempts.at(-1)?.number ?? 0;
  // When an attempt was handed to the engine is known of the last one only.
  const taken = last > 1 ? bar(placed, moment("FIRST_TOKEN"), "--series-3", 0.3, "waits for the first token") : bar(placed, started, "--series-3", 0.3, "waits for the engine");
  const lanes = [{
    title: "Edge", note: of("ACCEPTED")[0]?.actor ?? "", marks: marks([...of("ACCEPTED"), ...delivered]),
    bars: bar(0, delivered.at(-1)?.at ?? null, "--accent", 0.18, "connection", true),
  }, {
    title: "Queue", note: "scheduler", marks: marks(of("PLACED", "REFUSED"), false),
    bars: [...bar(0, placed ?? refused, refused === null ? "--series-5" : "--bad", 0.35, "waits for a worker"), ...taken],
  }];
  for (const one of model.attempts) {
    const first = one.offsets.length ? one.offsets[0] : null;
    const prefill = one.number === last ? bar(started, first, "--series-2", 0.35, "prefill") : [];
    const made = bar(first, one.offsets.at(-1) ?? null, "--series-1", 0.12, "");
    lanes.push({
      title: `Attempt ${one.number}`, note: one.worker || (one.offsets.length ? `${count(one.offsets.length)} tokens` : "no token"),
      bars: [...prefill, ...made], attempt: one,
      marks: marks(model.events.filter((event) => event.attempt === one.number && ["TIMELINE_KIND_STARTED", "TIMELINE_KIND_RESUMED"].includes(event.kind)), false),
    });
  }
  lanes.push({ title: "Billing", note: "meter", bars: [], marks: marks(of("ENDED", "BILLED", "ADJUSTED")) });
  return lanes;
}

/** A moment of the axis, as exactly as its neighbours (`step` microseconds away) need it. */
function moment(at, step) {
  if (Math.abs(at) < step / 2) return "0";
  const [unit, size] = step >= 1e5 || Math.abs(at) >= 1e7 ? ["s", 1e6] : step >= 100 || Math.abs(at) >= 1e4 ? ["ms", 1e3] : ["µs", 1];
  return `${(at / size).toFixed(Math.max(0, Math.ceil(-Math.log10(step / size) - 1e-9)))}\u202f${unit}`;
}

function spoken(model) {
  const tokens = model.attempts.reduce((sum, one) => sum + one.offsets.length - one.voids, 0);
  return `Timeline of ${milliseconds(model.end / 1000)}: ${model.attempts.length} attempts, ${count(tokens)} tokens. The table of events says the same.`;
}

/** 1, 2 or 5 times a power of ten, at least `least`. */
function niceStep(least) {
  const power = 10 ** Math.floor(Math.log10(Math.max(least, 1)));
  return [1, 2, 5, 10].map((one) => one * power).find((one) => one >= least);
}
