// One answer as it streams. A connection that breaks is no end: the API names each event, and gives the rest after it.

import { ApiError, pause, randomName } from "./api.js";
import { eventReader } from "./play_sse.js";

export const CHAT = "/v1/chat/completions";
// Who is gone without a word may come back for so long; then the generation is cancelled, and no longer paid for.
const HOLD_SECONDS = 5;
// The API says something every 15 s at least.
const SILENT_MS = 40_000;
const PATIENCE_MS = 30_000;
const LONGEST_WAIT_MS = 3000;
const LET_GO_MS = 3000;
const DRAINING = "draining";
const LOST = "The connection broke, and the API cannot be reached.";
// Who comes back may be told this, and comes again.
const LATER = [408, 429, 503];

/** Ask, and read until its end. `onHead(response)`, `onChunk(chunk, event id, when it came)`, `onBroken(the last event's id)` when
 *  the connection broke and it will come back, `onBack()` when it has. Throws an ApiError, or the signal's reason. */
export async function readAnswer(api, body, { signal, onHead, onChunk, onBroken, onBack }) {
  const always = { "x-inferbus-hold": String(HOLD_SECONDS), "Idempotency-Key": `console-${randomName()}` };
  let last = ""; // the last event's id
  let wait = 0;
  let since = performance.now(); // something came
  let broken = false;

  /** Whether it ended; false: it is to be asked again. */
  async function read(watch) {
    const headers = last ? { ...always, "Last-Event-ID": last } : always;
    const response = await api.open(CHAT, body, { headers, signal: watch.signal });
    if (last === "") onHead(response);
    for await (const { id, data, at } of eventsOf(response, watch)) {
      if (data === "[DONE]") return true;
      const chunk = JSON.parse(data);
      if (chunk.error?.code === DRAINING) return false;
      if (chunk.error) throw new ApiError(response.status, chunk.error.message, chunk.error.code ?? "");
      if (broken) onBack();
      [broken, last, wait, since] = [false, id, 0, performance.now()];
      onChunk(chunk, id, at);
    }
    return false;
  }

  for (;;) {
    const watch = watchful(signal);
    let fault = null;
    try {
      if (await read(watch)) return;
    } catch (error) {
      signal.throwIfAborted();
      if (!isAway(error, broken)) throw error;
      fault = error;
    } finally {
      watch.stop();
    }
    if (performance.now() - since > PATIENCE_MS) throw fault?.status ? fault : new ApiError(0, LOST);
    if (!broken) onBroken(last);
    broken = true;
    await pause(wait, signal);
    wait = Math.min(2 * wait + 100, LONGEST_WAIT_MS);
  }
}

/** Leave without a hold: whoever came back last says how long it is waited for him. Of an answer whose event `last` was read;
 *  without one nothing is known to leave. */
export async function letGo(api, last) {
  const [name, number] = last.split(":");
  if (!number) return;
  const leaving = new AbortController();
  const timer = setTimeout(() => leaving.abort(), LET_GO_MS);
  try {
    // The event that is there already brings the head at once.
    const params = { starting_after: Number(number) - 1 };
    await api.stream(`/v1/streams/${name}`, { params, headers: { "x-inferbus-hold": "0" }, signal: leaving.signal });
  } catch {
    // Nobody waits for it, and the hold ends by itself.
  } finally {
    clearTimeout(timer);
    leaving.abort();
  }
}

async function* eventsOf(response, watch) {
  const reader = response.body.getReader();
  const events = eventReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      watch.alive();
      const at = performance.now();
      for (const event of events.feed(value)) yield { ...event, at };
    }
  } finally {
    reader.cancel().catch(() => {}); // broken already
  }
}

/** A signal that also ends what is silent for too long. */
function watchful(signal) {
  const silent = new AbortController();
  let timer = null;
  const alive = () => {
    clearTimeout(timer);
    timer = setTimeout(() => silent.abort(new DOMException("nothing came", "NetworkError")), SILENT_MS);
  };
  alive();
  return { signal: AbortSignal.any([signal, silent.signal]), alive, stop: () => clearTimeout(timer) };
}

/** Whether it may be there again in a moment. Of who comes `back`, also when the API is there and cannot answer yet. What
 *  reading a body throws when the connection is gone is a TypeError in every browser. */
function isAway(error, back) {
  if (error instanceof ApiError) return error.status === 0 || (back && LATER.includes(error.status));
  return error.name === "NetworkError" || (error instanceof TypeError && /network|load|fetch/i.test(error.message));
}
