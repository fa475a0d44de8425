-- captures: prompts and outputs of requests whose tenant asked for them to be kept. The only table with text in it, and the
-- only one that neither the writer nor the analyst may name: it has a writer and a reader of its own.
-- A row is what one insert of the ingest brought of one attempt of a request: its prompt, or a stretch of its output. The
-- rows are put together when they are read, where the laws of the log say which of them count: an attempt that turns
-- out to be void later cannot be known when its row is written.
-- PARTITION BY day: retention drops whole parts, and text must not outlive its time by a month.
CREATE TABLE IF NOT EXISTS captures
(
    tenant_id LowCardinality(String),
    request_id UUID,
    project_id LowCardinality(String),
    key_id LowCardinality(String),
    model LowCardinality(String),
    revision LowCardinality(String),
    attempt UInt16,
    kind LowCardinality(String) COMMENT 'input, output',
    truncated Bool COMMENT 'there was more, and it was not kept',
    first_index Array(UInt32) COMMENT 'of an output: the index of the first token of each delta',
    token_count Array(UInt32) COMMENT 'tokens of each delta',
    text_size Array(UInt32) COMMENT 'bytes of each delta in text',
    text String CODEC(ZSTD(3)),
    accepted_time DateTime64(3, 'UTC') COMMENT 'of the request',
    time DateTime64(6, 'UTC') COMMENT 'of the first delta',
    stream_seq UInt64 COMMENT 'sequence of the first frame in the stream TOKENS'
)
ENGINE = MergeTree
PARTITION BY toYYYYMMDD(time)
ORDER BY (tenant_id, accepted_time, request_id, stream_seq)
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1;
