import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.bus.v1.request_pb2 import GenerateRequest, Work
from inferbus_contracts.ids import parse_uuid, uuid7, uuid_text
from inferbus_contracts.subjects import (
    SHARDS,
    incarnation_of,
    message_id,
    model_shard,
    name_of_token,
    request_subject,
    shard_requests,
    subject_of,
    subject_token,
    token_subject,
    work_subject,
)


@given(st.text(min_size=1))
def test_a_name_comes_back_from_its_token_whatever_it_holds(name: str) -> None:
    name = name.encode(errors="replace").decode()
    token = subject_token(name)
    assert name_of_token(token) == name
    assert not set(token) & set(".*> \t\r\n")


@given(st.text(min_size=1), st.text(min_size=1), st.text(min_size=1), st.text(min_size=1))
def test_two_pairs_of_names_never_share_a_subject(a: str, b: str, c: str, d: str) -> None:
    a, b, c, d = (name.encode(errors="replace").decode() for name in (a, b, c, d))
    assert (token_subject(a, b) == token_subject(c, d)) == ((a, b) == (c, d))


@given(st.integers(0, (1 << 48) - 1), st.binary(min_size=10, max_size=16))
def test_a_request_id_is_a_version_7_uuid_in_order_of_time(unix_ms: int, entropy: bytes) -> None:
    request_id = uuid7(unix_ms, entropy)
    text = uuid_text(request_id)
    assert parse_uuid(text) == request_id == parse_uuid(request_id.hex())
    assert text[14] == "7"
    assert text[19] in "89ab"
    if unix_ms:
        assert uuid7(unix_ms - 1, entropy) < request_id


@given(st.text(min_size=1), st.text())
def test_adapters_are_scheduled_with_their_model(model: str, adapter: str) -> None:
    model = model.encode(errors="replace").decode().replace(":", ";")
    shard = model_shard(model)
    assert 0 <= shard < SHARDS
    assert model_shard(f"{model}:{adapter}") == shard
    request = GenerateRequest()
    request.context.model = model
    assert request_subject(request).startswith(shard_requests(shard).removesuffix(">"))


@given(st.text(min_size=1), st.integers(0, (1 << 63) - 1))
def test_an_incarnation_comes_back_from_its_subject(worker: str, boot: int) -> None:
    worker = worker.encode(errors="replace").decode()
    assert incarnation_of(work_subject(worker, boot)) == (worker, boot)


@pytest.mark.parametrize("attempt", [0, 1])
def test_a_first_attempt_is_named_by_its_request_alone(attempt: int) -> None:
    request = GenerateRequest(request_id=b"r" * 16)
    assert message_id(Work(request=request, attempt=attempt)) == message_id(request) == (b"r" * 16).hex()


def test_each_attempt_is_placed_once_and_goes_back_once() -> None:
    request = GenerateRequest(request_id=b"r" * 16)
    request.resume.attempt = 2
    other = GenerateRequest(request_id=b"r" * 16)
    other.resume.attempt = 3
    names = {message_id(one) for one in (request, other, GenerateRequest(request_id=b"r" * 16))}
    assert len(names) == 3
    # Wherever it is placed.
    here, there = (Work(request=request, worker=name, boot=1, attempt=2) for name in ("a", "b"))
    assert message_id(here) == message_id(there) == message_id(request)


def test_who_speaks_for_a_worker_is_heard_among_its_frames_under_a_name_of_his_own() -> None:
    own = Frame(edge="e", worker="w", boot=1, sequence=1)
    fence = Frame(edge="e", worker="scheduler", stead="w", boot=1, sequence=1)
    assert subject_of(own) == subject_of(fence)
    assert message_id(own) != message_id(fence)


def test_a_request_that_a_fallback_answers_is_another_message() -> None:
    asked = GenerateRequest(request_id=b"r" * 16)
    asked.context.model = "large"
    given_on = GenerateRequest(request_id=b"r" * 16, asked_model="large")
    given_on.context.model = "small"
    assert message_id(asked) != message_id(given_on)
