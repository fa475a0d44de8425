CREATE VIEW bills
(
    `request_id` UUID,
    `tenant_id` LowCardinality(String),
    `project_id` LowCardinality(String),
    `key_id` LowCardinality(String),
    `model` LowCardinality(String),
    `revision` LowCardinality(String),
    `engine` LowCardinality(String),
    `edge` LowCardinality(String),
    `worker` LowCardinality(String),
    `attempt` UInt16,
    `priority_class` LowCardinality(String),
    `operation` LowCardinality(String),
    `accepted_time` DateTime64(6, 'UTC'),
    `end_time` DateTime64(6, 'UTC'),
    `input_tokens` UInt32,
    `cached_input_tokens` UInt32,
    `output_tokens` UInt32,
    `reasoning_tokens` UInt32,
    `estimated` Bool,
    `queue_us` Nullable(UInt64),
    `ttft_us` Nullable(UInt64),
    `e2e_us` Nullable(UInt64),
    `tpot_us` Nullable(UInt64),
    `energy_j` Nullable(Float32),
    `finish_reason` LowCardinality(String),
    `error_class` LowCardinality(String),
    `error_reason` LowCardinality(String),
    `cost` Decimal(38, 12),
    `currency` LowCardinality(String),
    `rate_version` LowCardinality(String),
    `input_per_million` Decimal(38, 12),
    `cached_input_per_million` Decimal(38, 12),
    `output_per_million` Decimal(38, 12),
    `stream_seq` UInt64
)
AS SELECT *
FROM requests
FINAL;

CREATE TABLE ingest_batches
(
    `stream` LowCardinality(String),
    `epoch` UInt32 COMMENT 'counts how often the stream began anew at sequence 1',
    `first_seq` UInt64,
    `last_seq` UInt64,
    `tokens` UInt32,
    `requests` UInt32,
    `holder` LowCardinality(String) COMMENT 'the meter that wrote it',
    `intent_time` DateTime64(6, 'UTC')
)
ENGINE = MergeTree
ORDER BY (stream, epoch, last_seq)
TTL toDateTime(intent_time) + toIntervalDay(400)
SETTINGS non_replicated_deduplication_window = 10000, index_granularity = 8192;

CREATE VIEW latency_by_minute
(
    `minute` DateTime('UTC'),
    `model` LowCardinality(String),
    `tokens` UInt64,
    `requests` UInt64,
    `errors` UInt64,
    `ttft_p50_us` Float32,
    `ttft_p95_us` Float32,
    `ttft_p99_us` Float32,
    `itl_p50_us` Float32,
    `itl_p95_us` Float32,
    `itl_p99_us` Float32,
    `e2e_p50_us` Float32,
    `e2e_p95_us` Float32,
    `e2e_p99_us` Float32,
    `tpot_p50_us` Float32,
    `tpot_p95_us` Float32,
    `tpot_p99_us` Float32
)
AS SELECT
    minute,
    model,
    sum(m.tokens) AS tokens,
    sum(m.requests) AS requests,
    sum(m.errors) AS errors,
    (quantilesTDigestMerge(0.5, 0.95, 0.99)(m.ttft_us) AS ttft)[1] AS ttft_p50_us,
    ttft[2] AS ttft_p95_us,
    ttft[3] AS ttft_p99_us,
    (quantilesTDigestMerge(0.5, 0.95, 0.99)(m.itl_us) AS itl)[1] AS itl_p50_us,
    itl[2] AS itl_p95_us,
    itl[3] AS itl_p99_us,
    (quantilesTDigestMerge(0.5, 0.95, 0.99)(m.e2e_us) AS e2e)[1] AS e2e_p50_us,
    e2e[2] AS e2e_p95_us,
    e2e[3] AS e2e_p99_us,
    (quantilesTDigestMerge(0.5, 0.95, 0.99)(m.tpot_us) AS tpot)[1] AS tpot_p50_us,
    tpot[2] AS tpot_p95_us,
    tpot[3] AS tpot_p99_us
FROM latency_minutes AS m
GROUP BY
    minute,
    model;

CREATE VIEW latency_by_minute_and_tenant
(
    `minute` DateTime('UTC'),
    `tenant_id` LowCardinality(String),
    `model` LowCardinality(String),
    `tokens` UInt64,
    `requests` UInt64,
    `errors` UInt64,
    `ttft_p50_us` Float32,
    `ttft_p95_us` Float32,
    `ttft_p99_us` Float32,
    `itl_p50_us` Float32,
    `itl_p95_us` Float32,
    `itl_p99_us` Float32,
    `e2e_p50_us` Float32,
    `e2e_p95_us` Float32,
    `e2e_p99_us` Float32,
    `tpot_p50_us` Float32,
    `tpot_p95_us` Float32,
    `tpot_p99_us` Float32
)
AS SELECT
    minute,
    tenant_id,
    model,
    sum(m.tokens) AS tokens,
    sum(m.requests) AS requests,
    sum(m.errors) AS errors,
    (quantilesTDigestMerge(0.5, 0.95, 0.99)(m.ttft_us) AS ttft)[1] AS ttft_p50_us,
    ttft[2] AS ttft_p95_us,
    ttft[3] AS ttft_p99_us,
    (quantilesTDigestMerge(0.5, 0.95, 0.99)(m.itl_us) AS itl)[1] AS itl_p50_us,
    itl[2] AS itl_p95_us,
    itl[3] AS itl_p99_us,
    (quantilesTDigestMerge(0.5, 0.95, 0.99)(m.e2e_us) AS e2e)[1] AS e2e_p50_us,
    e2e[2] AS e2e_p95_us,
    e2e[3] AS e2e_p99_us,
    (quantilesTDigestMerge(0.5, 0.95, 0.99)(m.tpot_us) AS tpot)[1] AS tpot_p50_us,
    tpot[2] AS tpot_p95_us,
    tpot[3] AS tpot_p99_us
FROM latency_minutes AS m
GROUP BY
    minute,
    tenant_id,
    model;

CREATE TABLE latency_minutes
(
    `minute` DateTime('UTC'),
    `tenant_id` LowCardinality(String),
    `model` LowCardinality(String),
    `tokens` SimpleAggregateFunction(sum, UInt64),
    `requests` SimpleAggregateFunction(sum, UInt64),
    `errors` SimpleAggregateFunction(sum, UInt64),
    `ttft_us` AggregateFunction(quantilesTDigest(0.5, 0.95, 0.99), UInt32),
    `itl_us` AggregateFunction(quantilesTDigest(0.5, 0.95, 0.99), UInt32),
    `e2e_us` AggregateFunction(quantilesTDigest(0.5, 0.95, 0.99), UInt64),
    `tpot_us` AggregateFunction(quantilesTDigest(0.5, 0.95, 0.99), UInt64)
)
ENGINE = AggregatingMergeTree
PARTITION BY toYYYYMM(minute)
ORDER BY (tenant_id, model, minute)
SETTINGS non_replicated_deduplication_window = 10000, index_granularity = 8192;

CREATE MATERIALIZED VIEW latency_minutes_from_requests TO latency_minutes
(
    `minute` DateTime('UTC'),
    `tenant_id` LowCardinality(String),
    `model` LowCardinality(String),
    `requests` UInt64,
    `errors` UInt64,
    `e2e_us` AggregateFunction(quantilesTDigest(0.5, 0.95, 0.99), UInt64),
    `tpot_us` AggregateFunction(quantilesTDigest(0.5, 0.95, 0.99), UInt64)
)
AS SELECT
    toStartOfMinute(end_time) AS minute,
    tenant_id,
    model,
    count() AS requests,
    countIf(finish_reason = 'error') AS errors,
    quantilesTDigestStateIf(0.5, 0.95, 0.99)(ifNull(requests.e2e_us, 0), isNotNull(requests.e2e_us)) AS e2e_us,
    quantilesTDigestStateIf(0.5, 0.95, 0.99)(ifNull(requests.tpot_us, 0), isNotNull(requests.tpot_us)) AS tpot_us
FROM requests
GROUP BY
    minute,
    tenant_id,
    model;

CREATE MATERIALIZED VIEW latency_minutes_from_tokens TO latency_minutes
(
    `minute` DateTime('UTC'),
    `tenant_id` LowCardinality(String),
    `model` LowCardinality(String),
    `tokens` UInt64,
    `ttft_us` AggregateFunction(quantilesTDigest(0.5, 0.95, 0.99), UInt32),
    `itl_us` AggregateFunction(quantilesTDigest(0.5, 0.95, 0.99), UInt32)
)
AS SELECT
    toStartOfMinute(time) AS minute,
    tenant_id,
    model,
    count() AS tokens,
    quantilesTDigestStateIf(0.5, 0.95, 0.99)(gap_us, index = 0) AS ttft_us,
    quantilesTDigestStateIf(0.5, 0.95, 0.99)(gap_us, index > 0) AS itl_us
FROM token_events
GROUP BY
    minute,
    tenant_id,
    model;

CREATE TABLE requests
(
    `request_id` UUID,
    `tenant_id` LowCardinality(String),
    `project_id` LowCardinality(String),
    `key_id` LowCardinality(String),
    `model` LowCardinality(String),
    `revision` LowCardinality(String),
    `engine` LowCardinality(String) COMMENT 'synthetic: no model made these tokens',
    `edge` LowCardinality(String),
    `worker` LowCardinality(String) COMMENT 'who ended it: the scheduler if it was never placed',
    `attempt` UInt16 COMMENT '0: never placed on a worker',
    `priority_class` LowCardinality(String),
    `operation` LowCardinality(String) COMMENT 'chat, text_completion, embeddings, inference; empty: not known',
    `accepted_time` DateTime64(6, 'UTC'),
    `end_time` DateTime64(6, 'UTC'),
    `input_tokens` UInt32,
    `cached_input_tokens` UInt32 COMMENT 'part of input_tokens',
    `output_tokens` UInt32,
    `reasoning_tokens` UInt32 COMMENT 'part of output_tokens',
    `estimated` Bool DEFAULT false COMMENT 'true: not all tokens were counted by the model\'s own tokenizer',
    `queue_us` Nullable(UInt64) COMMENT 'microseconds, accepted to handed to the engine',
    `ttft_us` Nullable(UInt64) COMMENT 'microseconds, accepted to first token',
    `e2e_us` Nullable(UInt64) COMMENT 'microseconds, accepted to last token',
    `tpot_us` Nullable(UInt64) COMMENT 'microseconds, (E2E - TTFT) / (output tokens - 1)',
    `energy_j` Nullable(Float32) COMMENT 'joules of the GPUs, shared by tokens; NULL: not measured',
    `finish_reason` LowCardinality(String) COMMENT 'stop, length, cancelled, error',
    `error_class` LowCardinality(String),
    `error_reason` LowCardinality(String),
    `cost` Decimal(38, 12),
    `currency` LowCardinality(String),
    `rate_version` LowCardinality(String) COMMENT 'empty: there was no price',
    `input_per_million` Decimal(38, 12),
    `cached_input_per_million` Decimal(38, 12),
    `output_per_million` Decimal(38, 12),
    `stream_seq` UInt64 COMMENT 'sequence of its frame in the stream TOKENS',
    INDEX request_id_bloom request_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX end_time_range end_time TYPE minmax GRANULARITY 1
)
ENGINE = ReplacingMergeTree(attempt)
PARTITION BY toYYYYMM(end_time)
ORDER BY (tenant_id, toStartOfHour(accepted_time), request_id)
SETTINGS non_replicated_deduplication_window = 10000, index_granularity = 8192;

CREATE TABLE schema_migrations
(
    `version` UInt32,
    `name` String,
    `checksum` String,
    `applied_time` DateTime64(6, 'UTC') DEFAULT now64(6)
)
ENGINE = ReplacingMergeTree(applied_time)
ORDER BY version
SETTINGS index_granularity = 8192;

CREATE TABLE token_events
(
    `tenant_id` LowCardinality(String),
    `project_id` LowCardinality(String),
    `key_id` LowCardinality(String),
    `model` LowCardinality(String),
    `revision` LowCardinality(String),
    `worker` LowCardinality(String),
    `edge` LowCardinality(String),
    `request_id` UUID CODEC(ZSTD(1)),
    `attempt` UInt16 COMMENT 'which try of the request; a higher one voids tokens of lower ones, see view tokens' CODEC(T64, ZSTD(1)),
    `index` UInt32 COMMENT 'position of the token in its request, from 0' CODEC(Delta(4), ZSTD(1)),
    `token_id` UInt32 CODEC(T64, ZSTD(1)),
    `time` DateTime64(6, 'UTC') COMMENT 'end of the engine step that made it' CODEC(Delta(8), ZSTD(1)),
    `gap_us` UInt32 COMMENT 'microseconds since the previous token of the request; for index 0 since acceptance (TTFT)' CODEC(T64, ZSTD(1)),
    `stream_seq` UInt64 COMMENT 'sequence of its frame in the stream TOKENS' CODEC(Delta(8), ZSTD(1)),
    INDEX request_id_bloom request_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX attempt_range attempt TYPE minmax GRANULARITY 1,
    INDEX stream_seq_range stream_seq TYPE minmax GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(time)
ORDER BY (tenant_id, model, toStartOfFiveMinutes(time), request_id, attempt, index)
SETTINGS non_replicated_deduplication_window = 10000, index_granularity = 8192;

CREATE VIEW tokens
(
    `tenant_id` LowCardinality(String),
    `project_id` LowCardinality(String),
    `key_id` LowCardinality(String),
    `model` LowCardinality(String),
    `revision` LowCardinality(String),
    `worker` LowCardinality(String),
    `edge` LowCardinality(String),
    `request_id` UUID,
    `attempt` UInt16,
    `index` UInt32,
    `token_id` UInt32,
    `time` DateTime64(6, 'UTC'),
    `gap_us` UInt32,
    `stream_seq` UInt64
)
AS SELECT
    tenant_id,
    project_id,
    key_id,
    model,
    revision,
    worker,
    edge,
    request_id,
    attempt,
    index,
    token_id,
    time,
    gap_us,
    stream_seq
FROM token_events
WHERE request_id NOT IN (
    SELECT request_id
    FROM token_events
    WHERE attempt > 1
)
UNION ALL
SELECT
    tenant_id,
    project_id,
    key_id,
    model,
    revision,
    worker,
    edge,
    request_id,
    attempt,
    index,
    token_id,
    time,
    gap_us,
    stream_seq
FROM
(
    SELECT
        *,
        min(opened_at) OVER (PARTITION BY request_id ORDER BY stream_seq DESC, attempt DESC, index DESC ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS resumed_at
    FROM
    (
        SELECT
            *,
            if(leadInFrame(in_force, 1, in_force) OVER following > in_force, leadInFrame(toInt64(index), 1) OVER following, 4294967296) AS opened_at
        FROM
        (
            SELECT
                *,
                max(attempt) OVER (PARTITION BY request_id ORDER BY stream_seq ASC, attempt ASC, index ASC ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS in_force
            FROM token_events
            WHERE request_id IN (
                SELECT request_id
                FROM token_events
                WHERE attempt > 1
            )
        )
        WINDOW following AS (PARTITION BY request_id ORDER BY stream_seq ASC, attempt ASC, index ASC ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING)
    )
)
WHERE (attempt = in_force) AND (index < resumed_at);

CREATE VIEW usage_by_day
(
    `day` Date,
    `tenant_id` LowCardinality(String),
    `project_id` LowCardinality(String),
    `key_id` LowCardinality(String),
    `model` LowCardinality(String),
    `currency` LowCardinality(String),
    `requests` UInt64,
    `calls` UInt64,
    `errors` UInt64,
    `input_tokens` UInt64,
    `cached_input_tokens` UInt64,
    `output_tokens` UInt64,
    `reasoning_tokens` UInt64,
    `cost` Decimal(38, 12)
)
AS SELECT
    toDate(end_time) AS day,
    tenant_id,
    project_id,
    key_id,
    model,
    currency,
    count() AS requests,
    countIf(operation = 'inference') AS calls,
    countIf(finish_reason = 'error') AS errors,
    sum(bills.input_tokens) AS input_tokens,
    sum(bills.cached_input_tokens) AS cached_input_tokens,
    sum(bills.output_tokens) AS output_tokens,
    sum(bills.reasoning_tokens) AS reasoning_tokens,
    sum(bills.cost) AS cost
FROM bills
GROUP BY
    day,
    tenant_id,
    project_id,
    key_id,
    model,
    currency;

CREATE VIEW usage_by_hour
(
    `hour` DateTime('UTC'),
    `tenant_id` LowCardinality(String),
    `project_id` LowCardinality(String),
    `key_id` LowCardinality(String),
    `model` LowCardinality(String),
    `currency` LowCardinality(String),
    `requests` UInt64,
    `calls` UInt64,
    `errors` UInt64,
    `input_tokens` UInt64,
    `cached_input_tokens` UInt64,
    `output_tokens` UInt64,
    `reasoning_tokens` UInt64,
    `cost` Decimal(38, 12)
)
AS SELECT
    toStartOfHour(end_time) AS hour,
    tenant_id,
    project_id,
    key_id,
    model,
    currency,
    count() AS requests,
    countIf(operation = 'inference') AS calls,
    countIf(finish_reason = 'error') AS errors,
    sum(bills.input_tokens) AS input_tokens,
    sum(bills.cached_input_tokens) AS cached_input_tokens,
    sum(bills.output_tokens) AS output_tokens,
    sum(bills.reasoning_tokens) AS reasoning_tokens,
    sum(bills.cost) AS cost
FROM bills
GROUP BY
    hour,
    tenant_id,
    project_id,
    key_id,
    model,
    currency;

