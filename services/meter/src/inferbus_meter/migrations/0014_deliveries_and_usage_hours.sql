-- deliveries: what an edge has handed to the connection of a client, a row a choice of an answer that ended there. Several
-- rows a request if its stream was resumed. It is compared with the log by the audit; no money hangs on it.
-- ReplacingMergeTree: the stream DELIVERIES is read at least once; what names a row (edge, boot, message, entry) is in
-- ORDER BY, after tenant and hour as everywhere, so that a row that came twice is one. The view deliveries_once reads it so.
-- PARTITION BY month of the broker's time, which only grows along the stream: an insert is whole or is not, and the highest
-- stream_seq says how far the stream has been read.
CREATE TABLE IF NOT EXISTS deliveries
(
    request_id UUID,
    tenant_id LowCardinality(String) COMMENT 'of the key that asked, which may be another one of the project than that of the request',
    project_id LowCardinality(String),
    key_id LowCardinality(String),
    edge LowCardinality(String),
    boot UInt64 CODEC(ZSTD(1)),
    sequence UInt64 COMMENT 'message of that edge' CODEC(Delta, ZSTD(1)),
    item UInt32 COMMENT 'entry of that message' CODEC(T64, ZSTD(1)),
    tokens UInt32 COMMENT 'output tokens handed to the connection, in order: the index that the client reached',
    `end` LowCardinality(String) COMMENT 'complete, stored, client_gone, slow_client, failed, edge_stopped',
    time DateTime64(6, 'UTC') COMMENT 'when it ended' CODEC(Delta, ZSTD(1)),
    stored_time DateTime64(6, 'UTC') COMMENT 'of its message in the stream' CODEC(Delta, ZSTD(1)),
    stream_seq UInt64 COMMENT 'sequence of its message in the stream DELIVERIES' CODEC(Delta, ZSTD(1)),
    INDEX request_id_bloom request_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX stream_seq_range stream_seq TYPE minmax GRANULARITY 1
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(stored_time)
ORDER BY (tenant_id, toStartOfHour(time), request_id, edge, boot, sequence, item)
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1;

CREATE VIEW IF NOT EXISTS deliveries_once AS
SELECT * FROM deliveries FINAL;

-- usage_hours: what was used and charged by hour, kept for ever, when the requests themselves have gone. No materialized
-- view fills it: a second Close of a request replaces the first, and a sum cannot take that back. So the meter sums an hour
-- of bills anew when its rows are others than those it was summed from (fingerprint), and writes all of the hour as one
-- insert with a version; the highest version of an hour counts, whole, which is what the view usage_hours_once reads.
-- `cost` is what the bills say; what re-rating changed later is in adjustments, which are kept for ever, too.
-- ORDER BY tenant first; PARTITION BY year: all rows of an hour are in one, and a year is small.
CREATE TABLE IF NOT EXISTS usage_hours
(
    hour DateTime('UTC'),
    tenant_id LowCardinality(String),
    project_id LowCardinality(String),
    key_id LowCardinality(String),
    model LowCardinality(String),
    revision LowCardinality(String),
    operation LowCardinality(String),
    priority_class LowCardinality(String),
    finish_reason LowCardinality(String),
    error_reason LowCardinality(String),
    estimated Bool,
    currency LowCardinality(String),
    rate_version LowCardinality(String),
    requests UInt64,
    input_tokens UInt64,
    cached_input_tokens UInt64,
    output_tokens UInt64,
    reasoning_tokens UInt64,
    cost Decimal(38, 12),
    fingerprint UInt64 COMMENT 'of the rows of bills that it was summed from',
    version UInt64 COMMENT 'Unix microseconds when the hour was summed'
)
ENGINE = MergeTree
PARTITION BY toYear(hour)
ORDER BY (tenant_id, hour, project_id, key_id, model, version)
SETTINGS non_replicated_deduplication_window = 10000;

CREATE VIEW IF NOT EXISTS usage_hours_once AS
SELECT * FROM usage_hours
WHERE (hour, version) IN (SELECT hour, max(version) FROM usage_hours GROUP BY hour);

-- Old parts are dropped whole, not rewritten row by row: which is why tables are partitioned by month. The times themselves
-- are settings of the meter (see retention.py).
ALTER TABLE token_events MODIFY SETTING ttl_only_drop_parts = 1;
ALTER TABLE requests MODIFY SETTING ttl_only_drop_parts = 1;
