"""What users below admin may name: functions, table functions, system tables. Allow-lists over this engine's own list.

Scalar functions are allowed by the engine's category, so that a function a future engine adds in a category that
reaches outside ("AI", "Other", ...) stays refused until someone lists it here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from inferbus_stack.clickhouse.binding import Handle

DATABASE = "inferbus"

_CATEGORIES = frozenset(
    {
        "Type Conversion", "Dates and Times", "Arrays", "String", "Hash", "String Search", "JSON", "Dictionary",
        "Mathematical", "URL", "Arithmetic", "Map", "Comparison", "IP Address", "Tuple", "Distance", "Random Number",
        "Bitmap", "Encoding", "UUID", "Bit", "String Splitting", "String Replacement", "Null", "Rounding",
        "Time Window", "Conditional", "Logical", "Financial", "Geo", "Geo Polygon", "NumericIndexedVector",
        "Aggregate Functions", "Window Functions", "QBit", "Encryption", "Time Series",
    }
)  # fmt: skip

# Out of the categories "Other" and "Internal": those that look at their arguments and nothing else.
_LISTED = frozenset(
    {
        "bar", "byteSize", "countDigits", "currentDatabase", "currentUser", "defaultValueOfArgumentType",
        "defaultValueOfTypeName", "digits", "dumpColumnStructure", "errorCodeToName", "finalizeAggregation",
        "formatReadableDecimalSize", "formatReadableQuantity", "formatReadableSize", "formatReadableTimeDelta",
        "getSetting", "getSettingOrDefault", "getSizeOfEnumType", "getSubcolumn", "identity", "ignore", "indexHint",
        "initializeAggregation", "isConstant", "isDecimalOverflow", "lowCardinalityIndices", "lowCardinalityKeys",
        "materialize", "minSampleSizeContinuous", "minSampleSizeConversion", "neighbor", "normalizeQuery",
        "normalizedQueryHash", "parseISO8601Duration", "parseReadableSize", "parseReadableSizeOrNull",
        "parseReadableSizeOrZero", "parseTimeDelta", "queryID", "rowNumberInAllBlocks", "rowNumberInBlock",
        "runningAccumulate", "runningDifference", "runningDifferenceStartingWithFirstValue", "throwIf",
        "toColumnTypeName", "toTypeName", "transform", "uptime", "variantElement", "variantType", "version",
        "visibleWidth", "caseWithExpression", "_CAST", "timezone", "serverTimezone", "timezoneOf", "lambda", "exists",
    }
)  # fmt: skip

# In allowed categories, yet they look outside their arguments or show addresses of the process.
_REFUSED = frozenset({"flameGraph"})

_TABLE_FUNCTIONS = frozenset(
    {
        "numbers", "numbers_mt", "zeros", "zeros_mt", "primes", "values", "sqlstandardvalues", "null",
        "generaterandom", "generateseries", "generate_series", "view",
    }
)  # fmt: skip

# No paths, no other users' queries, no definitions that could hold credentials.
_SYSTEM_TABLES = frozenset(
    {
        "one", "numbers", "numbers_mt", "zeros", "zeros_mt", "settings", "functions", "formats", "data_type_families",
        "time_zones", "keywords", "collations", "aggregate_function_combinators", "table_functions", "columns",
        "contributors", "licenses",
    }
)  # fmt: skip
# Views over system.tables and the like without its paths; `tables` and `views` would show definitions.
_INFORMATION_SCHEMA = frozenset({"columns", "schemata", "key_column_usage", "referential_constraints", "tables"})

_OTHER_DATABASES = frozenset({"system", "information_schema", "default", "_temporary_and_external_tables"})

_COMBINATORS = re.compile(
    r"(SimpleState|MergeState|State|Merge|If|Array|ForEach|Distinct|OrDefault|OrNull|OrFill|Resample|ArgMin|ArgMax"
    r"|Map|Null|Tuple)\Z"
)


@dataclass(frozen=True, slots=True)
class Catalog:
    """This engine's names, sorted into allowed and not. Fixed while the process runs."""

    exact: frozenset[str]  # allowed functions
    folded: frozenset[str]  # allowed functions whose names ignore case, in lower case
    aggregates: frozenset[str]
    denied_lower: frozenset[str]  # every other function and table function the engine knows
    formats: dict[str, str]  # lower case -> proper

    @classmethod
    def read(cls, handle: Handle) -> Catalog:
        rows = [
            tuple(row.split("\t"))
            for row in handle.text(
                "SELECT name, is_aggregate, case_insensitive, trim(categories), alias_to FROM system.functions "
                "WHERE origin = 'System'"
            ).splitlines()
        ]
        category_of = {name: category for name, _, _, category, _ in rows}
        exact: set[str] = set(_LISTED)
        folded: set[str] = set()
        aggregates: set[str] = set()
        for name, is_aggregate, ignores_case, _, alias_of in rows:
            target = alias_of or name
            category = category_of.get(target, "")
            if target in _REFUSED or not (is_aggregate == "1" or category in _CATEGORIES or target in _LISTED):
                continue
            exact.add(name)
            if ignores_case == "1":
                folded.add(name.lower())
            if is_aggregate == "1":
                aggregates.add(name)
        outside = set(handle.text("SELECT lower(name) FROM system.table_functions").split()) - _TABLE_FUNCTIONS
        known = {name.lower() for name in category_of} | outside
        formats = handle.text("SELECT name FROM system.formats").split()
        return cls(
            exact=frozenset(exact),
            folded=frozenset(folded),
            aggregates=frozenset(aggregates),
            denied_lower=frozenset(known - {name.lower() for name in exact} - _TABLE_FUNCTIONS),
            formats={name.lower(): name for name in formats},
        )

    def allows_function(self, name: str) -> bool:
        if name in self.exact or name.lower() in self.folded:
            return True
        base = name
        while (match := _COMBINATORS.search(base)) is not None and match.start() > 0:
            base = base[: match.start()]
            if base in self.aggregates or base.lower() in self.folded:
                return True
        return False

    def allows_table_function(self, name: str) -> bool:
        return name.lower() in _TABLE_FUNCTIONS

    def allows_table(self, name: str) -> bool:
        """`name` as the syntax tree prints it. Without a database it is in the platform's own."""
        database, dot, rest = name.partition(".")
        table = rest.split(".", 1)[0]  # the rest may be a column
        if not dot or database == DATABASE:
            return True
        if database == "system":
            return table in _SYSTEM_TABLES
        return database.lower() == "information_schema" and table.lower() in _INFORMATION_SCHEMA

    def is_elsewhere(self, name: str) -> bool:
        """Whether a dotted identifier can name a table outside the platform's database."""
        database, dot, _ = name.partition(".")
        return bool(dot) and database.lower() in _OTHER_DATABASES
