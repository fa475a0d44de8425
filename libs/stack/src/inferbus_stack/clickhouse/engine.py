"""chDB as this process runs it: its configuration, its database, and handles for statements."""

from __future__ import annotations

import fcntl
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from inferbus_stack.clickhouse.binding import Handle, disable_engine_signal_handlers, quote
from inferbus_stack.clickhouse.catalog import DATABASE, Catalog
from inferbus_stack.clickhouse.errors import ClickHouseError
from inferbus_stack.clickhouse.spool import KEPT_FREE_BYTES, Spool, make_folder

# Small-machine choices. Merges: two threads, no merge above 8 GiB, so that a merge cannot take the disk or the memory.
# tmp, user_files, scripts and schemas lie in empty folders under the data path: what chDB can lock, is locked.
_CONFIG = """<clickhouse>
  <max_server_memory_usage>{memory_bytes}</max_server_memory_usage>
  <mark_cache_size>134217728</mark_cache_size>
  <uncompressed_cache_size>0</uncompressed_cache_size>
  <background_pool_size>2</background_pool_size>
  <background_schedule_pool_size>4</background_schedule_pool_size>
  <user_files_path>{path}/confined/user_files/</user_files_path>
  <user_scripts_path>{path}/confined/user_scripts/</user_scripts_path>
  <format_schema_path>{path}/confined/format_schemas/</format_schema_path>
  <dictionaries_lib_path>{path}/confined/dictionaries_lib/</dictionaries_lib_path>
  <tmp_path>{path}/confined/tmp/</tmp_path>
  <backups><allowed_path>{path}/backups/</allowed_path></backups>
  <merge_tree>
    <max_bytes_to_merge_at_max_space_in_pool>8589934592</max_bytes_to_merge_at_max_space_in_pool>
  </merge_tree>
  <storage_configuration>
    <disks><default><keep_free_space_bytes>{kept_free_bytes}</keep_free_space_bytes></default></disks>
  </storage_configuration>
{query_log}</clickhouse>
"""
_QUERY_LOG = """  <query_log>
    <database>system</database>
    <table>query_log</table>
    <flush_interval_milliseconds>15000</flush_interval_milliseconds>
    <buffer_size_rows_flush_threshold>20000</buffer_size_rows_flush_threshold>
    <ttl>event_date + INTERVAL 7 DAY DELETE</ttl>
  </query_log>
"""


class EngineUnavailableError(RuntimeError):
    """The engine cannot be started; the text is for the operator."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    path: Path
    memory_bytes: int
    query_log: bool = True


class Engine:
    """The embedded engine. One per process. Handles may be opened from any thread until `close`."""

    def __init__(self, options: EngineOptions) -> None:
        """Locks the path, starts the engine and makes sure of its database. Raises EngineUnavailableError."""
        disable_engine_signal_handlers()
        self.path = str(options.path.resolve())
        if "?" in self.path or "%" in self.path:
            raise EngineUnavailableError(f"{self.path}: a data path cannot contain '?' or '%'")
        self._lock_file = _lock(Path(self.path))
        config = self._write_config(options)
        try:
            # Kept open for the life of the process: the engine stops with its last handle.
            self._root = Handle(f"{self.path}?config-file={config}")
            self._root.query(f"CREATE DATABASE IF NOT EXISTS {DATABASE} ENGINE = Atomic")
            self.version, self.timezone = self._root.text("SELECT version(), timezone()").rstrip("\n").split("\t")
            self.catalog = Catalog.read(self._root)
        except ClickHouseError as error:
            raise EngineUnavailableError(f"{self.path}: {error.text()}") from None
        self._root_lock = threading.Lock()

    def _write_config(self, options: EngineOptions) -> Path:
        for folder in ("user_files", "user_scripts", "format_schemas", "dictionaries_lib", "tmp"):
            Path(self.path, "confined", folder).mkdir(parents=True, exist_ok=True)
        make_folder(Path(self.path, "confined", "inserts"))
        Path(self.path, "backups").mkdir(exist_ok=True)
        config = Path(self.path, "confined", "config.xml")
        text = _CONFIG.format(
            memory_bytes=options.memory_bytes,
            kept_free_bytes=KEPT_FREE_BYTES,
            path=escape(self.path),
            query_log=_QUERY_LOG if options.query_log else "",
        )
        config.write_text(text, "utf-8")
        return config

    def open_handle(self) -> Handle:
        """A fresh handle (0.1 ms), whose current database is the platform's."""
        return Handle(f"{self.path}?database={DATABASE}&log_queries=0")

    def open_spool(self) -> Spool:
        """A place for the data of one INSERT."""
        return Spool(f"{self.path}/confined/inserts")

    def kill(self, log_comment: str) -> None:
        """Asks the statements marked with this log_comment to stop. Returns at once; they end with code 394."""
        with self._root_lock:
            self._root.query(f"KILL QUERY WHERE Settings['log_comment'] = {quote(log_comment)} ASYNC")

    def kill_all(self) -> None:
        with self._root_lock:
            self._root.query("KILL QUERY WHERE query NOT LIKE 'KILL QUERY%' ASYNC")

    def close(self) -> None:
        """Stops the engine. Every other handle must be closed before."""
        with self._root_lock:
            self._root.close()
        os.close(self._lock_file)


def _lock(path: Path) -> int:
    """Takes the path for this process. The lock goes with the process, however it dies."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path / "owner.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise EngineUnavailableError(f"{path}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.read(descriptor, 32).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise EngineUnavailableError(f"{path} is owned by another process (pid {owner or 'unknown'})") from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor
