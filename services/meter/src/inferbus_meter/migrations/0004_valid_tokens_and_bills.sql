-- tokens: every token that counts, once. Attempt n+1 opens at the index it resumes at; from there on, in stream order,
-- anything of an attempt <= n is void. A request with one attempt has nothing to void, so it is read as it is; windows
-- run only over the few requests that were tried again.
--   in_force   the highest attempt up to this row in stream order: a row of a lower one came too late
--   resumed_at the lowest index at which a later attempt opened: rows from there on are void
CREATE VIEW IF NOT EXISTS tokens AS
SELECT
    tenant_id, project_id, key_id, model, revision, worker, edge, request_id, attempt, `index`, token_id, time, gap_us,
    stream_seq
FROM token_events
WHERE request_id NOT IN (SELECT request_id FROM token_events WHERE attempt > 1)
UNION ALL
SELECT
    tenant_id, project_id, key_id, model, revision, worker, edge, request_id, attempt, `index`, token_id, time, gap_us,
    stream_seq
FROM
(
    SELECT
        *,
        min(opened_at) OVER (
            PARTITION BY request_id ORDER BY stream_seq DESC, attempt DESC, `index` DESC
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
                    PARTITION BY request_id ORDER BY stream_seq, attempt, `index`
                    ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
                ) AS in_force
            FROM token_events
            WHERE request_id IN (SELECT request_id FROM token_events WHERE attempt > 1)
        )
        WINDOW following AS (
            PARTITION BY request_id ORDER BY stream_seq, attempt, `index`
            ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING
        )
    )
)
WHERE attempt = in_force AND `index` < resumed_at;

-- bills: exactly one row a request, whatever was inserted how often. All money is summed from here.
CREATE VIEW IF NOT EXISTS bills AS
SELECT * FROM requests FINAL;
