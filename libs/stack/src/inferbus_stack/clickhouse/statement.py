"""ClickHouse's lexical rules, just enough to split an INSERT from its data and to find FORMAT and SETTINGS clauses.

The text is held as latin-1 (one character per byte), so that positions are byte positions and binary data after
the head of an INSERT costs nothing to look at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from inferbus_stack.clickhouse.errors import SYNTAX_ERROR, ClickHouseError

_TOKEN = re.compile(
    r"(?P<skip>[ \t\n\r\f\v]+|--[^\n]*|\#[ !][^\n]*|/\*.*?\*/)"
    r"|(?P<string>'(?:[^'\\]|\\.|'')*'|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$)"
    r'|(?P<quoted>"(?:[^"\\]|\\.|"")*"|`(?:[^`\\]|\\.|``)*`)'
    r"|(?P<word>[A-Za-z0-9_]+)"
    r"|(?P<unclosed>['\"`]|/\*|\$\w*\$)"
    r"|(?P<odd>[\x00-\x08\x0e-\x1f\x7f-\xff])"
    r"|(?P<other>.)",
    re.DOTALL,
)
_OPEN = "([{"
_CLOSE = ")]}"
_ODD_NAME = re.compile(r"[\x00-\x1f\x7f\\]")
_UNQUOTE = re.compile(r"\\(.)|(``)|(\"\")", re.DOTALL)


class Token(NamedTuple):
    kind: str  # string, quoted, word, other; odd: what these rules do not know (the guard refuses it)
    text: str
    end: int

    def is_word(self, *words: str) -> bool:
        return self.kind == "word" and self.text.upper() in words

    @property
    def name(self) -> str:
        """The identifier this token spells, quotes removed."""
        if self.kind == "quoted":
            return _UNQUOTE.sub(lambda match: match.group(1) or match.group(0)[:1], self.text[1:-1])
        return self.text


def tokens(text: str) -> Iterator[Token]:
    """The tokens up to the end or to a quote or comment that is never closed, which comes as `odd`."""
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or "other"
        if kind == "unclosed":
            # Nothing after it can be told apart, and looking for the end of every such opener would be quadratic.
            yield Token("odd", match.group(0), match.end())
            return
        if kind == "tag":
            kind = "string"
        if kind != "skip":
            yield Token(kind, match.group(0), match.end())


@dataclass(frozen=True, slots=True)
class InsertHead:
    """An INSERT that carries data: its text up to SETTINGS, from there on, and where its data begin in the body."""

    target: str
    settings: str
    format_name: str
    data_at: int

    # The parts meet at line breaks: each may end in a comment.
    @property
    def statement(self) -> str:
        """As it was asked for, without its data."""
        return f"{self.target}\n{self.settings}\nFORMAT {self.format_name}"

    def reading(self, path: str) -> str:
        """The same with its data from a file. `path` must not hold what a string literal escapes."""
        source = f"FROM INFILE '{path}' COMPRESSION 'none'"
        return f"{self.target}\n{source}\n{self.settings}\nFORMAT {self.format_name}"


def split_insert(text: str) -> InsertHead | None:
    """The head of `INSERT ... FORMAT x <data>` or `INSERT ... VALUES <data>`; None for every other statement,
    INSERT ... SELECT and FROM INFILE included.
    """
    stream = tokens(text)
    token = next(stream, None)
    if token is None or not token.is_word("INSERT"):
        return None
    token = next(stream, None)
    while token is not None and token.is_word("INTO", "TABLE", "FUNCTION"):
        token = next(stream, None)
    # The table's name, which may itself be `values` or `format`: pass it before looking for those words.
    while token is not None and token.kind in ("word", "quoted"):
        token = next(stream, None)
        if token is None or token.text != ".":
            break
        token = next(stream, None)
    depth = 0
    settings_at: int | None = None

    def head(end: int, format_name: str, data_at: int) -> InsertHead:
        at = end if settings_at is None else settings_at
        return InsertHead(text[:at], text[at:end], format_name, data_at)

    while token is not None:
        if token.kind == "odd":
            return None
        if token.kind == "other":
            depth += (token.text in _OPEN) - (token.text in _CLOSE)
        elif depth == 0 and token.is_word("SELECT", "WITH", "FROM"):
            return None
        elif depth == 0 and token.is_word("VALUES"):
            return head(token.end - len("VALUES"), "Values", token.end)
        elif depth == 0 and token.is_word("FORMAT"):
            name = next(stream, None)
            if name is None or name.kind != "word":
                raise ClickHouseError(SYNTAX_ERROR, "Syntax error: FORMAT without a format name.")
            return head(token.end - len("FORMAT"), name.text, _data_start(text, name.end))
        elif depth == 0 and settings_at is None and token.is_word("SETTINGS"):
            settings_at = token.end - len("SETTINGS")
        token = next(stream, None)
    return None


def _data_start(text: str, at: int) -> int:
    """Data begins after blanks and at most one line break, as in ClickHouse: a second one belongs to the data."""
    while at < len(text) and text[at] in " \t\f":
        at += 1
    if at < len(text) and text[at] == "\r":
        at += 1
    if at < len(text) and text[at] == "\n":
        at += 1
    return at


@dataclass(frozen=True, slots=True)
class QueryShape:
    """What the tokens of a query say about it."""

    first_word: str
    format_name: str | None
    settings: tuple[str, ...]
    settings_clauses: int
    calls: frozenset[str]
    words: frozenset[str]  # bare and quoted
    odd: bool  # holds what these rules cannot tell apart
    odd_names: bool  # quoted names with escapes or control characters


def shape_of(text: str) -> QueryShape:
    """Reads a query that has no data after it."""
    found = list(tokens(text))
    settings: list[str] = []
    clauses = 0
    format_name = None
    calls: set[str] = set()
    index = 0
    while index < len(found):
        token = found[index]
        following = found[index + 1] if index + 1 < len(found) else None
        if following is not None and following.text == "(" and token.kind in ("word", "quoted"):
            calls.add(token.name)
        if token.is_word("SETTINGS") and (names := _setting_names(found, index + 1)):
            settings.extend(names)
            clauses += 1
        elif token.is_word("FORMAT") and following is not None and following.kind in ("word", "quoted") and index > 0:
            format_name = following.name
        index += 1
    first = next((token for token in found if token.text != "("), None)
    return QueryShape(
        first_word=first.text.upper() if first is not None and first.kind == "word" else "",
        format_name=format_name,
        settings=tuple(settings),
        settings_clauses=clauses,
        calls=frozenset(calls),
        words=frozenset(token.name for token in found if token.kind in ("word", "quoted")),
        odd=any(token.kind == "odd" for token in found),
        odd_names=any(token.kind == "quoted" and _ODD_NAME.search(token.text) is not None for token in found),
    )


def _setting_names(found: list[Token], index: int) -> list[str]:
    """`a = 1, b = 'x', c` after SETTINGS: its names, where `c` alone means `c = 1`.

    Empty for a column called `settings`, and for a clause that opens with a lone name: the guard refuses the latter,
    as the engine's tree then shows a clause more than the tokens.
    """
    names: list[str] = []
    if index + 1 >= len(found) or found[index + 1].text != "=":
        return names
    while index < len(found) and found[index].kind in ("word", "quoted"):
        names.append(found[index].name)
        depth = 0
        index += 1
        while index < len(found):
            text = found[index].text
            if text in _OPEN and found[index].kind == "other":
                depth += 1
            elif text in _CLOSE and found[index].kind == "other":
                if depth == 0:
                    return names
                depth -= 1
            elif text == "," and depth == 0:
                index += 1
                break
            index += 1
    return names
