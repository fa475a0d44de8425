"""The bytes of a stream: any text, split anywhere, comes back whole."""

import json

from hypothesis import given
from hypothesis import strategies as st
from inferbus.common.v1.usage_pb2 import Usage
from inferbus_contracts.ids import uuid_text
from inferbus_edge.core import sse
from inferbus_edge.core.errors import internal
from inferbus_edge.core.translate import completion_body

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


@given(st.lists(TEXT, max_size=8), st.text(max_size=10), st.text(max_size=10), st.booleans())
def test_the_events_give_back_the_text(texts: list[str], model: str, revision: str, include_usage: bool) -> None:
    about = facts(model, revision, include_usage)
    form = sse.template(about, chunked=False)
    stream = sse.role_event(about)
    for index, text in enumerate(texts, 1):
        stream += sse.delta_event(form, index, sse.escape(text.encode()))
    stream += sse.end_events(about, len(texts), "stop", USAGE)

    events = parse(stream)
    assert events[-1] == (None, "[DONE]")
    chunks = [json.loads(data) for _, data in events[:-1]]
    contents = [one["choices"][0]["delta"].get("content", "") for one in chunks if one["choices"]]
    assert "".join(contents) == "".join(texts)
    assert {one["id"] for one in chunks} == {f"chatcmpl-{REQUEST_ID.hex()}"}
    assert {(one["model"], one["system_fingerprint"], one["object"]) for one in chunks} == {
        (model, revision, "chat.completion.chunk")
    }
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    with_choice = [one for one in chunks if one["choices"]]
    assert [one["choices"][0]["finish_reason"] for one in with_choice] == [None] * (len(texts) + 1) + ["stop"]
    if include_usage:
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["total_tokens"] == 10
        assert all(one["usage"] is None for one in chunks[:-1])
    else:
        assert all("usage" not in one for one in chunks)
    ids = [one for one, _ in events[:-1]]
    assert all(one is not None and one.startswith(uuid_text(REQUEST_ID) + ":") for one in ids)
    assert [int(one.rpartition(":")[2]) for one in ids if one][: len(texts) + 1] == list(range(len(texts) + 1))


@given(st.lists(TEXT, min_size=1, max_size=6), st.integers(0, 1 << 31), st.text(max_size=40))
def test_each_delta_is_one_http_chunk_of_the_same_event(texts: list[str], index: int, model: str) -> None:
    chunked, plain = (sse.template(facts(model), chunked=one) for one in (True, False))
    escaped = [sse.escape(text.encode()) for text in texts]
    stream = b"".join(sse.delta_event(chunked, index, one) for one in escaped)
    assert dechunk(stream) == [sse.delta_event(plain, index, one) for one in escaped]
    assert dechunk(sse.http_chunk(b"abc") + sse.LAST_CHUNK) == [b"abc", b""]


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
