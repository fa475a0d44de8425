"""What /tokenize and /detokenize may be asked, and which worker is asked."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.registry_pb2 import WorkerRecord, WorkerState
from inferbus.worker.v1.worker_pb2 import TokenizeResponse
from inferbus_bus.workers import addresses
from inferbus_dialect.plan import Need
from inferbus_edge.core.tokenize_schema import parse_detokenize, parse_tokenize, prompt_body, tokens_body
from inferbus_runtime.errors import InferBusError

MESSAGES = [{"role": "user", "content": "hi"}]
STATES = [WorkerState.WORKER_STATE_STARTING, WorkerState.WORKER_STATE_ACTIVE, WorkerState.WORKER_STATE_DRAINING]


def asked(**fields: Any) -> Any:
    return parse_tokenize(json.dumps({"model": "m", **fields}).encode())


def test_a_prompt() -> None:
    plan, request, strings = asked(prompt="a b")
    assert (plan.model, plan.needs, strings) == ("m", (), False)
    assert (request.text, request.parse_special, request.add_special, request.return_pieces) == (
        "a b", True, True, False,
    )  # fmt: skip
    _, request, strings = asked(prompt="", add_special_tokens=False, return_token_strs=True)
    assert (request.WhichOneof("input"), request.return_pieces, strings) == ("text", True, True)
    assert (request.parse_special, request.HasField("add_special"), request.add_special) == (True, True, False)


def test_messages() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    plan, request, _ = asked(messages=MESSAGES, tools=tools)
    assert plan.needs == (Need("chat", "model"), Need("tools", "tools"))
    assert [(one.role, one.content) for one in request.chat.messages] == [("user", "hi")]
    assert [one.name for one in request.chat.tools] == ["f"]
    assert request.add_generation_prompt
    assert not asked(messages=MESSAGES, add_generation_prompt=False)[1].add_generation_prompt


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "x", "messages": MESSAGES}, "prompt"),
        ({"messages": [{"role": "clown", "content": "x"}]}, "messages[0].role"),
        ({"messages": []}, "messages"),
        ({"messages": MESSAGES, "continue_final_message": True}, "continue_final_message"),
        ({"messages": MESSAGES, "chat_template": "{{ x }}"}, "chat_template"),
        ({"prompt": "x", "return_tokens": True}, "return_tokens"),
    ],
)
def test_what_is_not_served_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InferBusError) as error:
        asked(**fields)
    assert error.value.param == param


@pytest.mark.parametrize("body", [b"", b"[]", b"5", b"{", b'"messages"', b"[" * 5000])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InferBusError) as error:
        parse_tokenize(body)
    assert error.value.reason in ("invalid_json", "invalid_type", "nested_too_deep")


@pytest.mark.parametrize("tokens", [[-1], [1 << 32], ["1"], [1.5], None, "1"])
def test_token_ids_are_32_bits(tokens: Any) -> None:
    with pytest.raises(InferBusError) as error:
        parse_detokenize(json.dumps({"model": "m", "tokens": tokens}).encode())
    assert error.value.param.startswith("tokens")


def test_bodies() -> None:
    answer = TokenizeResponse(token_id=[5, 6], piece=[b"a", "ö".encode()[:1]], context_length=100)
    assert json.loads(tokens_body(answer, strings=True)) == {
        "count": 2, "max_model_len": 100, "tokens": [5, 6], "token_strs": ["a", "\ufffd"]
    }  # fmt: skip
    assert json.loads(tokens_body(answer, strings=False))["token_strs"] is None
    assert json.loads(prompt_body("hö".encode()[:-1])) == {"prompt": "h\ufffd"}


RECORDS = st.lists(
    st.builds(
        WorkerRecord, model=st.sampled_from(["m", "other"]), state=st.sampled_from(STATES),
        address=st.sampled_from(["", "a:1", "b:1", "c:1"]),
    ),
    unique_by=lambda one: one.address, max_size=4,
)  # fmt: skip


@given(fleet=RECORDS, turn=st.integers(min_value=0))
def test_workers_of_the_model_are_asked_each_once_and_draining_ones_only_if_none_is_active(
    fleet: list[WorkerRecord], turn: int
) -> None:
    chosen = addresses(fleet, "m", turn)
    active, draining = (
        {one.address for one in fleet if one.address and one.model == "m" and one.state == state}
        for state in (WorkerState.WORKER_STATE_ACTIVE, WorkerState.WORKER_STATE_DRAINING)
    )
    able = active or draining
    assert sorted(chosen) == sorted(able)
    assert chosen == addresses(list(reversed(fleet)), "m", turn)
    if chosen:  # over successive turns each is asked first
        assert {addresses(fleet, "m", turn + step)[0] for step in range(len(able))} == able
