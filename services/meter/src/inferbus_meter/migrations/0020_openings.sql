-- As 0018 has it, but that an attempt opens by naming its index, and not with its first token. Of one that made no token
-- the rows know nothing: its Close says it, in `requests`. What it counts is where it opened then.
--   last_attempt the highest attempt that has a row
--   closing      of the Close: its attempt and what it counts, for requests that were tried again
-- While a request runs, a later attempt that has named its index and made no token yet is not seen here.
ALTER TABLE requests
    ADD INDEX IF NOT EXISTS attempt_range attempt TYPE minmax GRANULARITY 1;

CREATE OR REPLACE VIEW tokens AS
SELECT
    tenant_id, project_id, key_id, model, revision, worker, edge, request_id, attempt, `index`, token_id, time, gap_us,
    stream_seq, stream_epoch
FROM token_events
WHERE request_id NOT IN (SELECT request_id FROM token_events WHERE attempt > 1)
    AND request_id NOT IN (SELECT request_id FROM requests WHERE attempt > 1)
UNION ALL
SELECT
    tenant_id, project_id, key_id, model, revision, worker, edge, request_id, attempt, `index`, token_id, time, gap_us,
    stream_seq, stream_epoch
FROM
(
    SELECT
        *,
        max(attempt) OVER (PARTITION BY request_id) AS last_attempt,
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
                OR request_id IN (SELECT request_id FROM requests WHERE attempt > 1)
        )
        WINDOW following AS (
            PARTITION BY request_id ORDER BY stream_epoch, stream_seq, attempt, `index`
            ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING
        )
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
WHERE attempt = in_force AND `index` < resumed_at AND (closing_attempt <= last_attempt OR `index` < counted);
