-- What a request drew from the GPUs, and whether its tokens are an estimate. Rows of before say neither: NULL and false.
--
-- energy_j NULL: not measured (no GPU, an upstream elsewhere, a MIG instance), which is not zero.
-- Adding columns keeps the insert tokens of the table and of the views that read it, so a batch that is inserted again
-- after this file is still recognised; MODIFY QUERY of a materialized view would not, hence none is touched.
ALTER TABLE requests
    ADD COLUMN IF NOT EXISTS estimated Bool DEFAULT false COMMENT 'true: not all tokens were counted by the model''s own tokenizer' AFTER reasoning_tokens,
    ADD COLUMN IF NOT EXISTS energy_j Nullable(Float32) COMMENT 'joules of the GPUs, shared by tokens; NULL: not measured' AFTER tpot_us;

-- A view keeps the columns that it was made with. Replaced at once, so that nobody finds it missing.
CREATE OR REPLACE VIEW bills AS
SELECT * FROM requests FINAL;
