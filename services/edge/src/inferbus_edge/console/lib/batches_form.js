// What is entered for a new batch: what is wrong with it, and the call that it comes to. Nothing here asks or draws.

export const ENDPOINTS = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"];
export const UNITS = [
  { value: "m", label: "minutes", seconds: 60 },
  { value: "h", label: "hours", seconds: 3600 },
  { value: "d", label: "days", seconds: 86_400 },
];
export const WHOLE_BYTES = 256 * 2 ** 20; // a larger file goes in parts
export const PART_BYTES = 64 * 2 ** 20; // the most that the API takes as one
export const MAX_BYTES = 8 * 2 ** 30;
export const MAX_ENTRIES = 16;
export const HEAD_BYTES = 256 * 1024; // of a file that are looked at before it is sent
const LONGEST_SECONDS = 14 * 86_400;
const MAX_NAME = 64;
const MAX_VALUE = 512;

/** Why the file cannot be sent; empty: it can. */
export function fileFault({ name, size }) {
  if (size === 0) return "This file is empty.";
  if (size > MAX_BYTES) return "This file has more than 8 GiB, the most that the API takes: split it.";
  if (name.length > 512 || /[\u0000-\u001f\u007f]/.test(name))
    return "Its name is too long or has characters that cannot be printed: rename it.";
  return "";
}

/** {endpoint, fault} by the first line of a file, of which `head` is the beginning and `whole` says whether it is all.
 *  Both empty: it does not say. The API checks every line; this only spares somebody the way there. */
export function firstLine(head, whole) {
  const end = head.indexOf("\n");
  if (end < 0 && !whole) return { endpoint: "", fault: "" };
  const text = (end < 0 ? head : head.slice(0, end)).replace(/^\ufeff/, "").trim();
  if (text === "") return { endpoint: "", fault: "" };
  let line;
  try {
    line = JSON.parse(text);
  } catch {
    line = null;
  }
  if (line === null || typeof line !== "object" || Array.isArray(line)) {
    return {
      endpoint: "",
      fault: text.startsWith("[")
        ? "This is a JSON list: a batch has one JSON object a line (JSONL)."
        : "Its first line is no JSON object: a batch has one a line (JSONL).",
    };
  }
  const missing = ["custom_id", "url", "body"].filter((name) => !(name in line));
  if (missing.length)
    return {
      endpoint: "",
      fault: `Its first line has no '${missing[0]}': a line has custom_id, method, url and body.`,
    };
  return ENDPOINTS.includes(line.url)
    ? { endpoint: line.url, fault: "" }
    : {
        endpoint: "",
        fault: `Its first line asks '${String(line.url).slice(0, 64)}': a batch asks ${ENDPOINTS.join(", ")}.`,
      };
}

/** [start, end) of the parts of a file. */
export function partsOf(size, part = PART_BYTES) {
  return Array.from({ length: Math.ceil(size / part) }, (_, at) => [at * part, Math.min(size, (at + 1) * part)]);
}

/** A line as the API takes it, for somebody who has not seen one. */
export function exampleLine(endpoint) {
  const bodies = {
    "/v1/chat/completions": { model: "MODEL", messages: [{ role: "user", content: "Hello" }] },
    "/v1/completions": { model: "MODEL", prompt: "Once upon a time" },
    "/v1/embeddings": { model: "MODEL", input: "Hello" },
    "/v1/responses": { model: "MODEL", input: "Hello" },
  };
  return JSON.stringify({ custom_id: "question-1", method: "POST", url: endpoint, body: bodies[endpoint] });
}

/** {field, message}, or null. `form`: {amount, unit, metadata: [[name, value]]}. */
export function formFault({ amount, unit, metadata }) {
  const seconds = Number(amount) * (UNITS.find((one) => one.value === unit)?.seconds ?? Number.NaN);
  if (!/^[1-9][0-9]{0,5}$/.test(String(amount)) || !(seconds <= LONGEST_SECONDS)) {
    return { field: "amount", message: "A batch has a time of 1 minute to 14 days, in whole minutes, hours or days." };
  }
  const entries = metadata.filter(([name, value]) => name !== "" || value !== "");
  const names = entries.map(([name]) => name);
  const fault = (message) => ({ field: "metadata", message });
  if (entries.length > MAX_ENTRIES) return fault(`Metadata has ${MAX_ENTRIES} entries at most.`);
  if (names.includes("")) return fault("An entry of the metadata has a value and no name.");
  const twice = names.find((name, at) => names.indexOf(name) !== at);
  if (twice !== undefined) return fault(`The metadata has two entries with the name '${twice}'.`);
  const long = entries.find(([name, value]) => [...name].length > MAX_NAME || [...value].length > MAX_VALUE);
  return long
    ? fault(`'${long[0].slice(0, MAX_NAME)}': a name has ${MAX_NAME} characters at most, a value ${MAX_VALUE}.`)
    : null;
}

/** The body of POST /v1/batches. */
export function requestOf({ endpoint, amount, unit, metadata }, fileId) {
  const entries = metadata.filter(([name]) => name !== "");
  return {
    input_file_id: fileId,
    endpoint,
    completion_window: `${amount}${unit}`,
    ...(entries.length ? { metadata: Object.fromEntries(entries) } : {}),
  };
}
