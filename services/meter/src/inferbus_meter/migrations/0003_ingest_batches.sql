-- The ingest's intent log: a row is written before the data of its batch. The last row says where to go on, and which
-- batch may be in the tables only in part: it is read from the stream again and inserted with the same tokens.
-- ORDER BY stream and border: the last row of a stream is found without a scan. Not partitioned: a row a second at most.
CREATE TABLE IF NOT EXISTS ingest_batches
(
    stream LowCardinality(String),
    epoch UInt32 COMMENT 'counts how often the stream began anew at sequence 1',
    first_seq UInt64,
    last_seq UInt64,
    tokens UInt32,
    requests UInt32,
    holder LowCardinality(String) COMMENT 'the meter that wrote it',
    intent_time DateTime64(6, 'UTC')
)
ENGINE = MergeTree
ORDER BY (stream, epoch, last_seq)
TTL toDateTime(intent_time) + INTERVAL 400 DAY
SETTINGS non_replicated_deduplication_window = 10000;
