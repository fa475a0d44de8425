"""Tables in a narrow terminal: what names a row is whole, or the row is shown as lines."""

from hypothesis import given
from hypothesis import strategies as st
from inferbus_cli.tables import Column, Rows
from rich.console import Console

KEY_ID = "key_3041cccd144aa92dbf07d8ab"
COLUMNS = (Column("id"), Column("note", folds=True), Column("created", spare=1), Column("key", spare=2))


def shown(rows: Rows, width: int) -> str:
    console = Console(width=width, highlight=False)
    with console.capture() as capture:
        console.print(rows)
    return capture.get()


def table(*cells: str) -> Rows:
    rows = Rows(*COLUMNS)
    rows.add(*cells)
    return rows


def test_all_columns_where_there_is_room() -> None:
    text = shown(table(KEY_ID, "first key", "2026-11-21", "ib-abcdef"), 120)
    assert all(word in text for word in (KEY_ID, "first key", "2026-11-21", "ib-abcdef"))
    assert "wider terminal" not in text


def test_the_sparest_column_goes_first_and_is_named() -> None:
    text = shown(table(KEY_ID, "first key", "2026-11-21", "ib-abcdef"), 55)
    assert KEY_ID in text
    assert "2026-11-21" in text
    assert "ib-abcdef" not in text
    assert "In a wider terminal, and with --json: key." in text


def test_lines_where_even_the_kept_columns_do_not_fit() -> None:
    text = shown(table(KEY_ID, "first-key-of-the-web-team", "2026-11-21", "ib-abcdef"), 45)
    assert [line.split() for line in text.splitlines() if line.split()] == [
        ["id", KEY_ID], ["note", "first-key-of-the-web-team"], ["created", "2026-11-21"], ["key", "ib-abcdef"],
    ]  # fmt: skip


@given(
    note=st.text("ab c", max_size=30), created=st.text("de", max_size=20), key=st.text("fg", max_size=40),
    width=st.integers(40, 140),
)  # fmt: skip
def test_an_id_is_never_cut(note: str, created: str, key: str, width: int) -> None:
    text = shown(table(KEY_ID, note, created, key), width)
    assert KEY_ID in text
    assert all(len(line) <= width for line in text.splitlines())
