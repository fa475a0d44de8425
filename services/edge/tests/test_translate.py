"""OpenAI's words on the bus."""

import json

import pytest
from inferbus.bus.v1.frame_pb2 import Close
from inferbus.bus.v1.registry_pb2 import KeyRecord, ModelRecord
from inferbus.bus.v1.request_pb2 import GenerateRequest
from inferbus.common.v1.error_pb2 import Error, ErrorClass
from inferbus.common.v1.usage_pb2 import FinishReason
from inferbus_edge.core.openai import parse_chat_request
from inferbus_edge.core.translate import error_of, generate_request, model_list

KEY = KeyRecord(key_id="k", tenant_id="t", project_id="p")


def translated(**fields: object) -> GenerateRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return generate_request(
        parse_chat_request(json.dumps(body).encode()),
        request_id=b"r" * 16, edge="e", key=KEY, accepted_us=1_500_000, expire_us=2_500_000,
    )  # fmt: skip


def test_who_when_and_where_travel_along() -> None:
    message = translated()
    context = message.context
    assert (context.tenant_id, context.project_id, context.key_id, context.model) == ("t", "p", "k", "m")
    assert (message.edge, message.request_id) == ("e", b"r" * 16)
    assert message.accepted_time.ToMicroseconds() == 1_500_000
    assert message.expire_time.ToMicroseconds() == 2_500_000


def test_what_is_not_said_stays_absent() -> None:
    sampling = translated().sampling
    assert [field.name for field, _ in sampling.ListFields()] == []


def test_sampling() -> None:
    sampling = translated(
        temperature=0, top_p=0.5, top_k=-1, seed=-1, stop="x", max_completion_tokens=9, presence_penalty=1,
        frequency_penalty=-1, repetition_penalty=1.5,
    ).sampling  # fmt: skip
    assert sampling.HasField("temperature")
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0, 0.5, 0)
    assert (sampling.seed, list(sampling.stop), sampling.max_tokens) == ((1 << 64) - 1, ["x"], 9)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (1, -1, 1.5)
    assert translated(max_tokens=4).sampling.max_tokens == 4
    assert list(translated(stop=["a", "b"]).sampling.stop) == ["a", "b"]


def test_messages() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = translated(
        messages=[{"role": "developer", "content": "s"}, {"role": "user", "content": parts, "name": "joe"}]
    ).chat.messages
    assert [(one.role, one.content, one.name) for one in messages] == [("system", "s", ""), ("user", "ab", "joe")]


def test_how_a_request_ended() -> None:
    assert error_of(Close(finish_reason=FinishReason.FINISH_REASON_STOP)) is None
    assert error_of(Close(finish_reason=FinishReason.FINISH_REASON_LENGTH)) is None
    cancelled = error_of(Close(finish_reason=FinishReason.FINISH_REASON_CANCELLED))
    assert cancelled is not None
    assert cancelled.reason == "cancelled"
    full = Error(error_class=ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED, reason="queue_full", message="later")
    error = error_of(Close(finish_reason=FinishReason.FINISH_REASON_ERROR, error=full))
    assert error is not None
    assert (error.reason, error.message) == ("queue_full", "later")


@pytest.mark.parametrize("reason", [FinishReason.FINISH_REASON_ERROR, FinishReason.FINISH_REASON_UNSPECIFIED])
def test_an_end_without_a_reason_is_our_fault(reason: int) -> None:
    error = error_of(Close(finish_reason=reason))
    assert error is not None
    assert error.error_class == ErrorClass.ERROR_CLASS_INTERNAL


def test_models_are_listed_by_name() -> None:
    listed = model_list([ModelRecord(name="b"), ModelRecord(name="a", owned_by="acme")])
    assert [(one["id"], one["owned_by"]) for one in listed["data"]] == [("a", "acme"), ("b", "inferbus")]
