-- Which stream a row came from. A stream that is made anew (its disk was lost, it was deleted) counts from 1 again: without
-- this, a replay and an audit take rows of the one before for rows of the present one.
-- Plus 1 against ingest_batches.epoch, so that 0 can say: not known. Rows of before, and of an older meter that runs beside
-- this schema, are told apart by their time then.
ALTER TABLE token_events
    ADD COLUMN IF NOT EXISTS stream_epoch UInt32 DEFAULT 0 COMMENT 'which stream TOKENS: epoch in ingest_batches, plus 1; 0: not known' CODEC(T64, ZSTD(1)) AFTER stream_seq;
ALTER TABLE requests
    ADD COLUMN IF NOT EXISTS stream_epoch UInt32 DEFAULT 0 COMMENT 'which stream TOKENS: epoch in ingest_batches, plus 1; 0: not known' AFTER stream_seq;

-- A view keeps the columns that it was made with. As before, replaced at once, so that nobody finds them missing.
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

-- As 0004 has it, but for the order: a request that was tried again after the stream was made anew goes on at a lower
-- sequence.
CREATE OR REPLACE VIEW tokens AS
SELECT
    tenant_id, project_id, key_id, model, revision, worker, edge, request_id, attempt, `index`, token_id, time, gap_us,
    stream_seq, stream_epoch
FROM token_events
WHERE request_id NOT IN (SELECT request_id FROM token_events WHERE attempt > 1)
UNION ALL
SELECT
    tenant_id, project_id, key_id, model, revision, worker, edge, request_id, attempt, `index`, token_id, time, gap_us,
    stream_seq, stream_epoch
FROM
(
    SELECT
        *,
        min(opened_at) OVER (
            PARTITION BY request_id ORDER BY stream_epoch DESC, stream_seq DESC, attempt DESC, `index` DESC
            ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        ) AS resumed_at
    FROM
    (
        SELECT
            *,
            -- where a later attempt opened, seen from the row before the opening one
            if(
                leadInFrame(in_force, 1, in_force) OVER following > in_force,
                leadInFrame(toInt64(`index`), 1) OVER following,
                4294967296
            ) AS opened_at
        FROM
        (
            SELECT
                *,
                max(attempt) OVER (
                    PARTITION BY request_id ORDER BY stream_epoch, stream_seq, attempt, `index`
                    ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
                ) AS in_force
            FROM token_events
            WHERE request_id IN (SELECT request_id FROM token_events WHERE attempt > 1)
        )
        WINDOW following AS (
            PARTITION BY request_id ORDER BY stream_epoch, stream_seq, attempt, `index`
            ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING
        )
    )
)
WHERE attempt = in_force AND `index` < resumed_at;

-- Tokens that were counted and tokens that were estimated are never in one sum.
CREATE OR REPLACE VIEW usage_by_hour AS
SELECT
    toStartOfHour(end_time) AS hour,
    tenant_id, project_id, key_id, model, estimated, currency,
    count() AS requests,
    countIf(operation = 'inference') AS calls,
    countIf(finish_reason = 'error') AS errors,
    sum(charges.input_tokens) AS input_tokens,
    sum(charges.cached_input_tokens) AS cached_input_tokens,
    sum(charges.output_tokens) AS output_tokens,
    sum(charges.reasoning_tokens) AS reasoning_tokens,
    sum(charges.charge) AS cost
FROM charges
GROUP BY hour, tenant_id, project_id, key_id, model, estimated, currency;

CREATE OR REPLACE VIEW usage_by_day AS
SELECT
    toDate(end_time) AS day,
    tenant_id, project_id, key_id, model, estimated, currency,
    count() AS requests,
    countIf(operation = 'inference') AS calls,
    countIf(finish_reason = 'error') AS errors,
    sum(charges.input_tokens) AS input_tokens,
    sum(charges.cached_input_tokens) AS cached_input_tokens,
    sum(charges.output_tokens) AS output_tokens,
    sum(charges.reasoning_tokens) AS reasoning_tokens,
    sum(charges.charge) AS cost
FROM charges
GROUP BY day, tenant_id, project_id, key_id, model, estimated, currency;

-- An hour whose requests all count in other hours by now is written as one row of no requests, which hides what it was.
CREATE OR REPLACE VIEW usage_hours_once AS
SELECT * FROM usage_hours
WHERE requests > 0 AND (hour, version) IN (SELECT hour, max(version) FROM usage_hours GROUP BY hour);
