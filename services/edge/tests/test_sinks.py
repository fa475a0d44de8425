"""Streams as clients get them: any text, split anywhere, comes back whole; and from any event on."""

import json
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.frame_pb2 import Close
from inferbus.common.v1.usage_pb2 import FinishReason, Usage
from inferbus_contracts.ids import uuid_text
from inferbus_dialect.errors import internal
from inferbus_dialect.sse import escape
from inferbus_edge.sinks import ChatFacts, ChatStream
from inferbus_edge.wire import SLOW_CLIENT, Line

REQUEST_ID = bytes(range(16))
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
# (choice, text) in the order of the log
DELTAS = st.lists(st.tuples(st.integers(0, 2), TEXT), max_size=10)


@dataclass
class Transport:
    """Takes bytes as a socket does; ``unsent``: what the other side has not read."""

    data: bytes = b""
    writes: list[bytes] = field(default_factory=list)
    unsent: int = 0

    def write(self, data: bytes) -> None:
        self.data += data
        self.writes.append(data)

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return self.unsent


def stream_of(
    deltas: list[tuple[int, str]],
    *,
    choices: int = 3,
    include_usage: bool = False,
    after: int = 0,
    corked: bool = False,
) -> Transport:
    transport = Transport()
    facts = ChatFacts(REQUEST_ID, 1_700_000_000, "m", include_usage, choices)
    sink = ChatStream(facts, Line(transport, REQUEST_ID, b"", False, 1 << 20, after, corked), 0.0)  # type: ignore[arg-type]
    begun = set()
    for choice, text in deltas:
        if choice not in begun:
            begun.add(choice)
            sink.open(choice, "r")
        sink.write(choice, 1, text.encode(), escape(text.encode()), (), 1.0)
    for choice in range(choices):
        usage = Usage(input_tokens=7 if choice == 0 else 0, output_tokens=2)
        sink.close(choice, "r", Close(finish_reason=FinishReason.FINISH_REASON_STOP, usage=usage), 2.0)
    sink.finish(3.0)
    if corked:
        assert transport.writes == []
        sink.uncork(4.0)
        assert len(transport.writes) == 1
    return transport


def parse(stream: bytes) -> list[tuple[str, str]]:
    """(id, data) of each event, as the SSE specification has it (line ends are LF here)."""
    events = []
    for block in stream.decode().split("\n\n")[:-1]:
        fields: dict[str, Any] = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        events.append((fields["id"], fields["data"]))
    return events


@given(DELTAS, st.booleans())
def test_the_events_give_back_the_texts(deltas: list[tuple[int, str]], include_usage: bool) -> None:
    events = parse(stream_of(deltas, include_usage=include_usage).data)
    assert [name for name, _ in events] == [f"{uuid_text(REQUEST_ID)}:{n}" for n in range(1, len(events) + 1)]
    assert events[-1][1] == "[DONE]"
    chunks = [json.loads(data) for _, data in events[:-1]]
    for choice in range(3):
        mine = [one["choices"][0] for one in chunks if one["choices"] and one["choices"][0]["index"] == choice]
        assert mine[0]["delta"]["role"] == "assistant"
        assert "".join(one["delta"].get("content", "") for one in mine) == "".join(t for c, t in deltas if c == choice)
        assert [one["finish_reason"] for one in mine] == [None] * (len(mine) - 1) + ["stop"]
    if include_usage:
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["total_tokens"] == 13
        assert all(one["usage"] is None for one in chunks[:-1])
    else:
        assert all("usage" not in one for one in chunks)


@given(DELTAS, st.booleans(), st.data())
def test_a_resumed_stream_is_the_rest_of_the_undisturbed_one(
    deltas: list[tuple[int, str]], include_usage: bool, data: st.DataObject
) -> None:
    whole = parse(stream_of(deltas, include_usage=include_usage).data)
    after = data.draw(st.integers(0, len(whole)))
    rest = stream_of(deltas, include_usage=include_usage, after=after, corked=data.draw(st.booleans()))
    assert parse(rest.data) == whole[after:]


def test_an_uncorked_client_may_take_its_time_with_what_it_missed_but_with_no_more() -> None:
    transport = Transport()
    line = Line(transport, REQUEST_ID, b"", False, 1000, 0, True)  # type: ignore[arg-type]
    sink = ChatStream(ChatFacts(REQUEST_ID, 1, "m", False, 1), line, 0.0)
    sink.open(0, "r")
    for _ in range(20):
        assert sink.write(0, 1, b"x" * 200, b"x" * 200, (), 1.0) is None
    transport.unsent = 4000
    assert sink.uncork(2.0) is None
    assert sink.write(0, 1, b"y", b"y", (), 3.0) is None
    transport.unsent = 20_000
    assert sink.write(0, 1, b"y", b"y", (), 3.0) == SLOW_CLIENT


def test_an_error_is_an_event_only_after_the_first_byte() -> None:
    transport = Transport()
    line = Line(transport, REQUEST_ID, b"", False, 1000)  # type: ignore[arg-type]
    sink = ChatStream(ChatFacts(REQUEST_ID, 1, "m", False, 1), line, 0.0)
    sink.fail(internal(), 1.0)
    assert transport.data == b""
    sink.open(0, "r")
    sink.write(0, 1, b"x", b"x", (), 1.0)
    sink.fail(internal(), 2.0)
    assert json.loads(transport.data.decode().rpartition("data: ")[2])["error"]["code"] == "internal_error"
