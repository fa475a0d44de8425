-- Invoices and credit notes, for SQL. A copy: the documents themselves are write-once records on the bus (buckets
-- invoices and invoice_contents), which the meter copies here as they are issued, and anew if these tables were lost.
--
-- ReplacingMergeTree: a row that is copied twice is the same row. ORDER BY: tenant first, then the order of issue.
-- No PARTITION BY and no retention: they are few, and kept for ever.
CREATE TABLE IF NOT EXISTS invoices
(
    sequence UInt64 COMMENT 'order of issue, over all tenants and years',
    number String,
    kind LowCardinality(String) COMMENT 'invoice, credit_note',
    voids String COMMENT 'of a credit note: the number of the invoice that it takes back',
    tenant_id LowCardinality(String),
    month Date COMMENT 'first day of the month that it is for',
    currency LowCardinality(String),
    subtotal Decimal(38, 12) COMMENT 'exact sum of its lines',
    net Decimal(38, 12) COMMENT 'subtotal, rounded once to what the currency has',
    tax Decimal(38, 12),
    total Decimal(38, 12) COMMENT 'net + tax',
    credits Decimal(38, 12) COMMENT 'what was paid in beforehand and pays for it',
    due Decimal(38, 12) COMMENT 'total - credits',
    issue_time DateTime64(6, 'UTC'),
    due_time DateTime64(6, 'UTC'),
    hash String COMMENT 'SHA-256 of its canonical content, hex'
)
ENGINE = ReplacingMergeTree
ORDER BY (tenant_id, sequence)
SETTINGS non_replicated_deduplication_window = 10000;

CREATE TABLE IF NOT EXISTS invoice_lines
(
    sequence UInt64 COMMENT 'of its invoice',
    number String COMMENT 'of its invoice',
    tenant_id LowCardinality(String),
    position UInt32 COMMENT 'on the invoice, from 1',
    kind LowCardinality(String) COMMENT 'input, cached_input, output, reasoning, call, minimum, adjustment, discount',
    month Date COMMENT 'first day of the month in which the requests ended; earlier than the invoice''s: a correction',
    project_id LowCardinality(String),
    model LowCardinality(String),
    operation LowCardinality(String),
    rate_version LowCardinality(String),
    estimated Bool,
    quantity Int64 COMMENT 'tokens, calls, or requests of an adjustment; negative in a correction',
    unit_price Decimal(38, 12) COMMENT 'per million tokens, or per call',
    factor Decimal(38, 12) COMMENT 'of the batch class, else 1',
    amount Decimal(38, 12),
    currency LowCardinality(String)
)
ENGINE = ReplacingMergeTree
ORDER BY (tenant_id, sequence, position)
SETTINGS non_replicated_deduplication_window = 10000;
