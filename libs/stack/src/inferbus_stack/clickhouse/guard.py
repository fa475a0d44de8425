"""What a statement of a guarded profile may do, decided before it reaches the engine that holds the data.

ClickHouse's users, grants and row policies do not exist in chDB, and `readonly` alone still reads server files, so
this is the access control. Nothing here searches for bad words: a statement passes only if everything in it is known
to be harmless.

1. The engine's own parser says whether the text is one statement, and of which class.
2. The engine prints the statement's syntax tree (EXPLAIN AST, on a handle of its own, parameters substituted). Every
   line must be of a known kind, every function, table function and table on an allow-list.
3. Independently, our own tokens: no call of a function that is known and not allowed. This covers the places that
   the tree does not print (seen: `SHOW ... WHERE`, `* APPLY(f)`, both refused by 2 anyway).

Found while building it, and refused here: SETTINGS in a subquery is applied by the engine even under readonly=1;
the database `default` reads files as tables (default.`/etc/passwd`); FORMAT Template reads a file named in a setting;
INSERT ... VALUES evaluates expressions, file() among them (see the writer's profile); a quoted name with a line break
forges lines of the tree; EXPLAIN AST takes `optimize = 1` from the front of a text that is no statement by itself.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import NamedTuple

from inferbus_stack.clickhouse.binding import Handle, StatementClass, quote
from inferbus_stack.clickhouse.catalog import DATABASE, Catalog
from inferbus_stack.clickhouse.errors import ACCESS_DENIED, READONLY, SYNTAX_ERROR, ClickHouseError
from inferbus_stack.clickhouse.profiles import Profile
from inferbus_stack.clickhouse.statement import QueryShape, shape_of

_REMEMBERED = 1024
_LONGEST_REMEMBERED = 8192
_LINE = re.compile(r"( *)([A-Za-z:]+)(.*)")
_CHILDREN = re.compile(r" *\(children \d+\)$")
_ODD_VALUE = re.compile(r"[\x00-\x1f\x7f\\]")
_IN = re.compile(r"(global)?(not)?(null)?in(ignoreset)?", re.IGNORECASE)

# Kinds of tree lines that carry no name to check, or whose names are columns and aliases.
_PLAIN = frozenset(
    {
        "SelectWithUnionQuery", "SelectQuery", "SelectIntersectExceptQuery", "ExpressionList", "Subquery", "Literal",
        "Asterisk", "QualifiedAsterisk", "ColumnsRegexpMatcher", "ColumnsListMatcher",
        "QualifiedColumnsRegexpMatcher", "QualifiedColumnsListMatcher", "ColumnsTransformerList",
        "ColumnsExceptTransformer", "ColumnsReplaceTransformer", "ColumnsReplaceTransformer::Replacement",
        "TablesInSelectQuery", "TablesInSelectQueryElement", "TableExpression", "TableJoin", "ArrayJoin",
        "SampleRatio", "OrderByElement", "WindowDefinition", "WindowListElement", "WithElement",
        "InterpolateElement", "StorageOrderByElement", "DescribeQuery",
    }
)  # fmt: skip
_SHOW = frozenset({"ShowTables", "ShowColumns", "ShowIndexes", "ShowFunctions", "ShowEngineQuery"})
_OF_A_TABLE = frozenset({"ShowCreateTableQuery", "ShowCreateViewQuery", "ExistsTableQuery", "ExistsViewQuery"})
_EXPLAINS = frozenset(
    {"EXPLAIN", "EXPLAIN AST", "EXPLAIN SYNTAX", "EXPLAIN QUERY TREE", "EXPLAIN PIPELINE", "EXPLAIN ESTIMATE"}
)
_SHOWN_DATABASES = frozenset({DATABASE, "system", "information_schema", "INFORMATION_SCHEMA"})
_SHOW_WORDS_REFUSED = frozenset({"where", "default", "cluster", "clusters", "processlist", "grants", "access"})


class _Line(NamedTuple):
    depth: int
    kind: str
    rest: str

    @property
    def name(self) -> str:
        return self.rest.split(" ", 1)[0]


class Guard:
    """Decides for guarded profiles. Safe to use from many threads; remembers recent verdicts that were yes."""

    def __init__(self, catalog: Catalog, open_handle: Callable[[], Handle]) -> None:
        """`open_handle` gives handles for parsing: fresh ones, apart from those that run statements."""
        self._catalog = catalog
        self._open_handle = open_handle
        self._passed: OrderedDict[object, None] = OrderedDict()
        self._lock = Lock()

    def check_query(self, profile: Profile, sql: str, params: dict[str, str]) -> None:
        """Passes a statement that carries no data.

        Raises ACCESS_DENIED (497), READONLY (164) or the engine's own syntax error.
        """
        if any(_ODD_VALUE.search(value) for value in params.values()) and "identifier" in sql.lower():
            raise _denied("a name with control characters")
        key = (profile.name, sql, tuple(sorted(params.items())))
        with self._lock:
            if key in self._passed:
                self._passed.move_to_end(key)
                return
        shape = shape_of(sql)
        self._check_tokens(profile, shape)
        handle = self._open_handle()
        try:
            self._check_tree(profile, handle, sql, params, shape)
        finally:
            handle.close()
        if len(sql) + sum(map(len, params.values())) <= _LONGEST_REMEMBERED:
            with self._lock:
                self._passed[key] = None
                while len(self._passed) > _REMEMBERED:
                    self._passed.popitem(last=False)

    def _check_tree(
        self, profile: Profile, handle: Handle, sql: str, params: dict[str, str], shape: QueryShape
    ) -> None:
        classified = handle.classify(sql)
        if classified.statements > 1:
            raise ClickHouseError(SYNTAX_ERROR, "Syntax error: Multi-statements are not allowed.")
        handle.query("SET implicit_select = 0, readonly = 2")
        if classified.kind is StatementClass.UNKNOWN:
            # Not behind EXPLAIN: `optimize = 1 SELECT ...` is no statement, but would there become an option that
            # resolves tables.
            handle.query(f"SELECT formatQuery({quote(sql)})")
            raise ClickHouseError(SYNTAX_ERROR, "Syntax error.")
        tree = handle.text(f"EXPLAIN AST {sql}", params)
        # The engine counts an INSERT with SETTINGS as CONTROL: there the tree alone decides.
        most = StatementClass.MUTATING if profile.writes else StatementClass.READ_ONLY
        if classified.kind > most and not (profile.writes and shape.first_word == "INSERT"):
            raise ClickHouseError(READONLY, "Cannot execute query in readonly mode.")
        _Tree(self._catalog, profile, shape).check(tree)

    def _check_tokens(self, profile: Profile, shape: QueryShape) -> None:
        if shape.odd:
            raise ClickHouseError(SYNTAX_ERROR, "Syntax error: unrecognized character outside quotes, or open quote.")
        if shape.odd_names:
            # A name with a line break would forge lines of the tree.
            raise _denied("a name with control characters or escapes")
        for name in shape.calls:
            if name.lower() in self._catalog.denied_lower:
                raise _denied(f"function {name}")
        if shape.format_name is not None and not profile.may_use_format(shape.format_name):
            raise _denied(f"format {shape.format_name}")
        if shape.first_word == "SHOW" and not _SHOW_WORDS_REFUSED.isdisjoint(word.lower() for word in shape.words):
            raise _denied("this form of SHOW")
        for name in shape.settings:
            if not profile.may_set(name):
                raise ClickHouseError(READONLY, f"Cannot modify '{name[:80]}' setting in readonly mode.")


def _denied(what: str) -> ClickHouseError:
    return ClickHouseError(ACCESS_DENIED, f"Not enough privileges: {what[:120]} is not for this user.")


class _Tree:
    """One walk over one printed tree. No name in it holds a line break: tokens and parameters were checked for that."""

    def __init__(self, catalog: Catalog, profile: Profile, shape: QueryShape) -> None:
        self._catalog = catalog
        self._profile = profile
        self._shape = shape
        self._path: list[_Line] = []  # the lines above the current one
        self._seen_root = False
        self._settings_clauses = 0
        self._target: list[str] = []  # `table`, or `database` and `table`, that the statement is about

    def check(self, tree: str) -> None:
        for text in tree.rstrip("\n").split("\n"):
            match = _LINE.fullmatch(text)
            if match is None:
                raise _denied("an unreadable part of this statement")
            line = _Line(len(match.group(1)), match.group(2), match.group(3).strip())
            while self._path and self._path[-1].depth >= line.depth:
                self._path.pop()
            self._check_line(line)
            self._path.append(line)
        if len(self._target) > 2 or (len(self._target) == 2 and self._target[0] != DATABASE):
            raise _denied(f"table {'.'.join(self._target)}")
        if self._target:
            table = self._target[-1].removeprefix(f"{DATABASE}.")
            inserts = self._shape.first_word == "INSERT"
            if not (self._profile.may_insert(table) if inserts else self._profile.may_read(table)):
                raise _denied(f"table {table}")
        if self._settings_clauses > self._shape.settings_clauses:
            # The tree does not print names of settings, so those that the tokens did not show are unknown.
            raise ClickHouseError(READONLY, "Cannot modify settings in readonly mode.")

    def _check_line(self, line: _Line) -> None:
        parent = self._path[-1].kind if self._path else ""
        at_root = not self._path
        if at_root and self._seen_root:
            raise _denied("an unreadable part of this statement")
        self._seen_root = True
        if line.kind in _PLAIN:
            # A literal there is the file of INTO OUTFILE or FROM INFILE.
            if line.kind == "Literal" and (len(self._path) == 1 or parent in ("InsertQuery", "SelectWithUnionQuery")):
                raise _denied("a file")
        elif line.kind == "Identifier":
            self._check_identifier(line.name, parent)
        elif line.kind == "TableIdentifier":
            self._check_table(line.name)
        elif line.kind == "Function":
            self._check_function(line.name, parent)
        elif line.kind == "Set":
            self._check_set(parent)
        elif line.kind == "InsertQuery" and at_root:
            if not self._profile.writes:
                raise ClickHouseError(READONLY, "Cannot execute query in readonly mode.")
        elif line.kind == "Explain" and at_root:
            if _CHILDREN.sub("", line.rest) not in _EXPLAINS:
                raise _denied("this form of EXPLAIN")
        elif not (at_root and (line.kind in _OF_A_TABLE or (line.kind in _SHOW and self._shape.first_word == "SHOW"))):
            raise _denied(f"a statement or clause of the kind {line.kind}")

    def _check_identifier(self, name: str, parent: str) -> None:
        if len(self._path) == 1 and (parent == "InsertQuery" or parent in _OF_A_TABLE):
            self._target.append(name)
            if "." in name and not name.startswith(f"{DATABASE}."):
                raise _denied(f"table {name}")
        elif parent == "ShowTables":
            if name not in _SHOWN_DATABASES:
                raise _denied(f"database {name}")
        elif self._catalog.is_elsewhere(name) or self._is_right_of_in():
            # `x IN system.users` names a table with a plain identifier; so may an alias that IN refers to.
            self._check_table(name)

    def _is_right_of_in(self) -> bool:
        above = self._path[-2:]
        return len(above) == 2 and above[0].kind == "Function" and _IN.fullmatch(above[0].name) is not None

    def _check_table(self, name: str) -> None:
        if not self._catalog.allows_table(name):
            raise _denied(f"table {name}")
        database, dot, rest = name.partition(".")
        if not dot or database == DATABASE:
            # The rest of it may be a column.
            table = (rest if dot else name).partition(".")[0]
            if not self._profile.may_read(table):
                raise _denied(f"table {name}")

    def _check_function(self, name: str, parent: str) -> None:
        if parent == "TableExpression":
            if not self._catalog.allows_table_function(name):
                raise _denied(f"table function {name}")
        elif parent in ("InsertQuery", "Explain") or not self._catalog.allows_function(name):
            raise _denied(f"function {name}")

    def _check_set(self, parent: str) -> None:
        if parent == "Explain":
            return  # options of EXPLAIN, not settings
        if not self._profile.writes:
            raise ClickHouseError(READONLY, "Cannot modify settings in readonly mode.")
        self._settings_clauses += 1
