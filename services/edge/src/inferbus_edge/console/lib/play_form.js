// What is asked: parameters as they are typed, the address that keeps them, the conversation as the API wants it.

export const MOST_COLUMNS = 4;
const UNTOUCHED = { max_tokens: "512" }; // so that nobody asks for a whole context by accident
const NONE = "none"; // in the address: left out, though there is a value without it

/** `body`: its name in the API; `kind`: number, whole, lines (up to 4 texts), object (JSON). */
export const FIELDS = [
  { name: "temperature", label: "Temperature", body: "temperature", kind: "number", hint: "0 to 2" },
  { name: "top_p", label: "Top p", body: "top_p", kind: "number", hint: "0 to 1" },
  { name: "max_tokens", label: "Max tokens", body: "max_completion_tokens", kind: "whole", hint: "to the context's end" },
  { name: "seed", label: "Seed", body: "seed", kind: "whole", hint: "any" },
  { name: "frequency_penalty", label: "Frequency penalty", body: "frequency_penalty", kind: "number", hint: "-2 to 2" },
  { name: "presence_penalty", label: "Presence penalty", body: "presence_penalty", kind: "number", hint: "-2 to 2" },
  { name: "stop", label: "Stop, one a line", body: "stop", kind: "lines", hint: "\\n is a line's end" },
  { name: "more", label: "More, as JSON", body: "", kind: "object", hint: '{"top_k": 20}' },
];
// What the page says itself.
const OWN = ["model", "messages", "stream", "stream_options", "n"];

/** {values, fault}: of typed texts by name, those of the body; `fault`: what is wrong with the first that is, or "". */
export function valuesOf(typed) {
  const values = {};
  for (const field of FIELDS) {
    const text = typed[field.name] ?? "";
    if (text.trim() === "") continue;
    const { value, fault } = READ[field.kind](text);
    if (fault) return { values: {}, fault: `${field.label}: ${fault}` };
    if (field.kind === "object") Object.assign(values, value);
    else values[field.body] = value;
  }
  return { values, fault: "" };
}

const READ = {
  number(text) {
    const value = Number(text);
    return Number.isFinite(value) ? { value } : { fault: "a number, as 0.7." };
  },
  whole(text) {
    const value = Number(text);
    return /^\s*-?\d+\s*$/.test(text) && Number.isSafeInteger(value) ? { value } : { fault: "a whole number below 2^53." };
  },
  lines(text) {
    const value = text.split("\n").filter((line) => line !== "").map((line) => line.replaceAll("\\n", "\n"));
    return value.length <= 4 ? { value } : { fault: "at most 4 texts." };
  },
  object(text) {
    let value;
    try {
      value = JSON.parse(text);
    } catch (error) {
      return { fault: `no JSON: ${error.message}` };
    }
    if (value === null || typeof value !== "object" || Array.isArray(value)) return { fault: "an object, as {\"top_k\": 20}." };
    const own = OWN.find((name) => name in value);
    return own ? { fault: `'${own}' is not for here.` } : { value };
  },
};

/** What of a column's own parameters, where they are typed, goes before what is said for all of them. */
export function merged(shared, own) {
  return Object.fromEntries(FIELDS.map(({ name }) => [name, (own[name] ?? "").trim() === "" ? (shared[name] ?? "") : own[name]]));
}

/** The body of a call. `values`: of valuesOf. */
export function bodyOf(model, messages, values) {
  return {
    model, messages, ...values, stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
  };
}

/** The conversation of one column up to its turn `at`. `said`: what was asked, by turn; `answers`: what this column
 *  answered, by turn. A turn without an answer here is left out: two questions in a row are no conversation. */
export function messagesOf(system, said, answers, at) {
  const messages = system.trim() === "" ? [] : [{ role: "system", content: system }];
  for (let turn = 0; turn < at; turn += 1) {
    const answer = answers[turn];
    if (answer) messages.push({ role: "user", content: said[turn] }, { role: "assistant", content: answer });
  }
  return [...messages, { role: "user", content: said[at] }];
}

// --- the address ---

/** {models, shared, own (one for each of models)} of an address's query. */
export function fromQuery(query) {
  const models = (query.models ?? "").split(",").filter((name) => name !== "").slice(0, MOST_COLUMNS).map(decoded);
  const shared = {};
  for (const { name } of FIELDS) {
    const given = query[name] ?? UNTOUCHED[name] ?? "";
    shared[name] = given === NONE ? "" : given;
  }
  const own = models.map((_, at) => Object.fromEntries(FIELDS.map(({ name }) => [name, query[`${at + 1}.${name}`] ?? ""])));
  return { models, shared, own };
}

/** The inverse: names and values of the query; an empty one is not there. */
export function toQuery({ models, shared, own }) {
  const query = { models: models.map(encodeURIComponent).join(",") };
  for (const { name } of FIELDS) {
    const value = shared[name] ?? "";
    const untouched = UNTOUCHED[name] ?? "";
    query[name] = value === untouched ? "" : value === "" ? NONE : value;
    for (let at = 0; at < MOST_COLUMNS; at += 1) query[`${at + 1}.${name}`] = own[at]?.[name] ?? "";
  }
  return query;
}

function decoded(name) {
  try {
    return decodeURIComponent(name);
  } catch {
    return name;
  }
}
