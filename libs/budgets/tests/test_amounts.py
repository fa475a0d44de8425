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
from inferbus_budgets.amounts import bounds_of, charge_of, most_of, most_of_any, rate_of, wanted
from inferbus_contracts.ids import choice_id, request_id
from inferbus_dialect.plan import Plan
from inferbus_rating import PriceBook

KEY = KeyRecord(key_id="k", tenant_id="acme", project_id="web")
amounts = st.integers(0, 10**9).map(lambda n: str(Decimal(n) / 1000))


def plan(*requests: GenerateRequest) -> Plan:
    return Plan("chat", "m", False, requests, {"api": "chat", "n": len(requests)})


NAMES = (
    "input_per_million", "cached_input_per_million", "output_per_million", "reasoning_per_million", "per_call",
    "minimum",
)  # fmt: skip
MODELS = ("m", "fallback", "other")


@given(
    text=st.text(max_size=300),
    max_tokens=st.none() | st.integers(1, 300),
    contexts=st.tuples(*[st.integers(50, 500)] * 3),
    prices=st.lists(st.tuples(*[amounts] * 6), min_size=1, max_size=3),
    answers=st.lists(st.tuples(st.integers(0, 2), st.tuples(*[st.floats(0, 1)] * 4)), min_size=1, max_size=4),
    own_prompts=st.booleans(),
    reason=st.sampled_from([FinishReason.FINISH_REASON_STOP, FinishReason.FINISH_REASON_CANCELLED]),
)
def test_no_call_costs_more_than_its_bound_whichever_models_answer_its_choices(
    text: str, max_tokens: int | None, contexts: tuple[int, ...], prices: list[tuple[str, ...]],
    answers: list[tuple[int, tuple[float, ...]]], own_prompts: bool, reason: FinishReason.ValueType,
) -> None:  # fmt: skip
    """``answers``: of each choice, by which model, and how much of what it may use. ``own_prompts``: each choice has a
    prompt of its own, as in a list of prompts."""
    models = [ModelRecord(name=name, context_length=contexts[at]) for at, name in enumerate(MODELS[: len(prices)])]
    book = PriceBook.of(
        PriceRecord(rate_version=model.name, model=model.name, currency="USD", **dict(zip(NAMES, price, strict=True)))
        for model, price in zip(models, prices, strict=True)
    )
    sampling = Sampling() if max_tokens is None else Sampling(max_tokens=max_tokens)
    chat = ChatInput(messages=[ChatMessage(role="user", content=text)])
    asked = plan(
        *(
            GenerateRequest(chat=chat, sampling=sampling, input_counted_elsewhere=choice > 0 and not own_prompts)
            for choice in range(len(answers))
        )
    )
    reserved = most_of_any(
        most_of(rate_of(book, KEY, asked, model, 1_000_000), bounds_of(asked, model)) for model in models
    )

    first = request_id(1000, bytes(16), "edge")
    total = Decimal(0)
    for choice, (number, used) in enumerate(answers):
        model = models[number % len(models)]
        context = model.context_length
        inputs = round(used[0] * min(context, len(text.encode()) + 32)) if own_prompts or not choice else 0
        output = round(used[1] * min(context, max_tokens or context))
        usage = Usage(
            input_tokens=inputs, cached_input_tokens=round(used[2] * inputs), output_tokens=output,
            reasoning_tokens=round(used[3] * output),
        )  # fmt: skip
        close = Close(
            request_id=choice_id(first, choice), usage=usage, finish_reason=reason,
            operation=Operation.OPERATION_CHAT,
        )  # fmt: skip
        context_ = RequestContext(tenant_id="acme", project_id="web", model=model.name, revision="r")
        total += charge_of(book, close, context_)
    assert total <= reserved


def test_the_bound_of_crossing_prices_is_reached_by_the_worst_mix_and_no_higher() -> None:
    """The prompt costs most at one model, the answers at the other: the first choice at the dearer of both, the rest
    where answers are dear."""
    asked = plan(
        *(
            GenerateRequest(
                prompt=PromptInput(text="x" * 84), sampling=Sampling(max_tokens=10), input_counted_elsewhere=choice > 0
            )
            for choice in range(3)
        )
    )
    models = (ModelRecord(name="m"), ModelRecord(name="fallback"))
    book = PriceBook.of(
        PriceRecord(rate_version=name, model=name, currency="USD", input_per_million=read, output_per_million=made)
        for name, read, made in (("m", "10000000", "1000000"), ("fallback", "1000000", "10000000"))
    )
    each = [most_of(rate_of(book, KEY, asked, model, 1_000_000), bounds_of(asked, model)) for model in models]
    assert each == [(1010, 10, 10), (200, 100, 100)]
    assert most_of_any(each) == 1210


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
    (found,) = bounds_of(plan(request_), ModelRecord(name="m", context_length=context))
    assert (found.input_tokens, found.output_tokens) == bound


def test_vectors_have_no_output_and_each_text_its_own_bound() -> None:
    request = GenerateRequest()
    request.embedding.inputs.extend([PromptInput(text="x" * 84), PromptInput(text="x" * 900)])
    (found,) = bounds_of(plan(request), ModelRecord(name="m", context_length=256))
    assert (found.input_tokens, found.output_tokens) == (100 + 256, 0)


@given(waiting=st.integers(0, 100), need=st.integers(1, 50), lately=st.integers(0, 500), left=st.integers(0, 1000))
def test_an_edge_asks_for_what_waits_and_for_whole_calls_ahead(waiting: int, need: int, lately: int, left: int) -> None:
    found = wanted(Decimal(waiting), Decimal(need), Decimal(lately), Decimal(left))
    assert found >= waiting
    assert found == waiting or (found % need == 0 and found * 8 <= left)
