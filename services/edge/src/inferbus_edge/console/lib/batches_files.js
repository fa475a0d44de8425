// The project's files: what batches are made of, and what came of them.

import { downloadButton, fetchFileCommand, FILES } from "./batches_parts.js";
import { query } from "./api.js";
import { failed, filters, loading, table } from "./controls.js";
import { el, keepingFocus, replace } from "./dom.js";
import { bytes, time } from "./format.js";

const PAGE = 50;
const PURPOSES = { batch: "input of batches", batch_output: "results of batches" };

export function renderFiles({ tools, body }, context) {
  let asking = null; // a newer question takes the place of the one before
  let shown = [];
  let stops = new Map(); // by file: what is being fetched
  const chosen = filters(
    context,
    [
      {
        name: "purpose",
        label: "Purpose",
        options: Object.entries(PURPOSES).map(([value, label]) => ({ value, label })),
        all: "all",
      },
    ],
    () => load(),
  );
  const places = el("div", { class: "stack transfers" });
  const message = el("div");
  const box = el("div", { class: "panel" });
  const more = el("button", { type: "button", class: "button", text: "More", onclick: () => load(true) });
  const foot = el("div", { hidden: true }, more);
  const found = table(null, {
    caption: "Files",
    nothing: "There is no file here.",
    limit: Number.POSITIVE_INFINITY,
    columns: columns(),
  });
  replace(tools, chosen.element);
  replace(box, loading());
  replace(body, message, places, box);
  load();

  async function load(further = false) {
    asking?.abort();
    const mine = (asking = new AbortController());
    more.disabled = true;
    try {
      const params = { ...chosen.values(), limit: PAGE, after: further ? shown.at(-1)?.id : "" };
      const page = await context.api.get(FILES, params, { signal: mine.signal });
      if (mine.signal.aborted) return;
      shown = further ? [...shown, ...page.data] : page.data;
      foot.hidden = !page.has_more;
      draw();
      replace(box, found.element, foot);
    } catch (error) {
      if (!mine.signal.aborted)
        replace(
          box,
          failed(error, () => load()),
        );
    } finally {
      more.disabled = false;
    }
  }

  function draw() {
    keepingFocus(found.element, () => found.update(shown));
  }

  function columns() {
    return [
      {
        label: "Created (UTC)",
        value: (file) => time(file.created_at, "minute"),
        title: (file) => time(file.created_at),
      },
      {
        label: "File",
        class: "wrap",
        value: (file) => [file.filename, el("span", { class: "muted small mono", text: ` ${file.id}` })],
      },
      { label: "Purpose", value: (file) => PURPOSES[file.purpose] ?? file.purpose },
      { label: "Size", align: "right", value: (file) => bytes(file.bytes), title: (file) => `${file.bytes} bytes` },
      {
        label: "Removed (UTC)",
        value: (file) => (file.expires_at ? time(file.expires_at, "minute") : "never"),
        title: (file) => (file.expires_at ? time(file.expires_at) : null),
      },
      { label: "What to do", value: actions },
    ];
  }

  function actions(file) {
    const made = stops.get(file.id) ?? fetching(file);
    return el(
      "span",
      { class: "form-row" },
      file.purpose === "batch"
        ? el("a", {
            class: "button small",
            href: `#/batches/new${query({ file: file.id })}`,
            text: "New batch",
            "aria-label": `New batch of ${file.filename}`,
            "data-focus": `new ${file.id}`,
          })
        : null,
      made.button,
      el("button", {
        type: "button",
        class: "button small danger",
        text: "Delete",
        "aria-label": `Delete ${file.filename}`,
        "data-focus": `delete ${file.id}`,
        onclick: (event) => remove(file, event.currentTarget),
      }),
    );
  }

  /** Its button, which stays the same as long as the page does: it may be at work. */
  function fetching(file) {
    const name = /\.[a-z0-9]{1,8}$/i.test(file.filename) ? file.filename : `${file.filename}.jsonl`;
    const made = downloadButton(context, {
      label: "Download",
      title: `Download ${file.filename}`,
      fileId: file.id,
      name,
      command: fetchFileCommand(file),
      focus: `fetch ${file.id}`,
    });
    made.button.classList.add("small");
    places.append(made.place);
    stops.set(file.id, made);
    return made;
  }

  async function remove(file, button) {
    if (
      !window.confirm(
        `Delete ${file.filename} (${bytes(file.bytes)})? It cannot be had back; a batch that still needs it fails.`,
      )
    )
      return;
    button.disabled = true;
    replace(message);
    try {
      await context.api.remove(`${FILES}/${encodeURIComponent(file.id)}`);
      shown = shown.filter((one) => one.id !== file.id);
      stops.get(file.id)?.stop();
      stops.get(file.id)?.place.remove();
      stops.delete(file.id);
      draw();
      replace(message, el("p", { class: "message done", role: "status", text: `${file.filename} is deleted.` }));
    } catch (error) {
      button.disabled = false;
      replace(message, failed(error));
    }
  }

  return () => {
    asking?.abort();
    for (const one of stops.values()) one.stop();
  };
}
