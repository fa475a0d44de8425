// All batches of the key's project, the newest first. It asks again only while one of them runs and the tab is seen.

import {
  deadlineText,
  isLate,
  isRunning,
  leftText,
  merged,
  progress,
  rateOf,
  rateText,
  meanRate,
  sampled,
} from "./batches_data.js";
import { BATCHES, hrefOf, nowSeconds, progressBar, stateBadge } from "./batches_parts.js";
import { badge, failed, loading, table } from "./controls.js";
import { el, keepingFocus, replace } from "./dom.js";
import { follow } from "./following.js";
import { compact, count, time } from "./format.js";

const PAGE = 20; // a batch that failed brings up to 1,000 faults with it
const GONE = 404;

export function renderList({ body }, context) {
  const asking = new AbortController();
  const options = { signal: asking.signal };
  const samples = new Map(); // by batch
  const found = table(null, {
    columns: columns(samples),
    caption: "Batches",
    limit: Number.POSITIVE_INFINITY,
    nothing: "There is no batch in this project yet. Make one under New batch: a file with a request a line.",
  });
  const more = el("button", { type: "button", class: "button", text: "More", onclick: older });
  const message = el("div");
  const foot = el("div", { hidden: true }, more, message);
  const stale = el("div", { role: "status" });
  const box = el("div", { class: "panel" });
  let shown = null;
  let hasMore = false;
  replace(box, loading());
  replace(body, stale, box);

  /** The first page, and of what stands behind it each one that runs. Returns whether any does. */
  async function refresh() {
    const page = await context.api.get(BATCHES, { limit: PAGE }, options);
    const newer = new Set(page.data.map((one) => one.id));
    const others = (shown ?? []).filter((one) => isRunning(one) && !newer.has(one.id));
    const now = new Map(await Promise.all(others.map(async (one) => [one.id, await again(one)])));
    const before = (shown ?? []).map((one) => (now.has(one.id) ? now.get(one.id) : one)).filter(Boolean);
    const all = merged(before, page.data, page.has_more);
    // What stands behind the first page has the end that it had.
    if (shown === null || all.length === page.data.length) hasMore = page.has_more;
    shown = all;
    draw();
    return shown.some(isRunning);
  }

  async function again(batch) {
    try {
      return await context.api.get(`${BATCHES}/${encodeURIComponent(batch.id)}`, {}, options);
    } catch (error) {
      if (error.status === GONE) return null;
      throw error;
    }
  }

  async function older() {
    more.disabled = true;
    replace(message);
    const last = shown.at(-1).id;
    try {
      const page = await context.api.get(BATCHES, { limit: PAGE, after: last }, options);
      if (shown.at(-1)?.id !== last) return; // it was begun anew meanwhile
      shown = [...shown, ...page.data];
      hasMore = page.has_more;
      draw();
      if (page.data.some(isRunning)) following.again();
    } catch (error) {
      if (!asking.signal.aborted) replace(message, failed(error, older));
    } finally {
      more.disabled = false;
    }
  }

  function draw() {
    const at = performance.now() / 1000;
    for (const one of shown.filter(isRunning))
      samples.set(one.id, sampled(samples.get(one.id) ?? [], at, progress(one).done));
    keepingFocus(found.element, () => found.update(shown));
    foot.hidden = !hasMore;
    replace(stale);
    if (!found.element.isConnected) replace(box, found.element, foot);
  }

  function troubled(error) {
    if (asking.signal.aborted) return false;
    if (shown === null) {
      replace(
        box,
        failed(error, () => {
          replace(box, loading());
          following.again();
        }),
      );
      return false;
    }
    replace(stale, el("p", { class: "muted", text: `Not as of now: ${error.message} It is asked again.` }));
    return true;
  }

  const following = follow(refresh, troubled);
  return () => {
    asking.abort();
    following.stop();
  };
}

function columns(samples) {
  const rate = (batch) => rateOf(batch, samples.get(batch.id) ?? [], nowSeconds());
  const late = (batch) => isLate(batch, rate(batch), nowSeconds());
  const right = (label, value, more = {}) => ({ label, value, align: "right", ...more });
  const tokens = (field) => (batch) => (batch.usage ? compact(batch.usage[field]) : "–");
  const exact = (field) => (batch) => (batch.usage ? `${count(batch.usage[field])} tokens` : null);
  return [
    {
      label: "Created (UTC)",
      value: (batch) => time(batch.created_at, "minute"),
      title: (batch) => time(batch.created_at),
    },
    {
      label: "Batch",
      class: "mono",
      value: (batch) => el("a", { href: hrefOf(batch.id), text: batch.id, "data-focus": batch.id }),
      title: (batch) => named(batch) || null,
    },
    { label: "Name", class: "wrap", value: named },
    { label: "State", value: stateBadge },
    { label: "Progress", value: progressBar },
    right("Rate", (batch) => rateText(isRunning(batch) ? rate(batch) : meanRate(batch)), {
      title: (batch) => (isRunning(batch) ? "over the last minute" : "of all of its time"),
    }),
    right(
      "Time left",
      (batch) => (late(batch) ? badge(leftText(batch, rate(batch)), "warn") : leftText(batch, rate(batch))),
      { title: (batch) => (late(batch) ? "longer than until its deadline" : null) },
    ),
    right("Input tokens", tokens("input_tokens"), { title: exact("input_tokens") }),
    right("Output tokens", tokens("output_tokens"), { title: exact("output_tokens") }),
    right("Deadline", (batch) => deadlineText(batch, nowSeconds()), {
      title: (batch) => `${time(batch.expires_at)} UTC`,
    }),
  ];
}

/** What its maker calls it: its metadata. */
function named(batch) {
  const { name, ...others } = batch.metadata ?? {};
  return (
    name ??
    Object.entries(others)
      .sort() // they come in any order
      .slice(0, 2)
      .map(([key, value]) => `${key}=${value}`)
      .join(", ")
  );
}
