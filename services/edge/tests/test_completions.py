"""The older completions: parsing, plan, form; then over HTTP with the SDK."""

import asyncio
import json
from typing import Any

import aiohttp
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus.bus.v1.frame_pb2 import Alternative, Close, DeltaLogprobs, Frame, TokenLogprob
from inferbus.bus.v1.registry_pb2 import ModelRecord
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus.common.v1.usage_pb2 import FinishReason, Usage
from inferbus_dialect.completions import CompletionRequest, parse_completion_request, plan_completion
from inferbus_dialect.completions_form import CompletionForm, token_name
from inferbus_dialect.plan import Plan
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError
from openai.types import Completion

FIRST = b"0123456789abcde\0"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=9,
)


def planned(**fields: object) -> Plan:
    body = {"model": "m", "prompt": "Once", **fields}
    return plan_completion(parse_completion_request(json.dumps(body).encode()))


def refusal(**fields: object) -> InferBusError:
    with pytest.raises(InferBusError) as caught:
        planned(**fields)
    return caught.value


@given(st.dictionaries(st.sampled_from(sorted(CompletionRequest.model_fields)), JSON, max_size=6))
def test_arbitrary_values_are_taken_or_refused_by_name(values: dict[str, object]) -> None:
    try:
        plan = planned(**values)
    except InferBusError as error:
        named = error.param or error.reason == "invalid_json"
    else:
        named = len(plan.requests) == plan.reply["n"]
    assert named


@pytest.mark.parametrize(
    ("prompt", "inputs"),
    [
        ("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)  # fmt: skip
def test_prompts(prompt: object, inputs: list[Any]) -> None:
    plan = planned(prompt=prompt, n=2, seed=5, max_tokens=3)
    found = [list(one.prompt.tokens.ids) or one.prompt.text for one in plan.requests]
    assert found == [one for one in inputs for _ in range(2)]
    # The input of each prompt is counted once, and each choice of a prompt has a seed of its own.
    assert [one.input_counted_elsewhere for one in plan.requests] == [False, True] * len(inputs)
    assert [one.sampling.seed for one in plan.requests] == [5, 6] * len(inputs)
    assert plan.output_bound == 6 * len(inputs)
    assert {need.capability for need in plan.needs} == {"completions"}


@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        ({"prompt": ""}, "prompt", "invalid_value"), ({"prompt": []}, "prompt", "invalid_value"),
        ({"prompt": ["a", ""]}, "prompt[1]", "invalid_value"), ({"prompt": ["a", 1]}, "prompt[1]", "invalid_type"),
        ({"prompt": [1, -1]}, "prompt[1]", "invalid_value"), ({"prompt": [[]]}, "prompt[0]", "invalid_value"),
        ({"prompt": [True]}, "prompt[0]", "invalid_type"), ({"prompt": {}}, "prompt", "invalid_type"),
        ({"prompt": None}, "prompt", "invalid_type"), ({"prompt": ["a"] * 65, "n": 2}, "prompt", "invalid_value"),
        ({"suffix": "x"}, "suffix", "unsupported_parameter"), ({"logprobs": 6}, "logprobs", "invalid_value"),
        ({"best_of": 2, "n": 3}, "best_of", "invalid_value"),
        ({"best_of": 2, "stream": True}, "best_of", "invalid_value"),
        ({"best_of": 21}, "best_of", "invalid_value"), ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"echo": True, "logprobs": 1}, "echo", "unsupported_parameter"),
        ({"echo": True, "prompt": [1]}, "echo", "unsupported_parameter"),
        ({"echo": True, "prompt": "x" * 70_000}, "echo", "unsupported_parameter"),
        ({"messages": []}, "messages", "unknown_parameter"),
    ],
)  # fmt: skip
def test_what_is_refused(fields: dict[str, Any], param: str, reason: str) -> None:
    error = refusal(**fields)
    assert (error.param, error.reason) == (param, reason)


def test_defaults() -> None:
    plan = planned()
    assert plan.requests[0].sampling.max_tokens == 16
    assert not plan.requests[0].sampling.HasField("logprobs")
    assert planned(logprobs=0).requests[0].sampling.HasField("logprobs")


def token(text: bytes, logprob: float, *top: tuple[bytes, float]) -> TokenLogprob:
    return TokenLogprob(text=text, logprob=logprob, top=[Alternative(text=one, logprob=lp) for one, lp in top])


def end(tokens: int, inputs: int = 0) -> Close:
    usage = Usage(input_tokens=inputs, output_tokens=tokens)
    return Close(finish_reason=FinishReason.FINISH_REASON_STOP, usage=usage)


def form_for(*, as_stream: bool = False, **fields: object) -> CompletionForm:
    return CompletionForm(FIRST, {**planned(**fields).reply, "model": "m", "created": 7}, as_stream)


def body_of(form: CompletionForm) -> Completion:
    form.finish()
    return Completion.model_validate_json(form.body(), strict=True)


def test_the_best_of_several() -> None:
    plan = planned(prompt=["p", "q"], n=2, best_of=3)
    assert len(plan.requests) == 6
    assert plan.requests[0].sampling.HasField("logprobs")
    assert ("logprobs", "best_of") in [(need.capability, need.param) for need in plan.needs]
    form = form_for(prompt=["p", "q"], n=2, best_of=3)
    means = [-3.0, -1.0, -2.0, -1.0, -1.0, float("-inf")]
    for choice, mean in enumerate(means):
        form.open(choice, "rev")
        for part in "xy":
            form.delta(choice, f"{part}{choice}", 1, [token(part.encode(), mean)])
        form.close(choice, "rev", end(2, 4 if choice % 3 == 0 else 0))
    body = body_of(form)
    assert [one.text for one in body.choices] == ["x1y1", "x2y2", "x3y3", "x4y4"]
    assert [one.index for one in body.choices] == [0, 1, 2, 3]
    assert body.choices[0].logprobs is None
    assert body.usage is not None
    # All that was made is counted, also what is not given.
    assert (body.usage.prompt_tokens, body.usage.completion_tokens) == (8, 12)


def test_logprobs() -> None:
    form = form_for(logprobs=1)
    form.open(0, "rev")
    form.delta(0, "", 1, [token(b"\xc3", -1.0, (b"a", -0.5))])
    form.delta(0, "é!", 2, [token(b"\xa9", -0.25), token(b"!", -0.125, (b"!", -0.125))])
    form.delta(0, "?", 1, [token(b"?", float("-inf"))])
    form.close(0, "rev", end(4))
    logprobs = body_of(form).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["bytes:\\xc3", "bytes:\\xa9", "!", "?"]
    assert logprobs.token_logprobs == [-1.0, -0.25, -0.125, -9999.0]
    assert logprobs.text_offset == [0, 0, 1, 2]
    assert logprobs.top_logprobs is not None
    assert logprobs.top_logprobs[0] == {"a": -0.5, "bytes:\\xc3": -1.0}
    assert logprobs.top_logprobs[2] == {"!": -0.125}


TEXTS = st.lists(st.lists(st.text(max_size=4), max_size=5), min_size=1, max_size=4)


@given(TEXTS, st.booleans(), st.booleans())
def test_stream_and_body_say_the_same(texts: list[list[str]], echo: bool, usage: bool) -> None:
    fields: dict[str, Any] = {"prompt": [f"p{at}" for at in range(len(texts))], "echo": echo}
    options = {"stream": True, "stream_options": {"include_usage": True}} if usage else {"stream": True}
    stream, unary = form_for(as_stream=True, **fields, **options), form_for(**fields)
    events: list[bytes] = []
    for form in (stream, unary):
        for choice, deltas in enumerate(texts):
            events += form.open(choice, "rev")
            for text in deltas:
                events += form.delta(choice, text, 1, [])
            events += form.close(choice, "rev", end(len(deltas), 5))
    events += stream.finish()
    assert events.pop() == b"data: [DONE]\n\n"
    data = [json.loads(one.removeprefix(b"data: ")) for one in events]
    assert (data[-1].get("usage", {}).get("prompt_tokens") == 5 * len(texts)) == usage
    body = body_of(unary)
    for choice, deltas in enumerate(texts):
        parts = [one["choices"][0] for one in data if one["choices"] and one["choices"][0]["index"] == choice]
        assert "".join(one["text"] for one in parts) == f"p{choice}" * echo + "".join(deltas)
        assert body.choices[choice].text == f"p{choice}" * echo + "".join(deltas)
        assert [one["finish_reason"] for one in parts][-1] == "stop"


@given(st.binary(max_size=4))
def test_token_names_are_text(text: bytes) -> None:
    name = token_name(text)
    assert name.encode() == text or name.startswith("bytes:\\x")


# --- over HTTP --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def capable(worker: Any, model: str, http: aiohttp.ClientSession) -> str:
    """A model that serves completions."""
    await worker.models.put(model, ModelRecord(name=model, revision="rev-1", capabilities=["completions", "logprobs"]))
    body = {"model": model, "prompt": "x", "logit_bias": {"1": 1}}
    async with asyncio.timeout(5):
        # Refused in any case, for the parameter once the edge knows the capabilities.
        while (await (await http.post("/v1/completions", json=body)).json())["error"]["param"] != "logit_bias":
            await asyncio.sleep(0.01)
    return model


def say(worker: Any, request: Any, text: str, logprob: float) -> None:
    """One frame with one token and its log-probability."""
    context = RequestContext(model=request.context.model, revision="rev-1")
    worker.frames.publish(
        Frame(
            edge=request.edge, time_us=clock.now_us(), contexts=[context], request_ids=request.request_id,
            first_index=[0], gap_us=[1], text_size=[len(text)], token_id=[1], text=text.encode(),
            logprobs=[DeltaLogprobs(delta=0, tokens=[token(text.encode(), logprob)])],
        )
    )  # fmt: skip


async def test_the_openai_sdk(edge: Any, worker: Any, capable: str, rig: Any) -> None:
    client = openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key=rig.API_KEY, max_retries=0)
    call = asyncio.create_task(client.completions.create(model=capable, prompt=["a", "b"], n=1, best_of=2, logprobs=0))
    requests = sorted([await worker.take(capable) for _ in range(4)], key=lambda one: one.request_id)
    assert [one.prompt.text for one in requests] == ["a", "a", "b", "b"]
    assert [one.input_counted_elsewhere for one in requests] == [False, True, False, True]
    for at, request in enumerate(requests):
        say(worker, request, f"t{at}", -float(at % 2))
        worker.close(request, 1)
    answer = await call
    assert [one.text for one in answer.choices] == ["t0", "t2"]
    assert answer.choices[1].logprobs is not None
    assert answer.choices[1].logprobs.token_logprobs == [0.0]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4

    answering = asyncio.create_task(worker.answer(capable, ["Hello", " world"]))
    stream = await client.completions.create(model=capable, prompt="Say", echo=True, stream=True)
    parts = [chunk.choices[0].text async for chunk in stream if chunk.choices]
    await answering
    assert "".join(parts) == "SayHello world"

    with pytest.raises(openai.BadRequestError) as refused:
        await client.completions.create(model=capable, prompt="x", suffix="y")
    assert refused.value.param == "suffix"
    with pytest.raises(openai.BadRequestError) as incapable:
        await client.completions.create(model=capable, prompt="x", logit_bias={"1": 1})
    assert incapable.value.param == "logit_bias"


async def test_a_chat_model_serves_no_completions(http: Any, model: str) -> None:
    response = await http.post("/v1/completions", json={"model": model, "prompt": "x"})
    assert response.status == 400
    assert (await response.json())["error"]["code"] == "model_not_supported"
