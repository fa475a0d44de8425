"""The batch service's decisions, by properties."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus_batch.core.done import Done
from inferbus_batch.core.job_states import CANCELLABLE, ENDED, MOVES, may_move
from inferbus_batch.core.line_ids import MAX_LINES, MAX_TRIES, line_of, line_request_id
from inferbus_batch.core.lines import ENDPOINTS, MAX_LINE_BYTES, Fault, Line, plan_line, read_line
from inferbus_batch.core.segments import pieces
from inferbus_contracts.ids import choice_id, edge_tag, tag_of, unix_ms_of
from inferbus_dialect.plan import Plan

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def said(**fields: object) -> bytes:
    return orjson.dumps({"custom_id": "a", "method": "POST", "url": CHAT, "body": BODY} | fields)


@given(st.lists(st.integers(0, 50), max_size=8), st.integers(0, 300), st.integers(0, 300))
def test_the_pieces_of_a_range_are_the_range(sizes, offset, length):
    segments, at = [], 0
    for size in sizes:
        segments.append(bytes((at + byte) % 251 for byte in range(size)))
        at += size
    whole = b"".join(segments)
    found = list(pieces(sizes, offset, length))
    assert (
        b"".join(segments[one.segment][one.offset : one.offset + one.length] for one in found)
        == whole[offset : offset + length]
    )
    assert all(one.length for one in found)


@given(st.integers(0, 40), st.lists(st.integers(0, 60)))
def test_what_is_done_is_what_was_added_however_it_came(floor, lines):
    done, known = Done(floor), set(range(floor))
    for line in lines:
        assert done.add(line) == (line not in known)
        known.add(line)
    assert len(done) == len(known)
    assert [line for line in range(70) if line in done] == sorted(known)
    assert list(done.missing(70)) == sorted(set(range(70)) - known)
    again = Done(done.floor, done.above())
    assert (again.floor, again.above()) == (done.floor, done.above())
    assert done.floor not in done


@given(st.integers(0, MAX_LINES - 1), st.integers(0, MAX_TRIES - 1), st.integers(0, (1 << 48) - 1), st.integers(0, 127))
def test_a_lines_id_says_line_try_time_and_edge(line, attempt, window_ms, choice):
    name = line_request_id("batch_1", line, attempt, window_ms, "batch-3")
    assert line_of(choice_id(name, choice)) == (line, attempt)
    assert unix_ms_of(name) == window_ms
    assert tag_of(name) == edge_tag("batch-3")
    assert name == line_request_id("batch_1", line, attempt, window_ms, "batch-3")
    assert name != line_request_id("batch_2", line, attempt, window_ms, "batch-3")
    assert name[6] >> 4 == 7


def test_an_id_has_no_room_for_more():
    for line, attempt in ((MAX_LINES, 0), (0, MAX_TRIES), (-1, 0)):
        with pytest.raises(ValueError, match="room"):
            line_request_id("batch_1", line, attempt, 0, "batch-3")


def test_final_states_are_final_and_all_are_reached():
    assert {after for moves in MOVES.values() for after in moves} | {1} == set(MOVES)
    for state in MOVES:
        assert (state in ENDED) == (not any(may_move(state, after) for after in MOVES))
        assert not (state in CANCELLABLE and state in ENDED)


@pytest.mark.parametrize(
    ("raw", "code", "param"),
    [
        (b"", "invalid_json_line", ""),
        (b"not json", "invalid_json_line", ""),
        (said()[:-1], "invalid_json_line", ""),
        (b"[1]", "invalid_json_line", ""),
        (b'"text"', "invalid_json_line", ""),
        (said(custom_id="caf\u00e9").decode().encode("latin-1"), "invalid_encoding", ""),
        (said().decode().encode("utf-16"), "invalid_encoding", ""),
        (said()[:-1] + b"\0}", "invalid_json_line", ""),
        (said(custom_id="x" * MAX_LINE_BYTES), "line_too_long", ""),
        (b"[" * 100 + b"]" * 100, "nested_too_deep", ""),
        (said(custom_id=7), "invalid_custom_id", "custom_id"),
        (said(custom_id=""), "invalid_custom_id", "custom_id"),
        (said(custom_id="x" * 513), "invalid_custom_id", "custom_id"),
        (said(method="GET"), "invalid_method", "method"),
        (said(url="/v1/embeddings"), "mismatched_endpoint", "url"),
        (said(body="{}"), "invalid_type", "body"),
        (said(extra=1), "unknown_parameter", "extra"),
        (orjson.dumps({"custom_id": "a", "method": "POST", "url": CHAT}), "missing_required_parameter", "body"),
    ],
)
def test_a_line_of_the_wrong_form_is_a_fault_with_its_number(raw, code, param):
    fault = read_line(12, raw, CHAT)
    assert isinstance(fault, Fault)
    assert (fault.line, fault.code, fault.param) == (12, code, param)
    assert fault.message


@given(st.binary(max_size=200))
def test_any_bytes_are_a_line_or_a_fault(raw):
    assert isinstance(read_line(1, raw, CHAT), Fault | Line)


def test_a_line_is_read_as_it_is():
    line = read_line(1, said(), CHAT)
    assert isinstance(line, Line)
    assert (line.custom_id, orjson.loads(line.body)) == ("a", BODY)


@pytest.mark.parametrize(
    ("endpoint", "body", "code", "param"),
    [
        (CHAT, {"model": "m"}, "missing_required_parameter", "body.messages"),
        (CHAT, BODY | {"stream": True}, "unsupported_parameter", "body.stream"),
        (CHAT, BODY | {"temperature": 9}, "invalid_value", "body.temperature"),
        ("/v1/completions", {"model": "m"}, "missing_required_parameter", "body.prompt"),
        ("/v1/embeddings", {"model": "m", "input": []}, "invalid_value", "body.input"),
        (
            "/v1/responses",
            {"model": "m", "input": "hi", "background": True},
            "unsupported_parameter",
            "body.background",
        ),
        (
            "/v1/responses",
            {"model": "m", "input": "hi", "previous_response_id": "resp_" + "0" * 32},
            "unsupported_parameter",
            "body.previous_response_id",
        ),
        (
            "/v1/responses",
            {"model": "m", "input": [{"type": "item_reference", "id": "msg_1"}]},
            "unsupported_parameter",
            "body.input",
        ),
    ],
)
def test_a_body_that_cannot_run_as_a_line_is_a_fault(endpoint, body, code, param):
    fault = plan_line(3, orjson.dumps(body), endpoint)
    assert isinstance(fault, Fault)
    assert (fault.line, fault.code, fault.param) == (3, code, param)


def test_every_endpoint_makes_a_plan():
    bodies = {
        CHAT: BODY,
        "/v1/completions": {"model": "m", "prompt": "hi"},
        "/v1/embeddings": {"model": "m", "input": "hi"},
        "/v1/responses": {"model": "m", "input": "hi"},
    }
    assert bodies.keys() == ENDPOINTS
    for endpoint, body in bodies.items():
        plan = plan_line(1, orjson.dumps(body), endpoint)
        assert isinstance(plan, Plan)
        assert plan.model == "m"
