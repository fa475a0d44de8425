// What is known of one answer while it comes: its text, its tokens, its times. Times are milliseconds of one clock.

const STEP = Math.log(1.02); // gaps are kept to 2 %
const LEAST_MS = 0.001;

/** Of a request to the model `asked` that is sent now. `state`: waiting, streaming, done, stopped, failed. */
export function sent(at, asked) {
  return {
    state: "waiting", sentAt: at, firstAt: null, lastAt: null, endedAt: null, firstTokens: 0, breaks: 0,
    usage: { input: null, cached: null, output: 0, reasoning: 0 },
    text: "", thought: "", calls: [], finish: "", asked, model: "", revision: "", requestId: "",
    gaps: new Map(), latest: null, arrivals: 0, longestMs: 0,
  };
}

/** Put a chunk of the answer, which came at `at`, into its figures: at the same time as those that came with it. Returns {text, thought}: what is new. */
export function take(figures, chunk, at) {
  figures.model = chunk.model ?? figures.model;
  figures.revision = chunk.system_fingerprint ?? figures.revision;
  const [choice] = chunk.choices ?? [];
  const delta = choice?.delta ?? {};
  const text = delta.content ?? "";
  const thought = delta.reasoning_content ?? "";
  figures.text += text;
  figures.thought += thought;
  for (const call of delta.tool_calls ?? []) calling(figures.calls, call);
  figures.finish = choice?.finish_reason ?? figures.finish;
  if (chunk.usage) counted(figures, chunk.usage, at);
  return { text, thought };
}

function counted(figures, usage, at) {
  const before = figures.usage.output;
  const output = Math.max(before, usage.completion_tokens);
  figures.usage.output = output;
  figures.usage.reasoning = usage.completion_tokens_details?.reasoning_tokens ?? figures.usage.reasoning;
  if (figures.finish) {
    // The input is counted with the end.
    figures.usage.input = usage.prompt_tokens;
    figures.usage.cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  }
  if (output === before) return;
  const tokens = output - before;
  if (figures.firstAt === null) {
    figures.state = "streaming";
    figures.firstAt = at;
    figures.firstTokens = tokens;
  } else if (at > figures.lastAt) {
    figures.arrivals += 1;
    keep(figures.gaps, figures.latest);
    figures.latest = { gap: at - figures.lastAt, tokens };
    figures.longestMs = Math.max(figures.longestMs, at - figures.lastAt);
  } else if (figures.latest) figures.latest.tokens += tokens;
  else figures.firstTokens += tokens;
  figures.lastAt = at;
}

/** Tokens that came together share the gap before them. */
function keep(gaps, arrival) {
  if (!arrival) return;
  const bucket = Math.round(Math.log(Math.max(arrival.gap / arrival.tokens, LEAST_MS)) / STEP);
  gaps.set(bucket, (gaps.get(bucket) ?? 0) + arrival.tokens);
}

function calling(calls, call) {
  const one = (calls[call.index] ??= { name: "", arguments: "" });
  one.name += call.function?.name ?? "";
  one.arguments += call.function?.arguments ?? "";
}

/** How it ended. `state`: done, stopped, failed. */
export function ended(figures, state, at) {
  figures.state = state;
  figures.endedAt = at;
}

/** What is shown of it at `at`: {ttftMs, tokensPerSecond, itlMs (the median gap between two tokens), longestMs, elapsedMs};
 *  null is not known (yet). Tokens that came together share their gap. */
export function rates(figures, at) {
  const { firstAt, lastAt, firstTokens, usage } = figures;
  const elapsedMs = (figures.endedAt ?? at) - figures.sentAt;
  if (firstAt === null) return { ttftMs: null, tokensPerSecond: null, itlMs: null, longestMs: null, elapsedMs };
  const span = lastAt - firstAt;
  return {
    ttftMs: firstAt - figures.sentAt,
    tokensPerSecond: span > 0 ? ((usage.output - firstTokens) * 1000) / span : null,
    itlMs: median(figures),
    longestMs: figures.arrivals ? figures.longestMs : null,
    elapsedMs,
  };
}

function median({ gaps, latest }) {
  const all = new Map(gaps);
  keep(all, latest);
  let left = [...all.values()].reduce((one, other) => one + other, 0) / 2;
  for (const bucket of [...all.keys()].sort((one, other) => one - other)) {
    left -= all.get(bucket);
    if (left <= 0) return Math.exp(bucket * STEP);
  }
  return null;
}
