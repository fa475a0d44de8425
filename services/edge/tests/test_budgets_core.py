"""What a call is reserved for covers whatever it can use, and is settled by the function that it is charged by."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.frame_pb2 import Close
from inferbus.bus.v1.registry_pb2 import KeyRecord, ModelRecord, PriceRecord
from inferbus.bus.v1.request_pb2 import ChatInput, ChatMessage, GenerateRequest, PromptInput, Sampling
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus.common.v1.usage_pb2 import FinishReason, Operation, Usage
from inferbus_contracts.ids import choice_id, request_id
from inferbus_edge.core.budgets import bound_of, charge_of, most_of, rate_of, wanted
from inferbus_edge.core.plan import Plan
from inferbus_rating import PriceBook

KEY = KeyRecord(key_id="k", tenant_id="acme", project_id="web")
amounts = st.integers(0, 10**9).map(lambda n: str(Decimal(n) / 1000))


def plan(*requests: GenerateRequest) -> Plan:
    return Plan("chat", "m", False, requests, {"api": "chat", "n": len(requests)})


@given(
    text=st.text(max_size=300),
    max_tokens=st.none() | st.integers(1, 300),
    context=st.integers(50, 500),
    choices=st.integers(1, 4),
    price=st.tuples(amounts, amounts, amounts, amounts, amounts, amounts),
    used=st.tuples(*[st.floats(0, 1)] * 4),
    reason=st.sampled_from([FinishReason.FINISH_REASON_STOP, FinishReason.FINISH_REASON_CANCELLED]),
)
def test_no_call_costs_more_than_its_bound(
    text: str, max_tokens: int | None, context: int, choices: int, price: tuple[str, ...],
    used: tuple[float, ...], reason: FinishReason.ValueType,
) -> None:  # fmt: skip
    names = ("input_per_million", "cached_input_per_million", "output_per_million", "reasoning_per_million")
    record = PriceRecord(
        rate_version="1", currency="USD", **dict(zip((*names, "per_call", "minimum"), price, strict=True))
    )
    book = PriceBook.of([record])
    sampling = Sampling() if max_tokens is None else Sampling(max_tokens=max_tokens)
    chat = ChatInput(messages=[ChatMessage(role="user", content=text)])
    requests = [
        GenerateRequest(chat=chat, sampling=sampling, input_counted_elsewhere=choice > 0) for choice in range(choices)
    ]
    asked, model = plan(*requests), ModelRecord(name="m", context_length=context)
    reserved = most_of(rate_of(book, KEY, asked, model, 1_000_000), bound_of(asked, model))

    first = request_id(1000, bytes(16), "edge")
    total = Decimal(0)
    for choice in range(choices):
        inputs = 0 if choice else round(used[0] * min(context, len(text.encode()) + 32))
        output = round(used[1] * min(context, max_tokens or context))
        usage = Usage(
            input_tokens=inputs, cached_input_tokens=round(used[2] * inputs), output_tokens=output,
            reasoning_tokens=round(used[3] * output),
        )  # fmt: skip
        close = Close(
            request_id=choice_id(first, choice), usage=usage, finish_reason=reason,
            operation=Operation.OPERATION_CHAT,
        )  # fmt: skip
        total += charge_of(book, close, RequestContext(tenant_id="acme", project_id="web", model="m", revision="r"))
    assert total <= reserved


@pytest.mark.parametrize(
    ("request_", "context", "bound"),
    [
        (GenerateRequest(prompt=PromptInput(text="é" * 10), sampling=Sampling(max_tokens=7)), 0, (36, 7)),
        (GenerateRequest(prompt=PromptInput(text="x" * 900), sampling=Sampling(max_tokens=7)), 100, (100, 7)),
        (GenerateRequest(prompt=PromptInput(text="x")), 100, (17, 100)),
        (GenerateRequest(prompt=PromptInput(text="x"), sampling=Sampling(max_tokens=900)), 100, (17, 100)),
    ],
)
def test_bounds_are_the_lesser_of_what_is_asked_and_the_context(
    request_: GenerateRequest, context: int, bound: tuple[int, int]
) -> None:
    found = bound_of(plan(request_), ModelRecord(name="m", context_length=context))
    assert (found.input_tokens, found.output_tokens) == bound


def test_vectors_have_no_output_and_each_text_its_own_bound() -> None:
    request = GenerateRequest()
    request.embedding.inputs.extend([PromptInput(text="x" * 84), PromptInput(text="x" * 900)])
    found = bound_of(plan(request), ModelRecord(name="m", context_length=256))
    assert (found.input_tokens, found.output_tokens) == (100 + 256, 0)


@given(waiting=st.integers(0, 100), need=st.integers(1, 50), lately=st.integers(0, 500), left=st.integers(0, 1000))
def test_an_edge_asks_for_what_waits_and_for_whole_calls_ahead(waiting: int, need: int, lately: int, left: int) -> None:
    found = wanted(Decimal(waiting), Decimal(need), Decimal(lately), Decimal(left))
    assert found >= waiting
    assert found == waiting or (found % need == 0 and found * 8 <= left)
