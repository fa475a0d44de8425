// One request's timeline, as the API tells it, in numbers that can be drawn: microseconds since it was accepted.

export const STALL_US = 1_000_000; // what the meter calls a stall
const SLOW = 4; // a gap of so many medians is shown as slow

export const KINDS = {
  TIMELINE_KIND_ACCEPTED: "Accepted", TIMELINE_KIND_PLACED: "Placed", TIMELINE_KIND_STARTED: "Started",
  TIMELINE_KIND_FIRST_TOKEN: "First token", TIMELINE_KIND_RESUMED: "Resumed", TIMELINE_KIND_STALLED: "Stalled",
  TIMELINE_KIND_LAST_TOKEN: "Last token", TIMELINE_KIND_ENDED: "Ended", TIMELINE_KIND_REFUSED: "Not placed",
  TIMELINE_KIND_DELIVERED: "Delivered", TIMELINE_KIND_BILLED: "Stored and billed", TIMELINE_KIND_ADJUSTED: "Adjusted",
};
export const STATES = {
  REQUEST_STATE_UNSTORED: "not stored yet", REQUEST_STATE_RUNNING: "running", REQUEST_STATE_ENDED: "ended",
};

/** `REQUEST_STATE_ENDED` → `ended`; an absent or unspecified one is empty. */
export function word(text, prefix) {
  const short = (text ?? "").replace(prefix, "").toLowerCase().replaceAll("_", " ");
  return short === "unspecified" ? "" : short;
}

/** Microseconds of protobuf's "0.030215s"; null for none. */
export function durationUs(text) {
  return text === undefined || text === null ? null : Math.round(Number.parseFloat(text) * 1e6);
}

/** Unix microseconds of an RFC 3339 time, which Date would cut to milliseconds. */
export function unixUs(text) {
  const [, whole, part = ""] = /^([^.]*?)(?:\.(\d+))?Z$/.exec(text) ?? [null, "", ""];
  return Date.parse(`${whole}Z`) * 1000 + Number(part.padEnd(6, "0").slice(0, 6));
}

/** {request, ended, events: [{at, kind, label, attempt, actor, raw}], attempts: [{number, worker, offsets, gaps, isVoid(i),
 *  indexOf(i), voids}], gaps: sorted ones between valid tokens, sameStep, median, slow, end, all}. `end`: when the request was
 *  over for its client; `all`: with its billing, but not with corrections, which may come a year later. */
export function read(answer) {
  const request = answer.request;
  const accepted = unixUs(request.accepted_time);
  const events = (answer.events ?? []).map((raw) => ({
    at: unixUs(raw.time) - accepted, kind: raw.kind, label: KINDS[raw.kind] ?? word(raw.kind, "TIMELINE_KIND_"),
    attempt: raw.attempt ?? 0, actor: raw.actor ?? "", raw,
  }));
  const attempts = (answer.attempts ?? []).map(attempt);
  const { gaps, sameStep } = between(attempts);
  const median = gaps.length ? gaps[gaps.length >> 1] : 0;
  const moments = (kinds) => events.filter((one) => !kinds.includes(one.kind)).map((one) => one.at);
  const lastTokens = attempts.map((one) => one.offsets.at(-1) ?? 0);
  const later = ["TIMELINE_KIND_ADJUSTED"];
  const end = Math.max(1, ...lastTokens, ...moments([...later, "TIMELINE_KIND_BILLED"]));
  return {
    request, accepted, events, attempts, gaps, sameStep, median, end,
    ended: request.state === "REQUEST_STATE_ENDED", slow: Math.max(median * SLOW, 1000),
    all: Math.max(end, ...moments(later)), charge: answer.charge ?? null, storage: answer.storage ?? null,
    placement: answer.placement ?? null, leftOut: Number(answer.tokens_left_out ?? 0),
  };
}

function attempt(one) {
  const offsets = Float64Array.from(one.offset_us ?? []);
  const flags = one.void ?? null;
  const index = one.index ?? null;
  const first = one.first_index ?? 0;
  return {
    number: one.number, worker: one.worker ?? "", offsets, gaps: Uint32Array.from(one.gap_us ?? []),
    voids: one.void_tokens ?? 0, isVoid: (at) => flags !== null && flags[at] === 1,
    indexOf: (at) => (index === null ? first + at : index[at]),
  };
}

/** Sorted gaps between the tokens that count; those of 0 came in one step with the token before. */
function between(attempts) {
  const found = [];
  let sameStep = 0;
  for (const one of attempts) {
    for (let at = 0; at < one.gaps.length; at += 1) {
      if (one.isVoid(at) || one.indexOf(at) === 0) continue;
      if (one.gaps[at] === 0) sameStep += 1;
      else found.push(one.gaps[at]);
    }
  }
  return { gaps: Uint32Array.from(found).sort(), sameStep };
}

/** The value below which the part `q` of sorted values is; null of none. */
export function quantile(sorted, q) {
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.ceil(q * sorted.length) - 1)] : null;
}

/** First place in sorted `values` that is not below `wanted`. */
export function firstFrom(values, wanted) {
  let low = 0;
  let high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < wanted) low = middle + 1;
    else high = middle;
  }
  return low;
}
