"""The HTTP interface by hand: http.client and curl."""

from __future__ import annotations

import gzip
import json
import subprocess
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import lz4.frame
import pyarrow as pa
import pytest
from backports import zstd

from .conftest import PASSWORDS, Server


def curl(
    server: Server, *arguments: str, data: bytes | None = None, user: str = "admin"
) -> subprocess.CompletedProcess[bytes]:
    url = f"http://127.0.0.1:{server.port}"
    filled = [argument.replace("{url}", url) for argument in arguments]
    return subprocess.run(
        ["curl", "-sS", "-u", f"{user}:{PASSWORDS[user]}", *filled],
        input=data,
        capture_output=True,
        timeout=30,
        check=False,
    )


def test_ping_and_greeting(server: Server) -> None:
    for path in ("/ping", "/replicas_status", "/"):
        assert curl(server, "{url}" + path).stdout == b"Ok.\n"


def test_curl_in_its_usual_ways(server: Server, table: str) -> None:
    assert curl(server, "{url}/?query=SELECT%201").stdout == b"1\n"
    assert curl(server, "{url}", "--data-binary", "SELECT 1, 2").stdout == b"1\t2\n"
    assert curl(server, "{url}", "-F", "query=SELECT {a:String}", "-F", "param_a=x y").stdout == b"x y\n"
    assert curl(server, "{url}", "-F", "f=@-;filename=x", data=b"1").stdout.startswith(b"Code: 48.")
    insert = f"{{url}}/?query=INSERT%20INTO%20{table}%20FORMAT%20CSV"
    assert curl(server, insert, "--data-binary", "@-", data=b"1,a\n2,b\n").returncode == 0
    assert (
        curl(server, insert, "-H", "Transfer-Encoding: chunked", "-T", "-", "-X", "POST", data=b"3,c\n").returncode == 0
    )
    assert curl(server, "{url}", "-d", f"SELECT * FROM {table} ORDER BY id FORMAT JSONEachRow").stdout.count(b"\n") == 3
    url = f"http://127.0.0.1:{server.port}/?user=analyst&password={PASSWORDS['analyst']}&query=SELECT%207"
    assert subprocess.run(["curl", "-sS", url], capture_output=True, check=True).stdout == b"7\n"
    compressed = curl(server, "{url}/?enable_http_compression=1", "--compressed", "-d", "SELECT 5", "-D", "-")
    assert b"Content-Encoding: gzip" in compressed.stdout or b"Content-Encoding: zstd" in compressed.stdout
    assert compressed.stdout.endswith(b"5\n")


def test_headers_of_an_answer(server: Server) -> None:
    reply = server.ask("SELECT number FROM numbers(10)", query_id="my-id", default_format="JSONEachRow")
    assert reply.headers["X-ClickHouse-Query-Id"] == "my-id"
    assert reply.headers["X-ClickHouse-Format"] == "JSONEachRow"
    assert reply.headers["X-ClickHouse-Timezone"]
    assert reply.headers["X-ClickHouse-Server-Display-Name"] == "inferbus"
    assert reply.headers["Content-Type"].startswith("application/json")
    summary = json.loads(reply.headers["X-ClickHouse-Summary"])
    assert (summary["read_rows"], summary["result_rows"]) == ("10", "10")
    assert server.ask("SELECT 1", headers={"X-ClickHouse-Format": "CSV"}).headers["X-ClickHouse-Format"] == "CSV"
    assert server.ask("SELECT 1 AS a FORMAT JSON", default_format="CSV").headers["X-ClickHouse-Format"] == "JSON"
    assert server.ask("SELECT 1 AS format FORMAT", default_format="CSV").code == 62


@pytest.mark.parametrize(
    ("query", "status", "code", "name"),
    [
        ("SELECT * FROM nope", 404, 60, "UNKNOWN_TABLE"),
        ("SELECT nope", 404, 47, "UNKNOWN_IDENTIFIER"),
        ("SELECT nope(1)", 404, 46, "UNKNOWN_FUNCTION"),
        ("SELECT * FROM nope.t", 404, 81, "UNKNOWN_DATABASE"),
        ("SELEC 1", 400, 62, "SYNTAX_ERROR"),
        ("", 400, 62, "SYNTAX_ERROR"),
        ("SELECT 1 SETTINGS nope = 1", 404, 115, "UNKNOWN_SETTING"),
        ("SELECT {a:Int32}", 500, 456, "UNKNOWN_QUERY_PARAMETER"),
        ("SELECT throwIf(1, 'boo')", 500, 395, "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO"),
        ("SELECT sleep(2) SETTINGS max_execution_time = 0.2", 408, 159, "TIMEOUT_EXCEEDED"),
        ("CREATE TABLE x (a Nope) ENGINE = Memory", 404, 50, "UNKNOWN_TYPE"),
        ("SELECT 1; SELECT 2", 400, 62, "SYNTAX_ERROR"),
        ("DROP TABLE IF EXISTS x; CREATE TABLE x (a UInt8) ENGINE = Memory", 400, 62, "SYNTAX_ERROR"),
    ],
)
def test_errors_are_clickhouses(server: Server, query: str, status: int, code: int, name: str) -> None:
    reply = server.ask(query)
    assert (reply.status, reply.code) == (status, code), reply.text
    assert reply.text.startswith(f"Code: {code}. DB::Exception: ")
    assert f"({name})" in reply.text
    assert reply.text.count("Code:") == 1


def test_refused_parameters(server: Server) -> None:
    assert server.ask("SELECT 1", compress="1").code == 48
    assert server.ask("SELECT 1", nope_setting="1").code == 115
    assert server.ask("SELECT 1", **{"a;b": "1"}).code == 36
    assert server.ask("SELECT 1", default_format="Nope").code == 73
    assert server.ask("SELECT 1", headers={"Content-Encoding": "snappy"}).code == 48
    assert server.ask(b"\xff\xfe").code == 62
    assert server.ask("SELECT 1", data=None, headers={"Content-Encoding": "gzip"}).code == 271


def test_authentication(server: Server) -> None:
    for user, password in (("admin", "wrong"), ("nobody", "x"), ("admin", ""), ("", "")):
        reply = server.ask("SELECT 1", user, password=password)
        assert (reply.status, reply.code) == (403, 516)
    assert server.ask("SELECT 1", "plain", password="plain-pw").status == 200
    bare = subprocess.run(
        ["curl", "-sS", "-o", "-", "-w", "%{http_code}", f"http://127.0.0.1:{server.port}/?query=SELECT%201"],
        capture_output=True, check=True,
    )  # fmt: skip
    assert bare.stdout.endswith(b"403")
    assert b"wrong" not in server.log.read_bytes()


def test_get_only_reads(server: Server, table: str) -> None:
    assert server.ask(f"SELECT count() FROM {table}", method="GET", max_threads="1").status == 200
    for statement in (
        f"INSERT INTO {table} VALUES (1, 'x')",
        f"INSERT INTO {table} SELECT 1, 'x'",
        f"DROP TABLE {table}",
    ):
        assert server.ask(statement, method="GET").code == 164
    assert server.value(f"SELECT count() FROM {table}") == "0"


def test_settings_and_parameters_come_through(server: Server) -> None:
    assert server.value("SELECT getSetting('max_threads')", max_threads="3") == "3"
    assert (
        server.value("SELECT {s:String} = 'it''s \\t q', {n:Array(Int32)}", param_s="it's \\t q", param_n="[1,2]")
        == "1\t[1,2]"
    )
    assert server.value("SELECT currentDatabase()") == "inferbus"
    assert server.value("SELECT currentDatabase()", database="system") == "system"
    assert server.value("SELECT currentDatabase()", database="default") == "inferbus"
    assert server.ask("SELECT 1", database="nope").code == 81


@pytest.mark.parametrize(
    ("encoding", "decompress"),
    [
        ("lz4", lz4.frame.decompress),
        ("zstd", zstd.decompress),
        ("gzip", gzip.decompress),
        ("deflate", zlib.decompress),
    ],
)
def test_results_are_compressed_when_asked(server: Server, encoding: str, decompress) -> None:  # type: ignore[no-untyped-def]
    for rows in (10, 500_000):
        reply = server.ask(
            f"SELECT number FROM numbers({rows})", headers={"Accept-Encoding": encoding}, enable_http_compression="1"
        )
        assert reply.headers["Content-Encoding"] == encoding
        assert decompress(reply.body).count(b"\n") == rows
    assert "Content-Encoding" not in server.ask("SELECT 1", headers={"Accept-Encoding": encoding}).headers


FORMATS = """TSV TSVWithNames TSVWithNamesAndTypes CSVWithNames CSVWithNamesAndTypes JSONEachRow JSON Native RowBinary
    JSONCompactEachRowWithNamesAndTypes RowBinaryWithNamesAndTypes Parquet Arrow""".split()  # noqa: SIM905


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("rows", [0, 1, 200_000])
def test_large_results_come_back_equal(server: Server, table: str, format_name: str, rows: int) -> None:
    query = f"SELECT number AS id, concat('n\"', toString(number)) AS name FROM numbers({rows})"
    body = server.ask(query, default_format=format_name).body
    if body:
        reply = server.ask(f"INSERT INTO {table} FORMAT {format_name}", data=body)
        assert reply.status == 200, reply.text
    expected = server.value(f"SELECT count(), sum(cityHash64(id, name)) FROM ({query})")
    assert server.value(f"SELECT count(), sum(cityHash64(id, name)) FROM {table}") == expected


@pytest.mark.parametrize("rows", [0, 1, 200_000])
def test_arrow_streams_are_one_stream(server: Server, rows: int) -> None:
    query = f"SELECT number, toLowCardinality(toString(number % 7)) AS l FROM numbers({rows})"
    reply = server.ask(query, default_format="ArrowStream")
    with pa.ipc.open_stream(reply.body) as reader:
        read = reader.read_all()
    assert read.num_rows == rows
    assert read.column("number").to_pylist()[-1:] == [rows - 1][: min(rows, 1)]


def test_many_small_pieces_are_one_answer(server: Server) -> None:
    reply = server.ask(
        "SELECT number % 50000 AS k, count() FROM numbers(100000) GROUP BY k", default_format="CSVWithNames"
    )
    assert reply.text.count("\n") == 50_001
    assert reply.text.count("k") == 1


def test_results_with_an_end_are_not_cut(server: Server) -> None:
    rows = json.loads(server.value("SELECT number FROM numbers(150000)", default_format="JSONEachRow",
                                   output_format_json_array_of_rows="1"))  # fmt: skip
    assert len(rows) == 150_000
    named = server.value("SELECT number % 100000 AS k, count() FROM numbers(300000) GROUP BY k WITH TOTALS",
                         default_format="TSVWithNames")  # fmt: skip
    assert named.startswith("k\tcount()\n")
    assert named.endswith("\n\n0\t300000")
    text = server.value("SELECT number % 100000 AS k, count() FROM numbers(300000) GROUP BY k WITH TOTALS ORDER BY k")
    assert text.endswith("\n\n0\t300000")


def test_a_late_error_breaks_the_transfer_and_names_itself(server: Server) -> None:
    late = "SELECT throwIf(number = 900000, 'late-boo'), number FROM numbers(1000000)"
    result = curl(server, "{url}", "-d", late)
    assert result.returncode == 18, "curl must see a partial transfer"
    assert b"__exception__" in result.stdout
    assert b"Code: 395" in result.stdout
    held = server.ask(late, wait_end_of_query="1")
    assert (held.status, held.code) == (500, 395)
    # The next statement sees none of the failed one's rows.
    assert server.value("SELECT 'fresh'") == "fresh"


def test_sessions_keep_temporary_tables_and_no_settings(server: Server) -> None:
    def ask(query: str, **params: str):  # type: ignore[no-untyped-def]
        return server.ask(query, session_id="s1", **params)

    assert ask("CREATE TEMPORARY TABLE tmp (a UInt8)").status == 200
    assert ask("INSERT INTO tmp VALUES (1), (2)", max_threads="3").status == 200
    assert ask("SELECT sum(a) FROM tmp", max_threads="3").text == "3\n"
    assert ask("SELECT getSetting('max_threads') = 3").text == "0\n"
    assert server.ask("SELECT * FROM tmp").code == 60
    assert server.ask("SELECT 1", session_id="unknown", session_check="1").code == 372
    assert server.ask("SELECT 1", session_id="s1", session_timeout="0").code == 36
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(ask, "SELECT /*slow*/ sleep(3)")
        running = "SELECT count() FROM system.processes WHERE query LIKE '%/*slow*/%' AND query NOT LIKE '%processes%'"
        while server.value(running) == "0" and not slow.done():
            time.sleep(0.05)
        assert ask("SELECT 1").code == 373
        assert slow.result().status == 200
    # An error costs the session its handle: what follows is clean, its temporary tables are gone.
    assert ask("SELECT throwIf(number = 100) FROM numbers(1000)").code == 395
    assert ask("SELECT 'fresh'").text == "fresh\n"


def test_a_session_ends_after_its_timeout(server: Server) -> None:
    assert server.ask("CREATE TEMPORARY TABLE tmp (a UInt8)", session_id="s2", session_timeout="0.3").status == 200
    # Each look that finds it is a use of it.
    for _ in range(20):
        time.sleep(0.6)
        if server.ask("SELECT 1", session_id="s2", session_check="1", session_timeout="0.3").code == 372:
            return
    raise AssertionError("it goes on")


def test_failures_are_logged_without_their_text(server: Server) -> None:
    server.ask("SELECT 'prompt-of-a-customer' FROM nope", query_id="logged-1")
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if "logged-1" in line]
    assert len(lines) == 1
    assert lines[0]["event"] == "query_failed"
    assert (lines[0]["user"], lines[0]["code"], lines[0]["name"]) == ("admin", 60, "UNKNOWN_TABLE")
    assert lines[0]["duration_ms"] >= 0
    assert "prompt-of-a-customer" not in server.log.read_text()


def test_the_query_log_names_the_user_and_holds_what_was_asked(own_server: Callable[..., Server]) -> None:
    server = own_server()
    server.value("SELECT 1", "analyst", query_id="from-the-analyst")
    server.value("SELECT 2", log_comment="mine")
    server.value("SELECT 3")
    server.value("SYSTEM FLUSH LOGS")
    logged = server.value(
        "SELECT query, JSONExtractString(log_comment, 'user'), JSONExtractString(log_comment, 'query_id'), "
        "JSONExtractString(log_comment, 'comment') FROM system.query_log WHERE query LIKE 'SELECT _' ORDER BY query"
    ).split("\n")
    assert logged[0] == "SELECT 1\tanalyst\tfrom-the-analyst\t"
    assert [line.split("\t")[0] for line in logged] == ["SELECT 1", "SELECT 2", "SELECT 3"]
    assert logged[1].endswith("\tmine")
    assert server.value("SELECT count() FROM system.query_log WHERE query LIKE 'SET %'") == "0"
