-- How long each worker was in the fleet, idle or not, for GPU-hours: a lease is the present, and no history.
-- Meters look at the fleet every second; the one that holds the lease for it writes. ReplacingMergeTree: of a minute the row
-- of whoever saw most of it counts (read with FINAL), so writing it again, also by another meter, changes nothing.
-- Kept for ever: a row a worker and minute, in this order some 2 bytes each (measured over 100 workers and a week).
CREATE TABLE IF NOT EXISTS worker_minutes
(
    minute DateTime('UTC') CODEC(Delta, ZSTD(1)),
    worker LowCardinality(String),
    boot UInt64 COMMENT 'tells the starts of one worker apart' CODEC(Delta, ZSTD(1)),
    model LowCardinality(String),
    revision LowCardinality(String),
    engine LowCardinality(String),
    gpus UInt16 COMMENT 'GPUs that it computes on, as their driver says; 0: none is said',
    gpu_names LowCardinality(String),
    up_us UInt32 COMMENT 'microseconds of the minute in which a meter saw it in the fleet'
)
ENGINE = ReplacingMergeTree(up_us)
PARTITION BY toYYYYMM(minute)
ORDER BY (worker, boot, minute)
SETTINGS non_replicated_deduplication_window = 10000;

-- Minutes without a row, or the rest of one: no meter watched, and how long workers were up is not known.
CREATE TABLE IF NOT EXISTS watched_minutes
(
    minute DateTime('UTC') CODEC(Delta, ZSTD(1)),
    watched_us UInt32 COMMENT 'microseconds of the minute in which a meter watched the fleet'
)
ENGINE = ReplacingMergeTree(watched_us)
PARTITION BY toYYYYMM(minute)
ORDER BY minute
SETTINGS non_replicated_deduplication_window = 10000;

-- Of a request that was tried again queue_us counted until its last attempt began, with all that the ones before it had run.
-- From now on it counts until an engine had the request first, and is NULL where that is not known; when the last attempt
-- began is a column of its own. Rows of before have in queue_us what this one says.
ALTER TABLE requests
    ADD COLUMN IF NOT EXISTS started_us Nullable(UInt64) DEFAULT queue_us COMMENT 'microseconds, accepted to handed to the engine, in the last attempt' AFTER queue_us,
    COMMENT COLUMN queue_us 'microseconds, accepted to handed to an engine for the first time';

-- A view keeps the columns that it was made with. Both as before, replaced at once, so that nobody finds them missing.
CREATE OR REPLACE VIEW bills AS
SELECT * FROM requests FINAL;

CREATE OR REPLACE VIEW charges AS
SELECT
    bill.* REPLACE (if(bill.currency = '', correction.currency, bill.currency) AS currency),
    correction.adjusted AS adjusted,
    bill.cost + correction.adjusted AS charge,
    if(correction.number > 0, correction.to_rate_version, bill.rate_version) AS charge_rate_version,
    correction.number AS adjustments
FROM requests AS bill FINAL
LEFT JOIN
(
    SELECT
        tenant_id,
        request_id,
        sum(delta) AS adjusted,
        max(adjustments.number) AS number,
        argMax(adjustments.to_rate_version, adjustments.number) AS to_rate_version,
        max(adjustments.currency) AS currency
    FROM adjustments FINAL
    GROUP BY tenant_id, request_id
) AS correction ON correction.tenant_id = bill.tenant_id AND correction.request_id = bill.request_id;
