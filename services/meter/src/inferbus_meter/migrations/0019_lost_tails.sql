-- A stream may lose its tail (a power cut, a broker's folder put back) and grow past its former end again: then an epoch
-- begins behind what is left, base_seq.
-- last_time: that the frame at the end of a claim is still the one that was read is seen by when it was stored.
ALTER TABLE ingest_batches
    ADD COLUMN IF NOT EXISTS base_seq UInt64 DEFAULT 0 COMMENT 'the epoch begins after it; what the stream has up to it is of the epoch before' AFTER epoch,
    ADD COLUMN IF NOT EXISTS last_time DateTime64(6, 'UTC') DEFAULT 0 COMMENT 'when the frame last_seq was stored, of what is done; 1970: not known' AFTER last_seq;
