// A new batch: choose a file, or one that is there already, say what is to become of it, send it.

import { randomName } from "./api.js";
import {
  ENDPOINTS,
  exampleLine,
  fileFault,
  firstLine,
  formFault,
  HEAD_BYTES,
  requestOf,
  UNITS,
  WHOLE_BYTES,
} from "./batches_form.js";
import { metadataRows } from "./batches_entries.js";
import { BATCHES, FILES, hrefOf, transferBar } from "./batches_parts.js";
import { uploadFile } from "./batches_upload.js";
import { failed, panel } from "./controls.js";
import { el, replace } from "./dom.js";
import { bytes } from "./format.js";

export function renderNew({ body }, context) {
  const leaving = new AbortController();
  let file = null; // what was chosen: a File of the browser
  let sent = null; // the API's file: of the one that was chosen, once it is sent, or one that was there
  let attempt = null; // {body, key}: the same call again is the same batch
  let sending = null;

  const input = el("input", {
    type: "file",
    accept: ".jsonl,.ndjson,application/jsonl,application/x-ndjson",
    "aria-describedby": "batch-file",
    onchange: () => choose(input.files[0]),
  });
  const told = el("p", { class: "help", id: "batch-file", role: "status" });
  const drop = el(
    "div",
    { class: "drop" },
    el(
      "label",
      {},
      el("span", { text: "Input: a file with a request a line (JSONL), at most 8 GiB. Drop it here, or choose it." }),
      input,
    ),
    told,
  );
  const endpoint = el(
    "select",
    { name: "endpoint" },
    ENDPOINTS.map((one) => el("option", { value: one, text: one })),
  );
  const amount = el("input", {
    type: "number",
    name: "amount",
    min: "1",
    max: "20160",
    step: "1",
    value: "24",
    required: true,
  });
  const unit = el(
    "select",
    { name: "unit", "aria-label": "Unit of the time" },
    UNITS.map(({ value, label }) => el("option", { value, text: label })),
  );
  unit.value = "h";
  const entries = metadataRows();
  const message = el("div");
  const create = el("button", { type: "submit", class: "button main", text: "Create batch" });
  const form = el(
    "form",
    {
      class: "form",
      novalidate: true,
      onsubmit: (event) => {
        event.preventDefault();
        submit();
      },
    },
    drop,
    el("label", {}, el("span", { text: "Endpoint of its lines" }), endpoint),
    el(
      "div",
      {},
      el(
        "div",
        { class: "form-row" },
        el("label", { class: "short" }, el("span", { text: "To be done within" }), amount),
        unit,
      ),
      el("p", { class: "help", text: "What has not run by then does not: 14 days at most." }),
    ),
    entries.element,
    message,
    el("div", { class: "form-row" }, create),
  );
  const example = el("pre", { class: "mono command" });
  const showExample = () => {
    example.textContent = exampleLine(endpoint.value);
  };
  endpoint.addEventListener("change", showExample);
  showExample();
  replace(
    body,
    el(
      "div",
      { class: "grid" },
      panel("New batch", form),
      panel("A line of the file", el("div", { class: "stack" }, example, hints())),
    ),
  );

  for (const name of ["dragenter", "dragover"]) drop.addEventListener(name, (event) => over(event, true));
  drop.addEventListener("dragleave", (event) => over(event, drop.contains(event.relatedTarget)));
  drop.addEventListener("drop", (event) => {
    over(event, false);
    if (!create.disabled && event.dataTransfer.files.length)
      choose(event.dataTransfer.files[0], event.dataTransfer.files.length);
  });
  const unload = (event) => {
    if (sending) event.preventDefault();
  };
  window.addEventListener("beforeunload", unload);
  if (context.query.file) present(context.query.file);

  function over(event, on) {
    event.preventDefault();
    drop.classList.toggle("is-over", on);
  }

  function say(text, bad = false) {
    told.textContent = text;
    told.className = bad ? "help is-bad" : "help";
  }

  /** One that is there already, by its id in the address. */
  async function present(id) {
    try {
      const found = await context.api.get(`${FILES}/${encodeURIComponent(id)}`, {}, { signal: leaving.signal });
      if (file !== null) return;
      sent = found;
      say(`${found.filename}, ${bytes(found.bytes)}: sent before.`);
    } catch (error) {
      if (!leaving.signal.aborted) replace(message, failed(error));
    }
  }

  async function choose(chosen, number = 1) {
    if (!chosen) return;
    file = chosen;
    sent = null;
    context.setQuery({ file: null });
    replace(message);
    const fault = number > 1 ? "A batch has one file: drop one." : fileFault(chosen);
    const head = fault
      ? null
      : await chosen
          .slice(0, HEAD_BYTES)
          .text()
          .catch(() => null);
    if (file !== chosen) return; // another one, meanwhile
    const first =
      head === null
        ? { endpoint: "", fault: fault || "It cannot be read: is it a folder?" }
        : firstLine(head, chosen.size <= HEAD_BYTES);
    if (head === null) file = null;
    if (first.endpoint) endpoint.value = first.endpoint;
    showExample();
    const more = first.fault || (first.endpoint ? "The endpoint is that of its first line." : "");
    say(`${chosen.name}, ${bytes(chosen.size)}. ${more}`, Boolean(first.fault));
  }

  async function submit() {
    const draft = { endpoint: endpoint.value, amount: amount.value, unit: unit.value, metadata: entries.values() };
    const fault =
      file === null && sent === null ? { field: "file", message: "Choose a file first." } : formFault(draft);
    if (fault) {
      replace(message, el("p", { class: "message failed", role: "alert", text: fault.message }));
      ({ file: input, amount, metadata: entries.element.querySelector("input") })[fault.field]?.focus();
      return;
    }
    replace(message);
    create.disabled = input.disabled = true;
    try {
      if (sent === null) sent = await send(file);
      const batch = await made(requestOf(draft, sent.id));
      if (!leaving.signal.aborted) context.navigate(hrefOf(batch.id));
    } catch (error) {
      if (!leaving.signal.aborted)
        replace(
          message,
          error.name === "AbortError"
            ? el("p", { class: "muted", role: "status", text: "Nothing was sent." })
            : failed(error),
        );
    } finally {
      create.disabled = input.disabled = false;
    }
  }

  async function send(chosen) {
    sending = new AbortController();
    const bar = transferBar("Sending", () => sending.abort());
    replace(
      message,
      bar.element,
      el("p", {
        class: "help",
        text:
          chosen.size > WHOLE_BYTES
            ? "It goes in parts; a part that is lost is sent again. Stay on this page until it is sent."
            : "Stay on this page until it is sent.",
      }),
    );
    try {
      const signal = AbortSignal.any([sending.signal, leaving.signal]);
      return await uploadFile(context.api, chosen, { onProgress: (done) => bar.update(done, chosen.size), signal });
    } finally {
      sending = null;
    }
  }

  /** Whoever presses the button again because no answer came does not get a second batch. */
  function made(wanted) {
    const text = JSON.stringify(wanted);
    if (attempt?.text !== text) attempt = { text, key: `console-${randomName()}` };
    replace(message, el("p", { class: "muted", role: "status", text: "Making the batch …" }));
    return context.api.post(BATCHES, wanted, { headers: { "Idempotency-Key": attempt.key }, signal: leaving.signal });
  }

  return () => {
    leaving.abort();
    window.removeEventListener("beforeunload", unload);
  };
}

function hints() {
  return [
    "One JSON object a line. Its custom_id is your own name for it, once in a file: the answer has it, too, for " +
      "answers come in any order.",
    "All lines are checked before any runs; if one is wrong nothing runs, and each fault is told with its line.",
    "Larger than some 100 MB, or by a script, it is more convenient in a terminal: inferbus batch submit FILE --wait.",
  ].map((text) => el("p", { class: "muted", text }));
}
