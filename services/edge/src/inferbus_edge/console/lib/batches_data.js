// Batches in figures and words: what is worked out of the API's objects. Nothing here asks, draws, or knows the time.

import { count, duration, percent } from "./format.js";

export const STATES = {
  validating: { label: "validating", tone: "" },
  in_progress: { label: "running", tone: "" },
  finalizing: { label: "finalizing", tone: "" },
  cancelling: { label: "cancelling", tone: "warn" },
  completed: { label: "completed", tone: "good" },
  cancelled: { label: "cancelled", tone: "warn" },
  failed: { label: "failed", tone: "bad" },
  expired: { label: "expired", tone: "bad" },
};
const ENDED = ["completed", "cancelled", "failed", "expired"];
// A job's counts move at its checkpoints, seconds apart: a rate is of a time that has several of them.
const WINDOW_SECONDS = 60;
const LEAST_SECONDS = 5;
export const MOST_FAULTS = 1000; // the API gives no more of a batch

export const isRunning = (batch) => !ENDED.includes(batch.status);
export const mayCancel = (batch) => batch.status === "validating" || batch.status === "in_progress";

/** When it ended, in Unix seconds; null as long as it runs. */
export function endOf(batch) {
  return batch.completed_at ?? batch.failed_at ?? batch.expired_at ?? batch.cancelled_at ?? null;
}

/** {total, completed, failed, left}: lines. `part`: of those that have ended, 0 to 1; null before they are counted. */
export function progress(batch) {
  const { total = 0, completed = 0, failed = 0 } = batch.request_counts ?? {};
  const done = completed + failed;
  return {
    total,
    completed,
    failed,
    done,
    left: Math.max(0, total - done),
    part: total > 0 ? Math.min(1, done / total) : null,
  };
}

/** In words: what a bar shows, for who does not see it, and beside it. */
export function progressText(batch) {
  const { total, done, completed, failed, part } = progress(batch);
  if (batch.status === "failed") {
    const faults = batch.errors?.data?.length ?? 0;
    return faults === 0 ? "nothing has run" : `${faultsText(faults)}, nothing has run`;
  }
  if (part === null) return isRunning(batch) ? "its lines are being checked" : "no line has run";
  // What did not run counts as a line with an error, and is no progress.
  if (!isRunning(batch) && batch.status !== "completed")
    return `${count(completed)} of ${count(total)} lines were answered`;
  // Never 100 % with a line missing.
  const shown = percent(done === total ? 1 : Math.min(part, 0.999));
  return `${count(done)} of ${count(total)} lines (${shown})${failed ? `, ${count(failed)} with an error` : ""}`;
}

export function faultsText(number) {
  if (number >= MOST_FAULTS) return `the first ${count(MOST_FAULTS)} faults`;
  return number === 1 ? "1 fault" : `${count(number)} faults`;
}

/** `samples` with one more: how many lines were done at `at` (seconds of any clock). Those that a rate needs are kept.
 *  */
export function sampled(samples, at, done) {
  const last = samples.at(-1);
  if (last && (at < last.at || done < last.done)) return [{ at, done }]; // another clock, or another job
  const all = [...samples, { at, done }];
  const recent = all.findIndex((one) => one.at >= at - WINDOW_SECONDS);
  // One from before the window, where that has too little to compare with: the tab was not looked at.
  return all.slice(at - all[recent].at < LEAST_SECONDS ? Math.max(0, recent - 1) : recent);
}

/** Lines a second as `samples` have it; before there are enough of them since the batch began; null: nobody knows.
 *  `now`: Unix seconds. */
export function rateOf(batch, samples, now) {
  if (batch.status !== "in_progress") return null;
  const [first, last] = [samples[0], samples.at(-1)];
  if (first && last.at - first.at >= LEAST_SECONDS) return (last.done - first.done) / (last.at - first.at);
  const { done } = progress(batch);
  const since = now - (batch.in_progress_at ?? now);
  return since >= LEAST_SECONDS && done > 0 ? done / since : null;
}

/** Of all of its time, in lines a second; null of one that did not run for a second. What did not run does not count.
 *  */
export function meanRate(batch) {
  const since = (endOf(batch) ?? 0) - (batch.in_progress_at ?? Number.POSITIVE_INFINITY);
  const { completed, done } = progress(batch);
  const ran = batch.status === "completed" ? done : completed;
  return since >= 1 && ran > 0 ? ran / since : null;
}

/** In the largest unit of time in which it is at least one. */
export function rateText(rate) {
  if (rate === null || rate === undefined || !Number.isFinite(rate)) return "–";
  const [unit, value] = [
    ["s", rate],
    ["min", rate * 60],
    ["h", rate * 3600],
  ].find(([, each]) => each >= 0.95) ?? ["h", rate * 3600];
  return `${value >= 9.95 ? count(value) : value.toFixed(1).replace(/\.0$/, "")} lines/${unit}`;
}

/** Seconds until its last line has ended, at this rate; null: nobody knows. */
export function secondsLeft(batch, rate) {
  const { left, part } = progress(batch);
  if (batch.status !== "in_progress" || part === null) return null;
  if (left === 0) return 0;
  return rate ? left / rate : null;
}

export function leftText(batch, rate) {
  if (!isRunning(batch)) return "";
  const seconds = secondsLeft(batch, rate);
  if (seconds !== null) return seconds < 1 ? "a moment" : `about ${duration(seconds)}`;
  return rate === 0 ? "it waits" : "–";
}

/** Whether it will not be done by its deadline, at this rate: what has not run by then does not. `now`: Unix seconds.
 *  */
export function isLate(batch, rate, now) {
  const seconds = secondsLeft(batch, rate);
  return seconds !== null && now + seconds > batch.expires_at;
}

/** What `now` (Unix seconds) is to its deadline; empty once it has ended. */
export function deadlineText(batch, now) {
  if (!isRunning(batch)) return "";
  const left = batch.expires_at - now;
  return left > 0 ? `in ${duration(left)}` : "now";
}

/** [[what, Unix seconds]] of its life, in the order in which it went. */
export function times(batch) {
  const words = { completed: "Completed", failed: "Failed", expired: "Expired", cancelled: "Cancelled" };
  return [
    ["Created", batch.created_at],
    ["Started", batch.in_progress_at],
    ["Cancel asked for", batch.cancelling_at],
    ["Finalizing", batch.finalizing_at],
    [words[batch.status], endOf(batch)],
  ].filter(([, at]) => at);
}

/** `shown` (the newest first) with a newer first `page` of it. Those behind a gap between the two are left out: they
 *  are asked for again as pages. */
export function merged(shown, page, hasMore) {
  const newer = new Set(page.map((one) => one.id));
  const overlaps = shown.some((one) => newer.has(one.id));
  if (hasMore && !overlaps) return page;
  const oldest = page.at(-1)?.created_at ?? Number.POSITIVE_INFINITY;
  // What would stand within the page and does not is gone.
  return [...page, ...(hasMore ? shown.filter((one) => !newer.has(one.id) && one.created_at <= oldest) : [])];
}
