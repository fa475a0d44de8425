-- What the tenant says of a request, for showback: who asked, and tags. Rows of before say nothing: empty.
--
-- String and not LowCardinality: a tenant may have millions of users. Erasing a user is an UPDATE of this column only.
ALTER TABLE requests
    ADD COLUMN IF NOT EXISTS end_user String DEFAULT '' COMMENT 'the tenant''s own name for whoever asked; over 128 bytes: its SHA-256' CODEC(ZSTD(1)),
    ADD COLUMN IF NOT EXISTS tags Map(String, String) DEFAULT map() COMMENT 'as the header x-inferbus-tags said' CODEC(ZSTD(1));

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
