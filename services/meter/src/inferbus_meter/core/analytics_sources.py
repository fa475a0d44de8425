"""Where analytics reads: the rollups by minute, and the exact tables for what rollups do not know. Names of SQL only; a
caller's values never come here. Pure.

A source is a SELECT without its group: rows that :mod:`inferbus_meter.core.analytics` sums. In its text ``$BUCKET`` is
where the row's step begins, ``$KEYS`` the columns that rows are told apart by, ``$WHERE`` the range and the filters.
"""

from collections.abc import Set
from dataclasses import dataclass, replace
from datetime import timedelta

from inferbus_meter.core.spans import accepted_of

# Where the step of a moment begins, in Unix seconds. Steps are counted from Unix time 0; one step that is the whole
# range begins where that begins.
_STEP_OF = "{{origin:Int64}} + intDiv({} - {{origin:Int64}}, {{step:Int64}}) * {{step:Int64}}"
_MINUTE = "toInt64(toUnixTimestamp(minute))"
_END = "toInt64(toUnixTimestamp(end_time))"
_TOKEN = "toInt64(toUnixTimestamp(time))"  # noqa: S105 - a column
_IN_MINUTES = "minute >= toDateTime({start:Int64}, 'UTC') AND minute < toDateTime({end:Int64}, 'UTC')"
_ENDED = "end_time >= toDateTime64({start:Int64}, 6, 'UTC') AND end_time < toDateTime64({end:Int64}, 6, 'UTC')"
_ENDED += f" AND {accepted_of(_ENDED)}"
_MADE = "time >= toDateTime64({start:Int64}, 6, 'UTC') AND time < toDateTime64({end:Int64}, 6, 'UTC')"
# Whoever reads single tokens without a tenant reads all of them: a day is what a question may cost.
_A_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Source:
    """``within``: the condition of the range. ``lacks``: columns that its rows do not have. ``longest``: the range that
    it is asked for at most. ``exact``: each request counts once."""

    text: str
    bucket: str
    within: str
    lacks: Set[str] = frozenset()
    longest: timedelta | None = None
    exact: bool = False


def _plain(fields: str, table: str, moment: str, within: str, *, lacks: str = "", longest: timedelta | None = None,
           only: str = "") -> Source:  # fmt: skip
    condition = f"{only} AND $WHERE" if only else "$WHERE"
    text = f"SELECT $BUCKET AS bucket, $KEYS {fields} FROM {table} WHERE {condition}"  # noqa: S608 - names of this file
    exact = table in ("bills", "charges")
    return Source(text, _STEP_OF.format(moment), within, frozenset(lacks.split()), longest, exact)


def latency_sources(measure: str) -> tuple[Source, ...]:
    """Of ``value_us`` and ``n``, how many had it: counts by minute, or the requests themselves."""
    return (
        _plain(
            "value_us, n", "latency_counts", _MINUTE, _IN_MINUTES, lacks="project_id", only=f"measure = '{measure}'"
        ),
        _plain(
            f"assumeNotNull({measure}_us) AS value_us, 1 AS n", "bills", _END, _ENDED,
            only=f"isNotNull({measure}_us)",
        ),
    )  # fmt: skip


# Tokens do not know their class, in either.
GAPS = (
    _plain(
        "value_us, n", "latency_counts", _MINUTE, _IN_MINUTES, lacks="project_id priority_class", only="measure = 'itl'"
    ),
    _plain(
        "toUInt64(gap_us) AS value_us, 1 AS n", "token_events", _TOKEN, _MADE, lacks="priority_class",
        longest=_A_DAY, only="`index` > 0",
    ),
)  # fmt: skip
TOKENS_MADE = (
    _plain(
        "tokens, stalls, stalled_us, longest_gap_us", "token_minutes", _MINUTE, _IN_MINUTES,
        lacks="project_id priority_class",
    ),
    _plain(
        "1 AS tokens, `index` > 0 AND gap_us > 1000000 AS stalls, if(stalls, toUInt64(gap_us), 0) AS stalled_us, "
        "if(`index` > 0, gap_us, 0) AS longest_gap_us",
        "token_events", _TOKEN, _MADE, lacks="priority_class", longest=_A_DAY,
    ),
)  # fmt: skip
_COUNTED = "input_tokens, cached_input_tokens, output_tokens, reasoning_tokens"
REQUESTS = (
    _plain(
        f"finish_reason, requests, {_COUNTED}, energy_j AS joules, energy_tokens AS measured_tokens",
        "request_minutes", _MINUTE, _IN_MINUTES, lacks="project_id",
    ),
    _plain(
        f"finish_reason, 1 AS requests, {_COUNTED}, toFloat64(ifNull(energy_j, 0)) AS joules, "
        "if(isNotNull(energy_j), input_tokens + output_tokens, 0) AS measured_tokens",
        "bills", _END, _ENDED,
    ),
)  # fmt: skip
FAILED = tuple(replace(one, text=one.text.replace("$WHERE", "finish_reason = 'error' AND $WHERE")) for one in REQUESTS)
# What has no tokens (embeddings, inference) has none of the times that targets are about.
OFFERED = (
    _plain(
        "finish_reason IN ('stop', 'length') AND ifNull(ttft_us, 0) <= {ttft:UInt64} "
        "AND ifNull(tpot_us, 0) <= {tpot:UInt64} AND ifNull(e2e_us, 0) <= {e2e:UInt64} AS good",
        "bills", _END, _ENDED, only="finish_reason != 'cancelled' AND operation NOT IN ('embeddings', 'inference')",
    ),
)  # fmt: skip
CHARGED = (
    _plain(
        "toUInt64(input_tokens) + output_tokens AS tokens, charge", "charges", _END, _ENDED, only="currency != ''"
    ),
)  # fmt: skip

# Each request in every step that it touched, with its time there: their sum over the step's length is how many there
# were at a time.
_ACCEPTED_US, _ENDED_US = "toUnixTimestamp64Micro(accepted_time)", "toUnixTimestamp64Micro(end_time)"
_FIRST = _STEP_OF.format("greatest(toInt64(toUnixTimestamp(accepted_time)), {start:Int64})")
_LAST = _STEP_OF.format(f"least({_END}, {{end:Int64}} - 1)")
UNDER_WAY = (
    Source(
        "SELECT $BUCKET AS bucket, $KEYS "  # noqa: S608
        f"greatest(least({_ENDED_US}, least(bucket + {{step:Int64}}, {{end:Int64}}) * 1000000) "
        f"- greatest({_ACCEPTED_US}, greatest(bucket, {{start:Int64}}) * 1000000), 0) AS busy_us "
        "FROM bills WHERE $WHERE",
        f"arrayJoin(range({_FIRST}, {_LAST} + 1, {{step:Int64}}))",
        "end_time >= toDateTime64({start:Int64}, 6, 'UTC') AND accepted_time < toDateTime64({end:Int64}, 6, 'UTC')",
    ),
)

# Requests that another attempt finished, with the tokens that were made for them in all. Only their own parts of the
# tokens' table are read, and of these first the ids: of 8,192 rows in a row they are a few. Whose tokens are read may
# be more than count: superseded rows do no harm there, and telling them apart takes time.
_AGAIN = "FROM {} WHERE attempt > 1 AND $WHERE"
_THEIRS = _AGAIN.format("requests")
_SLOTS = "timeSlots(toDateTime(accepted_time, 'UTC'), toUInt32(dateDiff('second', accepted_time, end_time)), 300)"
INTERRUPTED = (
    Source(
        f"""SELECT $BUCKET AS bucket, $KEYS if(made > output_tokens, made - output_tokens, 0) AS void, waited_us,
       void * output_per_million AS lost
FROM (SELECT * {_AGAIN.format("bills")}) AS again
LEFT JOIN (
    SELECT request_id, count() AS made, sumIf(gap_us, attempt > 1 AND `index` = opened_at) AS waited_us
    FROM (
        SELECT request_id, attempt, `index`, gap_us, min(`index`) OVER (PARTITION BY request_id, attempt) AS opened_at
        FROM token_events
        PREWHERE request_id IN (SELECT request_id {_THEIRS})
        WHERE (tenant_id, model, toStartOfFiveMinutes(time)) IN (SELECT tenant_id, model, arrayJoin({_SLOTS}) {_THEIRS})
    )
    GROUP BY request_id
) AS events USING (request_id)""",  # noqa: S608
        _STEP_OF.format(_END),
        _ENDED,
    ),
)

# The range of the stream that a request's end was in, and when all of that range was in the tables. Of the present
# stream only: sequences of one that was made anew begin at 1 again.
STORED = (
    Source(
        f"""SELECT $BUCKET AS bucket, $KEYS
       greatest(toUnixTimestamp64Micro(done_time) - {_ENDED_US}, 0) AS value_us, 1 AS n
FROM (SELECT *, 1 AS one FROM bills WHERE $WHERE) AS ended
ASOF INNER JOIN (
    SELECT 1 AS one, first_seq, last_seq, intent_time AS done_time, stream_time
    FROM ingest_batches
    WHERE stream = 'TOKENS' AND done AND epoch = (SELECT max(epoch) FROM ingest_batches WHERE stream = 'TOKENS')
      AND intent_time >= toDateTime64({{start:Int64}}, 6, 'UTC')
      AND intent_time < toDateTime64({{end:Int64}}, 6, 'UTC') + INTERVAL 1 DAY
) AS claim ON ended.one = claim.one AND ended.stream_seq <= claim.last_seq
WHERE stream_seq >= first_seq AND end_time >= stream_time""",  # noqa: S608
        _STEP_OF.format(_END),
        _ENDED,
    ),
)
