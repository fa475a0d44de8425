"""The bytes of a stream: any text, split anywhere, comes back whole."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.common.v1.usage_pb2 import Usage
from inferbus_contracts.ids import uuid_text
from inferbus_dialect import sse
from inferbus_dialect.errors import internal
from inferbus_dialect.translate import completion_body

REQUEST_ID = bytes(range(16))
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
USAGE = Usage(input_tokens=7, cached_input_tokens=2, output_tokens=3, reasoning_tokens=1)


def facts(model: str = "m", revision: str = "r", include_usage: bool = False) -> sse.StreamFacts:
    return sse.StreamFacts(REQUEST_ID, 1_700_000_000, model, revision, include_usage)


def parse(stream: bytes) -> list[tuple[str | None, str]]:
    """(id, data) of each event, as the SSE specification has it (line ends are LF here)."""
    events = []
    for block in stream.decode().split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if "data" in fields:
            events.append((fields.get("id"), fields["data"]))
    return events


def dechunk(data: bytes) -> list[bytes]:
    chunks = []
    while data:
        size, _, rest = data.partition(b"\r\n")
        length = int(size, 16)
        assert rest[length : length + 2] == b"\r\n"
        chunks.append(rest[:length])
        data = rest[length + 2 :]
    return chunks


@given(st.lists(TEXT, min_size=1, max_size=6), st.integers(0, 1 << 31), st.text(max_size=40))
def test_each_delta_is_one_http_chunk_of_the_same_event(texts: list[str], index: int, model: str) -> None:
    chunked, plain = (sse.template(facts(model), 0, chunked=one) for one in (True, False))
    escaped = [sse.escape(text.encode()) for text in texts]
    stream = b"".join(sse.delta_event(chunked, index, one) for one in escaped)
    assert dechunk(stream) == [sse.delta_event(plain, index, one) for one in escaped]
    assert dechunk(sse.http_chunk(b"abc") + sse.LAST_CHUNK) == [b"abc", b""]


@given(st.binary(min_size=16, max_size=16), st.integers(0, 10**9))
def test_an_event_id_comes_back(request_id: bytes, number: int) -> None:
    line, _, rest = sse.numbered(request_id, number, b"data: {}\n\n").partition(b"\n")
    assert rest == b"data: {}\n\n"
    assert sse.parse_event_id(line.removeprefix(b"id:").decode()) == (request_id, number)


@pytest.mark.parametrize(
    "text", ["", ":", "5", "x:1", f"{uuid_text(bytes(16))}:", f"{uuid_text(bytes(16))}:-1", "\u0663" * 40]
)
def test_what_is_no_event_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        sse.parse_event_id(text)


@given(TEXT)
def test_escaped_text_is_the_inside_of_a_json_string(text: str) -> None:
    escaped = sse.escape(text.encode())
    assert json.loads(b'"' + escaped + b'"') == text
    assert sse.needs_escape(text.encode()) == (escaped != text.encode())
    # Clients that split lines as Unicode does must not find one inside an event.
    assert len((b"x" + escaped + b"x").decode().splitlines()) == 1


@given(st.lists(TEXT, max_size=8), st.text(max_size=10))
def test_the_unary_answer_holds_the_same_text(texts: list[str], model: str) -> None:
    body = json.loads(
        completion_body(
            request_id=REQUEST_ID, created=5, model=model, revision="r",
            escaped=b"".join(sse.escape(text.encode()) for text in texts), finish_reason="length", usage=USAGE,
        )
    )  # fmt: skip
    choice = body["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "".join(texts), "refusal": None}
    assert (choice["finish_reason"], body["object"], body["model"]) == ("length", "chat.completion", model)
    assert body["usage"] == {
        "prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 2}, "completion_tokens_details": {"reasoning_tokens": 1},
    }  # fmt: skip


def test_an_error_event_is_the_error_body() -> None:
    ((_, data),) = parse(sse.error_event(internal()))
    assert json.loads(data)["error"]["code"] == "internal_error"
