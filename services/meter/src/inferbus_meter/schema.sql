CREATE TABLE adjustments
(
    `request_id` UUID,
    `number` UInt16 COMMENT 'of the request: its first correction is 1',
    `tenant_id` LowCardinality(String),
    `project_id` LowCardinality(String),
    `key_id` LowCardinality(String),
    `model` LowCardinality(String),
    `revision` LowCardinality(String),
    `end_time` DateTime64(6, 'UTC') COMMENT 'of the request',
    `delta` Decimal(38, 12) COMMENT 'what is added to the charge; below 0: taken off',
    `currency` LowCardinality(String),
    `from_rate_version` LowCardinality(String) COMMENT 'of the charge before',
    `to_rate_version` LowCardinality(String) COMMENT 'of the charge after; empty: there is no price any more',
    `rerate_id` LowCardinality(String) COMMENT 'the run that made it',
    `created_time` DateTime64(6, 'UTC'),
    `reason` LowCardinality(String),
    INDEX end_time_range end_time TYPE minmax GRANULARITY 1
)
ENGINE = ReplacingMergeTree(created_time)
PARTITION BY toYYYYMM(end_time)
ORDER BY (tenant_id, request_id, number)
SETTINGS non_replicated_deduplication_window = 10000, index_granularity = 8192;

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
    `placed_us` Nullable(UInt64),
    `queue_us` Nullable(UInt64),
    `cold_start_us` Nullable(UInt64),
    `started_us` Nullable(UInt64),
    `ttft_us` Nullable(UInt64),
    `e2e_us` Nullable(UInt64),
    `tpot_us` Nullable(UInt64),
    `energy_j` Nullable(Float32),
    `finish_reason` LowCardinality(String),
    `error_class` LowCardinality(String),
    `error_reason` LowCardinality(String),
    `failed_revisions` LowCardinality(String),
    `cost` Decimal(38, 12),
    `currency` LowCardinality(String),
    `rate_version` LowCardinality(String),
    `input_per_million` Decimal(38, 12),
    `cached_input_per_million` Decimal(38, 12),
    `output_per_million` Decimal(38, 12),
    `reasoning_per_million` Decimal(38, 12),
    `per_call` Decimal(38, 12),
    `minimum` Decimal(38, 12),
    `factor` Decimal(38, 12),
    `stream_seq` UInt64,
    `stream_epoch` UInt32,
    `end_user` String,
    `tags` Map(String, String)
)
AS SELECT *
FROM requests
FINAL;

CREATE TABLE captures
(
    `tenant_id` LowCardinality(String),
    `request_id` UUID,
    `project_id` LowCardinality(String),
    `key_id` LowCardinality(String),
    `model` LowCardinality(String),
    `revision` LowCardinality(String),
    `attempt` UInt16,
    `kind` LowCardinality(String) COMMENT 'input, output',
    `truncated` Bool COMMENT 'there was more, and it was not kept',
    `first_index` Array(UInt32) COMMENT 'of an output: the index of the first token of each delta',
    `token_count` Array(UInt32) COMMENT 'tokens of each delta',
    `text_size` Array(UInt32) COMMENT 'bytes of each delta in text',
    `text` String CODEC(ZSTD(3)),
    `accepted_time` DateTime64(3, 'UTC') COMMENT 'of the request',
    `time` DateTime64(6, 'UTC') COMMENT 'of the first delta',
    `stream_seq` UInt64 COMMENT 'sequence of the first frame in the stream TOKENS'
)
ENGINE = MergeTree
PARTITION BY toYYYYMMDD(time)
ORDER BY (tenant_id, accepted_time, request_id, stream_seq)
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1, index_granularity = 8192;

CREATE VIEW charges
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
    `placed_us` Nullable(UInt64),
    `queue_us` Nullable(UInt64),
    `cold_start_us` Nullable(UInt64),
    `started_us` Nullable(UInt64),
    `ttft_us` Nullable(UInt64),
    `e2e_us` Nullable(UInt64),
    `tpot_us` Nullable(UInt64),
    `energy_j` Nullable(Float32),
    `finish_reason` LowCardinality(String),
    `error_class` LowCardinality(String),
    `error_reason` LowCardinality(String),
    `failed_revisions` LowCardinality(String),
    `cost` Decimal(38, 12),
    `currency` String,
    `rate_version` LowCardinality(String),
    `input_per_million` Decimal(38, 12),
    `cached_input_per_million` Decimal(38, 12),
    `output_per_million` Decimal(38, 12),
    `reasoning_per_million` Decimal(38, 12),
    `per_call` Decimal(38, 12),
    `minimum` Decimal(38, 12),
    `factor` Decimal(38, 12),
    `stream_seq` UInt64,
    `stream_epoch` UInt32,
    `end_user` String,
    `tags` Map(String, String),
    `adjusted` Decimal(38, 12),
    `charge` Decimal(38, 12),
    `charge_rate_version` String,
    `adjustments` UInt16
)
AS SELECT
    bill.* REPLACE (if(bill.currency = '', correction.currency, bill.currency) AS currency),
    correction.adjusted AS adjusted,
    bill.cost + correction.adjusted AS charge,
    if(correction.number > 0, correction.to_rate_version, bill.rate_version) AS charge_rate_version,
    correction.number AS adjustments
FROM requests AS bill
FINAL
LEFT JOIN
(
    SELECT
        tenant_id,
        request_id,
        sum(delta) AS adjusted,
        max(adjustments.number) AS number,
        argMax(adjustments.to_rate_version, adjustments.number) AS to_rate_version,
        max(adjustments.currency) AS currency
    FROM adjustments
    FINAL
    GROUP BY
        tenant_id,
        request_id
) AS correction ON (correction.tenant_id = bill.tenant_id) AND (correction.request_id = bill.request_id);

CREATE TABLE deliveries
(
    `request_id` UUID,
    `tenant_id` LowCardinality(String) COMMENT 'of the key that asked, which may be another one of the project than that of the request',
    `project_id` LowCardinality(String),
    `key_id` LowCardinality(String),
    `edge` LowCardinality(String),
    `boot` UInt64 CODEC(ZSTD(1)),
    `sequence` UInt64 COMMENT 'message of that edge' CODEC(Delta(8), ZSTD(1)),
    `item` UInt32 COMMENT 'entry of that message' CODEC(T64, ZSTD(1)),
    `tokens` UInt32 COMMENT 'output tokens handed to the connection, in order: the index that the client reached',
    `end` LowCardinality(String) COMMENT 'complete, stored, client_gone, slow_client, failed, edge_stopped',
    `time` DateTime64(6, 'UTC') COMMENT 'when it ended' CODEC(Delta(8), ZSTD(1)),
    `stored_time` DateTime64(6, 'UTC') COMMENT 'of its message in the stream' CODEC(Delta(8), ZSTD(1)),
    `stream_seq` UInt64 COMMENT 'sequence of its message in the stream DELIVERIES' CODEC(Delta(8), ZSTD(1)),
    INDEX request_id_bloom request_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX stream_seq_range stream_seq TYPE minmax GRANULARITY 1
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(stored_time)
ORDER BY (tenant_id, toStartOfHour(time), request_id, edge, boot, sequence, item)
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1, index_granularity = 8192;

CREATE VIEW deliveries_once
(
    `request_id` UUID,
    `tenant_id` LowCardinality(String),
    `project_id` LowCardinality(String),
    `key_id` LowCardinality(String),
    `edge` LowCardinality(String),
    `boot` UInt64,
    `sequence` UInt64,
    `item` UInt32,
    `tokens` UInt32,
    `end` LowCardinality(String),
    `time` DateTime64(6, 'UTC'),
    `stored_time` DateTime64(6, 'UTC'),
    `stream_seq` UInt64
)
AS SELECT *
FROM deliveries
FINAL;

CREATE TABLE ingest_batches
(
    `stream` LowCardinality(String),
    `epoch` UInt32 COMMENT 'counts how often the stream began anew at sequence 1',
    `base_seq` UInt64 DEFAULT 0 COMMENT 'the epoch begins after it; what the stream has up to it is of the epoch before',
    `stream_time` DateTime64(6, 'UTC') DEFAULT 0 COMMENT 'when the stream was made; 1970: not known',
    `first_seq` UInt64,
    `last_seq` UInt64,
    `last_time` DateTime64(6, 'UTC') DEFAULT 0 COMMENT 'when the frame last_seq was stored, of what is done; 1970: not known',
    `attempt` UInt32 DEFAULT 1 COMMENT 'which try; the holder of the highest one does the range',
    `done` Bool DEFAULT false COMMENT 'true: all rows of the range are in the tables',
    `block_tokens` UInt32 DEFAULT 0 COMMENT 'tokens and ends of one insert; 0: the range is one insert',
    `mark_seq` UInt64 DEFAULT 0 COMMENT 'everything up to it was in the tables already',
    `tokens` UInt32,
    `requests` UInt32,
    `holder` LowCardinality(String) COMMENT 'the meter that wrote it',
    `intent_time` DateTime64(6, 'UTC')
)
ENGINE = MergeTree
ORDER BY (stream, epoch, last_seq)
TTL toDateTime(intent_time) + toIntervalDay(400)
SETTINGS non_replicated_deduplication_window = 10000, index_granularity = 8192;

CREATE TABLE invoice_lines
(
    `sequence` UInt64 COMMENT 'of its invoice',
    `number` String COMMENT 'of its invoice',
    `tenant_id` LowCardinality(String),
    `position` UInt32 COMMENT 'on the invoice, from 1',
    `kind` LowCardinality(String) COMMENT 'input, cached_input, output, reasoning, call, minimum, adjustment, discount',
    `month` Date COMMENT 'first day of the month in which the requests ended; earlier than the invoice\'s: a correction',
    `project_id` LowCardinality(String),
    `model` LowCardinality(String),
    `operation` LowCardinality(String),
    `rate_version` LowCardinality(String),
    `estimated` Bool,
    `quantity` Int64 COMMENT 'tokens, calls, or requests of an adjustment; negative in a correction',
    `unit_price` Decimal(38, 12) COMMENT 'per million tokens, or per call',
    `factor` Decimal(38, 12) COMMENT 'of the batch class, else 1',
    `amount` Decimal(38, 12),
    `currency` LowCardinality(String)
)
ENGINE = ReplacingMergeTree
ORDER BY (tenant_id, sequence, position)
SETTINGS non_replicated_deduplication_window = 10000, index_granularity = 8192;

CREATE TABLE invoices
(
    `sequence` UInt64 COMMENT 'order of issue, over all tenants and years',
    `number` String,
    `kind` LowCardinality(String) COMMENT 'invoice, credit_note',
    `voids` String COMMENT 'of a credit note: the number of the invoice that it takes back',
    `tenant_id` LowCardinality(String),
    `month` Date COMMENT 'first day of the month that it is for',
    `currency` LowCardinality(String),
    `subtotal` Decimal(38, 12) COMMENT 'exact sum of its lines',
    `net` Decimal(38, 12) COMMENT 'subtotal, rounded once to what the currency has',
    `tax` Decimal(38, 12),
    `total` Decimal(38, 12) COMMENT 'net + tax',
    `credits` Decimal(38, 12) COMMENT 'what was paid in beforehand and pays for it',
    `due` Decimal(38, 12) COMMENT 'total - credits',
    `issue_time` DateTime64(6, 'UTC'),
    `due_time` DateTime64(6, 'UTC'),
    `hash` String COMMENT 'SHA-256 of its canonical content, hex'
)
ENGINE = ReplacingMergeTree
ORDER BY (tenant_id, sequence)
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

CREATE TABLE latency_counts
(
    `minute` DateTime('UTC') CODEC(Delta(4), ZSTD(1)),
    `tenant_id` LowCardinality(String),
    `model` LowCardinality(String),
    `revision` LowCardinality(String),
    `worker` LowCardinality(String),
    `priority_class` LowCardinality(String) COMMENT 'empty for itl: a token does not know it',
    `measure` LowCardinality(String) COMMENT 'itl: each gap between two tokens; of each request: ttft, tpot, e2e, queue',
    `value_us` UInt64 COMMENT 'microseconds, the middle of a bucket: within 1.6 %' CODEC(Delta(8), ZSTD(1)),
    `n` SimpleAggregateFunction(sum, UInt64) COMMENT 'how many had it' CODEC(T64, ZSTD(1))
)
ENGINE = AggregatingMergeTree
PARTITION BY toYYYYMM(minute)
ORDER BY (tenant_id, measure, model, minute, revision, worker, priority_class, value_us)
SETTINGS non_replicated_deduplication_window = 10000, index_granularity = 8192;

CREATE MATERIALIZED VIEW latency_counts_from_requests TO latency_counts
(
    `minute` DateTime('UTC'),
    `tenant_id` LowCardinality(String),
    `model` LowCardinality(String),
    `revision` LowCardinality(String),
    `worker` LowCardinality(String),
    `priority_class` LowCardinality(String),
    `measure` String,
    `value_us` UInt64,
    `n` UInt64
)
AS WITH
    arrayJoin([('ttft', ttft_us), ('tpot', tpot_us), ('e2e', e2e_us), ('queue', queue_us)]) AS measured,
    assumeNotNull(measured.2) AS us,
    greatest(intDiv(roundToExp2(us), 32), 1) AS width
SELECT
    toStartOfMinute(end_time) AS minute,
    tenant_id,
    model,
    revision,
    worker,
    priority_class,
    measured.1 AS measure,
    toUInt64((us - (us % width)) + intDiv(width, 2)) AS value_us,
    count() AS n
FROM requests
WHERE isNotNull(measured.2)
GROUP BY
    minute,
    tenant_id,
    model,
    revision,
    worker,
    priority_class,
    measure,
    value_us;

CREATE MATERIALIZED VIEW latency_counts_from_tokens TO latency_counts
(
    `minute` DateTime('UTC'),
    `tenant_id` LowCardinality(String),
    `model` LowCardinality(String),
    `revision` LowCardinality(String),
    `worker` LowCardinality(String),
    `priority_class` String,
    `measure` String,
    `value_us` UInt64,
    `n` UInt64
)
AS WITH
    greatest(intDiv(roundToExp2(gap_us), 32), 1) AS width
SELECT
    toStartOfMinute(time) AS minute,
    tenant_id,
    model,
    revision,
    worker,
    '' AS priority_class,
    'itl' AS measure,
    toUInt64((gap_us - (gap_us % width)) + intDiv(width, 2)) AS value_us,
    count() AS n
FROM token_events
WHERE index > 0
GROUP BY
    minute,
    tenant_id,
    model,
    revision,
    worker,
    value_us;

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

CREATE TABLE request_minutes
(
    `minute` DateTime('UTC') CODEC(Delta(4), ZSTD(1)),
    `tenant_id` LowCardinality(String),
    `model` LowCardinality(String),
    `revision` LowCardinality(String),
    `worker` LowCardinality(String) COMMENT 'who ended it: the scheduler if it was never placed',
    `priority_class` LowCardinality(String),
    `operation` LowCardinality(String),
    `finish_reason` LowCardinality(String),
    `error_class` LowCardinality(String),
    `error_reason` LowCardinality(String),
    `estimated` Bool,
    `requests` SimpleAggregateFunction(sum, UInt64),
    `resumed` SimpleAggregateFunction(sum, UInt64) COMMENT 'of them, those that were tried again',
    `input_tokens` SimpleAggregateFunction(sum, UInt64),
    `cached_input_tokens` SimpleAggregateFunction(sum, UInt64) COMMENT 'part of input_tokens',
    `output_tokens` SimpleAggregateFunction(sum, UInt64),
    `reasoning_tokens` SimpleAggregateFunction(sum, UInt64) COMMENT 'part of output_tokens',
    `energy_j` SimpleAggregateFunction(sum, Float64) COMMENT 'joules, of the requests whose energy was measured',
    `energy_tokens` SimpleAggregateFunction(sum, UInt64) COMMENT 'input and output tokens of just those requests'
)
ENGINE = AggregatingMergeTree
PARTITION BY toYYYYMM(minute)
ORDER BY (tenant_id, model, minute, revision, worker, priority_class, operation, finish_reason, error_class, error_reason, estimated)
SETTINGS non_replicated_deduplication_window = 10000, index_granularity = 8192;

CREATE MATERIALIZED VIEW request_minutes_from_requests TO request_minutes
(
    `minute` DateTime('UTC'),
    `tenant_id` LowCardinality(String),
    `model` LowCardinality(String),
    `revision` LowCardinality(String),
    `worker` LowCardinality(String),
    `priority_class` LowCardinality(String),
    `operation` LowCardinality(String),
    `finish_reason` LowCardinality(String),
    `error_class` LowCardinality(String),
    `error_reason` LowCardinality(String),
    `estimated` Bool,
    `requests` UInt64,
    `resumed` UInt64,
    `input_tokens` UInt64,
    `cached_input_tokens` UInt64,
    `output_tokens` UInt64,
    `reasoning_tokens` UInt64,
    `energy_j` Float64,
    `energy_tokens` UInt64
)
AS SELECT
    toStartOfMinute(end_time) AS minute,
    tenant_id,
    model,
    revision,
    worker,
    priority_class,
    operation,
    finish_reason,
    error_class,
    error_reason,
    estimated,
    count() AS requests,
    countIf(attempt > 1) AS resumed,
    sum(requests.input_tokens) AS input_tokens,
    sum(requests.cached_input_tokens) AS cached_input_tokens,
    sum(requests.output_tokens) AS output_tokens,
    sum(requests.reasoning_tokens) AS reasoning_tokens,
    sum(toFloat64(ifNull(requests.energy_j, 0))) AS energy_j,
    sumIf(requests.input_tokens + requests.output_tokens, isNotNull(requests.energy_j)) AS energy_tokens
FROM requests
GROUP BY
    minute,
    tenant_id,
    model,
    revision,
    worker,
    priority_class,
    operation,
    finish_reason,
    error_class,
    error_reason,
    estimated;

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
    `placed_us` Nullable(UInt64) COMMENT 'microseconds, accepted to placed on a worker by the scheduler',
    `queue_us` Nullable(UInt64) COMMENT 'microseconds, accepted to handed to an engine for the first time',
    `cold_start_us` Nullable(UInt64) COMMENT 'microseconds of its waiting in which its model had no worker; NULL: none',
    `started_us` Nullable(UInt64) DEFAULT queue_us COMMENT 'microseconds, accepted to handed to the engine, in the last attempt',
    `ttft_us` Nullable(UInt64) COMMENT 'microseconds, accepted to first token',
    `e2e_us` Nullable(UInt64) COMMENT 'microseconds, accepted to last token',
    `tpot_us` Nullable(UInt64) COMMENT 'microseconds, (E2E - TTFT) / (output tokens - 1)',
    `energy_j` Nullable(Float32) COMMENT 'joules of the GPUs, shared by tokens; NULL: not measured',
    `finish_reason` LowCardinality(String) COMMENT 'stop, length, cancelled, error',
    `error_class` LowCardinality(String),
    `error_reason` LowCardinality(String),
    `failed_revisions` LowCardinality(String) COMMENT 'revisions that failed it before, with commas between them',
    `cost` Decimal(38, 12),
    `currency` LowCardinality(String),
    `rate_version` LowCardinality(String) COMMENT 'empty: there was no price',
    `input_per_million` Decimal(38, 12),
    `cached_input_per_million` Decimal(38, 12),
    `output_per_million` Decimal(38, 12),
    `reasoning_per_million` Decimal(38, 12) DEFAULT output_per_million,
    `per_call` Decimal(38, 12) DEFAULT 0 COMMENT 'of a call that was answered',
    `minimum` Decimal(38, 12) DEFAULT 0 COMMENT 'of a call that used anything',
    `factor` Decimal(38, 12) DEFAULT 1 COMMENT 'of class batch',
    `stream_seq` UInt64 COMMENT 'sequence of its frame in the stream TOKENS',
    `stream_epoch` UInt32 DEFAULT 0 COMMENT 'which stream TOKENS: epoch in ingest_batches, plus 1; 0: not known',
    `version` UInt128 MATERIALIZED bitOr(bitShiftLeft(toUInt128(attempt), 96), bitOr(bitShiftLeft(toUInt128(stream_epoch), 64), toUInt128(stream_seq))) COMMENT 'attempt, stream_epoch and stream_seq as one number: of the rows of a request the highest counts' CODEC(ZSTD(1)),
    `end_user` String DEFAULT '' COMMENT 'the tenant\'s own name for whoever asked; over 128 bytes: its SHA-256' CODEC(ZSTD(1)),
    `tags` Map(String, String) DEFAULT map() COMMENT 'as the header x-inferbus-tags said' CODEC(ZSTD(1)),
    INDEX request_id_bloom request_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX end_time_range end_time TYPE minmax GRANULARITY 1,
    INDEX attempt_range attempt TYPE minmax GRANULARITY 1
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(end_time)
ORDER BY (tenant_id, toStartOfHour(accepted_time), request_id)
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1, index_granularity = 8192;

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

CREATE VIEW spend_by_day
(
    `day` Date,
    `tenant_id` LowCardinality(String),
    `project_id` LowCardinality(String),
    `key_id` LowCardinality(String),
    `currency` String,
    `requests` UInt64,
    `spent` Decimal(38, 12)
)
AS SELECT
    toDate(accepted_time) AS day,
    tenant_id,
    project_id,
    key_id,
    currency,
    count() AS requests,
    sum(charge) AS spent
FROM charges
GROUP BY
    day,
    tenant_id,
    project_id,
    key_id,
    currency;

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
    `stream_epoch` UInt32 DEFAULT 0 COMMENT 'which stream TOKENS: epoch in ingest_batches, plus 1; 0: not known' CODEC(T64, ZSTD(1)),
    INDEX request_id_bloom request_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX attempt_range attempt TYPE minmax GRANULARITY 1,
    INDEX stream_seq_range stream_seq TYPE minmax GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(time)
ORDER BY (tenant_id, model, toStartOfFiveMinutes(time), request_id, attempt, index)
SETTINGS non_replicated_deduplication_window = 10000, index_granularity = 8192, ttl_only_drop_parts = 1;

CREATE TABLE token_minutes
(
    `minute` DateTime('UTC') CODEC(Delta(4), ZSTD(1)),
    `tenant_id` LowCardinality(String),
    `model` LowCardinality(String),
    `revision` LowCardinality(String),
    `worker` LowCardinality(String),
    `tokens` SimpleAggregateFunction(sum, UInt64) COMMENT 'output tokens, void ones included',
    `resumed_tokens` SimpleAggregateFunction(sum, UInt64) COMMENT 'of them, those of an attempt after the first',
    `stalls` SimpleAggregateFunction(sum, UInt64) COMMENT 'gaps of more than a second between two tokens',
    `stalled_us` SimpleAggregateFunction(sum, UInt64) COMMENT 'microseconds, those gaps together',
    `longest_gap_us` SimpleAggregateFunction(max, UInt32)
)
ENGINE = AggregatingMergeTree
PARTITION BY toYYYYMM(minute)
ORDER BY (tenant_id, model, minute, revision, worker)
SETTINGS non_replicated_deduplication_window = 10000, index_granularity = 8192;

CREATE MATERIALIZED VIEW token_minutes_from_tokens TO token_minutes
(
    `minute` DateTime('UTC'),
    `tenant_id` LowCardinality(String),
    `model` LowCardinality(String),
    `revision` LowCardinality(String),
    `worker` LowCardinality(String),
    `tokens` UInt64,
    `resumed_tokens` UInt64,
    `stalls` UInt64,
    `stalled_us` UInt64,
    `longest_gap_us` UInt32
)
AS SELECT
    toStartOfMinute(time) AS minute,
    tenant_id,
    model,
    revision,
    worker,
    count() AS tokens,
    countIf(attempt > 1) AS resumed_tokens,
    countIf((index > 0) AND (gap_us > 1000000)) AS stalls,
    sumIf(gap_us, (index > 0) AND (gap_us > 1000000)) AS stalled_us,
    maxIf(gap_us, index > 0) AS longest_gap_us
FROM token_events
GROUP BY
    minute,
    tenant_id,
    model,
    revision,
    worker;

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
    `stream_seq` UInt64,
    `stream_epoch` UInt32
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
    stream_seq,
    stream_epoch
FROM token_events
WHERE (request_id NOT IN (
    SELECT request_id
    FROM token_events
    WHERE attempt > 1
)) AND (request_id NOT IN (
    SELECT request_id
    FROM requests
    WHERE attempt > 1
))
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
    stream_seq,
    stream_epoch
FROM
(
    SELECT
        *,
        max(attempt) OVER (PARTITION BY request_id) AS last_attempt,
        min(opened_at) OVER (PARTITION BY request_id ORDER BY stream_epoch DESC, stream_seq DESC, attempt DESC, index DESC ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS resumed_at
    FROM
    (
        SELECT
            *,
            if(leadInFrame(in_force, 1, in_force) OVER following > in_force, leadInFrame(toInt64(index), 1) OVER following, 4294967296) AS opened_at
        FROM
        (
            SELECT
                *,
                max(attempt) OVER (PARTITION BY request_id ORDER BY stream_epoch ASC, stream_seq ASC, attempt ASC, index ASC ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS in_force
            FROM token_events
            WHERE (request_id IN (
                SELECT request_id
                FROM token_events
                WHERE attempt > 1
            )) OR (request_id IN (
                SELECT request_id
                FROM requests
                WHERE attempt > 1
            ))
        )
        WINDOW following AS (PARTITION BY request_id ORDER BY stream_epoch ASC, stream_seq ASC, attempt ASC, index ASC ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING)
    )
) AS row
LEFT JOIN
(
    SELECT
        request_id AS closed,
        max(requests.attempt) AS closing_attempt,
        argMax(requests.output_tokens, (requests.attempt, requests.stream_epoch, requests.stream_seq)) AS counted
    FROM requests
    WHERE requests.attempt > 1
    GROUP BY request_id
) AS closing ON closing.closed = row.request_id
WHERE (attempt = in_force) AND (index < resumed_at) AND ((closing_attempt <= last_attempt) OR (index < counted));

CREATE VIEW usage_by_day
(
    `day` Date,
    `tenant_id` LowCardinality(String),
    `project_id` LowCardinality(String),
    `key_id` LowCardinality(String),
    `model` LowCardinality(String),
    `estimated` Bool,
    `currency` String,
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
    estimated,
    currency,
    count() AS requests,
    countIf(operation = 'inference') AS calls,
    countIf(finish_reason = 'error') AS errors,
    sum(charges.input_tokens) AS input_tokens,
    sum(charges.cached_input_tokens) AS cached_input_tokens,
    sum(charges.output_tokens) AS output_tokens,
    sum(charges.reasoning_tokens) AS reasoning_tokens,
    sum(charges.charge) AS cost
FROM charges
GROUP BY
    day,
    tenant_id,
    project_id,
    key_id,
    model,
    estimated,
    currency;

CREATE VIEW usage_by_hour
(
    `hour` DateTime('UTC'),
    `tenant_id` LowCardinality(String),
    `project_id` LowCardinality(String),
    `key_id` LowCardinality(String),
    `model` LowCardinality(String),
    `estimated` Bool,
    `currency` String,
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
    estimated,
    currency,
    count() AS requests,
    countIf(operation = 'inference') AS calls,
    countIf(finish_reason = 'error') AS errors,
    sum(charges.input_tokens) AS input_tokens,
    sum(charges.cached_input_tokens) AS cached_input_tokens,
    sum(charges.output_tokens) AS output_tokens,
    sum(charges.reasoning_tokens) AS reasoning_tokens,
    sum(charges.charge) AS cost
FROM charges
GROUP BY
    hour,
    tenant_id,
    project_id,
    key_id,
    model,
    estimated,
    currency;

CREATE TABLE usage_hours
(
    `hour` DateTime('UTC'),
    `tenant_id` LowCardinality(String),
    `project_id` LowCardinality(String),
    `key_id` LowCardinality(String),
    `model` LowCardinality(String),
    `revision` LowCardinality(String),
    `operation` LowCardinality(String),
    `priority_class` LowCardinality(String),
    `finish_reason` LowCardinality(String),
    `error_reason` LowCardinality(String),
    `estimated` Bool,
    `currency` LowCardinality(String),
    `rate_version` LowCardinality(String),
    `requests` UInt64,
    `input_tokens` UInt64,
    `cached_input_tokens` UInt64,
    `output_tokens` UInt64,
    `reasoning_tokens` UInt64,
    `cost` Decimal(38, 12),
    `fingerprint` UInt64 COMMENT 'of the rows of bills that it was summed from',
    `version` UInt64 COMMENT 'Unix microseconds when the hour was summed'
)
ENGINE = MergeTree
PARTITION BY toYear(hour)
ORDER BY (tenant_id, hour, project_id, key_id, model, version)
SETTINGS non_replicated_deduplication_window = 10000, index_granularity = 8192;

CREATE VIEW usage_hours_once
(
    `hour` DateTime('UTC'),
    `tenant_id` LowCardinality(String),
    `project_id` LowCardinality(String),
    `key_id` LowCardinality(String),
    `model` LowCardinality(String),
    `revision` LowCardinality(String),
    `operation` LowCardinality(String),
    `priority_class` LowCardinality(String),
    `finish_reason` LowCardinality(String),
    `error_reason` LowCardinality(String),
    `estimated` Bool,
    `currency` LowCardinality(String),
    `rate_version` LowCardinality(String),
    `requests` UInt64,
    `input_tokens` UInt64,
    `cached_input_tokens` UInt64,
    `output_tokens` UInt64,
    `reasoning_tokens` UInt64,
    `cost` Decimal(38, 12),
    `fingerprint` UInt64,
    `version` UInt64
)
AS SELECT *
FROM usage_hours
WHERE (requests > 0) AND ((hour, version) IN (
    SELECT
        hour,
        max(version)
    FROM usage_hours
    GROUP BY hour
));

CREATE TABLE watched_minutes
(
    `minute` DateTime('UTC') CODEC(Delta(4), ZSTD(1)),
    `watched_us` UInt32 COMMENT 'microseconds of the minute in which a meter watched the fleet'
)
ENGINE = ReplacingMergeTree(watched_us)
PARTITION BY toYYYYMM(minute)
ORDER BY minute
SETTINGS non_replicated_deduplication_window = 10000, index_granularity = 8192;

CREATE TABLE worker_minutes
(
    `minute` DateTime('UTC') CODEC(Delta(4), ZSTD(1)),
    `worker` LowCardinality(String),
    `boot` UInt64 COMMENT 'tells the starts of one worker apart' CODEC(Delta(8), ZSTD(1)),
    `model` LowCardinality(String),
    `revision` LowCardinality(String),
    `engine` LowCardinality(String),
    `gpus` UInt16 COMMENT 'GPUs that it computes on, as their driver says; 0: none is said',
    `gpu_names` LowCardinality(String),
    `up_us` UInt32 COMMENT 'microseconds of the minute in which a meter saw it in the fleet'
)
ENGINE = ReplacingMergeTree(up_us)
PARTITION BY toYYYYMM(minute)
ORDER BY (worker, boot, minute)
SETTINGS non_replicated_deduplication_window = 10000, index_granularity = 8192;

