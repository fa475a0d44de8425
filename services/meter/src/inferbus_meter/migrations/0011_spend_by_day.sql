-- spend_by_day: what budgets count, by hand. A request counts in the day, and the month, in which it was accepted (UTC),
-- which is not the one in which it is billed (end_time): its cost was reserved when it was accepted.
CREATE VIEW IF NOT EXISTS spend_by_day AS
SELECT
    toDate(accepted_time) AS day,
    tenant_id, project_id, key_id, currency,
    count() AS requests,
    sum(charge) AS spent
FROM charges
GROUP BY day, tenant_id, project_id, key_id, currency;
