-- A reader who sees one tenant's rows only: for a Grafana data source that is given to that tenant.
-- Run once as admin on a ClickHouse server (the embedded engine has no users, roles or row policies), again after an upgrade.
--
-- One role for all tenants: a user is named tenant_ and his tenant, and the policy compares the two, so that a new tenant
-- needs nothing but his user (the last three statements). Without tenant_ a tenant called writer would be the meter's user.
-- Users of before, named like the tenant alone, see no row any more: make them anew, and drop the old ones.
-- Everybody else sees all rows, which ClickHouse must be told as soon as a table has any policy.
-- The views bills and charges read with the rights of whoever asks, so what holds for the tables holds for them.
-- He sees every column of his rows: also which worker and edge served him, and the energy.
CREATE ROLE IF NOT EXISTS tenant_reader SETTINGS PROFILE 'inferbus_analyst';

CREATE ROW POLICY OR REPLACE tenant_reads_his_own ON
    inferbus.requests, inferbus.adjustments, inferbus.latency_counts, inferbus.request_minutes
    USING startsWith(currentUser(), 'tenant_') AND tenant_id = substring(currentUser(), 8) TO tenant_reader;

CREATE ROW POLICY OR REPLACE others_read_all ON
    inferbus.requests, inferbus.adjustments, inferbus.latency_counts, inferbus.request_minutes
    USING 1 TO ALL EXCEPT tenant_reader;

GRANT SELECT ON inferbus.requests TO tenant_reader;
GRANT SELECT ON inferbus.adjustments TO tenant_reader;
GRANT SELECT ON inferbus.latency_counts TO tenant_reader;
GRANT SELECT ON inferbus.request_minutes TO tenant_reader;
GRANT SELECT ON inferbus.bills TO tenant_reader;
GRANT SELECT ON inferbus.charges TO tenant_reader;

-- For each tenant; the hash: printf %s "$PASSWORD" | sha256sum
CREATE USER IF NOT EXISTS `tenant_acme` IDENTIFIED WITH sha256_hash BY '0000000000000000000000000000000000000000000000000000000000000000' DEFAULT ROLE NONE;
GRANT tenant_reader TO `tenant_acme`;
ALTER USER `tenant_acme` DEFAULT ROLE tenant_reader;
