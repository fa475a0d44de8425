"""Errors as ClickHouse reports them: a code, a name, a text, and the HTTP status that goes with the code."""

from __future__ import annotations

import re

BAD_ARGUMENTS = 36
NOT_IMPLEMENTED = 48
SYNTAX_ERROR = 62
UNKNOWN_FORMAT = 73
CANNOT_WRITE = 75
UNKNOWN_SETTING = 115
INCORRECT_DATA = 117
TIMEOUT_EXCEEDED = 159
READONLY = 164
TOO_MANY_SIMULTANEOUS_QUERIES = 202
NOT_ENOUGH_SPACE = 243
SESSION_NOT_FOUND = 372
SESSION_IS_LOCKED = 373
CANNOT_DECOMPRESS = 271
ACCESS_DENIED = 497
AUTHENTICATION_FAILED = 516
UNKNOWN_EXCEPTION = 1002

_NAMES = {
    BAD_ARGUMENTS: "BAD_ARGUMENTS",
    NOT_IMPLEMENTED: "NOT_IMPLEMENTED",
    SYNTAX_ERROR: "SYNTAX_ERROR",
    UNKNOWN_FORMAT: "UNKNOWN_FORMAT",
    CANNOT_WRITE: "CANNOT_WRITE_TO_FILE_DESCRIPTOR",
    NOT_ENOUGH_SPACE: "NOT_ENOUGH_SPACE",
    UNKNOWN_SETTING: "UNKNOWN_SETTING",
    INCORRECT_DATA: "INCORRECT_DATA",
    TIMEOUT_EXCEEDED: "TIMEOUT_EXCEEDED",
    READONLY: "READONLY",
    TOO_MANY_SIMULTANEOUS_QUERIES: "TOO_MANY_SIMULTANEOUS_QUERIES",
    SESSION_NOT_FOUND: "SESSION_NOT_FOUND",
    SESSION_IS_LOCKED: "SESSION_IS_LOCKED",
    CANNOT_DECOMPRESS: "CANNOT_DECOMPRESS",
    ACCESS_DENIED: "ACCESS_DENIED",
    AUTHENTICATION_FAILED: "AUTHENTICATION_FAILED",
    UNKNOWN_EXCEPTION: "UNKNOWN_EXCEPTION",
}

# A real server's table (exceptionCodeToHTTPStatus); every other code is 500.
_HTTP_STATUS = {
    194: 401,
    **dict.fromkeys((192, 193, 516, 497, 512), 403),
    **dict.fromkeys(
        (6, 8, 15, 16, 25, 26, 27, 35, 36, 38, 41, 44, 53, 62, 72, 117, 167, 168, 321, 376, 427, 441, 675, 676),
        400,
    ),
    **dict.fromkeys((60, 46, 47, 50, 56, 81, 115, 51, 63, 73, 336, 78, 511), 404),
    **dict.fromkeys((209, 76, 439), 503),
    48: 501,
    159: 408,
    381: 411,
    307: 413,
    # Ours: a real server says 500, which clients do not retry; 503 tells clickhouse-connect to try again.
    202: 503,
}

_ENGINE_TEXT = re.compile(r"Code: (\d+)\. DB::Exception: ", re.DOTALL)
_ENGINE_NAME = re.compile(r" ?\(([A-Z][A-Z0-9_]+)\)[. \n]*\Z")
# How the engine says that data came from a spool: nothing that the one who sent it knows of.
_SPOOL = re.compile(
    r":? *\(in file/uri /proc/self/fd/\d+\)|:? *While executing File: data for INSERT was parsed from file"
)
_VERSION = re.compile(r" \(version [^()]*\)\.?")


class ClickHouseError(Exception):
    """What failed, in ClickHouse's terms. `detail` has no code and no name: `text()` adds them."""

    def __init__(self, code: int, detail: str, name: str = "") -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.name = name or _NAMES.get(code, "UNKNOWN_EXCEPTION")

    @property
    def http_status(self) -> int:
        return _HTTP_STATUS.get(self.code, 500)

    def text(self, version: str = "") -> str:
        tail = f" (version {version})" if version else ""
        return f"Code: {self.code}. DB::Exception: {self.detail} ({self.name}){tail}"

    def without_path(self, path: str) -> ClickHouseError:
        """The same error with the server's data directory blanked, for users who must not learn it."""
        return ClickHouseError(self.code, self.detail.replace(path, "<data>"), self.name)


def from_engine(error: BaseException) -> ClickHouseError:
    """Reads chDB's exception text. The engine nests texts ("Code: 164. ... Code: 164. ..."): the innermost one counts
    when it repeats the code, so that clients see one message.
    """
    text = str(error)
    found = list(_ENGINE_TEXT.finditer(text))
    if not found:
        if isinstance(error, MemoryError):
            return ClickHouseError(241, "out of memory", "MEMORY_LIMIT_EXCEEDED")
        return ClickHouseError(UNKNOWN_EXCEPTION, text or type(error).__name__)
    code = int(found[0].group(1))
    start = found[0]
    for later in found[1:]:
        if int(later.group(1)) != code or later.start() != start.end():
            break
        start = later
    detail = _SPOOL.sub("", _VERSION.sub("", text[start.end() :])).strip()
    name = ""
    while (match := _ENGINE_NAME.search(detail)) is not None and match.start() > 0:
        name = match.group(1)
        detail = detail[: match.start()].rstrip(" .") + "."
    return ClickHouseError(code, detail, name)
