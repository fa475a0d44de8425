"""What analyst and writer must not reach, tried on the real server with real bait: a file, a listener, a table."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from .conftest import Server

REFUSED = {164, 497, 62, 46, 47, 36, 48, 81, 60, 446}


@dataclass
class Bait:
    """`file` holds a canary; whoever connects to `port` is counted; nobody may create `out`."""

    file: Path
    out: Path
    port: int
    connections: list[object] = field(default_factory=list)


@pytest.fixture(scope="module")
def bait(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bait]:
    folder = tmp_path_factory.mktemp("bait")
    file = folder / "secret.csv"
    file.write_text("canary-file\n")
    listener = socket.create_server(("127.0.0.1", 0))
    made = Bait(file, folder / "out.csv", listener.getsockname()[1])

    def count() -> None:
        while True:
            try:
                connection, peer = listener.accept()
            except OSError:
                return
            made.connections.append(peer)
            connection.close()

    threading.Thread(target=count, daemon=True).start()
    server.value("CREATE TABLE IF NOT EXISTS guarded (a UInt32, s String) ENGINE = MergeTree ORDER BY a")
    server.value("INSERT INTO guarded VALUES (1, 'one')")
    server.value("CREATE DATABASE IF NOT EXISTS private_db ENGINE = Atomic")
    server.value("CREATE TABLE IF NOT EXISTS private_db.t (s String) ENGINE = Memory")
    server.value("INSERT INTO private_db.t VALUES ('canary-table')")
    yield made
    listener.close()


READS_OUTSIDE = [
    "SELECT * FROM file('{file}', 'LineAsString')",
    "SELECT * FROM FILE('{file}', 'LineAsString')",
    "SELECT * FROM `file`('{file}', 'LineAsString')",
    "SELECT * FROM \"file\"('{file}', 'LineAsString')",
    "SELECT * FROM/**/file/* x */(/*'*/'{file}', 'LineAsString')",
    "SELECT * FROM -- file\n file\n('{file}', 'LineAsString')",
    "SELECT * FROM (SELECT * FROM (SELECT * FROM file('{file}', 'LineAsString')))",
    "WITH x AS (SELECT * FROM file('{file}', 'LineAsString')) SELECT * FROM x",
    "SELECT (SELECT any(line) FROM file('{file}', 'LineAsString'))",
    "SELECT 1 WHERE 'x' IN (SELECT line FROM file('{file}', 'LineAsString'))",
    "SELECT 1 WHERE EXISTS (SELECT 1 FROM file('{file}', 'LineAsString'))",
    "SELECT * FROM guarded JOIN file('{file}', 'LineAsString') AS f ON 1 = 1",
    "SELECT * FROM guarded UNION ALL SELECT 1, line FROM file('{file}', 'LineAsString')",
    "SELECT 1 EXCEPT SELECT 2 FROM file('{file}', 'LineAsString')",
    "SELECT * FROM view(SELECT * FROM file('{file}', 'LineAsString'))",
    "SELECT * FROM viewIfPermitted(SELECT * FROM file('{file}', 'LineAsString') ELSE null('a String'))",
    "SELECT * FROM viewExplain('EXPLAIN', '', (SELECT * FROM file('{file}', 'LineAsString')))",
    "SELECT * FROM eval('SELECT * FROM file(''{file}'')')",
    "SELECT * FROM loop(file('{file}', 'LineAsString')) LIMIT 1",
    "SELECT * FROM merge('private_db', '.*')",
    "SELECT * FROM merge(REGEXP('.*'), '^t$')",
    "SELECT * FROM remote('127.0.0.1:{port}', private_db.t)",
    "SELECT * FROM remote('localhost', file('{file}', 'LineAsString'))",
    "SELECT * FROM remoteSecure('127.0.0.1:{port}', private_db, t)",
    "SELECT * FROM cluster('default', private_db.t)",
    "SELECT * FROM clusterAllReplicas('default', view(SELECT * FROM file('{file}')))",
    "SELECT * FROM url('http://127.0.0.1:{port}/', 'LineAsString')",
    "SELECT * FROM urlCluster('default', 'http://127.0.0.1:{port}/', 'LineAsString')",
    "SELECT * FROM s3('http://127.0.0.1:{port}/b/k', 'CSV', 'a String')",
    "SELECT * FROM gcs('http://127.0.0.1:{port}/b/k', 'CSV', 'a String')",
    "SELECT * FROM azureBlobStorage('http://127.0.0.1:{port}/', 'c', 'k', 'a', 'YQ==', 'CSV', 'auto', 'a String')",
    "SELECT * FROM hdfs('hdfs://127.0.0.1:{port}/f', 'CSV', 'a String')",
    "SELECT * FROM mysql('127.0.0.1:{port}', 'd', 't', 'u', 'p')",
    "SELECT * FROM postgresql('127.0.0.1:{port}', 'd', 't', 'u', 'p')",
    "SELECT * FROM mongodb('127.0.0.1:{port}', 'd', 't', 'u', 'p', 'a String')",
    "SELECT * FROM redis('127.0.0.1:{port}', 'k', 'k String, v String')",
    "SELECT * FROM sqlite('{file}', 't')",
    "SELECT * FROM odbc('DSN=x', 'd', 't')",
    "SELECT * FROM jdbc('jdbc:x', 'd', 't')",
    "SELECT * FROM executable('cat {file}', 'LineAsString', 'line String')",
    "SELECT * FROM python('x')",
    "SELECT * FROM filesystem('/')",
    "SELECT * FROM arrowstream('{file}')",
    "SELECT * FROM iceberg('http://127.0.0.1:{port}/')",
    "SELECT * FROM icebergLocal('{file}')",
    "SELECT * FROM deltaLake('http://127.0.0.1:{port}/')",
    "SELECT * FROM deltaLakeLocal('{file}')",
    "SELECT * FROM hudi('http://127.0.0.1:{port}/')",
    "SELECT * FROM fuzzQuery('SELECT 1')",
    "SELECT * FROM dictionary('x')",
    "SELECT * FROM mergeTreeIndex('private_db', 't')",
    "SELECT * FROM input('a String')",
    "SELECT 1 IN file('{file}', 'LineAsString')",
    "SELECT * FROM default.`{file}`",
    "SELECT * FROM `default`.`{file}`",
    "SELECT * FROM `{file}`",
    'SELECT * FROM "default"."{file}"',
    "SELECT 1 IN default.`{file}`",
    "WITH default.`{file}` AS f SELECT 'x' IN f",
    "DESCRIBE TABLE default.`{file}`",
    "DESCRIBE TABLE file('{file}')",
    "DESCRIBE (SELECT * FROM url('http://127.0.0.1:{port}/'))",
    "EXPLAIN SELECT * FROM url('http://127.0.0.1:{port}/', 'CSV')",
    "EXPLAIN QUERY TREE SELECT * FROM file('{file}', 'LineAsString')",
    "EXPLAIN AST SELECT file('{file}')",
    "EXPLAIN TABLE OVERRIDE mysql('127.0.0.1:{port}', 'd', 't', 'u', 'p') COLUMNS (a String)",
    "SHOW CREATE TABLE private_db.t",
    "SHOW TABLES FROM private_db",
    "SHOW TABLES WHERE name = file('{file}')",
    "SHOW COLUMNS FROM guarded WHERE field = file('{file}')",
    "SHOW COLUMNS FROM `{file}` FROM default",
    "EXISTS TABLE default.`{file}`",
    "SELECT file('{file}')",
    "SELECT FILE('{file}')",
    "SELECT `file`('{file}')",
    "SELECT arrayMap(x -> file(x), ['{file}'])",
    "SELECT * APPLY(x -> file(x)) FROM (SELECT '{file}' AS a)",
    "SELECT * APPLY(file) FROM (SELECT '{file}' AS a)",
    "SELECT COLUMNS('a') APPLY file FROM (SELECT '{file}' AS a)",
    "SELECT a FROM guarded ORDER BY file('{file}')",
    "SELECT a FROM guarded LIMIT length(file('{file}'))",
    "SELECT sum(a) OVER (PARTITION BY file('{file}')) FROM guarded",
    "SELECT quantile(length(file('{file}')))(a) FROM guarded",
    "SELECT sum(a) FILTER (WHERE file('{file}') = '') FROM guarded",
    "SELECT a FROM guarded ORDER BY a WITH FILL FROM 1 TO length(file('{file}'))",
    "SELECT 1 FORMAT Template SETTINGS format_template_row = '{file}'",
    "SELECT 1 FORMAT Protobuf SETTINGS format_schema = '{file}:M'",
    "SELECT * FROM private_db.t",
    "SELECT * FROM `private_db`.`t`",
    "SELECT 'x' IN private_db.t",
    "SELECT 'x' IN (private_db.t)",
    "WITH private_db.t AS x SELECT 'x' IN x",
    "SELECT * FROM system.processes",
    "SELECT * FROM system.query_log",
    "SELECT * FROM system.parts",
    "SELECT * FROM `system`.`tables`",
    "SELECT * FROM system.server_settings",
    "SELECT * FROM system.named_collections",
    "SELECT * FROM system.dictionaries",
    "SELECT * FROM system.disks",
    "SELECT * FROM system.stack_trace",
    "SELECT * FROM system/**/.\n/**/processes",
    "SELECT 1 IN system.processes",
    "SELECT * FROM INFORMATION_SCHEMA.VIEWS",
    "SELECT getMacro('x')",
    "SELECT getServerSetting('path')",
    "SELECT getOSKernelVersion()",
    "SELECT hostName()",
    "SELECT FQDN()",
    "SELECT filesystemAvailable()",
    "SELECT getClientHTTPHeader('X-ClickHouse-Key')",
    "SELECT showCertificate()",
    "SELECT hasColumnInTable('127.0.0.1:{port}', 'u', 'p', 'd', 't', 'c')",
    "SELECT joinGet('private_db.t', 's', 1)",
    "SELECT aiGenerate('x', 'y')",
    "SELECT addressToLine(1)",
    "SELECT logTrace('x')",
    "SELECT structureToProtobufSchema('a String')",
    "SELECT regionToName(1)",
    "SELECT arrayReduce('flameGraph', [1])",
    "SELECT flameGraph(1)",
    "SELECT sleep(3)",
    "SHOW PROCESSLIST",
    "SHOW GRANTS",
    "SHOW ACCESS",
]

CHANGES = [
    "SELECT 1 INTO OUTFILE '{out}'",
    "SELECT 1 INTO/**/OUTFILE '{out}' TRUNCATE FORMAT CSV",
    "EXPLAIN SELECT 1 INTO OUTFILE '{out}'",
    "SHOW TABLES INTO OUTFILE '{out}'",
    "INSERT INTO FUNCTION file('{out}', 'CSV', 'a String') SELECT 'x'",
    "INSERT INTO FUNCTION file('{out}', 'CSV', 'a String') VALUES ('x')",
    "INSERT INTO TABLE FUNCTION url('http://127.0.0.1:{port}/', 'CSV', 'a String') SELECT 'x'",
    "INSERT INTO TABLE FUNCTION remote('127.0.0.1:{port}', d.t) VALUES (1)",
    "INSERT INTO guarded FROM INFILE '{file}' FORMAT CSV",
    "INSERT INTO default.`{out}` VALUES (1)",
    "INSERT INTO private_db.t VALUES ('x')",
    "INSERT INTO private_db.t SELECT 'x'",
    "INSERT INTO `private_db`.`t` FORMAT CSV\n1",
    "INSERT INTO system.query_log VALUES (1)",
    "INSERT INTO guarded SELECT 1, line FROM file('{file}', 'LineAsString')",
    "INSERT INTO guarded SELECT 1, file('{file}')",
    "INSERT INTO guarded VALUES (1, file('{file}'))",
    "INSERT INTO guarded FORMAT Values (1, file('{file}'))",
    "INSERT INTO guarded VALUES (1, (SELECT any(line) FROM file('{file}', 'LineAsString')))",
    "INSERT INTO guarded SETTINGS input_format_values_interpret_expressions = 1 VALUES (1, file('{file}'))",
    "INSERT INTO guarded FORMAT Template\n1,x",
    "INSERT INTO guarded FORMAT AvroConfluent\n1,x",
    "INSERT INTO guarded WITH x AS (SELECT 1, line FROM file('{file}', 'LineAsString')) SELECT * FROM x",
    "WITH x AS (SELECT 1, line FROM file('{file}', 'LineAsString')) INSERT INTO guarded SELECT * FROM x",
    "EXPLAIN INSERT INTO guarded SELECT 1, 'x'",
    "CREATE TABLE stolen (a String) ENGINE = File(CSV, '{file}')",
    "CREATE TEMPORARY TABLE tmp (a String)",
    "CREATE TABLE stolen ENGINE = Memory AS SELECT * FROM file('{file}', 'LineAsString')",
    "CREATE VIEW stolen AS SELECT * FROM file('{file}', 'LineAsString')",
    "CREATE DICTIONARY stolen (a String) PRIMARY KEY a SOURCE(FILE(PATH '{file}' FORMAT 'CSV')) LAYOUT(FLAT())",
    "CREATE FUNCTION stolen AS x -> file(x)",
    "CREATE NAMED COLLECTION stolen AS a = 1",
    "CREATE DATABASE stolen",
    "CREATE USER stolen",
    "ATTACH TABLE stolen",
    "DETACH TABLE guarded",
    "DROP TABLE guarded",
    "DROP DATABASE inferbus",
    "TRUNCATE TABLE guarded",
    "RENAME TABLE guarded TO stolen",
    "ALTER TABLE guarded DELETE WHERE 1",
    "ALTER TABLE guarded ADD COLUMN x String",
    "DELETE FROM guarded WHERE 1",
    "UPDATE guarded SET s = 'x' WHERE 1",
    "OPTIMIZE TABLE guarded FINAL",
    "CHECK TABLE guarded",
    "SYSTEM SHUTDOWN",
    "SYSTEM FLUSH LOGS",
    "KILL QUERY WHERE 1",
    "BACKUP DATABASE inferbus TO File('{out}')",
    "RESTORE DATABASE x FROM File('{file}')",
    "GRANT ALL ON *.* TO analyst",
    "SET readonly = 0",
    "SET max_execution_time = 0",
    "USE private_db",
    "BEGIN TRANSACTION",
    "SELECT 1; DROP TABLE guarded",
    "DROP TABLE guarded; SELECT 1",
    "INSERT INTO guarded SELECT 1, 'x'; DROP TABLE guarded",
    "EXECUTE AS admin SELECT 1",
    "EXPLAIN CREATE TABLE stolen (a String) ENGINE = Memory",
    "SELECT * FROM guarded STREAM",
    "PARALLEL WITH DROP TABLE guarded",
    "(SELECT 1) PARALLEL WITH (DROP TABLE guarded)",
]


def _filled(statement: str, bait: Bait) -> str:
    return statement.replace("{file}", str(bait.file)).replace("{out}", str(bait.out)).replace("{port}", str(bait.port))


@pytest.mark.parametrize("user", ["analyst", "inferbus_writer"])
def test_nothing_outside_can_be_read(server: Server, bait: Bait, user: str) -> None:
    wrong = []
    for statement in READS_OUTSIDE:
        reply = server.ask(_filled(statement, bait), user, default_format="TSV")
        if reply.code not in REFUSED or "canary" in reply.text.replace(str(bait.file), ""):
            wrong.append((statement, reply.status, reply.text[:200]))
        if str(server.path) in reply.text:
            wrong.append((statement, "shows the data path", reply.text[:200]))
    assert wrong == []
    assert bait.connections == []


@pytest.mark.parametrize("user", ["analyst", "inferbus_writer"])
def test_nothing_can_be_changed(server: Server, bait: Bait, user: str) -> None:
    before = server.value("SELECT count(), any(s) FROM guarded")
    wrong = []
    for statement in CHANGES:
        reply = server.ask(_filled(statement, bait), user)
        if reply.status == 200 or "canary" in reply.text.replace(str(bait.file), ""):
            wrong.append((statement, reply.status, reply.text[:200]))
    assert wrong == []
    assert bait.connections == []
    assert not bait.out.exists()
    assert server.value("SELECT count(), any(s) FROM guarded") == before
    assert server.value("SELECT count() FROM private_db.t") == "1"
    assert server.value("SELECT count() FROM system.tables WHERE name = 'stolen'") == "0"


def test_an_analyst_cannot_insert(server: Server, bait: Bait) -> None:
    for statement in ("INSERT INTO guarded VALUES (2, 'x')", "INSERT INTO guarded SELECT 2, 'x'",
                      "INSERT INTO inferbus.guarded FORMAT JSONEachRow\n{\"a\": 2}"):  # fmt: skip
        assert server.ask(statement, "analyst").code == 164
    assert server.ask("INSERT INTO guarded FORMAT CSV", "analyst", data=b"2,x\n").code == 164


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("readonly", "0"),
        ("max_execution_time", "0"),
        ("max_execution_time", "61"),
        ("max_execution_time", "-1"),
        ("max_memory_usage", "0"),
        ("max_result_rows", "999999999"),
        ("allow_ddl", "1"),
        ("allow_introspection_functions", "1"),
        ("timeout_overflow_mode", "break"),
        ("dialect", "kusto"),
        ("format_schema", "/etc/passwd:M"),
        ("format_template_row", "/etc/passwd"),
        ("profile", "default"),
        ("param_x; DROP", "1"),
        ("max_threads = 1, readonly", "0"),
        ("workload", "x"),
        ("additional_table_filters", "{}"),
    ],
)
def test_an_analyst_cannot_lift_bounds_by_url(server: Server, name: str, value: str) -> None:
    reply = server.ask("SELECT 1", "analyst", **{name: value})
    assert reply.code in (164, 36), reply.text


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 1 SETTINGS max_execution_time = 0",
        "SELECT 1 FROM (SELECT 1 SETTINGS max_execution_time = 0)",
        "SELECT 1 IN (SELECT 1 SETTINGS max_memory_usage = 0)",
        "WITH x AS (SELECT 1 SETTINGS max_result_rows = 0) SELECT * FROM x",
        "SELECT 1 UNION ALL SELECT 2 SETTINGS readonly = 0",
        "SELECT 1 SETTINGS max_threads = 1",
        "SELECT 1 FORMAT TSV SETTINGS max_execution_time = 0",
        "SELECT * FROM view(SELECT 1 SETTINGS max_execution_time = 0)",
        "SELECT * FROM numbers(1, SETTINGS max_execution_time = 0)",
        "DESCRIBE (SELECT 1 SETTINGS max_execution_time = 0)",
        "SELECT 1 SETTINGS use_query_cache",
        'SELECT 1 FROM (SELECT 1 AS "x\nExplain EXPLAIN" SETTINGS max_execution_time = 0)',
        'SELECT 1 FROM (SELECT 1 AS "x\\nExplain EXPLAIN" SETTINGS max_execution_time = 0)',
        "SELECT 1 FROM (SELECT 1 AS `x\\x0aExplain EXPLAIN` SETTINGS max_execution_time = 0)",
    ],
)
def test_an_analyst_cannot_lift_bounds_in_the_statement(server: Server, statement: str) -> None:
    assert server.ask(statement, "analyst").code in (164, 497), statement


def test_a_writer_may_set_ingestion_settings_only(server: Server, bait: Bait) -> None:
    fine = "SELECT count() FROM guarded SETTINGS max_threads = 1, insert_deduplicate = 1"
    assert server.ask(fine, "inferbus_writer").status == 200
    for statement in (
        "SELECT 1 SETTINGS readonly = 0",
        "SELECT 1 SETTINGS max_threads = 1, `allow_ddl` = 1",
        "SELECT 1 SETTINGS max_threads = 1, allow_ddl",
        "SELECT 1 SETTINGS allow_ddl, max_threads = 1",
        "SELECT 1 SETTINGS allow_ddl",
        "INSERT INTO guarded SETTINGS max_threads = 1, allow_ddl FORMAT CSV\n1,x",
        "SELECT 1 FROM (SELECT 1 SETTINGS dialect = 'kusto')",
        "INSERT INTO guarded SETTINGS format_schema = 'x' FORMAT CSV\n1,x",
        "INSERT INTO guarded SETTINGS allow_ddl = 1 VALUES (1, 'x')",
    ):
        assert server.ask(statement, "inferbus_writer").code in (164, 497), statement


def test_parameters_are_checked_after_substitution(server: Server, bait: Bait) -> None:
    ask = "SELECT * FROM {t:Identifier}"
    assert server.ask(ask, "analyst", param_t="guarded").status == 200
    for name in ("private_db.t", "system.processes", f"default.{bait.file}"):
        reply = server.ask(ask, "analyst", param_t=name)
        assert reply.code in (497, 60, 81), reply.text
    assert server.ask("SELECT * FROM {d:Identifier}.t", "analyst", param_d="private_db").code == 497
    assert server.ask("SELECT 1 FROM {t:Identifier}", "analyst", param_t="x\\nExplain EXPLAIN").code == 497
    # The same text with a harmless value before must not open the way (verdicts are remembered).
    assert server.ask("SELECT * FROM {d:Identifier}.guarded", "analyst", param_d="inferbus").status == 200
    assert server.ask("SELECT * FROM {d:Identifier}.t", "analyst", param_d="private_db").code == 497


def test_other_databases_and_formats_are_refused_by_url(server: Server, bait: Bait) -> None:
    assert server.ask("SELECT * FROM t", "analyst", database="private_db").code == 497
    assert server.ask("SELECT * FROM processes", "analyst", database="system").code == 497
    assert server.ask(f"SELECT * FROM `{bait.file}`", "analyst", database="default").code == 497
    assert server.ask("SELECT 1", "analyst", default_format="Template").code == 497
    assert server.ask("SELECT 1", "analyst", headers={"X-ClickHouse-Format": "Protobuf"}).code == 497
    assert server.ask("SELECT 1", "analyst", database="default").status == 200


def test_odd_characters_and_open_quotes_are_refused(server: Server, bait: Bait) -> None:
    for statement in (
        f"SELECT * FROM\u00a0file('{bait.file}')",
        f"SELECT \u2018x\u2019, file(\u2018{bait.file}\u2019)",
        f"SELECT * FROM \u201cfile\u201d('{bait.file}')",
        "SELECT 'open",
        "SELECT 1 /* open",
        "SELECT 1\x00; DROP TABLE guarded",
        "SELECT $$open",
        "",
        ";",
        "-- nothing",
        "selec 1",
        "FORMAT JSON",
        f"optimize = 1 SELECT * FROM default.`{bait.file}`",
        "graph = 1 SELECT 1",
    ):
        reply = server.ask(statement, "analyst")
        assert reply.code in (62, 497), (statement, reply.text)


def test_names_with_line_breaks_hide_nothing(server: Server, bait: Bait) -> None:
    for statement in (
        f"SELECT 1 AS `x\n Literal`, file('{bait.file}')",
        f"SELECT 1 AS `x (children 1)\nSelectWithUnionQuery`, `a\n` FROM file('{bait.file}')",
        f"SELECT `file (children 1)`('{bait.file}')",
        f"SELECT * FROM `file\n`('{bait.file}')",
        f"SELECT * FROM `view (alias x)`(SELECT * FROM file('{bait.file}'))",
        "SELECT * FROM `system.one`.processes",
        "SELECT * FROM `system`.`processes `",
    ):
        reply = server.ask(statement, "analyst")
        assert reply.status != 200, statement
        assert "canary" not in reply.text.replace(str(bait.file), "")


USEFUL = [
    "SELECT 1",
    "select version(), timezone(), currentDatabase(), currentUser()",
    "SELECT a, count() AS n, quantiles(0.5, 0.99)(a) FROM guarded GROUP BY a HAVING n > 0 ORDER BY n DESC LIMIT 5",
    "SELECT a FROM inferbus.guarded WHERE s LIKE '%file(%' AND a IN (1, 2) AND a NOT IN (SELECT number FROM "
    "numbers(5, 3))",
    "WITH 2 AS k, x AS (SELECT a FROM guarded) SELECT x.a * k FROM x AS x JOIN guarded AS g USING (a)",
    "SELECT sumIf(a, s = 'one'), uniqExact(s), argMax(s, a), quantileTDigestIf(0.9)(a, a > 0), countIf(a > 1) "
    "FROM guarded",
    "SELECT sumState(a) AS st, finalizeAggregation(st), groupArrayDistinctOrNull(s) FROM guarded",
    "SELECT a, row_number() OVER w, lagInFrame(a) OVER w FROM guarded WINDOW w AS (PARTITION BY s ORDER BY a)",
    "SELECT toStartOfHour(now()), toDateTime64('2026-01-01 00:00:00', 3), CAST(1 AS Decimal(18, 4)), "
    "1::UInt8, today() - INTERVAL 1 DAY",
    "SELECT CASE WHEN a = 1 THEN 'x' ELSE 'y' END, if(a > 1, 1, 2), multiIf(a = 1, 1, a = 2, 2, 3), a BETWEEN "
    "1 AND 2 FROM guarded",
    "SELECT arrayMap(x -> x + 1, [1, 2]), mapKeys(map('a', 1)), tuple(1, 'a').2, [1, 2][1], "
    "JSONExtractString('{}', 'a')",
    "SELECT * EXCEPT (s) FROM guarded ARRAY JOIN [1, 2] AS z PREWHERE a = 1",
    "SELECT COLUMNS('^a') FROM guarded FORMAT JSON",
    "SELECT number % 3 AS k, count() FROM numbers(10) GROUP BY k WITH TOTALS ORDER BY k WITH FILL FROM 0 TO 5",
    "SELECT a FROM guarded UNION ALL SELECT 2 EXCEPT SELECT 3",
    "SELECT * FROM (SELECT a FROM guarded LIMIT 1 BY a) AS q CROSS JOIN (SELECT 1 AS one) AS r",
    "SELECT 1 FROM guarded AS g WHERE g.a = 1 AND (g.a, g.s) IN (SELECT a, s FROM guarded)",
    "SELECT formatReadableSize(123456), bar(1, 0, 10, 5), toTypeName(1), throwIf(0), materialize(1)",
    "SHOW TABLES", "SHOW TABLES FROM inferbus LIKE 'gu%'", "SHOW DATABASES", "SHOW CREATE TABLE guarded",
    "SHOW CREATE TABLE inferbus.guarded", "DESCRIBE TABLE guarded", "DESC inferbus.guarded",
    "DESCRIBE (SELECT 1 AS x)", "EXISTS TABLE guarded", "EXISTS inferbus.guarded", "SHOW COLUMNS FROM guarded",
    "EXPLAIN SELECT a FROM guarded", "EXPLAIN PIPELINE SELECT a FROM guarded", "EXPLAIN indexes = 1 SELECT a "
    "FROM guarded",
    "EXPLAIN SYNTAX SELECT a FROM guarded", "EXPLAIN AST SELECT 1", "EXPLAIN QUERY TREE SELECT a FROM guarded",
    "SELECT name, value, readonly FROM system.settings LIMIT 1", "SELECT name FROM system.functions LIMIT 1",
    "SELECT name, type FROM system.columns WHERE database = 'inferbus' AND table = 'guarded'",
    "SELECT table_name FROM information_schema.tables LIMIT 1", "SELECT 1 IN system.one",
    "(SELECT 1)", "FROM guarded SELECT a", "SELECT 1 -- trailing comment", "SELECT 1;", "/* lead */ SELECT 1",
    "SELECT generateUUIDv4(), rand() % 1, cityHash64('x'), hex(MD5('x')), "
    "toUUID('61f0c404-5cb3-11e7-907b-a6006ad3dba0')",
    "SELECT min(a), max(a), avg(a), median(a), stddevPop(a), topK(3)(s), any(s), anyLast(s), sum(a) FROM guarded",
]  # fmt: skip


def test_an_analyst_can_ask_what_analysts_ask(server: Server, bait: Bait) -> None:
    wrong = []
    for statement in USEFUL:
        reply = server.ask(statement, "analyst")
        if reply.status != 200:
            wrong.append((statement, reply.text[:200]))
    assert wrong == []


def test_bounds_of_an_analyst_hold(server: Server) -> None:
    assert server.ask("SELECT number FROM numbers(6000000)", "analyst", max_result_rows="1000").code == 396
    slow = server.ask("SELECT sum(cityHash64(number)) FROM numbers(15000000000)", "analyst", max_execution_time="1")
    assert (slow.code, slow.status) == (159, 408)
    big = "SELECT groupArray(number) FROM numbers(1000000000)"
    assert server.ask(big, "analyst", max_memory_usage="50000000").code == 241
    assert server.value("SELECT getSetting('max_execution_time'), getSetting('readonly')", "analyst") == "60\t1"


def test_a_writer_inserts_and_reads(server: Server, table: str) -> None:
    for statement in (
        f"INSERT INTO {table} VALUES (1, 'a'), (2, 'b')",
        f"INSERT INTO inferbus.{table} (id, name) SELECT number + 10, toString(number) FROM numbers(3)",
        f"INSERT INTO {table} (id) SETTINGS async_insert = 0, insert_deduplication_token = 'x' FORMAT JSONEachRow\n"
        '{"id": 7}',
        f"INSERT INTO {table} WITH 9 AS x SELECT x, 'nine'",
    ):
        reply = server.ask(statement, "inferbus_writer")
        assert reply.status == 200, (statement, reply.text)
    assert server.value(f"SELECT count() FROM {table}", "inferbus_writer") == "7"
    assert server.ask("SELECT * FROM system.processes", "inferbus_writer").code == 497
