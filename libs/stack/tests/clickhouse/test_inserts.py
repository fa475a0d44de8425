"""Inserts as billing relies on them: tokens, views, kill -9."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import io
import threading
import time
from collections.abc import Callable

import lz4.frame
import pyarrow as pa
import pytest
from backports import zstd

from .conftest import Server

BILLING = {"async_insert": "0", "deduplicate_blocks_in_dependent_materialized_views": "1"}
SCHEMA = (
    "CREATE TABLE events (seq UInt64, tenant LowCardinality(String), tokens UInt32) ENGINE = MergeTree ORDER BY seq "
    "SETTINGS non_replicated_deduplication_window = 10000",
    "CREATE TABLE per_tenant (tenant LowCardinality(String), n UInt64, tokens UInt64) ENGINE = SummingMergeTree "
    "ORDER BY tenant SETTINGS non_replicated_deduplication_window = 10000",
    "CREATE MATERIALIZED VIEW per_tenant_view TO per_tenant AS SELECT tenant, count() AS n, sum(tokens) AS tokens "
    "FROM events GROUP BY tenant",
)


def arrow(first: int, count: int) -> bytes:
    table = pa.table({
        "seq": pa.array(range(first, first + count), pa.uint64()),
        "tenant": pa.array([f"t{n % 5}" for n in range(count)]).dictionary_encode(),
        "tokens": pa.array([2] * count, pa.uint32()),
    })  # fmt: skip
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def insert(server: Server, first: int, count: int, token: str | None = None):  # type: ignore[no-untyped-def]
    settings = BILLING | ({"insert_deduplication_token": token} if token is not None else {})
    return server.ask("INSERT INTO events FORMAT ArrowStream", "inferbus_writer", data=arrow(first, count), **settings)


def totals(server: Server) -> tuple[str, str]:
    base = server.value("SELECT count(), uniqExact(seq), sum(tokens) FROM events")
    return base, server.value("SELECT sum(n), sum(tokens) FROM per_tenant")


def test_billing_survives_kill_minus_nine(own_server: Callable[..., Server]) -> None:
    server = own_server()
    for statement in SCHEMA:
        server.value(statement)
    # given tokens sent again and again
    for _ in range(3):
        assert insert(server, 0, 1000, "METER-0").status == 200
    assert insert(server, 1000, 500, "METER-1000").status == 200
    assert totals(server) == ("1500\t1500\t3000", "1500\t3000")
    # when the server is killed while inserts run
    acknowledged = _insert_until_killed(server)
    server = own_server()
    # then the old tokens still count once, in the base table and in the view
    assert insert(server, 0, 1000, "METER-0").status == 200
    assert insert(server, 1000, 500, "METER-1000").status == 200
    # and what was acknowledged is there, each batch whole
    starts = server.value("SELECT DISTINCT intDiv(seq, 200) * 200 FROM events WHERE seq >= 100000").split("\n")
    present = {int(start) for start in starts}
    assert set(acknowledged) <= present
    # and sending the last ones again changes nothing
    for start in sorted(present)[-3:]:
        assert insert(server, start, 200, f"B-{start}").status == 200
    rows = 1500 + len(present) * 200
    assert totals(server) == (f"{rows}\t{rows}\t{rows * 2}", f"{rows}\t{rows * 2}")
    assert insert(server, 1500, 10, "METER-1500").status == 200
    assert server.value("SELECT count() FROM events") == str(rows + 10)


def _insert_until_killed(server: Server) -> list[int]:
    """The first numbers of the batches that were acknowledged before the kill."""
    acknowledged: list[int] = []

    def keep_inserting() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            for start in range(100_000, 2_000_000, 200):
                if insert(server, start, 200, f"B-{start}").status == 200:
                    acknowledged.append(start)

    thread = threading.Thread(target=keep_inserting)
    thread.start()
    while len(acknowledged) < 20:
        assert thread.is_alive()
        time.sleep(0.005)
    server.kill()
    thread.join(10)
    return acknowledged


FORMATS: dict[str, bytes] = {
    "CSV": b'1,"a"\n2,"b"\n',
    "TSV": b"1\ta\n2\tb\n",
    "JSONEachRow": b'{"id":1,"name":"a"}\n{"id":2,"name":"b"}\n',
    "JSONCompactEachRow": b'[1,"a"]\n[2,"b"]\n',
    "Values": b"(1, 'a'), (2, 'b')",
    "RowBinary": b"\x01" + b"\x00" * 7 + b"\x01a" + b"\x02" + b"\x00" * 7 + b"\x01b",
    "Native": b"\x02\x02\x02id\x06UInt64\x01" + b"\x00" * 7 + b"\x02" + b"\x00" * 7 + b"\x04name\x06String\x01a\x01b",
}
for _kind, _open in (("ArrowStream", pa.ipc.new_stream), ("Arrow", pa.ipc.new_file)):
    _table = pa.table({"id": pa.array([1, 2], pa.uint64()), "name": ["a", "b"]})
    _sink = io.BytesIO()
    with _open(_sink, _table.schema) as _writer:
        _writer.write_table(_table)
    FORMATS[_kind] = _sink.getvalue()


@pytest.mark.parametrize("format_name", sorted(FORMATS))
@pytest.mark.parametrize("encoding", ["", "gzip", "lz4", "zstd"])
def test_every_format_in_url_and_body_compressed_or_not(
    server: Server, table: str, format_name: str, encoding: str
) -> None:
    compress = {"": bytes, "gzip": gzip.compress, "lz4": lz4.frame.compress, "zstd": zstd.compress}[encoding]
    headers = {"Content-Encoding": encoding} if encoding else {}
    statement = f"INSERT INTO {table} (id, name) FORMAT {format_name}"
    data = FORMATS[format_name]
    in_url = server.ask(statement, "inferbus_writer", data=compress(data), headers=headers)
    in_body = server.ask(compress(statement.encode() + b"\n" + data), "inferbus_writer", headers=headers)
    assert (in_url.status, in_body.status) == (200, 200), (in_url.text, in_body.text)
    assert '"written_rows":"2"' in in_url.headers["X-ClickHouse-Summary"]
    assert server.value(f"SELECT groupArray((id, name)) FROM (SELECT * FROM {table} ORDER BY id)") == (
        "[(1,'a'),(1,'a'),(2,'b'),(2,'b')]"
    )


def test_a_large_body_is_taken_in_pieces(server: Server, table: str) -> None:
    rows = 400_000
    data = b"".join(b"%d,name-%d\n" % (n, n) for n in range(rows))
    assert len(data) > 6 << 20
    for encoding, body in (("", data), ("lz4", lz4.frame.compress(data)), ("zstd", zstd.compress(data))):
        reply = server.ask(
            f"INSERT INTO {table} FORMAT CSV", "inferbus_writer", data=body,
            headers={"Content-Encoding": encoding} if encoding else {},
        )  # fmt: skip
        assert reply.status == 200, reply.text
    inline = b",".join(b"(%d,'x')" % n for n in range(200_000))
    assert server.ask(f"INSERT INTO {table} VALUES ".encode() + inline, "inferbus_writer").status == 200
    assert server.value(f"SELECT count(), uniqExact(id) FROM {table}") == f"{3 * rows + 200_000}\t{rows}"


def test_bad_data_is_an_error_and_leaves_nothing(server: Server, table: str) -> None:
    for format_name, data, codes in (
        ("CSV", b"1,a\nx,b\n", {27, 6, 72}),
        ("JSONEachRow", b'{"id": 1}\n{"id": ', {27, 26, 117, 33, 25, 32}),
        ("Native", FORMATS["Native"][:-3], {33}),
        ("ArrowStream", FORMATS["ArrowStream"][:100], {117, 33, 10, 1002, 1001}),
        ("Nope", b"1", {73}),
    ):
        reply = server.ask(f"INSERT INTO {table} FORMAT {format_name}", "inferbus_writer", data=data)
        assert reply.code in codes, (format_name, reply.text)
    cut = lz4.frame.compress(FORMATS["CSV"])[:-6]
    reply = server.ask(f"INSERT INTO {table} FORMAT CSV", data=cut, headers={"Content-Encoding": "lz4"})
    assert reply.code == 271
    assert server.ask("INSERT INTO nope FORMAT CSV", "inferbus_writer", data=b"1\n").code == 60
    assert server.ask(f"INSERT INTO {table} (nope) FORMAT CSV", "inferbus_writer", data=b"1\n").code == 16
    assert server.value(f"SELECT count() FROM {table}") == "0"


def test_insert_select_and_parameters(server: Server, table: str) -> None:
    assert server.ask(f"INSERT INTO {table} SELECT number, 'x' FROM numbers(5)", "inferbus_writer").status == 200
    reply = server.ask(f"INSERT INTO {table} VALUES ({{a:UInt64}}, {{b:String}})", param_a="9", param_b="nine")
    assert reply.status == 200, reply.text
    assert server.value(f"SELECT name FROM {table} WHERE id = 9") == "nine"
    assert server.ask("INSERT INTO {t:Identifier} FORMAT CSV", data=b"10,ten\n", param_t=table).status == 200
    assert server.value(f"SELECT count() FROM {table}") == "7"
