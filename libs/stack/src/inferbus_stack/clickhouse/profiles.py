"""The profiles: what each user may set, which tables he may name, and the bounds each works within.

`admin` is the platform itself (migrations, backups). `writer` inserts and reads in the platform's database.
`analyst` reads it, within bounds that keep one question from taking the machine. Text of requests is in tables of its
own, which neither of them may name: `capture_writer` inserts there, `capture_reader` reads there, and both do nothing
else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from inferbus_stack.clickhouse.errors import READONLY, ClickHouseError

SETTING_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")

# Tables with text of requests.
PRIVATE_TABLES = frozenset({"captures"})

# Formats that read a file or ask a host that a setting names, so not for users who must reach neither.
_OUTSIDE_FORMATS = re.compile(r"template|protobuf|capnproto|confluent|schema", re.IGNORECASE)

# Settings that only shape the answer or its transport. An allow-list: some of the others name files and hosts.
_PRESENTATION = re.compile(
    r"(output_format_(?!schema)[a-z0-9_]+|format_(csv|tsv|json|binary|display|date_time|custom)_[a-z0-9_]+"
    r"|date_time_output_format|date_time_overflow_behavior|session_timezone|use_client_time_zone|extremes"
    r"|enable_http_compression|http_zlib_compression_level|http_headers_progress_interval_ms"
    r"|http_write_exception_in_output_format|send_progress_in_http_headers|add_http_cors_header"
    r"|cancel_http_readonly_queries_on_client_close|http_response_[a-z_]+|http_wait_end_of_query"
    r"|join_use_nulls|union_default_mode|join_algorithm"
    r"|group_by_use_nulls|totals_mode|any_join_distinct_right_table_keys|prefer_column_name_to_alias"
    r"|final|do_not_merge_across_partitions_select_final|cast_keep_nullable|data_type_default_nullable"
    r"|cast_string_to_dynamic_use_inference|describe_[a-z_]+|aggregate_functions_null_for_empty|transform_null_in|optimize_[a-z0-9_]+|log_comment)\Z"
)
_INGEST = re.compile(
    r"(input_format_(?!values_)[a-z0-9_]+|insert_[a-z0-9_]+|async_insert[a-z0-9_]*|wait_for_async_insert[a-z0-9_]*"
    r"|deduplicate_[a-z0-9_]+|(max|min)_insert_[a-z0-9_]+|materialized_views_[a-z0-9_]+|parallel_view_processing"
    r"|max_partitions_per_insert_block|throw_on_max_partitions_per_insert_block|date_time_input_format"
    r"|max_threads|max_block_size|max_execution_time|max_memory_usage|max_result_rows|max_result_bytes|result_overflow_mode"
    r"|max_insert_threads|fsync_[a-z_]+|select_sequential_consistency|ignore_materialized_views_with_[a-z_]+)\Z"
)


@dataclass(frozen=True, slots=True)
class Profile:
    """What a user of this profile may do. `limits` are set last and cannot be overridden; `lowerable` may be
    lowered by the user; `defaults` may be replaced by any allowed setting.
    """

    name: str
    guarded: bool  # statements pass the guard first
    writes: bool
    sessions: bool  # keeps a handle between requests; without, each request gets a fresh one
    hides_paths: bool
    running: int  # statements at once; more wait
    waiting: int  # statements that may wait; more are refused with TOO_MANY_SIMULTANEOUS_QUERIES
    defaults: dict[str, str] = field(default_factory=dict)
    limits: dict[str, str] = field(default_factory=dict)
    lowerable: dict[str, int] = field(default_factory=dict)
    allowed_settings: tuple[re.Pattern[str], ...] | None = None  # None: any
    reads: frozenset[str] | None = None  # the only tables of the platform; None: all but PRIVATE_TABLES
    inserts: frozenset[str] | None = None  # the same for INSERT

    def may_use_format(self, name: str) -> bool:
        return not self.guarded or _OUTSIDE_FORMATS.search(name) is None

    def may_read(self, table: str) -> bool:
        return table not in PRIVATE_TABLES if self.reads is None else table in self.reads

    def may_insert(self, table: str) -> bool:
        return table not in PRIVATE_TABLES if self.inserts is None else table in self.inserts

    def may_set(self, name: str) -> bool:
        if SETTING_NAME.match(name) is None:
            return False
        return self.allowed_settings is None or any(allowed.match(name) for allowed in self.allowed_settings)

    def effective(self, asked: dict[str, str]) -> dict[str, str]:
        """The settings a statement runs with. Raises READONLY (164) for one that is not allowed, as ClickHouse does."""
        settings = dict(self.defaults)
        for name, value in asked.items():
            if name in self.lowerable:
                settings[name] = self._lowered(name, value)
            elif self.may_set(name):
                settings[name] = value
            elif self.limits.get(name) != value:
                raise ClickHouseError(READONLY, f"Cannot modify '{name[:80]}' setting in readonly mode.")
        for name, most in self.lowerable.items():
            settings.setdefault(name, str(most))
        settings.update(self.limits)
        return settings

    def _lowered(self, name: str, value: str) -> str:
        most = self.lowerable[name]
        try:
            asked = float(value)
        except ValueError:
            asked = 0.0
        # 0 means "no limit" to the engine.
        if not 0 < asked <= most:
            raise ClickHouseError(READONLY, f"Setting {name} should be between 1 and {most} for this user.")
        return value if "." in value else str(int(asked))


# implicit_select: chDB's default (1) runs any expression as a query, which a server does not.
# storage_file_read_method: chDB's default (mmap) counts all of an INSERT's data as this process's memory.
# The rest keeps system.query_log to one small row a statement: with events and settings it is 30 kB, held in memory
# until the next flush. Handles open with log_queries=0, so that only what users asked for is logged.
_SERVER_LIKE = {
    "implicit_select": "0",
    "storage_file_read_method": "pread",
    "log_queries": "1",
    "log_queries_min_type": "QUERY_FINISH",
    "log_profile_events": "0",
    "log_query_settings": "0",
}
# The engine's own refusals, as a second line behind the guard.
_NO_ADMIN = {"allow_introspection_functions": "0", "allow_ddl": "0", "allow_get_client_http_header": "0"}

PROFILES: dict[str, Profile] = {
    "admin": Profile(
        name="admin",
        guarded=False,
        writes=True,
        sessions=True,
        hides_paths=False,
        running=4,
        waiting=64,
        defaults=_SERVER_LIKE,
    ),
    "writer": Profile(
        name="writer",
        guarded=True,
        writes=True,
        sessions=False,
        hides_paths=True,
        running=4,
        waiting=64,
        defaults=_SERVER_LIKE,
        # VALUES would otherwise evaluate what it is given: INSERT INTO t VALUES (file('/etc/passwd')).
        limits={
            **_NO_ADMIN,
            "input_format_values_interpret_expressions": "0",
            "input_format_values_deduce_templates_of_expressions": "0",
        },
        allowed_settings=(_PRESENTATION, _INGEST),
    ),
    "analyst": Profile(
        name="analyst",
        guarded=True,
        writes=False,
        sessions=False,
        hides_paths=True,
        running=3,
        waiting=32,
        defaults={**_SERVER_LIKE, "enable_http_compression": "1", "send_progress_in_http_headers": "0"},
        lowerable={
            "max_execution_time": 60,
            "max_memory_usage": 2 * 1024**3,
            "max_result_rows": 5_000_000,
            "max_result_bytes": 2 * 1024**3,
            "max_rows_to_read": 20_000_000_000,
        },
        limits={
            "timeout_overflow_mode": "throw",
            "result_overflow_mode": "throw",
            "read_overflow_mode": "throw",
            "max_ast_elements": "20000",
            "max_expanded_ast_elements": "200000",
            "max_query_size": "262144",
            "max_temporary_data_on_disk_size_for_query": str(4 * 1024**3),
            **_NO_ADMIN,
        },
        allowed_settings=(_PRESENTATION,),
    ),
}
PROFILES["capture_writer"] = replace(
    PROFILES["writer"], name="capture_writer", reads=frozenset(), inserts=PRIVATE_TABLES
)
PROFILES["capture_reader"] = replace(
    PROFILES["analyst"], name="capture_reader", reads=PRIVATE_TABLES, inserts=frozenset()
)
