"""Text taken apart into pieces: the same however it is cut, and nothing is lost."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus_contracts.pieces import (
    CallArguments,
    CallEnd,
    CallStart,
    Piece,
    Pieces,
    Reasoning,
    Said,
    SaidCall,
    Spans,
    Text,
    pieces_of,
)

MARKS = st.sampled_from(
    ["<tool_call>", "</tool_call>", "<think>", "</think>", "<tool", "\n", " ", '{"name": "', "f", '", "arguments": ',
     "{", "}", '"', "\\", "[", "]", "a<b", "é", '"x": "}\\""', "}}\n</tool_call>"]
)  # fmt: skip
SOUP = st.lists(MARKS | st.text(max_size=3), max_size=25).map("".join)


def call(name: str, arguments: object) -> str:
    return f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": {json.dumps(arguments)}}}\n</tool_call>'


def parse(deltas: list[str], **reading: bool) -> list[Piece]:
    parser = Pieces(**{"tools": True, **reading})
    out = [piece for delta in deltas for piece in parser.feed(delta)]
    return out + parser.end()


def joined(pieces: list[Piece]) -> list[Piece]:
    """Neighbours of one kind as one."""
    out: list[Piece] = []
    for piece in pieces:
        match out[-1:], piece:
            case [Text(before)], Text(text):
                out[-1] = Text(before + text)
            case [Reasoning(before)], Reasoning(text):
                out[-1] = Reasoning(before + text)
            case [CallArguments(index, before)], CallArguments(same, text) if same == index:
                out[-1] = CallArguments(index, before + text)
            case _:
                out.append(piece)
    return out


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[start:end] for start, end in pairwise(ends)]


READING = st.fixed_dictionaries({"tools": st.booleans(), "reasoning": st.booleans()}) | st.fixed_dictionaries(
    {"tools": st.just(True), "reasoning": st.booleans(), "must_call": st.just(True)}
)


@given(SOUP, st.lists(st.integers(0, 10_000), max_size=30), READING)
def test_how_the_text_is_cut_does_not_matter(text: str, places: list[int], reading: dict[str, bool]) -> None:
    whole = joined(parse([text], **reading))
    assert joined(parse(cut(text, places), **reading)) == whole
    assert joined(parse(list(text), **reading)) == whole


@given(SOUP, st.lists(st.integers(0, 10_000), max_size=30), READING)
def test_spans_are_all_of_the_text_and_say_which_of_it_is_text(
    text: str, places: list[int], reading: dict[str, bool]
) -> None:
    spans = Spans(Pieces(**reading))
    parts = []
    certain = ""
    for delta in cut(text, places):
        parts += spans.feed(delta)
        certain += delta
        whole = Spans(Pieces(**reading)).feed(certain)
        assert "".join(one.raw for one in parts) == "".join(one.raw for one in whole), "no more held back than must be"
    parts += spans.end()
    assert "".join(one.raw for one in parts) == text
    pieces = parse([text], **reading)
    assert "".join(one.raw for one in parts if one.said) == "".join(
        piece.text for piece in pieces if isinstance(piece, Text)
    )
    # Where something stands between two texts, there is a span of it.
    assert [one.said for one in parts].count(False) >= sum(isinstance(piece, CallEnd) for piece in pieces)


@given(SOUP, st.booleans())
def test_nothing_that_was_said_is_lost(text: str, reasoning: bool) -> None:
    pieces = parse([text], reasoning=reasoning)
    said = "".join(
        piece.text if isinstance(piece, Text | Reasoning) else piece.name if isinstance(piece, CallStart)
        else piece.fragment if isinstance(piece, CallArguments) else ""
        for piece in pieces
    )  # fmt: skip
    if not any(isinstance(piece, CallStart | Reasoning) for piece in pieces) and "<think>" not in text:
        begun = text[len(said) :].lstrip()
        assert text.startswith(said)
        assert not begun or begun.startswith("<tool_call>")
    elif "\\" not in text:  # a name may be written with escapes
        rest = iter(text)
        assert all(character in rest for character in said)


@given(SOUP)
def test_without_tools_everything_is_text_at_once(text: str) -> None:
    parser = Pieces(tools=False)
    assert parser.feed(text) == ([Text(text)] if text else [])
    assert parser.end() == []


@given(SOUP.filter(lambda text: "<" not in text and text.strip() == text))
def test_plain_text_is_not_held_back(text: str) -> None:
    parser = Pieces(tools=True)
    for character in text:
        assert joined(parser.feed(character)) in ([Text(character)], []) or not character.strip()
    assert parser.end() == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
# As JSON text a name may have 256 characters, and one character takes up to twelve.
NAMES = st.text(min_size=1, max_size=40).filter(lambda name: len(json.dumps(name)) <= 256)
CALLS = st.lists(st.tuples(NAMES, st.dictionaries(st.text(max_size=5), JSON, max_size=3)))


@given(CALLS, st.sampled_from(["", "\n", "\n\n "]), st.lists(st.integers(0, 10_000), max_size=30))
def test_calls_are_found_whole(calls: list[tuple[str, dict[str, object]]], between: str, places: list[int]) -> None:
    text = between.join(call(name, arguments) for name, arguments in calls)
    pieces = parse(cut(text, places))
    said = Said()
    said.add(pieces)
    assert said.text == ""
    assert [(one.name, json.loads(one.arguments)) for one in said.calls] == calls
    assert [piece.index for piece in pieces if isinstance(piece, CallEnd)] == list(range(len(calls)))


def test_arguments_come_as_they_are_written() -> None:
    parser = Pieces(tools=True)
    assert parser.feed('<tool_call>\n{"name": "f", "arg') == []
    assert parser.feed('uments": {"a": ') == [CallStart(0, "f"), CallArguments(0, '{"a": ')]
    assert parser.feed('"}\\') == [CallArguments(0, '"}')]
    assert parser.feed('""}') == [CallArguments(0, '\\""}'), CallEnd(0)]
    assert parser.feed("}\n</tool_call>\n") == []
    assert parser.feed("done") == [Text("\ndone")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  \n", Said("  \n")),
        ("let me see <tool", Said("let me see <tool")),
        ("<tool_call>", Said("")),
        ('\n<tool_call>{"nam', Said("")),
        ('so <tool_call>{"nam', Said("so ")),
        (call("f", {}) + "\n<tool_", Said("", "", [SaidCall("f", "{}")])),
        ("<tool_call>not json</tool_call>", Said("<tool_call>not json</tool_call>")),
        ('<tool_call>{"name": "\\ud800", "arguments": {}}', Said('<tool_call>{"name": "\\ud800", "arguments": {}}')),
        ('<tool_call>{"arguments": {}, "name": "f"}', Said('<tool_call>{"arguments": {}, "name": "f"}')),
        ('<tool_call>{"name": "f", "arguments": "{}"}', Said('<tool_call>{"name": "f", "arguments": "{}"}')),
        ("<think>why</think>\n\nso", Said("so", "why")),
        ("\n<think>cut of", Said("", "cut of")),
        ("no <think>mark", Said("no <think>mark")),
    ],
)
def test_odd_ends(text: str, expected: Said) -> None:
    assert pieces_of(text, tools=True, reasoning=True) == expected


@pytest.mark.parametrize("text", ["<", " <tool_ca", "<tool_call>\n{", '<tool_call>\n{"name": "f", "arguments'])
def test_a_call_that_must_be_and_was_cut_off_in_its_head_is_nothing(text: str) -> None:
    for reasoning in (False, True):
        assert pieces_of(text, tools=True, reasoning=reasoning, must_call=True) == Said()
    assert pieces_of("<think>so", tools=True, reasoning=True, must_call=True) == Said("", "so")
    assert pieces_of("no " + text, tools=True, must_call=True).text.startswith("no "), "not every engine can enforce it"


def test_whether_the_last_call_is_whole() -> None:
    parser = Pieces(tools=True)
    seen = []
    for delta in ("Hi ", "<tool_call>", '{"name": "f", "arguments": {', '"a": 1', "}", "}</tool_call>", "Bye"):
        parser.feed(delta)
        seen.append((parser.called, parser.silent))
    assert seen == [
        (False, False), (False, False), (False, True), (False, True), (True, True), (True, True), (True, False)
    ]  # fmt: skip


def test_text_around_calls() -> None:
    text = "I look. " + call("f", {}) + "\n" + call("g", {"a": [1]}) + " Done."
    assert joined(parse([text])) == [
        Text("I look. "), CallStart(0, "f"), CallArguments(0, "{}"), CallEnd(0),
        CallStart(1, "g"), CallArguments(1, '{"a": [1]}'), CallEnd(1), Text(" Done."),
    ]  # fmt: skip


def test_a_call_that_is_cut_off_has_no_end() -> None:
    assert joined(parse(['<tool_call>{"name": "f", "arguments": {"a": "x\\'])) == [
        CallStart(0, "f"), CallArguments(0, '{"a": "x\\'),
    ]  # fmt: skip
    # Only its marks are missing: the call itself is whole.
    assert joined(parse(['<tool_call>{"name": "f", "arguments": {}}\n</tool']))[-1] == CallEnd(0)


@pytest.mark.parametrize("size", [200, 2000])
def test_what_is_held_back_is_bounded(size: int) -> None:
    parser = Pieces(tools=True)
    parser.feed('<tool_call>{"name": "')
    out = [piece for _ in range(size) for piece in parser.feed("x")]
    assert bool(out) == (size == 2000)
