-- All that a charge is computed with, so that it can be recomputed from its row alone. Rows of before were charged
-- without these: reasoning as output, nothing by the call, no minimum, no factor.
ALTER TABLE requests
    ADD COLUMN IF NOT EXISTS reasoning_per_million Decimal(38, 12) DEFAULT output_per_million AFTER output_per_million,
    ADD COLUMN IF NOT EXISTS per_call Decimal(38, 12) DEFAULT 0 COMMENT 'of a call that was answered' AFTER reasoning_per_million,
    ADD COLUMN IF NOT EXISTS minimum Decimal(38, 12) DEFAULT 0 COMMENT 'of a call that used anything' AFTER per_call,
    ADD COLUMN IF NOT EXISTS factor Decimal(38, 12) DEFAULT 1 COMMENT 'of class batch' AFTER minimum;

-- A view keeps the columns that it was made with. Replaced at once, so that nobody finds it missing.
CREATE OR REPLACE VIEW bills AS
SELECT * FROM requests FINAL;

-- Corrections of charges: never changed, never removed. What a request costs by now is its cost and the sum of these.
-- number: two writers that correct the same charge write the same key, and one of the two rows stays.
CREATE TABLE IF NOT EXISTS adjustments
(
    request_id UUID,
    number UInt16 COMMENT 'of the request: its first correction is 1',
    tenant_id LowCardinality(String),
    project_id LowCardinality(String),
    key_id LowCardinality(String),
    model LowCardinality(String),
    revision LowCardinality(String),
    end_time DateTime64(6, 'UTC') COMMENT 'of the request',
    delta Decimal(38, 12) COMMENT 'what is added to the charge; below 0: taken off',
    currency LowCardinality(String),
    from_rate_version LowCardinality(String) COMMENT 'of the charge before',
    to_rate_version LowCardinality(String) COMMENT 'of the charge after; empty: there is no price any more',
    rerate_id LowCardinality(String) COMMENT 'the run that made it',
    created_time DateTime64(6, 'UTC'),
    reason LowCardinality(String),
    INDEX end_time_range end_time TYPE minmax GRANULARITY 1
)
ENGINE = ReplacingMergeTree(created_time)
PARTITION BY toYYYYMM(end_time)
ORDER BY (tenant_id, request_id, number)
SETTINGS non_replicated_deduplication_window = 10000;

-- charges: bills with what they cost by now. All money is summed from here.
--   currency             of the charge: a request that had no price has none until it is corrected
--   adjusted             the sum of its corrections
--   charge               cost + adjusted
--   charge_rate_version  the price by which it is what it is; rate_version stays the one of cost
--   adjustments          how many corrections it has
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

CREATE OR REPLACE VIEW usage_by_hour AS
SELECT
    toStartOfHour(end_time) AS hour,
    tenant_id, project_id, key_id, model, currency,
    count() AS requests,
    countIf(operation = 'inference') AS calls,
    countIf(finish_reason = 'error') AS errors,
    sum(charges.input_tokens) AS input_tokens,
    sum(charges.cached_input_tokens) AS cached_input_tokens,
    sum(charges.output_tokens) AS output_tokens,
    sum(charges.reasoning_tokens) AS reasoning_tokens,
    sum(charges.charge) AS cost
FROM charges
GROUP BY hour, tenant_id, project_id, key_id, model, currency;

CREATE OR REPLACE VIEW usage_by_day AS
SELECT
    toDate(end_time) AS day,
    tenant_id, project_id, key_id, model, currency,
    count() AS requests,
    countIf(operation = 'inference') AS calls,
    countIf(finish_reason = 'error') AS errors,
    sum(charges.input_tokens) AS input_tokens,
    sum(charges.cached_input_tokens) AS cached_input_tokens,
    sum(charges.output_tokens) AS output_tokens,
    sum(charges.reasoning_tokens) AS reasoning_tokens,
    sum(charges.charge) AS cost
FROM charges
GROUP BY day, tenant_id, project_id, key_id, model, currency;
