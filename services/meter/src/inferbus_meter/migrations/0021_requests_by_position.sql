-- Of two ends of one attempt the later one on the stream counts, whichever was inserted first: claims are inserted side
-- by side, and the engine kept the row that came last. So it is told the place on the stream, too.
--
-- A table's version column cannot be altered: it is made anew. Its parts are linked, not copied, and pass no materialized
-- view. Meters may run beside this: while there is no table `requests` what they insert and ask is refused and tried
-- again, and a row that comes twice is one. What was being inserted into the old table is waited for (DETACH ... SYNC).
-- Interrupted anywhere, all rows are in `requests` or in `requests_before`, and this is run again whole.
DROP TABLE IF EXISTS requests_next SYNC SETTINGS max_table_size_to_drop = 0;
CREATE TABLE requests_next
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
    operation LowCardinality(String) COMMENT 'chat, text_completion, embeddings, inference; empty: not known',
    accepted_time DateTime64(6, 'UTC'),
    end_time DateTime64(6, 'UTC'),
    input_tokens UInt32,
    cached_input_tokens UInt32 COMMENT 'part of input_tokens',
    output_tokens UInt32,
    reasoning_tokens UInt32 COMMENT 'part of output_tokens',
    estimated Bool DEFAULT false COMMENT 'true: not all tokens were counted by the model\'s own tokenizer',
    placed_us Nullable(UInt64) COMMENT 'microseconds, accepted to placed on a worker by the scheduler',
    queue_us Nullable(UInt64) COMMENT 'microseconds, accepted to handed to the engine',
    ttft_us Nullable(UInt64) COMMENT 'microseconds, accepted to first token',
    e2e_us Nullable(UInt64) COMMENT 'microseconds, accepted to last token',
    tpot_us Nullable(UInt64) COMMENT 'microseconds, (E2E - TTFT) / (output tokens - 1)',
    energy_j Nullable(Float32) COMMENT 'joules of the GPUs, shared by tokens; NULL: not measured',
    finish_reason LowCardinality(String) COMMENT 'stop, length, cancelled, error',
    error_class LowCardinality(String),
    error_reason LowCardinality(String),
    cost Decimal(38, 12),
    currency LowCardinality(String),
    rate_version LowCardinality(String) COMMENT 'empty: there was no price',
    input_per_million Decimal(38, 12),
    cached_input_per_million Decimal(38, 12),
    output_per_million Decimal(38, 12),
    reasoning_per_million Decimal(38, 12) DEFAULT output_per_million,
    per_call Decimal(38, 12) DEFAULT 0 COMMENT 'of a call that was answered',
    minimum Decimal(38, 12) DEFAULT 0 COMMENT 'of a call that used anything',
    factor Decimal(38, 12) DEFAULT 1 COMMENT 'of class batch',
    stream_seq UInt64 COMMENT 'sequence of its frame in the stream TOKENS',
    stream_epoch UInt32 DEFAULT 0 COMMENT 'which stream TOKENS: epoch in ingest_batches, plus 1; 0: not known',
    version UInt128 MATERIALIZED bitOr(bitShiftLeft(toUInt128(attempt), 96), bitOr(bitShiftLeft(toUInt128(stream_epoch), 64), toUInt128(stream_seq))) COMMENT 'attempt, stream_epoch and stream_seq as one number: of the rows of a request the highest counts' CODEC(ZSTD(1)),
    end_user String DEFAULT '' COMMENT 'the tenant\'s own name for whoever asked; over 128 bytes: its SHA-256' CODEC(ZSTD(1)),
    tags Map(String, String) DEFAULT map() COMMENT 'as the header x-inferbus-tags said' CODEC(ZSTD(1)),
    INDEX request_id_bloom request_id TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX end_time_range end_time TYPE minmax GRANULARITY 1,
    INDEX attempt_range attempt TYPE minmax GRANULARITY 1
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(end_time)
ORDER BY (tenant_id, toStartOfHour(accepted_time), request_id)
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1;
RENAME TABLE IF EXISTS requests TO requests_before;
DETACH TABLE IF EXISTS requests_before SYNC;
ATTACH TABLE IF NOT EXISTS requests_before;
ALTER TABLE requests_before
    ADD COLUMN IF NOT EXISTS version UInt128 MATERIALIZED bitOr(bitShiftLeft(toUInt128(attempt), 96), bitOr(bitShiftLeft(toUInt128(stream_epoch), 64), toUInt128(stream_seq))) COMMENT 'attempt, stream_epoch and stream_seq as one number: of the rows of a request the highest counts' CODEC(ZSTD(1)) AFTER stream_epoch;
ALTER TABLE requests_next ATTACH PARTITION ALL FROM requests_before;
EXCHANGE TABLES requests_next AND requests_before;
RENAME TABLE requests_before TO requests;
DROP TABLE requests_next SYNC SETTINGS max_table_size_to_drop = 0;
