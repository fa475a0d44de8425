"""What an engine does not have: a request for it is refused by the parameter's name, or what is so without it is so."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from inferbus.inference.v1.inference_pb2 import ModelInferRequest
from inferbus_runtime.errors import InferBusError
from inferbus_worker.engine import (
    UNKNOWN_TOKEN,
    Chat,
    Constraint,
    ConstraintKind,
    Embed,
    Finish,
    Infer,
    Message,
    Prompt,
    Sampling,
    TellsPrefixes,
    ToolMode,
)

from services.worker.tests.contract.behaviours import FEATURES, shows
from services.worker.tests.contract.driver import GREEDY, SEA, Driver, said
from services.worker.tests.contract.schemas import PERSON, schema, with_tools

HOT = Sampling(temperature=1.0, max_tokens=4)
SECRET = said("The secret of a tenant that shares its prefix is this very long text. " * 8)

# What a request for it looks like.
REQUESTS: dict[str, dict[str, Any]] = {
    "chat": {"source": said("x")},
    "completions": {"source": Prompt("x")},
    "tools": {"source": with_tools(tool_mode=ToolMode.REQUIRED)},
    "structured_output": {"constraint": schema(PERSON)},
    "expressions": {"constraint": Constraint(ConstraintKind.REGEX, "[a-z]")},
    "logprobs": {"sampling": replace(GREEDY, logprobs=1)},
    "logit_bias": {"sampling": replace(GREEDY, logit_bias=((28, 1.0),))},
    "embeddings": {"source": Embed((Prompt("x"),))},
    "reasoning": {"source": Chat((Message("user", "x"),), reasoning_effort="low")},
    "inference": {"source": Infer(ModelInferRequest(model_name="x").SerializeToString())},
    "seeds": {"sampling": replace(HOT, seed=7)},
    "top_k": {"sampling": replace(HOT, top_k=20)},
    "min_p": {"sampling": replace(HOT, min_p=0.5)},
    "repetition_penalty": {"sampling": replace(GREEDY, repetition_penalty=1.5)},
    "frequency_penalty": {"sampling": replace(GREEDY, frequency_penalty=1.5)},
    "presence_penalty": {"sampling": replace(GREEDY, presence_penalty=1.5)},
}


async def without_model(engine: Driver) -> None:
    plain, *others = [
        await engine.ask(SEA, replace(GREEDY, **changes))
        for changes in ({}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5}, {"frequency_penalty": 2.0})
    ]
    assert all(engine.same(plain, other) for other in others)


async def without_batch(engine: Driver) -> None:
    """The text may differ from that of the same request alone; it is whole, and its own, all the same."""
    answers = [engine.submit(SEA) for _ in range(8)]
    await engine.ended(*answers)
    assert [(len(answer.ids), answer.reason) for answer in answers] == [(12, Finish.LENGTH)] * 8


async def without_ids(engine: Driver) -> None:
    answer = await engine.ask(SEA)
    assert answer.ids == [UNKNOWN_TOKEN] * 12
    assert engine.info.resumes_by_text


async def without_tokenize(engine: Driver) -> None:
    for source, param in ((said("Say hi"), "messages"), (Prompt("Say hi"), "prompt")):
        with pytest.raises(InferBusError) as refused:
            await engine.engine.tokenize(source)
        assert (refused.value.reason, refused.value.param) == ("unsupported_parameter", param)
    with pytest.raises(InferBusError) as refused:
        await engine.engine.detokenize([28])
    assert (refused.value.reason, refused.value.param) == ("unsupported_parameter", "tokens")


async def without_prefixes(engine: Driver) -> None:
    answers = [await engine.ask(SECRET, replace(GREEDY, max_tokens=1), cache_salt=b"a") for _ in range(3)]
    assert [answer.end.cached_input_tokens for answer in answers] == [0, 0, 0]


async def without_salts(engine: Driver) -> None:
    """Others' prefixes are read, and what is read is said, if anything is."""
    answers = [await engine.ask(SECRET, replace(GREEDY, max_tokens=1), cache_salt=salt) for salt in (b"a", b"b")]
    assert bool(answers[1].end.cached_input_tokens) == ("prefixes" in engine.has)


async def without_told(engine: Driver) -> None:
    assert not isinstance(engine.engine, TellsPrefixes)


async def without_overload(engine: Driver) -> None:
    short = replace(GREEDY, max_tokens=1)
    answers = [engine.submit("Say hi", short) for _ in range(2 * engine.info.capacity + 10)]
    await engine.ended(*answers)
    assert {answer.reason for answer in answers} == {Finish.LENGTH}


async def without_blocks(engine: Driver) -> None:
    said_of = engine.engine.statistics()
    assert (said_of.kv_blocks_total, said_of.kv_blocks_used, said_of.kv_block_tokens) == (None, None, None)


CHECKS: dict[str, Callable[[Driver], Awaitable[None]]] = {
    "model": without_model,
    "batch": without_batch,
    "ids": without_ids,
    "tokenize": without_tokenize,
    "prefixes": without_prefixes,
    "salts": without_salts,
    "told": without_told,
    "overload": without_overload,
    "blocks": without_blocks,
}


@shows("refusals")
async def test_what_it_lacks(engine: Driver, lacking: str) -> None:
    if (check := CHECKS.get(lacking)) is not None:
        await check(engine)
        return
    request = {"source": said("x"), "sampling": GREEDY} | REQUESTS[lacking]
    neighbour = engine.submit(SEA, Sampling(temperature=0.0, max_tokens=4))
    answer = await engine.ask(**request)
    assert answer.reason is Finish.ERROR
    assert (answer.error.reason, answer.error.param) == ("unsupported_parameter", FEATURES[lacking].param)
    assert not answer.ids
    await engine.ended(neighbour)
    assert neighbour.reason is Finish.LENGTH
