// A file of the API onto the disk. The key goes in a header, so no link can do it: it is read here, and written as it
// comes where the browser can do that (Chrome and Edge, over HTTPS), at any size; elsewhere it is held in memory, up to
// a bound.

import { pause } from "./api.js";
import { mayPass } from "./batches_upload.js";
import { download } from "./controls.js";

export const HELD_BYTES = 256 * 2 ** 20;
const TRIES = 6; // without a byte more

/** The file is larger than this browser can take. */
export class TooLarge extends Error {
  constructor(bytes) {
    super("This browser would have to hold all of the file in memory.");
    this.name = "TooLarge";
    this.bytes = bytes;
  }
}

/** Where a file called `name` goes: asks the person where the browser can. To be called first after a click, without
 *  which no browser lets a page ask. Null: nowhere, he changed his mind. */
export async function chosenTarget(name) {
  if (typeof window.showSaveFilePicker !== "function") return { bound: HELD_BYTES, open: async () => heldSink(name) };
  try {
    const handle = await window.showSaveFilePicker({ suggestedName: name });
    return { bound: Number.POSITIVE_INFINITY, open: () => handle.createWritable() };
  } catch (error) {
    if (error.name === "AbortError") return null;
    throw error;
  }
}

/** All of the file. A connection that is cut is taken up where it was. `onProgress(bytes, of)`. Throws TooLarge, or
 *  what to tell the person; then the target is as it was before. */
export async function saveFile(api, fileId, target, { onProgress, signal }) {
  const path = `/v1/files/${encodeURIComponent(fileId)}`;
  const { bytes } = await api.get(path, {}, { signal });
  if (bytes > target.bound) throw new TooLarge(bytes);
  const sink = await target.open();
  try {
    await copied(api, `${path}/content`, bytes, sink, onProgress, signal);
    await sink.close();
  } catch (error) {
    await sink.abort().catch(() => {});
    throw error;
  }
}

async function copied(api, path, bytes, sink, onProgress, signal) {
  let at = 0;
  let fruitless = 0;
  while (at < bytes) {
    const before = at;
    try {
      const response = await api.stream(path, { headers: at ? { Range: `bytes=${at}-` } : {}, signal });
      if (at && response.status !== 206) throw new Fatal("The file cannot be read from its middle: begin anew.");
      for await (const chunk of chunksOf(response)) {
        await sink.write(chunk).catch((error) => {
          throw new Fatal(`It cannot be written: ${error.message}`);
        });
        at += chunk.byteLength;
        onProgress(at, bytes);
      }
      if (at < bytes) throw new Error("The connection was cut.");
    } catch (error) {
      signal.throwIfAborted();
      fruitless = at > before ? 0 : fruitless + 1;
      if (error instanceof Fatal || (error.status !== undefined && !mayPass(error))) throw error;
      if (fruitless === TRIES)
        throw error.status === undefined ? new Error("The connection was cut, again and again.") : error;
      await pause(500 * 2 ** fruitless, signal);
    }
  }
}

/** Safari cannot go through a body with `for await` by itself. */
async function* chunksOf(response) {
  const reader = response.body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

class Fatal extends Error {}

function heldSink(name) {
  let parts = [];
  return {
    async write(chunk) {
      parts.push(chunk);
    },
    async close() {
      download(new Blob(parts, { type: "application/jsonl" }), name);
      parts = [];
    },
    async abort() {
      parts = [];
    },
  };
}
