// What the pages of batches have in common: a state, a progress, a file that is fetched.

import { progress, progressText, STATES } from "./batches_data.js";
import { chosenTarget, saveFile, TooLarge } from "./batches_download.js";
import { badge, failed } from "./controls.js";
import { el, replace } from "./dom.js";
import { bytes } from "./format.js";

export const BATCHES = "/v1/batches";
export const FILES = "/v1/files";
export const hrefOf = (id) => `#/batches/${encodeURIComponent(id)}`;
export const nowSeconds = () => Date.now() / 1000;

export function stateBadge(batch) {
  const { label, tone } = STATES[batch.status] ?? { label: batch.status, tone: "" };
  return badge(label, tone);
}

/** Bar and words; lines with an error are a part of the bar of their own. */
export function progressBar(batch) {
  const { total, completed, failed: faulty, part } = progress(batch);
  const text = progressText(batch);
  const good = el("span", { class: batch.status === "completed" ? "good" : "" });
  const bad = el("span", { class: "bad" });
  good.style.width = `${total ? (100 * completed) / total : 0}%`;
  bad.style.width = `${total ? (100 * faulty) / total : 0}%`;
  const bar = el(
    "span",
    {
      class: "meter parted",
      role: "progressbar",
      "aria-label": "Progress",
      "aria-valuemin": "0",
      "aria-valuemax": "100",
      "aria-valuenow": part === null ? null : String(Math.floor(part * 100)),
      "aria-valuetext": text,
    },
    good,
    bad,
  );
  return el("span", { class: "batch-progress" }, bar, el("span", { class: "muted small", text }));
}

/** How far a file is. Returns {element, update(bytes, of), end()}. `what`: "Sending", "Fetching". */
export function transferBar(what, onCancel) {
  const fill = el("span");
  const bar = el(
    "span",
    { class: "meter", role: "progressbar", "aria-label": what, "aria-valuemin": "0", "aria-valuemax": "100" },
    fill,
  );
  const text = el("span", { class: "muted small" });
  const cancel = el("button", {
    type: "button",
    class: "button small",
    text: "Cancel",
    "aria-label": `Cancel ${what.toLowerCase()}`,
    onclick: onCancel,
  });
  const element = el("div", { class: "transfer" }, bar, text, cancel);
  const began = performance.now();
  let drawn = 0;
  return {
    element,
    update(done, of) {
      const now = performance.now();
      if (now - drawn < 100 && done < of) return; // not once a chunk
      drawn = now;
      const part = of ? done / of : 0;
      fill.style.width = `${(100 * part).toFixed(1)}%`;
      bar.setAttribute("aria-valuenow", String(Math.floor(100 * part)));
      const seconds = (now - began) / 1000;
      text.textContent = `${bytes(done)} of ${bytes(of)}${seconds > 1 ? `, ${bytes(done / seconds)}/s` : ""}`;
      bar.setAttribute("aria-valuetext", text.textContent);
    },
  };
}

/** A button that fetches a file of the API, with all that comes of it below. `command`: what does the same in a
 *  terminal. Returns {button, place, stop()}. */
export function downloadButton(context, { label, fileId, name, command, title = null, focus = null }) {
  const place = el("div", { class: "transfer-place" });
  const button = el("button", {
    type: "button",
    class: "button",
    text: label,
    "aria-label": title,
    "data-focus": focus,
    onclick: fetchIt,
  });
  let asking = null;

  async function fetchIt() {
    button.disabled = true;
    replace(place);
    const mine = (asking = new AbortController());
    try {
      const target = await chosenTarget(name);
      if (target === null || mine.signal.aborted) return;
      const bar = transferBar("Fetching", () => mine.abort());
      replace(place, bar.element);
      await saveFile(context.api, fileId, target, { onProgress: bar.update, signal: mine.signal });
      replace(place, el("p", { class: "message done", role: "status", text: `${name} is there.` }));
    } catch (error) {
      if (mine.signal.aborted) replace(place);
      else replace(place, error instanceof TooLarge ? tooLarge(error, command) : failed(error, fetchIt));
    } finally {
      button.disabled = false;
    }
  }

  return { button, place, stop: () => asking?.abort() };
}

function tooLarge(error, command) {
  return el(
    "div",
    { class: "message failed", role: "alert" },
    el("p", {
      text:
        `The file has ${bytes(error.bytes)}. ${error.message} Chrome and Edge write it to the disk as it comes, ` +
        "over HTTPS; in a terminal it is:",
    }),
    el("pre", { class: "mono command", text: command }),
  );
}

/** The command line that fetches a batch's files, and one for a single file. */
export const fetchBatchCommand = (batch) =>
  `INFERBUS_KEY=… inferbus batch fetch ${batch.id} --url ${window.location.origin} ` +
  `--output ${batch.id}_output.jsonl --errors ${batch.id}_errors.jsonl`;
export const fetchFileCommand = (file) =>
  `curl -fL -C - -H "Authorization: Bearer $INFERBUS_KEY" -o ${file.id}.jsonl ` +
  `${window.location.origin}${FILES}/${file.id}/content`;
