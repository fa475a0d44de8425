// A batch's input on its way: as one, or in parts that are sent again where one is lost.

import { pause } from "./api.js";
import { PART_BYTES, partsOf, WHOLE_BYTES } from "./batches_form.js";

const TRIES = 6; // of one part: with the pauses about half a minute
const COMPLETE_MS = 600_000;

/** The API's file of `file` (a File of the browser). `onProgress(bytes sent)`. Throws what to tell the person; if
 *  `signal` takes it back nothing is left of it. `whole` and `part`: bytes up to which it goes as one, and of a part.
 *  */
export async function uploadFile(api, file, { onProgress, signal, whole = WHOLE_BYTES, part = PART_BYTES }) {
  try {
    if (file.size <= whole) {
      const form = formOf([
        ["purpose", "batch"],
        ["file", file, file.name],
      ]); // the API wants the purpose first
      return await api.send("/v1/files", form, { onProgress: (sent) => onProgress(Math.min(sent, file.size)), signal });
    }
    return await inParts(api, file, partsOf(file.size, part), onProgress, signal);
  } catch (error) {
    if (signal.aborted || (await readable(file))) throw error;
    throw new Error("The file can no longer be read: it was changed or moved meanwhile. Choose it again.");
  }
}

async function inParts(api, file, parts, onProgress, signal) {
  const said = { filename: file.name, purpose: "batch", bytes: file.size, mime_type: "application/jsonl" };
  const path = `/v1/uploads/${encodeURIComponent((await api.post("/v1/uploads", said, { signal })).id)}`;
  try {
    const ids = [];
    for (const [start, end] of parts) {
      const told = (sent) => onProgress(start + Math.min(sent, end - start));
      ids.push(
        (
          await again(
            () =>
              api.send(`${path}/parts`, formOf([["data", file.slice(start, end), file.name]]), {
                onProgress: told,
                signal,
              }),
            signal,
          )
        ).id,
      );
    }
    // Done twice it changes nothing.
    return (
      await again(() => api.post(`${path}/complete`, { part_ids: ids }, { signal, timeoutMs: COMPLETE_MS }), signal)
    ).file;
  } catch (error) {
    api.post(`${path}/cancel`).catch(() => {}); // it would go by itself, in an hour
    throw error;
  }
}

/** What `work()` gives, once it works: what may pass is tried again, later each time. */
async function again(work, signal) {
  for (let tries = 1; ; tries += 1) {
    try {
      return await work();
    } catch (error) {
      if (signal.aborted || tries === TRIES || !mayPass(error)) throw error;
      await pause(Math.max(1000 * (error.retrySeconds ?? 0), 1000 * 2 ** (tries - 1)), signal);
    }
  }
}

/** Whether an ApiError is one of the moment. */
export function mayPass({ status }) {
  return status === 0 || status === 408 || status === 429 || status >= 500;
}

function formOf(fields) {
  const form = new FormData();
  for (const field of fields) form.append(...field);
  return form;
}

async function readable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
    return true;
  } catch {
    return false;
  }
}
