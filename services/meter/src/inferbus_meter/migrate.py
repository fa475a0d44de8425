"""``python -m inferbus_meter.migrate``: bring the schema up to date, once, before a rollout.

Files are ``migrations/NNNN_what_it_does.sql``, applied in order, forward only. Each is safe to run twice, so a file
that was interrupted is run again whole. Never run by the meter itself: N replicas would race, and an older binary must
be able to run beside a newer schema.
"""

import argparse
import asyncio
import hashlib
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from inferbus_runtime.config import ConfigError, load

from inferbus_meter import retention
from inferbus_meter.clickhouse import STORE_ERRORS, Store, StoreConfig, open_store
from inferbus_meter.config import PREFIX, Config

log = logging.getLogger(__name__)
_FILE_NAME = re.compile(r"^(\d{4})_[a-z0-9_]+\.sql$")
_UUID = re.compile(r" UUID '[0-9a-f-]{36}'")
_LEDGER = """
CREATE TABLE IF NOT EXISTS schema_migrations
(
    version UInt32,
    name String,
    checksum String,
    applied_time DateTime64(6, 'UTC') DEFAULT now64(6)
)
ENGINE = ReplacingMergeTree(applied_time)
ORDER BY version
"""


class MigrationError(Exception):
    """The files and the database do not fit together; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Migration:
    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """Of the statements, not of the comments, which may be improved later."""
        return hashlib.sha256("\n".join(statements(self.sql)).encode()).hexdigest()


def migrations() -> list[Migration]:
    """All files in order. Raises MigrationError for a name that is none, or a number used twice or left out."""
    found = []
    for file in resources.files("inferbus_meter.migrations").iterdir():
        if not file.name.endswith(".sql"):
            continue
        match = _FILE_NAME.match(file.name)
        if match is None:
            raise MigrationError(f"{file.name}: a migration is named NNNN_what_it_does.sql")
        found.append(Migration(int(match[1]), file.name, file.read_text()))
    found.sort(key=lambda migration: migration.version)
    if [migration.version for migration in found] != list(range(1, len(found) + 1)):
        raise MigrationError("migrations are numbered from 1 without a gap")
    return found


def statements(sql: str) -> list[str]:
    """The statements of a file, comment lines dropped. A statement ends with a ``;`` at the end of its line."""
    code = "\n".join(line for line in sql.splitlines() if not line.lstrip().startswith("--"))
    return [part.strip() for part in re.split(r";[ \t]*(?:\n|$)", code) if part.strip()]


async def migrate(store: Store, database: str, files: Sequence[Migration]) -> list[str]:
    """Apply what is missing; returns the names of the files applied.

    Raises MigrationError if a file was changed after it had been applied, or one of STORE_ERRORS.
    """
    await store.command(f"CREATE DATABASE IF NOT EXISTS {database}", use_database=False)
    await store.command(_LEDGER)
    rows = await store.rows("SELECT version, checksum FROM schema_migrations FINAL")
    applied = {int(version): str(checksum) for version, checksum in rows}
    changed = [f.name for f in files if applied.get(f.version, f.checksum) != f.checksum]
    if changed:
        raise MigrationError(f"changed after they had been applied: {', '.join(changed)}; undo it, and add a new file")
    newer = max(applied, default=0)
    if newer > len(files):
        log.warning("the schema is newer than this program; carrying on", extra={"schema": newer, "known": len(files)})
    done = []
    for file in files:
        if file.version in applied:
            continue
        for statement in statements(file.sql):
            await store.command(statement)
        await store.command(
            "INSERT INTO schema_migrations (version, name, checksum) "  # noqa: S608 - from our own files
            f"VALUES ({file.version}, '{file.name}', '{file.checksum}')"
        )
        done.append(file.name)
        log.info("migration applied", extra={"migration": file.name})
    return done


async def schema(store: Store, database: str) -> str:
    """The schema as the database says it, names of its own removed: what ``schema.sql`` holds."""
    rows = await store.rows(
        "SELECT formatQuery(create_table_query) FROM system.tables WHERE database = {database:String} ORDER BY name",
        {"database": database},
    )
    texts = [_UUID.sub("", str(query)).replace(f"{database}.", "") for (query,) in rows]
    return "".join(f"{text};\n\n" for text in texts)


async def run(config: Config, *, print_schema: bool) -> None:
    # The first connection is made without the database, which may not exist yet.
    settings = StoreConfig.of(config)
    async with open_store(StoreConfig(settings.url, settings.user, settings.password, "", settings.timeout)) as admin:
        await admin.command(f"CREATE DATABASE IF NOT EXISTS {settings.database}", use_database=False)
    async with open_store(settings) as store:
        done = await migrate(store, settings.database, migrations())
        # Not for what only asks for the schema: that is the files', whatever is kept for how long.
        kept = [] if print_schema else await retention.apply(store, retention.wanted(config))
        text = await schema(store, settings.database) if print_schema else ""
    said = f"{len(done)} migrations applied: {', '.join(done) or 'the schema is up to date'}\n"
    said += "".join(f"retention changed: {name}\n" for name in kept)
    sys.stdout.write(text or said)


def main() -> int:
    """Exit code 0: the schema is up to date. 1: it is not. 2: the configuration is wrong."""
    parser = argparse.ArgumentParser(prog="python -m inferbus_meter.migrate", description=__doc__)
    parser.add_argument("--print-schema", action="store_true", help="print what the database holds after it, as SQL")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    try:
        asyncio.run(run(load(Config, PREFIX), print_schema=arguments.print_schema))
    except ConfigError as error:
        sys.stderr.write("".join(f"{fault}\n" for fault in error.faults))
        return 2
    except (MigrationError, *STORE_ERRORS) as error:
        sys.stderr.write(f"the schema was not brought up to date: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
