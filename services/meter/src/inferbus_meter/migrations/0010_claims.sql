-- Several meters share the stream: a row of ingest_batches is now a claim of a range of sequences, and a second one says
-- that it is done. Rows of before are of a single meter, which did one batch after the other: block_tokens is 0 there.
--
-- The claims of an epoch are a chain, each beginning right after the one before. Two meters that claim at the same
-- moment use the same insert token, which holds nothing but the first sequence, so the table keeps one of them.
-- stream_time: by which a stream that was made anew is told from the one before, however far it has grown meanwhile.
-- mark_seq: so that a meter that starts finds where the tables end from the newest row, and reads only the few after it.
ALTER TABLE ingest_batches
    ADD COLUMN IF NOT EXISTS stream_time DateTime64(6, 'UTC') DEFAULT 0 COMMENT 'when the stream was made; 1970: not known' AFTER epoch,
    ADD COLUMN IF NOT EXISTS attempt UInt32 DEFAULT 1 COMMENT 'which try; the holder of the highest one does the range' AFTER last_seq,
    ADD COLUMN IF NOT EXISTS done Bool DEFAULT false COMMENT 'true: all rows of the range are in the tables' AFTER attempt,
    ADD COLUMN IF NOT EXISTS block_tokens UInt32 DEFAULT 0 COMMENT 'tokens and ends of one insert; 0: the range is one insert' AFTER done,
    ADD COLUMN IF NOT EXISTS mark_seq UInt64 DEFAULT 0 COMMENT 'everything up to it was in the tables already' AFTER block_tokens;
