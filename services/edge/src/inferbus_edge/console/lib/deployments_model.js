// One model: what serves it, the rollout under way, what was decided, and what can be done about it.

import { failed, loading, panel, stat } from "./controls.js";
import { events, figureRows, moves, part, stateOf, steps, workersText } from "./deployments_data.js";
import { deployForm, pinForms } from "./deployments_forms.js";
import { figureTable, place, REVISIONS, ROLLOUTS, stateBadge } from "./deployments_parts.js";
import { revisionPlots } from "./deployments_plots.js";
import { historyList, revisionPart } from "./deployments_told.js";
import { el, keepingFocus, replace } from "./dom.js";
import { follow } from "./following.js";
import { time } from "./format.js";

export function renderModel(root, context, model) {
  const asking = new AbortController();
  const opened = new Set();
  const told = el("div", { role: "status" });
  const stale = el("div");
  const body = el("div", { class: "stack" }, loading());
  const state = place((value) => stateBadge(value));
  const actions = place((found) => found.map((one) => moveButton(one)), { class: "toolbar" });
  const stats = place(figuresOf, { class: "stats" });
  const bar = place(stepBar);
  const figures = place(({ rows, candidate }) => (candidate ? panel("Figures of this step", figuresNow(rows)) : null));
  const revisions = place((found) => revisionPart(found, opened, retire));
  const history = place((rows) => panel("History", historyList(rows, opened)));
  const deploy = deployForm(model, act);
  const pins = pinForms(model, act);
  const plots = revisionPlots(context, model);
  let shown = false;

  replace(root,
    el("div", { class: "page-head" }, el("h1", {}, el("a", { href: "#/deployments", text: "Deployments" }), ` / ${model}`), state.element, actions.element),
    told, stale, body);

  async function load() {
    const options = { signal: asking.signal };
    // Of all models: that one has none is no error then.
    const [{ rollouts = [] }, { revisions: known = [] }] = await Promise.all([
      context.api.get(ROLLOUTS, {}, options), context.api.get(REVISIONS, { model }, options),
    ]);
    if (asking.signal.aborted) return false;
    replace(stale);
    show(rollouts.find((one) => one.rollout?.model === model) ?? { rollout: { model } }, known);
    return true;
  }

  function show({ rollout, figures: now = [], workers = {} }, known) {
    keepingFocus(root, () => {
      state.show(stateOf(rollout));
      actions.show(moves(rollout));
      stats.show({ rollout, workers });
      bar.show({ steps: steps(rollout), strategy: rollout.strategy, weight: rollout.weight_permille, candidate: rollout.candidate_revision });
      figures.show({ rows: figureRows(now), candidate: rollout.candidate_revision });
      revisions.show(known);
      history.show(events(rollout));
      deploy.update(known, rollout);
      pins.update(known, rollout);
    });
    if (shown) return;
    shown = true;
    replace(body, stats.element, bar.element, figures.element, revisions.element, plots.element,
      el("div", { class: "grid" }, deploy.element, pins.element), history.element);
    plots.start();
  }

  function troubled(error) {
    if (asking.signal.aborted) return false;
    if (!shown) replace(body);
    replace(stale, failed(error));
    return true;
  }

  // --- actions ---

  /** `asked`: what is confirmed before; `work()`: what is done then. Whether it was. */
  async function act(asked, work) {
    replace(told);
    try {
      const ask = work(context.api);
      if (!window.confirm(asked)) return false;
      await ask();
      following.again();
      return true;
    } catch (error) {
      if (!asking.signal.aborted) replace(told, failed(error));
      return false;
    }
  }

  const moveButton = ({ move, label, danger, asked }) =>
    pressing(label, danger, `move-${move}`, () => act(asked, (api) => () => api.post(`${ROLLOUTS}/move`, { model, move })));

  const retire = (revision) =>
    pressing("Retire", true, `retire-${revision}`, () =>
      act(`Retire ${revision}? It never serves again, and its artifacts may be deleted.`, (api) => () =>
        api.post(`${REVISIONS}/stage`, { model, revision, stage: "retired" })));

  const following = follow(load, troubled);
  return () => {
    asking.abort();
    following.stop();
    plots.stop();
  };
}

/** Not to be pressed twice. */
function pressing(text, danger, name, press) {
  const button = el("button", { type: "button", class: danger ? "button danger" : "button", text, "data-focus": name, onclick: async () => {
    button.disabled = true;
    await press();
    button.disabled = false;
  } });
  return button;
}

function figuresOf({ rollout, workers }) {
  const { candidate_revision: candidate, previous_revision: previous, keep_previous: kept } = rollout;
  return [
    stat("Stable", rollout.stable_revision || "–", rollout.stable_revision ? "" : "whatever workers it has"),
    stat("Candidate", candidate || "–", candidate ? `${part(rollout.weight_permille)} of the requests` : "no rollout is under way"),
    stat("Before", previous || "–", kept ? "its workers are kept" : ""),
    stat("Workers", workersText(workers)),
    stat("Since", time(rollout.step_time), "UTC"),
  ];
}

function stepBar({ steps: found, strategy, weight, candidate }) {
  if (found.length === 0) return null;
  if (strategy === "ROLLOUT_STRATEGY_BLUE_GREEN") {
    return panel("Blue-green", el("p", { text: candidate ? `${candidate} takes all requests as soon as it has as many workers as the stable one.` : "All at once." }));
  }
  const parts = found.map((one) => el("li", { class: `deploy-step is-${one.state}`, "aria-current": one.state === "now" ? "step" : null },
    el("strong", { text: one.label }), el("span", { class: "muted small", text: { done: "done", now: "under way", left: "left here", next: "to come" }[one.state] })));
  const fill = el("span");
  fill.style.width = `${(weight ?? 0) / 10}%`;
  return panel("Steps", el("div", { class: "stack tight" }, candidate ? el("span", { class: "meter", role: "img", "aria-label": `${part(weight)} of the requests` }, fill) : null,
    el("ol", { class: "deploy-steps" }, parts)));
}

function figuresNow(rows) {
  return rows.length ? figureTable(rows, "Figures of this step") : el("p", { class: "muted", text: "None yet: it is judged once it has requests." });
}
