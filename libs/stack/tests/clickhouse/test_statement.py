"""Where an INSERT ends and its data begins, and what the tokens of a query say."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus_stack.clickhouse.errors import ClickHouseError, from_engine
from inferbus_stack.clickhouse.splice import Splicer
from inferbus_stack.clickhouse.statement import shape_of, split_insert


@pytest.mark.parametrize(
    ("text", "head", "format_name", "data"),
    [
        ("INSERT INTO t FORMAT CSV\n1,2", "INSERT INTO t ", "CSV", "1,2"),
        ("insert into t format CSV 1,2", "insert into t ", "CSV", "1,2"),
        ("INSERT INTO t FORMAT TSV\n\n1", "INSERT INTO t ", "TSV", "\n1"),
        ("INSERT INTO t FORMAT Native\r\n\x00\x01'\"", "INSERT INTO t ", "Native", "\x00\x01'\""),
        (
            "INSERT INTO t (a, `format`) VALUES (1, 'FORMAT')",
            "INSERT INTO t (a, `format`) ",
            "Values",
            " (1, 'FORMAT')",
        ),
        ("INSERT INTO d.values VALUES (1)", "INSERT INTO d.values ", "Values", " (1)"),
        ("INSERT INTO format FORMAT CSV\n", "INSERT INTO format ", "CSV", ""),
        ("INSERT INTO TABLE `t FORMAT CSV` FORMAT TSV\nx", "INSERT INTO TABLE `t FORMAT CSV` ", "TSV", "x"),
        ("INSERT INTO t SETTINGS a = 'FORMAT X' FORMAT CSV\nx", "INSERT INTO t SETTINGS a = 'FORMAT X' ", "CSV", "x"),
        ("INSERT INTO t -- VALUES\n FORMAT CSV\nx", "INSERT INTO t -- VALUES\n ", "CSV", "x"),
        ("/* c */ INSERT INTO t (*) FORMAT CSV\nx", "/* c */ INSERT INTO t (*) ", "CSV", "x"),
        ("INSERT INTO FUNCTION file('x') FORMAT CSV\nx", "INSERT INTO FUNCTION file('x') ", "CSV", "x"),
        ("INSERT INTO {t:Identifier} FORMAT CSV\nx", "INSERT INTO {t:Identifier} ", "CSV", "x"),
    ],
)
def test_an_insert_is_split_from_its_data(text: str, head: str, format_name: str, data: str) -> None:
    found = split_insert(text)
    assert found is not None
    assert (found.target + found.settings, found.format_name, text[found.data_at :]) == (head, format_name, data)


@pytest.mark.parametrize(
    ("text", "reading"),
    [
        ("INSERT INTO t FORMAT CSV\n1", "INSERT INTO t {} FORMAT CSV"),
        ("INSERT INTO t VALUES (1)", "INSERT INTO t {} FORMAT Values"),
        (
            "INSERT INTO t (a) SETTINGS b = 'FORMAT' FORMAT TSV\n1",
            "INSERT INTO t (a) {} SETTINGS b = 'FORMAT' FORMAT TSV",
        ),
        ("INSERT INTO d.settings (settings) FORMAT CSV\n", "INSERT INTO d.settings (settings) {} FORMAT CSV"),
        ("INSERT INTO settings SETTINGS a = 1 VALUES (1)", "INSERT INTO settings {} SETTINGS a = 1 FORMAT Values"),
        ("INSERT INTO t -- c\nFORMAT CSV\n", "INSERT INTO t -- c\n{} FORMAT CSV"),
        ("INSERT INTO t # c SETTINGS\n VALUES (1)", "INSERT INTO t # c SETTINGS\n{} FORMAT Values"),
    ],
)
def test_an_insert_that_reads_its_data_from_a_file(text: str, reading: str) -> None:
    found = split_insert(text)
    assert found is not None
    wanted = reading.format("FROM INFILE '/p' COMPRESSION 'none'")
    assert found.reading("/p").split() == wanted.split()
    # A comment that ends the text ends before what is put after it.
    assert all("--" not in line and "#" not in line for line in found.reading("/p").split("\n") if "INFILE" in line)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1 FORMAT CSV",
        "INSERT INTO t SELECT 1 FORMAT CSV",
        "INSERT INTO t (a) WITH x AS (SELECT 1) SELECT * FROM x",
        "INSERT INTO t FROM INFILE 'x' FORMAT CSV",
        "WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x",
        "INSERT INTO t",
        "",
        "-- INSERT INTO t VALUES (1)",
        "INSERT INTO t 'open VALUES (1)",
    ],
)
def test_other_statements_are_not_split(text: str) -> None:
    assert split_insert(text) is None


def test_a_format_without_a_name_is_a_syntax_error() -> None:
    with pytest.raises(ClickHouseError, match="FORMAT without"):
        split_insert("INSERT INTO t FORMAT")


def test_a_query_tells_its_format_settings_and_calls() -> None:
    shape = shape_of(
        "SELECT `file`/**/('x'), sum(a) FROM t SETTINGS max_threads = 1, b = 'x, c = 2', `d` = [1, 2] FORMAT JSON"
    )
    assert shape.first_word == "SELECT"
    assert shape.format_name == "JSON"
    assert shape.settings == ("max_threads", "b", "d")
    assert shape.settings_clauses == 1
    assert shape.calls == {"file", "sum"}
    assert not shape.odd


def test_settings_inside_a_subquery_end_with_it() -> None:
    shape = shape_of("SELECT 1 FROM (SELECT 1 SETTINGS a = 1), t SETTINGS b = 2")
    assert shape.settings == ("a", "b")
    assert shape.settings_clauses == 2
    assert shape_of("SELECT 1 SETTINGS a = 1, b, `c` = [1, 2], d FORMAT JSON").settings == ("a", "b", "c", "d")
    assert shape_of("SELECT settings FROM t").settings_clauses == 0


@pytest.mark.parametrize("opener", ["/*", "'", "$a$", "`", '"', "$", "''", "{", "--"])
def test_hostile_text_takes_linear_time(opener: str) -> None:
    started = time.thread_time()
    shape_of(opener * (262_144 // len(opener)))
    assert time.thread_time() - started < 3


@given(st.text(alphabet="ab'\"`\\/*-$ \n(),=", max_size=60))
def test_any_text_can_be_looked_at(text: str) -> None:
    shape_of(text)
    split_insert(f"INSERT INTO t {text}")


@given(st.binary(max_size=200))
def test_binary_data_never_moves_the_split(data: bytes) -> None:
    text = (b"INSERT INTO t (a) FORMAT Native\n" + data).decode("latin-1")
    found = split_insert(text)
    assert found is not None
    assert text[found.data_at :].encode("latin-1") == data


@pytest.mark.parametrize(
    ("format_name", "pieces", "whole"),
    [
        ("TSV", [b"1\n", b"2\n"], b"1\n2\n"),
        ("CSVWithNames", [b'"a\n""b"\n1\n', b'"a\n""b"\n2\n'], b'"a\n""b"\n1\n2\n'),
        ("TSVWithNamesAndTypes", [b"a\nUInt8\n1\n", b"a\nUInt8\n2\n"], b"a\nUInt8\n1\n2\n"),
        ("RowBinaryWithNames", [b"\x01\x01a\x07", b"\x01\x01a\x08"], b"\x01\x01a\x07\x08"),
        ("RowBinaryWithNamesAndTypes", [b"\x01\x01a\x03Int\x07", b"\x01\x01a\x03Int\x08"], b"\x01\x01a\x03Int\x07\x08"),
    ],
)  # fmt: skip
def test_pieces_join_to_one_document(format_name: str, pieces: list[bytes], whole: bytes) -> None:
    splicer = Splicer(format_name)
    parts = [splicer.first(pieces[0]), *(splicer.next(piece) for piece in pieces[1:]), splicer.end()]
    assert b"".join(parts) == whole
    assert splicer.next(b"") == b""


def test_engine_texts_are_read_once() -> None:
    error = from_engine(
        RuntimeError(
            "Code: 164. DB::Exception: Code: 164. DB::Exception: Cannot modify. (READONLY) (version 1.2). (READONLY)"
        )
    )
    assert (error.code, error.name) == (164, "READONLY")
    assert error.text("9.9") == "Code: 164. DB::Exception: Cannot modify. (READONLY) (version 9.9)"
    assert from_engine(ValueError("odd")).code == 1002
    assert ClickHouseError(60, "no /data/x/store").without_path("/data/x").detail == "no <data>/store"
