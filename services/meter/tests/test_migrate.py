"""Migrations on an empty real engine."""

import uuid
from pathlib import Path

import pytest
from inferbus_meter import migrations as migration_files
from inferbus_meter.clickhouse import Store, open_store
from inferbus_meter.migrate import Migration, MigrationError, migrate, migrations, schema, statements

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


def test_statements_are_split_at_line_ends_and_comments_dropped() -> None:
    assert statements("-- why;\nSELECT 1;\n  -- no\nSELECT ';' AS x\nFROM y;") == [
        "SELECT 1",
        "SELECT ';' AS x\nFROM y",
    ]
