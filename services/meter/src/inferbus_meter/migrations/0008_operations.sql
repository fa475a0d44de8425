-- What a request asked of its model. Rows of before say nothing: an empty text.
--
-- Of an inference (tensors in, tensors out) there are no tokens, so it is counted by the call: ``calls``.
ALTER TABLE requests
    ADD COLUMN IF NOT EXISTS operation LowCardinality(String) COMMENT 'chat, text_completion, embeddings, inference; empty: not known' AFTER priority_class;

-- A view keeps the columns that it was made with. Replaced at once, so that nobody finds it missing.
CREATE OR REPLACE VIEW bills AS
SELECT * FROM requests FINAL;

CREATE OR REPLACE VIEW usage_by_hour AS
SELECT
    toStartOfHour(end_time) AS hour,
    tenant_id, project_id, key_id, model, currency,
    count() AS requests,
    countIf(operation = 'inference') AS calls,
    countIf(finish_reason = 'error') AS errors,
    sum(bills.input_tokens) AS input_tokens,
    sum(bills.cached_input_tokens) AS cached_input_tokens,
    sum(bills.output_tokens) AS output_tokens,
    sum(bills.reasoning_tokens) AS reasoning_tokens,
    sum(bills.cost) AS cost
FROM bills
GROUP BY hour, tenant_id, project_id, key_id, model, currency;

CREATE OR REPLACE VIEW usage_by_day AS
SELECT
    toDate(end_time) AS day,
    tenant_id, project_id, key_id, model, currency,
    count() AS requests,
    countIf(operation = 'inference') AS calls,
    countIf(finish_reason = 'error') AS errors,
    sum(bills.input_tokens) AS input_tokens,
    sum(bills.cached_input_tokens) AS cached_input_tokens,
    sum(bills.output_tokens) AS output_tokens,
    sum(bills.reasoning_tokens) AS reasoning_tokens,
    sum(bills.cost) AS cost
FROM bills
GROUP BY day, tenant_id, project_id, key_id, model, currency;
