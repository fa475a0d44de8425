"""Migrations on an empty real engine."""

import uuid
from pathlib import Path
from typing import Any

import pytest
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.common.v1.usage_pb2 import Operation
from inferbus_meter import migrations as migration_files
from inferbus_meter.clickhouse import Store, open_store
from inferbus_meter.core import rows
from inferbus_meter.core.frames import FrameGather
from inferbus_meter.core.native import NativeBlock
from inferbus_meter.migrate import Migration, MigrationError, migrate, migrations, schema, statements
from inferbus_rating import PriceBook
from inferbus_runtime import clock

SCHEMA = Path(migration_files.__file__).parent.parent / "schema.sql"


@pytest.fixture
async def empty(clickhouse):
    name = f"migrate_{uuid.uuid4().hex[:12]}"
    async with open_store(clickhouse.config("admin", "")) as admin:
        await admin.command(f"CREATE DATABASE {name}", use_database=False)
        async with open_store(clickhouse.config("admin", name)) as store:
            yield store, name
        await admin.command(f"DROP DATABASE {name} SYNC", use_database=False)


async def test_all_files_on_an_empty_engine_give_schema_sql_and_again_nothing(empty: tuple[Store, str]) -> None:
    store, name = empty
    assert await migrate(store, name, migrations()) == [file.name for file in migrations()]
    text = await schema(store, name)
    assert text == SCHEMA.read_text(), "run: python -m inferbus_meter.migrate --print-schema > schema.sql"
    assert await migrate(store, name, migrations()) == []
    assert await schema(store, name) == text


async def test_other_tests_have_the_schema_of_the_migrations(store: Store) -> None:
    """A fixture makes it of what came out of them."""
    ((database,),) = await store.rows("SELECT currentDatabase()")
    assert await schema(store, database) == SCHEMA.read_text()
    assert await migrate(store, database, migrations()) == []


async def test_a_file_that_was_interrupted_is_run_again_whole(empty: tuple[Store, str]) -> None:
    store, name = empty
    await store.command(statements(migrations()[0].sql)[0])  # killed before the ledger knew of it
    await migrate(store, name, migrations())
    assert await schema(store, name) == SCHEMA.read_text()


async def test_an_older_program_carries_on_with_a_newer_schema(empty: tuple[Store, str]) -> None:
    store, name = empty
    files = migrations()
    await migrate(store, name, files)
    assert await migrate(store, name, files[:-1]) == []


async def test_a_file_changed_after_it_was_applied_is_refused(empty: tuple[Store, str]) -> None:
    store, name = empty
    files = migrations()
    await migrate(store, name, files)
    changed = Migration(1, files[0].name, files[0].sql.replace("T64", "Delta"))
    with pytest.raises(MigrationError, match=files[0].name):
        await migrate(store, name, [changed, *files[1:]])
    commented = Migration(1, files[0].name, "-- a better comment\n" + files[0].sql)
    assert await migrate(store, name, [commented, *files[1:]]) == []


class BlockOfBefore(NativeBlock):
    """Without the columns of 0007 to 0009 and later ones, as the program before wrote them."""

    def fixed(self, name: str, *arguments: Any) -> None:
        if name not in ("estimated", "stream_epoch"):
            super().fixed(name, *arguments)

    def nullable(self, name: str, *arguments: Any) -> None:
        if name not in ("energy_j", "placed_us", "started_us", "cold_start_us"):
            super().nullable(name, *arguments)

    def decimals(self, name: str, *arguments: Any) -> None:
        if name not in ("reasoning_per_million", "per_call", "minimum", "factor"):
            super().decimals(name, *arguments)

    def strings(self, name: str, *arguments: Any) -> None:
        if name != "operation":
            super().strings(name, *arguments)

    def texts(self, name: str, *arguments: Any) -> None:
        """Of 0012, as are the maps."""

    def maps(self, name: str, *arguments: Any) -> None:
        pass


async def test_rows_of_before_say_nothing_of_energy_and_operation_and_are_known_again_after_it(
    empty: tuple[Store, str], make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A meter that is upgraded inserts its last batch once more, now with the columns that came meanwhile."""
    store, name = empty
    files = migrations()
    await migrate(store, name, files[:6])
    gather, frame = FrameGather(), make.close(Frame(time_us=clock.now_us()), make.request_id(), 5)
    frame.closes[0].energy_joules, frame.closes[0].usage.estimated = 12.5, True
    frame.closes[0].operation = Operation.OPERATION_INFERENCE
    assert gather.add(1, frame.time_us, frame.SerializeToString())
    batch = gather.finish()
    with monkeypatch.context() as patched:
        patched.setattr(rows, "NativeBlock", BlockOfBefore)
        before = rows.request_rows(batch, PriceBook.of([])).data
    await store.insert("requests", before, "token-1")
    assert await migrate(store, name, files) == [file.name for file in files[6:]]
    assert await store.rows("SELECT energy_j, estimated, operation FROM bills") == [(None, False, "")]
    await store.insert("requests", rows.request_rows(batch, PriceBook.of([])).data, "token-1")
    # A table that was made anew meanwhile (0021) does not know the token: there are two rows of one end, which are one.
    assert (await store.rows("SELECT count() FROM bills"))[0][0] == 1
    assert (await store.rows("SELECT sum(requests) FROM latency_by_minute_and_tenant"))[0][0] == 1
    await store.command("OPTIMIZE TABLE requests FINAL")
    assert await store.rows("SELECT energy_j, estimated, operation FROM requests") == [(12.5, True, "inference")]
    await store.insert("requests", before, "token-2")  # an older meter on the newer schema
    await store.insert("requests", rows.request_rows(batch, PriceBook.of([])).data, "token-3")
    shown = await store.rows("SELECT energy_j, estimated, operation FROM requests ORDER BY energy_j NULLS FIRST")
    assert shown == [(None, False, ""), (12.5, True, "inference"), (12.5, True, "inference")]


def test_statements_are_split_at_line_ends_and_comments_dropped() -> None:
    assert statements("-- why;\nSELECT 1;\n  -- no\nSELECT ';' AS x\nFROM y;") == [
        "SELECT 1",
        "SELECT ';' AS x\nFROM y",
    ]
