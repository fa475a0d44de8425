// The same call for a terminal and for a program. The key is no part of either: it is taken from INFERBUS_KEY.

const INDENT = "    ";
// What OpenAI's SDK for Python knows of what is asked here; all else goes into extra_body.
const KNOWN = new Set([
  "model", "messages", "stream", "temperature", "top_p", "max_completion_tokens", "max_tokens", "seed", "stop",
  "frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "top_logprobs", "response_format", "tools",
  "tool_choice", "parallel_tool_calls", "reasoning_effort", "service_tier", "store", "metadata", "user",
  "safety_identifier", "prompt_cache_key",
]);

/** A command of a POSIX shell. `body`: of the call; `root`: the origin of the API. */
export function curlOf(root, body) {
  const json = JSON.stringify(asked(body), null, 2);
  return [
    `curl -N ${quoted(`${root}/v1/chat/completions`)} \\`,
    `  -H "Authorization: Bearer $INFERBUS_KEY" -H 'Content-Type: application/json' \\`,
    `  -d ${quoted(json)}`,
    "",
  ].join("\n");
}

/** A program with OpenAI's SDK, which prints the answer as it comes. */
export function pythonOf(root, body) {
  const given = Object.entries(asked(body)).filter(([name]) => name !== "stream_options");
  const known = given.filter(([name]) => KNOWN.has(name));
  const extra = Object.fromEntries(given.filter(([name]) => !KNOWN.has(name)));
  const lines = known.map(([name, value]) => `${INDENT}${name}=${literal(value, INDENT)},`);
  if (Object.keys(extra).length) lines.push(`${INDENT}extra_body=${literal(extra, INDENT)},`);
  return [
    "import os",
    "",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${literal(`${root}/v1`)}, api_key=os.environ["INFERBUS_KEY"])`,
    "stream = client.chat.completions.create(",
    ...lines,
    ")",
    "for chunk in stream:",
    `${INDENT}if chunk.choices:`,
    `${INDENT}${INDENT}print(chunk.choices[0].delta.content or "", end="", flush=True)`,
    "print()",
    "",
  ].join("\n");
}

/** Without what only this page needs. */
function asked(body) {
  const { stream_options: _, ...rest } = body;
  return { ...rest, stream_options: { include_usage: true } };
}

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

/** A value of JSON as Python writes it. */
function literal(value, indent = "") {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value === "number") return String(value);
  // JSON's escapes are Python's, too, but for pairs of surrogates: those letters stand as they are.
  if (typeof value === "string") return JSON.stringify(value).replaceAll("\u007f", "\\u007f");
  const deeper = indent + INDENT;
  const list = Array.isArray(value);
  const entries = list
    ? value.map((one) => `${deeper}${literal(one, deeper)},`)
    : Object.entries(value).map(([name, one]) => `${deeper}${literal(name)}: ${literal(one, deeper)},`);
  const [open, close] = list ? "[]" : "{}";
  return entries.length ? `${open}\n${entries.join("\n")}\n${indent}${close}` : open + close;
}
