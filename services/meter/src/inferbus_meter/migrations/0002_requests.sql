-- One row a request that ended: its bill and its statistics. Times that never came (no token, never started) are NULL.
--
-- ReplacingMergeTree(attempt): the log may hold a second Close of a request (the scheduler gives up on it while a worker
-- has it after all). The higher attempt wins, for every reader of the log; here by FINAL, which the view bills applies.
-- ORDER BY holds only what is the same in every Close of a request: tenant first, then the hour of acceptance, which
-- keeps a time range together (a UUIDv7 does not sort by time in a UUID column), then the request.
-- PARTITION BY month of end_time, the frame's time: a request is billed in the month in which it ended, and a batch is
-- one partition (see token_events).
-- The rate stands in the row, so that a charge can be recomputed from the row alone.
CREATE TABLE IF NOT EXISTS requests
(
    request_id UUID,
    tenant_id LowCardinality(String),
    project_id LowCardinality(String),
    key_id LowCardinality(String),
    model LowCardinality(String),
    revision LowCardinality(String),
    engine LowCardinality(String) COMMENT 'synthetic: no model made these tokens',
    edge LowCardinality(String),
    worker LowCardinality(String) COMMENT 'who ended it: the scheduler if it was never placed',
    attempt UInt16 COMMENT '0: never placed on a worker',
    priority_class LowCardinality(String),
    accepted_time DateTime64(6, 'UTC'),
    end_time DateTime64(6, 'UTC'),
    input_tokens UInt32,
    cached_input_tokens UInt32 COMMENT 'part of input_tokens',
    output_tokens UInt32,
    reasoning_tokens UInt32 COMMENT 'part of output_tokens',
    queue_us Nullable(UInt64) COMMENT 'microseconds, accepted to handed to the engine',
    ttft_us Nullable(UInt64) COMMENT 'microseconds, accepted to first token',
    e2e_us Nullable(UInt64) COMMENT 'microseconds, accepted to last token',
    tpot_us Nullable(UInt64) COMMENT 'microseconds, (E2E - TTFT) / (output tokens - 1)',
    finish_reason LowCardinality(String) COMMENT 'stop, length, cancelled, error',
    error_class LowCardinality(String),
    error_reason LowCardinality(String),
    cost Decimal(38, 12),
    currency LowCardinality(String),
    rate_version LowCardinality(String) COMMENT 'empty: there was no price',
    input_per_million Decimal(38, 12),
    cached_input_per_million Decimal(38, 12),
    output_per_million Decimal(38, 12),
    stream_seq UInt64 COMMENT 'sequence of its frame in the stream TOKENS',
    INDEX request_id_bloom request_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX end_time_range end_time TYPE minmax GRANULARITY 1
)
ENGINE = ReplacingMergeTree(attempt)
PARTITION BY toYYYYMM(end_time)
ORDER BY (tenant_id, toStartOfHour(accepted_time), request_id)
SETTINGS non_replicated_deduplication_window = 10000;
