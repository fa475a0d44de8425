"""Generated traffic, made inside ClickHouse from numbers: the same rows for the same arguments.

20 tenants, the first ones with most requests; 4 models on 2 workers each; a second revision in the second half; three
classes; 16 to 240 tokens a request, 128 on average. Of a thousand requests 20 are refused, 10 fail, 10 run out of time,
40 are left by their client, and 2 were tried again: with a pause, and 4 void tokens each. One gap in 20,000 is a stall.
"""

from dataclasses import dataclass

from tests.harness.store import ClickHouse

TOKENS_A_REQUEST = 128
VOID_TOKENS = 4
_INSERTED_AT_ONCE = 8192


@dataclass(frozen=True, slots=True)
class Traffic:
    """``requests`` that were accepted evenly over ``seconds`` from ``start`` on (Unix seconds)."""

    requests: int
    start: int
    seconds: int


# One row a request; `h` draws a number below 1 for it. `kind`, of a thousand: see the module.
_REQUESTS = """
WITH
    (i, salt) -> (cityHash64(i, salt) % 1000000) / 1000000 AS h
SELECT
    number AS i,
    reinterpretAsUUID(sipHash128(i)) AS request_id,
    toUInt8(floor(20 * pow(h(i, 'tenant'), 2))) AS tenant,
    toUInt8(floor(4 * pow(h(i, 'model'), 1.5))) AS m,
    concat('tenant-', leftPad(toString(tenant), 2, '0')) AS tenant_id,
    concat(tenant_id, '-web') AS project_id,
    concat(tenant_id, '-key-', toString(cityHash64(i, 'key') % 3)) AS key_id,
    concat('model-', toString(m)) AS model,
    if(i * 2 < {requests}, 'r1', 'r2') AS revision,
    cityHash64(i, 'kind') % 1000 AS kind,
    kind < 20 AS refused,
    kind BETWEEN 80 AND 81 AS again,
    if(refused, 'scheduler', concat('worker-', toString(m * 2 + cityHash64(i, 'worker') % 2))) AS worker,
    toUInt16(if(refused, 0, if(again, 2, 1))) AS attempt,
    multiIf(h(i, 'class') < 0.8, 'interactive', h(i, 'class') < 0.9, 'background', 'batch') AS priority_class,
    toInt64({start}) * 1000000 + intDiv(i * toInt64({seconds}) * 1000000, {requests}) AS accepted_us,
    toUInt32(50 + 2000 * pow(h(i, 'input'), 3)) AS input_tokens,
    toUInt32(if(h(i, 'hit') < 0.4, input_tokens * 0.6, 0)) AS cached_input_tokens,
    toUInt32(if(refused, 0, 16 + cityHash64(i, 'output') % 225)) AS output_tokens,
    toUInt64(400 / (1.001 - h(i, 'queue'))) AS queue_us,
    toUInt64(queue_us + 25000 + 40 * (input_tokens - cached_input_tokens)) AS ttft_us,
    15000 + 4000 * m AS step_us,
    intDiv(output_tokens, 2) AS resumed,
    arrayMap(k -> toUInt32(multiIf(
        k = 0, ttft_us,
        again AND k = resumed, step_us + 3000000,
        cityHash64(i, k, 'stall') % 20000 = 0, step_us + 1000000 + 5000000 * h(i, 'stall'),
        step_us * (0.85 + 0.3 * h(i, k)))), range(output_tokens)) AS gaps,
    arraySum(gaps) AS e2e_us
FROM numbers({first}, {count})
"""
_INSERT_REQUESTS = """
INSERT INTO requests (request_id, tenant_id, project_id, key_id, model, revision, engine, edge, worker, attempt,
    priority_class, operation, accepted_time, end_time, input_tokens, cached_input_tokens, output_tokens,
    reasoning_tokens, estimated, queue_us, ttft_us, e2e_us, tpot_us, energy_j, finish_reason, error_class, error_reason,
    cost, currency, rate_version, input_per_million, cached_input_per_million, output_per_million, stream_seq)
SELECT request_id, tenant_id, project_id, key_id, model, revision, 'synthetic', 'edge-0', worker, attempt,
    priority_class, 'chat', fromUnixTimestamp64Micro(accepted_us, 'UTC'),
    fromUnixTimestamp64Micro(toInt64(accepted_us + e2e_us + 1000), 'UTC'),
    input_tokens, cached_input_tokens, output_tokens, 0, m = 3, if(refused, NULL, queue_us), if(refused, NULL, ttft_us),
    if(refused, NULL, e2e_us), if(output_tokens > 1, intDiv(e2e_us - ttft_us, output_tokens - 1), NULL),
    if(m < 2 AND NOT refused, toFloat32(0.002 * input_tokens + 0.3 * output_tokens), NULL),
    multiIf(kind < 40, 'error', kind < 80, 'cancelled', kind % 2 = 0, 'stop', 'length'),
    multiIf(kind < 20, 'resource_exhausted', kind < 30, 'internal', kind < 40, 'deadline_exceeded', ''),
    multiIf(kind < 20, 'queue_full', kind < 30, 'engine_failed', kind < 40, 'deadline_exceeded', ''),
    ((input_tokens - cached_input_tokens) * toDecimal128('0.2', 12)
        + cached_input_tokens * toDecimal128('0.05', 12) + output_tokens * toDecimal128('0.8', 12)) / 1000000,
    if(tenant = 3, 'EUR', 'USD'), 'generated', 0.2, 0.05, 0.8, i * 1000 + 999
FROM ({of})
"""
_INSERT_TOKENS = """
INSERT INTO token_events (tenant_id, project_id, key_id, model, revision, worker, edge, request_id, attempt, `index`,
    token_id, time, gap_us, stream_seq)
SELECT tenant_id, project_id, key_id, model, revision, worker, 'edge-0', request_id,
    toUInt16(if(again AND k >= resumed, 2, 1)), toUInt32(k), toUInt32(cityHash64(i, k, 'token') % 49152),
    fromUnixTimestamp64Micro(toInt64(accepted_us + passed), 'UTC'), gap_us,
    i * 1000 + k + if(again AND k >= resumed, 500, 0)
FROM ({of})
ARRAY JOIN gaps AS gap_us, arrayCumSum(gaps) AS passed, range(output_tokens) AS k
"""
# What the first attempt of a request that was tried again still made after the second one's start of counting.
_INSERT_VOID = """
INSERT INTO token_events (tenant_id, project_id, key_id, model, revision, worker, edge, request_id, attempt, `index`,
    token_id, time, gap_us, stream_seq)
SELECT tenant_id, project_id, key_id, model, revision, worker, 'edge-0', request_id, 1, toUInt32(resumed + k), 7,
    fromUnixTimestamp64Micro(toInt64(accepted_us + arraySum(arraySlice(gaps, 1, resumed)) + (k + 1) * step_us), 'UTC'),
    toUInt32(step_us), i * 1000 + resumed + k
FROM ({of})
ARRAY JOIN range({void}) AS k
WHERE again
"""


async def fill(store: ClickHouse, traffic: Traffic) -> None:
    """Insert all of it, in the order of time, tokens before requests as the meter does."""
    for first in range(0, traffic.requests, _INSERTED_AT_ONCE):
        of = _REQUESTS.format(
            first=first, count=min(_INSERTED_AT_ONCE, traffic.requests - first),
            requests=traffic.requests, start=traffic.start, seconds=traffic.seconds,
        )  # fmt: skip
        await store.command(_INSERT_TOKENS.format(of=of))
        await store.command(_INSERT_VOID.format(of=of, void=VOID_TOKENS))
        await store.command(_INSERT_REQUESTS.format(of=of))
