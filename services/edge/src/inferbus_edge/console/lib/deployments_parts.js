// What the list and the page of one model are both made of.

import { badge, table } from "./controls.js";
import { STATES, part } from "./deployments_data.js";
import { el, replace } from "./dom.js";

export const REVISIONS = "/inferbus/v1/revisions";
export const ROLLOUTS = "/inferbus/v1/rollouts";

export function modelLink(model) {
  return el("a", { href: `#/deployments/${encodeURIComponent(model)}`, text: model, "data-focus": `model-${model}` });
}

/** `state`: see STATES; "" of a model that nothing was rolled out of. */
export function stateBadge(state) {
  const known = STATES[state];
  return known ? badge(known.label, known.tone) : badge("as its workers are");
}

/** A revision and its part of the requests. */
export function weightBar(revision, permille) {
  const bar = el("span");
  bar.style.width = `${permille / 10}%`;
  return el("div", { class: "deploy-weight" }, el("span", {}, revision, " ", el("span", { class: "muted", text: part(permille) })),
    el("span", { class: "meter", role: "img", "aria-label": `${part(permille)} of the requests` }, bar));
}

/** `rows`: see figureRows. */
export function figureTable(rows, caption) {
  return table(null, {
    caption, rows,
    columns: [
      { label: "Figure", value: (row) => row.label, title: (row) => row.name },
      ...[["Candidate", "candidate"], ["Stable", "stable"], ["Allowed", "allowed"], ["p", "p"], ["Samples", "samples"]].map(([label, name]) => ({
        label, align: "right", value: (row) => row[name],
      })),
      { label: "Verdict", value: (row) => badge(row.verdict, row.tone) },
    ],
  }).element;
}

/** A details element that is open as long as `opened` has its name, from one drawing to the next. */
export function unfolding(name, opened, attributes, summary, ...content) {
  const element = el("details", { ...attributes, open: opened.has(name), ontoggle: () => {
    if (element.open) opened.add(name);
    else opened.delete(name);
  } }, el("summary", { "data-focus": name }, summary), content);
  return element;
}

/** A place that is drawn anew when what it shows has changed, and not under somebody's hands before: show(value). */
export function place(draw, attributes = {}) {
  const element = el("div", attributes);
  let last;
  return {
    element,
    show(value) {
      const now = JSON.stringify(value);
      if (now === last) return;
      last = now;
      replace(element, draw(value));
    },
  };
}
