"""Inputs as files: every fault with its line, and the order in which lines run."""

from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inferbus_batch.core.index import ENTRY_BYTES, place_at
from inferbus_batch.core.lines import MAX_LINE_BYTES, Fault
from inferbus_batch.validating import MAX_FAULTS, Report, Served, lines_of, validate
from inferbus_rating import UNRATED

CHAT = "/v1/chat/completions"
RATE = replace(UNRATED, version="1", currency="EUR", output_per_million=Decimal(2))
MODELS = {
    "m": Served(
        frozenset({"chat"}), 100_000, replace(UNRATED, version="1", currency="EUR", output_per_million=Decimal(2))
    ),
    "other": Served(frozenset({"chat"})),
    "tiny": Served(frozenset({"chat"}), 1000),
    "vectors": Served(frozenset({"embeddings"})),
}


def line(custom_id: object, content: str = "hi", model: str = "m", **fields: object) -> bytes:
    body = {"model": model, "messages": [{"role": "user", "content": content}]} | fields
    return orjson.dumps({"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body})


def judged(folder: Path, data: bytes, max_lines: int = 10_000):
    source = folder / "input.jsonl"
    source.write_bytes(data)
    return validate(source, folder / "index", CHAT, MODELS, max_lines)


def in_run_order(folder: Path) -> list[str]:
    index, data = (folder / "index").read_bytes(), (folder / "input.jsonl").read_bytes()
    places = [place_at(index, at) for at in range(len(index) // ENTRY_BYTES)]
    return [orjson.loads(data[one.offset : one.offset + one.size])["custom_id"] for one in places]


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from([b"", b"  ", b"x", b'{"a":1}', "ü".encode(), b"long" * 50]), max_size=12),
    st.sampled_from([b"\n", b"\r\n"]),
    st.booleans(),
    st.booleans(),
)
def test_lines_are_found_where_they_are(tmp_path_factory, given_lines, end, closed, marked):
    source = tmp_path_factory.mktemp("lines") / "input"
    data = b"\xef\xbb\xbf" * marked + end.join(given_lines) + end * closed
    source.write_bytes(data)
    found = list(lines_of(source))
    expected = [(number, one) for number, one in enumerate(given_lines, 1) if one.strip()]
    assert [(place.number, raw) for place, raw in found] == expected
    assert all(data[place.offset : place.offset + place.size] == raw for place, raw in found)


def test_a_good_file_has_an_index_with_shared_prefixes_together(tmp_path):
    systems = ["a" * 600, "b" * 600]
    data = b"\n".join(line(f"{number}", systems[number % 2] + f" question {number}") for number in range(10))
    report = judged(tmp_path, data)
    assert (report.lines, report.fault_count, report.models) == (10, 0, ["m"])
    order = [int(name) for name in in_run_order(tmp_path)]
    assert sorted(order) == list(range(10))
    assert [number % 2 for number in order] in ([0] * 5 + [1] * 5, [1] * 5 + [0] * 5)
    assert order[:5] == sorted(order[:5])


def test_two_models_are_no_model(tmp_path):
    assert judged(tmp_path, line("a") + b"\n" + line("b", model="other")).models == ["m", "other"]


def test_every_fault_is_told_with_its_line_and_nothing_is_indexed(tmp_path):
    faults = {
        "invalid_json_line": [b"{", b"null", line("nul")[:-1] + b"\0}"],
        "invalid_encoding": [line("latin").replace(b"hi", b"\xe9")],
        "duplicate_custom_id": [line("same")],
        "mismatched_endpoint": [line("url").replace(CHAT.encode(), b"/v1/embeddings")],
        "model_not_found": [line("model", model="none")],
        "unsupported_parameter": [line("stream", stream=True), line("chat", model="vectors")],
        "line_too_long": [line("long", "x" * MAX_LINE_BYTES, model="other")],
        "invalid_custom_id": [line(7)],
        "missing_required_parameter": [line("body").replace(b"messages", b"message", 1)],
    }
    lines, expected = [line("same")], []
    for code, bad in faults.items():
        for one in bad:
            lines += [one, line(f"good-{len(lines)}"), b""]
            expected.append((len(lines) - 2, code))
    report = judged(tmp_path, b"\n".join(lines))
    got = [(one.line, one.code) for one in report.faults]
    unknown = [at for at, code in got if code == "unknown_parameter"]
    assert [(at, "missing_required_parameter" if at in unknown else code) for at, code in got] == expected
    assert report.fault_count == len(expected)
    assert not (tmp_path / "index").exists()


def test_of_very_many_faults_the_first_are_told_and_all_are_counted(tmp_path):
    report = judged(tmp_path, b"x\n" * (MAX_FAULTS + 500))
    assert (len(report.faults), report.fault_count) == (MAX_FAULTS, MAX_FAULTS + 500)
    assert [one.line for one in report.faults] == list(range(1, MAX_FAULTS + 1))


@pytest.mark.parametrize("data", [b"", b"\n\n  \n", b"\xef\xbb\xbf"])
def test_a_file_without_lines_is_a_fault(tmp_path, data):
    assert [one.code for one in judged(tmp_path, data).faults] == ["empty_file"]


def test_too_many_lines_are_a_fault(tmp_path):
    report = judged(tmp_path, b"\n".join(line(str(number)) for number in range(5)), max_lines=3)
    assert [(one.line, one.code) for one in report.faults] == [(4, "too_many_lines")]


def test_what_a_file_can_cost_is_the_sum_of_its_lines(tmp_path):
    report = judged(tmp_path, line("a", max_tokens=500_000) + b"\n" + line("b", max_tokens=10))
    # No more than its context.
    assert (report.highest_cost, report.currency) == (Decimal("0.20002"), "EUR")
    assert judged(tmp_path, line("a") + b"\n" + line("b", model="other")).highest_cost is None


def test_lines_that_may_be_too_long_are_named_the_longest_first(tmp_path):
    data = b"\n".join(line(str(size), "x" * size) for size in (10, 98_500, 99_999, 5, 120_000))
    report = judged(tmp_path, data)
    assert [place.number for place in report.long] == [5, 3, 2]
    assert not report.fault_count
    assert [one.code for one in judged(tmp_path, line("sure", "x" * 3 * (1 << 20), model="tiny")).faults] == [
        "context_length_exceeded"
    ]


def test_faults_found_later_are_told_in_their_places():
    report = Report()
    for number in (2, 5, 9):
        report.add(Fault(number, "x", "x"))
    report.insert([Fault(7, "y", "y"), Fault(1, "y", "y")])
    assert ([one.line for one in report.faults], report.fault_count) == ([1, 2, 5, 7, 9], 5)
