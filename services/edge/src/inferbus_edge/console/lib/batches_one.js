// One batch: how far it is, what is wrong with its file, what came of it.

import { isRunning, mayCancel, progress, rateOf, sampled, STATES, times } from "./batches_data.js";
import {
  BATCHES,
  downloadButton,
  fetchBatchCommand,
  fetchFileCommand,
  nowSeconds,
  progressBar,
  stateBadge,
} from "./batches_parts.js";
import { facts, faultPanel, figures, metadata } from "./batches_told.js";
import { failed, loading, panel } from "./controls.js";
import { el, replace } from "./dom.js";
import { follow } from "./following.js";

export function renderOne({ body }, context, id) {
  const asking = new AbortController();
  const path = `${BATCHES}/${encodeURIComponent(id)}`;
  let view = null;
  let samples = [];
  replace(body, loading());

  async function load() {
    show(await context.api.get(path, {}, { signal: asking.signal }));
    return isRunning(view.batch);
  }

  function show(batch) {
    samples = sampled(samples, performance.now() / 1000, progress(batch).done);
    if (view === null) {
      view = draw(context, id, cancel);
      replace(body, view.element);
    }
    view.update(batch, rateOf(batch, samples, nowSeconds()));
  }

  async function cancel() {
    if (
      !window.confirm(`Cancel ${id}? Lines that are done keep their results and are billed; what has not run does not.`)
    )
      return;
    view.told(null);
    try {
      show(await context.api.post(`${path}/cancel`));
      following.again();
    } catch (error) {
      if (!asking.signal.aborted) view.told(failed(error, cancel));
    }
  }

  function troubled(error) {
    if (asking.signal.aborted) return false;
    if (view === null || error.status === 404) {
      view?.stop();
      view = null;
      replace(
        body,
        failed(error, () => {
          replace(body, loading());
          following.again();
        }),
      );
      return false;
    }
    view.stale(el("p", { class: "muted", text: `Not as of now: ${error.message} It is asked again.` }));
    return true;
  }

  const following = follow(load, troubled, 2000);
  return () => {
    asking.abort();
    following.stop();
    view?.stop();
  };
}

/** The whole page of one batch. Returns {element, batch, update(batch, rate), stale(node): until the next update,
 *  told(node): what came of a press, stop()}. What a person may be about to press stays where it is: only figures are
 *  made anew. */
function draw(context, id, cancel) {
  const head = el("div", { class: "request-title" }, el("h2", { class: "mono", text: id }));
  const state = el("span", { role: "status" });
  const stop = el("button", { type: "button", class: "button danger", text: "Cancel this batch", onclick: cancel });
  const stale = el("div");
  const told = el("div");
  const bar = el("div", { class: "batch-bar" });
  const stats = el("div", { class: "stats" });
  const results = panel("Results");
  const resultBody = el("div", { class: "stack" });
  results.append(resultBody);
  const faults = el("div");
  const about = el("div", { class: "grid" });
  const element = el(
    "div",
    { class: "stack" },
    el("div", { class: "page-head" }, head, state, stop),
    told,
    stale,
    bar,
    stats,
    results,
    faults,
    about,
  );
  let input = null;
  let downloads = [];
  let last = null; // what the parts below were made of: they are not made anew under somebody's hands

  function update(batch, rate) {
    view.batch = batch;
    // Told once, when it changes, to who hears the page.
    if (state.textContent !== STATES[batch.status]?.label) replace(state, stateBadge(batch));
    stop.hidden = !mayCancel(batch);
    replace(stale);
    replace(bar, progressBar(batch));
    replace(stats, figures(batch, rate));
    const now = JSON.stringify([batch.status, batch.model, times(batch), batch.output_file_id, batch.error_file_id]);
    if (now === last) return;
    last = now;
    input ??= inputFile(context, batch);
    downloads = resultFiles(context, batch, resultBody, input);
    replace(faults, faultPanel(batch));
    replace(about, facts(batch), metadata(batch));
  }

  const view = {
    element,
    update,
    batch: null,
    stale: (node) => replace(stale, node),
    told: (node) => replace(told, node),
    stop: () => [input, ...downloads].forEach((one) => one?.stop()),
  };
  return view;
}

const inputFile = (context, batch) =>
  downloadButton(context, {
    label: "Download its input",
    fileId: batch.input_file_id,
    name: `${batch.id}_input.jsonl`,
    command: fetchFileCommand({ id: batch.input_file_id }),
  });

/** The buttons for output and errors, which there are at its end, and `input`'s, which stays. */
function resultFiles(context, batch, root, input) {
  const found = [
    ["output", batch.output_file_id],
    ["errors", batch.error_file_id],
  ].filter(([, fileId]) => fileId);
  const made = found.map(([kind, fileId]) =>
    downloadButton(context, {
      label: `Download ${kind}`,
      fileId,
      name: `${batch.id}_${kind}.jsonl`,
      command: fetchBatchCommand(batch),
    }),
  );
  const none = isRunning(batch)
    ? "Output and errors are there when it has ended."
    : "It has no results: nothing has run.";
  replace(
    root,
    made.length ? null : el("p", { class: "muted", text: none }),
    el(
      "div",
      { class: "form-row" },
      [...made, input].map((one) => one.button),
    ),
    [...made, input].map((one) => one.place),
  );
  return made;
}
