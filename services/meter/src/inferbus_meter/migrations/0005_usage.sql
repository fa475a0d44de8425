-- Usage and cost for finance and dashboards. Plain views over bills, not materialized ones: an additive materialized
-- view over an at-least-once stream counts a second Close twice, and money must not.
-- A request counts in the hour in which it ended.
CREATE VIEW IF NOT EXISTS usage_by_hour AS
SELECT
    toStartOfHour(end_time) AS hour,
    tenant_id, project_id, key_id, model, currency,
    count() AS requests,
    countIf(finish_reason = 'error') AS errors,
    sum(bills.input_tokens) AS input_tokens,
    sum(bills.cached_input_tokens) AS cached_input_tokens,
    sum(bills.output_tokens) AS output_tokens,
    sum(bills.reasoning_tokens) AS reasoning_tokens,
    sum(bills.cost) AS cost
FROM bills
GROUP BY hour, tenant_id, project_id, key_id, model, currency;

CREATE VIEW IF NOT EXISTS usage_by_day AS
SELECT
    toDate(end_time) AS day,
    tenant_id, project_id, key_id, model, currency,
    count() AS requests,
    countIf(finish_reason = 'error') AS errors,
    sum(bills.input_tokens) AS input_tokens,
    sum(bills.cached_input_tokens) AS cached_input_tokens,
    sum(bills.output_tokens) AS output_tokens,
    sum(bills.reasoning_tokens) AS reasoning_tokens,
    sum(bills.cost) AS cost
FROM bills
GROUP BY day, tenant_id, project_id, key_id, model, currency;
