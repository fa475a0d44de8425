// Calls of the ordinary HTTP API with the key that was entered. There is no other door for the console.

import { sendForm } from "./sending.js";

const TIMEOUT_MS = 60_000;
// Of what only looks. The API answers so many reports of a tenant at once (4, if the operator says nothing else): one is left
// for who asks beside this page. One too many is asked again when the API says so.
const AT_ONCE = 3;
const TRIES = 8;
const BUSY = 429;
// A JSON number with all of an amount's digits, which a float would lose: read as a text.
const AMOUNT = /("value":)(-?\d+(?:\.\d+)?)/g;

export class ApiError extends Error {
  /** `status`: of HTTP, 0 if no answer came; `message`: the API's own; `code`: its error code, or "";
   *  `retrySeconds`: when to ask again, 0 if the API does not say. */
  constructor(status, message, code = "", requestId = "", retrySeconds = 0) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.code = code;
    this.requestId = requestId;
    this.retrySeconds = retrySeconds;
  }
}

const turn = turns(AT_ONCE);

/** `onRefused` is called when the key is not taken (any more): 401. */
export function createApi(key, onRefused) {
  async function call(method, path, { params, body, organization, signal, timeoutMs = TIMEOUT_MS, ...options } = {}) {
    const headers = { Authorization: `Bearer ${key}`, ...options.headers };
    if (body !== undefined) headers["Content-Type"] = "application/json";
    if (organization) headers["OpenAI-Organization"] = organization;
    const limit = timeoutMs === null ? new AbortController().signal : AbortSignal.timeout(timeoutMs);
    let response;
    try {
      response = await fetch(path + query(params), {
        method, headers, body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store",
        credentials: "omit", redirect: "error", referrerPolicy: "no-referrer",
        signal: signal ? AbortSignal.any([signal, limit]) : limit,
      });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new ApiError(0, limit.aborted ? "The API did not answer in time." : "The API cannot be reached.");
    }
    if (response.ok) return response;
    const text = await response.text().catch(() => "");
    const failure = failureOf(response.status, (name) => response.headers.get(name), text);
    if (response.status === 401) onRefused(failure);
    throw failure;
  }

  /** What `read` makes of the answer, in turn. */
  function look(path, params, options, read) {
    return turn(async () => {
      for (let tries = 1; ; tries += 1) {
        try {
          return await read(await call("GET", path, { ...options, params }));
        } catch (error) {
          if (error.status !== BUSY || !error.retrySeconds || tries === TRIES) throw error;
          await pause(error.retrySeconds * 1000, options.signal);
        }
      }
    }, options.signal);
  }

  const json = async (response) => JSON.parse(await response.text());
  return {
    /** The answer's JSON. `options`: {signal, organization (an operator asks for this tenant), headers, timeoutMs (null: no
     *  end)}. */
    get: (path, params, options = {}) => look(path, params, options, json),
    post: async (path, body, options = {}) => json(await call("POST", path, { ...options, body })),
    put: async (path, body, options = {}) => json(await call("PUT", path, { ...options, body })),
    remove: async (path, params, options = {}) => json(await call("DELETE", path, { ...options, params })),
    /** Like get, with every number named `value` as a text that has all of its digits. */
    exact: (path, params, options = {}) =>
      look(path, params, options, async (response) => JSON.parse((await response.text()).replace(AMOUNT, '$1"$2"'))),
    /** A file, as a Blob. */
    file: (path, params, options = {}) => look(path, params, options, (response) => response.blob()),
    /** The Response, to be read as it comes, for as long as that takes. */
    stream: (path, options = {}) => call("GET", path, { ...options, timeoutMs: null }),
    /** The same for what is asked with a body: an answer in events. */
    open: (path, body, options = {}) => call("POST", path, { ...options, body, timeoutMs: null }),
    /** The JSON that a form with a file is answered with. `onProgress(bytes sent)`. */
    async send(path, form, options = {}) {
      const { status, header, text } = await sendForm(path, form, key, options);
      if (status >= 200 && status < 300) return JSON.parse(text);
      const failure = status === 0 ? new ApiError(0, "The API cannot be reached.") : failureOf(status, header, text);
      if (status === 401) onRefused(failure);
      throw failure;
    },
  };
}

/** `{a: 1, b: ["x", "y"], c: null}` → `?a=1&b=x&b=y`. */
export function query(params) {
  const pairs = new URLSearchParams();
  for (const [name, value] of Object.entries(params ?? {})) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "") pairs.append(name, String(one));
    }
  }
  const text = pairs.toString();
  return text ? `?${text}` : "";
}

/** `header(name)`: of the answer, or null. */
function failureOf(status, header, text) {
  const id = header("x-request-id") ?? "";
  const retry = Number(header("retry-after")) || 0;
  try {
    const { error } = JSON.parse(text);
    return new ApiError(status, error.message, error.code ?? "", id, retry);
  } catch {
    return new ApiError(status, `The API answered with status ${status}.`, "", id, retry);
  }
}

/** `turn(work, signal)`: `work()` when fewer than `most` others run, the first that came first; one that `signal` takes back
 *  before never begins. */
function turns(most) {
  let running = 0;
  const waiting = new Set();

  function next() {
    const [first] = waiting;
    if (!first || running === most) return;
    waiting.delete(first);
    running += 1;
    first();
  }

  return async (work, signal) => {
    signal?.throwIfAborted();
    await new Promise((begin, refuse) => {
      const mine = () => {
        signal?.removeEventListener("abort", takenBack);
        begin();
      };
      const takenBack = () => {
        waiting.delete(mine);
        refuse(signal.reason);
      };
      signal?.addEventListener("abort", takenBack, { once: true });
      waiting.add(mine);
      next();
    });
    try {
      return await work();
    } finally {
      running -= 1;
      next();
    }
  };
}

/** Names a call that may be sent again. Not crypto.randomUUID, which there is over HTTPS only. */
export function randomName() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((one) => one.toString(16).padStart(2, "0")).join("");
}

/** Rejected when `signal` takes it back. */
export function pause(milliseconds, signal) {
  return new Promise((done, refuse) => {
    const timer = setTimeout(end, milliseconds);
    function end() {
      clearTimeout(timer);
      signal?.removeEventListener("abort", end);
      if (signal?.aborted) refuse(signal.reason);
      else done();
    }
    signal?.addEventListener("abort", end);
  });
}
