"""What fails while data reaches tables and views: the one who sent it is told, and nothing is half there."""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import re
import resource
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlencode

import pyarrow as pa
import pytest
from inferbus_stack.clickhouse.spool import KEPT_FREE_BYTES

from .conftest import PASSWORDS, Server, start_server

MIB = 1 << 20
BILLING = {"async_insert": "0", "deduplicate_blocks_in_dependent_materialized_views": "1"}


def arrow(ids: list[int]) -> bytes:
    table = pa.table({"id": pa.array(ids, pa.uint64()), "name": [f"name-{n}" for n in ids]})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=10_000)
    return sink.getvalue()


def csv(ids: list[int]) -> bytes:
    return b"".join(b"%d,name-%d\n" % (n, n) for n in ids)


def values(ids: list[int]) -> bytes:
    return b",".join(b"(%d,'name-%d')" % (n, n) for n in ids)


FORMATS: dict[str, Callable[[list[int]], bytes]] = {"ArrowStream": arrow, "CSV": csv, "Values": values}


def insert(server: Server, table: str, format_name: str, data: bytes | Iterable[bytes], **settings: str):  # type: ignore[no-untyped-def]
    return server.ask(f"INSERT INTO {table} FORMAT {format_name}", "inferbus_writer", data=data, **settings)


@pytest.mark.parametrize("format_name", sorted(FORMATS))
@pytest.mark.parametrize("rows", [3, 200_000])  # one piece of a body, and several
def test_a_violated_check_is_told_and_stores_nothing(server: Server, table: str, format_name: str, rows: int) -> None:
    server.value(f"ALTER TABLE {table} ADD CONSTRAINT small CHECK id < 1000000")
    good = list(range(rows))
    reply = insert(server, table, format_name, FORMATS[format_name]([*good, 1_000_000]))
    assert (reply.status, reply.code) == (500, 469), reply.text
    assert "Constraint `small`" in reply.text
    assert server.value(f"SELECT count() FROM {table}") == "0"
    assert insert(server, table, format_name, FORMATS[format_name](good)).status == 200
    assert server.value(f"SELECT count(), uniqExact(id) FROM {table}") == f"{rows}\t{rows}"


def test_a_violated_check_is_told_for_values_in_the_query(server: Server, table: str) -> None:
    server.value(f"ALTER TABLE {table} ADD CONSTRAINT small CHECK id < 10")
    for statement in ("VALUES (1, 'a'), (10, 'b')", "(id) VALUES (10)", "FORMAT CSV\n10,x", "SELECT 10, 'b'"):
        assert server.ask(f"INSERT INTO {table} {statement}", "inferbus_writer").code == 469
    assert server.value(f"SELECT count() FROM {table}") == "0"


def test_a_view_that_throws_is_told_and_the_same_token_fills_it_later(own_server: Callable[..., Server]) -> None:
    server = own_server()
    window = "SETTINGS non_replicated_deduplication_window = 100"
    view = "SELECT id % 2 AS odd, count() AS n FROM base GROUP BY odd"
    server.value(f"CREATE TABLE base (id UInt64, name String) ENGINE = MergeTree ORDER BY id {window}")
    server.value(f"CREATE TABLE sums (odd UInt8, n UInt64) ENGINE = SummingMergeTree ORDER BY odd {window}")
    server.value(f"CREATE MATERIALIZED VIEW into_sums TO sums AS {view}")
    counts = "SELECT (SELECT count() FROM base), (SELECT sum(n) FROM sums)"
    first, second = arrow([0, 1, 2]), arrow([3, 4, 5, 6])

    for _ in range(3):
        assert insert(server, "base", "ArrowStream", first, insert_deduplication_token="one", **BILLING).status == 200
        assert server.value(counts) == "3\t3"
    server.value(f"ALTER TABLE into_sums MODIFY QUERY {view.replace('count()', 'count() + sum(throwIf(id = 4))')}")
    for _ in range(2):
        reply = insert(server, "base", "ArrowStream", second, insert_deduplication_token="two", **BILLING)
        assert (reply.status, reply.code) == (500, 395), reply.text
        assert server.value(counts) == "7\t3", "the base table keeps what it took before the view, as in ClickHouse"

    server.value(f"ALTER TABLE into_sums MODIFY QUERY {view}")
    # Only the failed one: MODIFY QUERY makes the view forget the tokens it took before, in ClickHouse as here.
    for _ in range(3):
        assert insert(server, "base", "ArrowStream", second, insert_deduplication_token="two", **BILLING).status == 200
        assert server.value(counts) == "7\t7"


def test_too_many_partitions_are_told(server: Server, table: str) -> None:
    server.value(f"CREATE TABLE {table}_p (id UInt64, name String) ENGINE = MergeTree ORDER BY id PARTITION BY id")
    try:
        reply = insert(server, f"{table}_p", "CSV", csv(list(range(101))))
        assert (reply.status, reply.code) == (500, 252), reply.text
        assert insert(server, f"{table}_p", "CSV", csv([1, 2, 3]), max_partitions_per_insert_block="2").code == 252
        assert server.value(f"SELECT count() FROM {table}_p") == "0"
        assert insert(server, f"{table}_p", "CSV", csv([1, 2, 3]), max_partitions_per_insert_block="3").status == 200
    finally:
        server.value(f"DROP TABLE {table}_p SYNC")


def test_too_little_memory_is_told(server: Server, table: str) -> None:
    data = arrow(list(range(300_000)))
    reply = insert(server, table, "ArrowStream", data, max_memory_usage="1000000")
    assert (reply.status, reply.code) == (500, 241), reply.text
    assert server.value(f"SELECT count() FROM {table}") == "0"


def test_too_many_parts_are_told(server: Server, table: str) -> None:
    server.value(f"SYSTEM STOP MERGES {table}")
    server.value(f"ALTER TABLE {table} MODIFY SETTING parts_to_throw_insert = 2, parts_to_delay_insert = 0")
    codes = [insert(server, table, "CSV", csv([n])).code for n in range(4)]
    stored = int(server.value(f"SELECT count() FROM {table}"))
    assert codes == [0] * stored + [252] * (4 - stored)
    assert 0 < stored < 4


@pytest.mark.parametrize("at", [5, 150_000, 299_999])
@pytest.mark.parametrize("format_name", ["CSV", "Values", "JSONEachRow"])
def test_a_wrong_type_anywhere_is_told_and_stores_nothing(
    server: Server, table: str, format_name: str, at: int
) -> None:
    row = {"CSV": b"%d,x\n", "Values": b"(%d,'x')\n", "JSONEachRow": b'{"id":%d,"name":"x"}\n'}[format_name]
    rows = [row % n for n in range(300_000)]
    rows[at] = rows[at].replace(b"%d" % at, b"wrong", 1)
    reply = insert(server, table, format_name, b"".join(rows))
    assert reply.code in (6, 26, 27, 72, 117, 344), reply.text
    assert "/proc" not in reply.text
    assert "INFILE" not in reply.text
    assert server.value(f"SELECT count() FROM {table}") == "0"


def test_a_disk_that_is_full_is_told(own_server: Callable[..., Server]) -> None:
    server = own_server("--no-query-log")
    server.value("CREATE TABLE t (id UInt64, name String) ENGINE = MergeTree ORDER BY id")
    # given no file of the server may grow beyond a mebibyte
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (MIB, resource.RLIM_INFINITY))
    # when the body does not fit
    reply = insert(server, "t", "CSV", csv(list(range(200_000))))
    assert (reply.status, reply.code) == (500, 243), reply.text
    # The engine writes near no full disk: there it would report success (see KEPT_FREE_BYTES).
    free, kept = server.value("SELECT unreserved_space, keep_free_space FROM system.disks").split("\t")
    assert int(kept) == KEPT_FREE_BYTES
    assert int(free) > 0
    assert server.value("SELECT count() FROM t") == "0"
    # then it serves again once there is room
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert insert(server, "t", "CSV", csv(list(range(200_000)))).status == 200
    assert server.value("SELECT count() FROM t") == "200000"


def spools(server: Server) -> int:
    """How many files for the data of inserts the server holds open."""
    found = 0
    for descriptor in Path(f"/proc/{server.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found += "/confined/inserts/" in os.readlink(descriptor)
    return found


def wait_for_spools(server: Server, count: int) -> None:
    deadline = time.monotonic() + 30
    while spools(server) != count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def begin_insert(server: Server, table: str, data: bytes, chunked: bool) -> http.client.HTTPConnection:
    """Sends whole rows, enough for any format to store them, of a body that is said to be longer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.putrequest("POST", "/?" + urlencode({"query": f"INSERT INTO {table} FORMAT CSV"}))
    connection.putheader("X-ClickHouse-User", "inferbus_writer")
    connection.putheader("X-ClickHouse-Key", PASSWORDS["inferbus_writer"])
    if chunked:
        connection.putheader("Transfer-Encoding", "chunked")
        data = b"%x\r\n%s\r\n" % (len(data), data)
    else:
        connection.putheader("Content-Length", str(len(data) + 10))
    connection.endheaders()
    connection.send(data)
    return connection


@pytest.mark.parametrize("chunked", [True, False])
def test_a_client_that_leaves_in_its_body_inserts_nothing(own_server: Callable[..., Server], chunked: bool) -> None:
    server = own_server()
    server.value("CREATE TABLE t (id UInt64, name String) ENGINE = MergeTree ORDER BY id")
    data = csv(list(range(300_000)))
    for _ in range(5):  # more than a writer's places
        connection = begin_insert(server, "t", data, chunked)
        wait_for_spools(server, 1)
        connection.close()
        wait_for_spools(server, 0)
    # The first piece waits to be a mebibyte: one that leaves before has no spool.
    begin_insert(server, "t", b"1,a\n", chunked).close()
    assert insert(server, "t", "CSV", b"7,x\n").status == 200
    assert server.value("SELECT count(), any(id) FROM t") == "1\t7"


def test_a_kill_in_a_body_leaves_no_file(own_server: Callable[..., Server]) -> None:
    server = own_server()
    server.value("CREATE TABLE t (id UInt64, name String) ENGINE = MergeTree ORDER BY id")
    connections = [begin_insert(server, "t", csv(list(range(300_000))), True) for _ in range(4)]
    wait_for_spools(server, 4)
    folder = server.path / "confined" / "inserts"
    assert list(folder.iterdir()) == [], "the files have no names"
    server.kill()
    for connection in connections:
        connection.close()
    (folder / "tmp-of-a-file-system-without-nameless-files").write_bytes(b"1,a\n")
    server = own_server()
    assert list(folder.iterdir()) == []
    assert server.value("SELECT count() FROM t") == "0"


def peak_mib(server: Server) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
    assert found is not None
    return int(found.group(1)) >> 10


def test_a_large_insert_takes_bounded_memory(own_server: Callable[..., Server]) -> None:
    server = own_server("--no-query-log")
    server.value("CREATE TABLE t (id UInt64, name String) ENGINE = MergeTree ORDER BY id")
    server.value("SYSTEM STOP MERGES t")  # what they take, and when, is not the insert's
    rows = 10_000
    batch = pa.record_batch({"id": pa.array(range(rows), pa.uint64()), "name": ["x" * 500] * rows})

    def inserted(batches: int) -> str:
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            head = sink.tell()
            writer.write_batch(batch)
            end = sink.tell()
        data = sink.getvalue()
        body = (data[:head], *[data[head:end]] * batches, data[end:])
        settings = {"min_insert_block_size_rows": "100000", "min_insert_block_size_bytes": "50000000"}
        server.value("TRUNCATE TABLE t")
        assert insert(server, "t", "ArrowStream", body, **settings).status == 200
        return server.value("SELECT count(), uniqExact(id) FROM t")

    assert inserted(40) == f"{40 * rows}\t{rows}"  # 194 MiB fill what is kept and used again
    before = peak_mib(server)
    assert inserted(200) == f"{200 * rows}\t{rows}"
    assert peak_mib(server) - before < 300, "for a body of 972 MiB"


def test_a_data_path_that_reads_as_a_pattern_stores_as_any_other(tmp_path: Path) -> None:
    server = start_server(tmp_path / "a*{b,c}[d]'e")
    try:
        server.value("CREATE TABLE t (id UInt64, name String) ENGINE = MergeTree ORDER BY id")
        assert insert(server, "t", "CSV", b"7,x\n").status == 200
        assert server.value("SELECT count(), any(id) FROM t") == "1\t7"
    finally:
        server.kill()
