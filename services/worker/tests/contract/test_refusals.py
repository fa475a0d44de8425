"""What is refused: by which parameter, in which words, and that nobody else notices."""

import re
from dataclasses import replace
from typing import Any

from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_worker.engine import Chat, Finish, Prompt

from services.worker.tests.contract.behaviours import shows
from services.worker.tests.contract.driver import GREEDY, SEA, Answer, Driver

INTERNALS = re.compile(r"https?:|127\.0\.0\.1|/v1|llama|triton|tensorrt|upstream|grpc|Traceback|Error\(", re.IGNORECASE)


def check_refused(answer: Answer) -> None:
    assert answer.reason is Finish.ERROR
    assert answer.error.error_class == ErrorClass.ERROR_CLASS_INVALID_ARGUMENT
    assert not INTERNALS.search(answer.error.message), answer.error.message
    assert not answer.ids


@shows("refusals")
async def test_bad_input_hurts_nobody(engine: Driver) -> None:
    neighbour = engine.submit(SEA)
    bad: list[tuple[Answer, str]] = [
        (engine.submit(Chat(())), "messages"),
        (engine.submit(SEA, replace(GREEDY, temperature=float("nan"))), "temperature"),
        (engine.submit(SEA, replace(GREEDY, top_p=3.0)), "top_p"),
        (engine.submit(SEA, replace(GREEDY, frequency_penalty=5.0)), "frequency_penalty"),
        (engine.submit(SEA, replace(GREEDY, max_tokens=0)), "max_tokens"),
        (engine.submit(SEA, replace(GREEDY, stop=("x",) * 1000)), "stop"),
    ]
    if "completions" in engine.has:
        bad += [(engine.submit(Prompt("")), "prompt"), (engine.submit(Prompt(())), "prompt")]
    if "repetition_penalty" in engine.has:
        bad.append((engine.submit(SEA, replace(GREEDY, repetition_penalty=0.0)), "repetition_penalty"))
    await engine.ended(neighbour, *(answer for answer, _ in bad))
    for answer, param in bad:
        check_refused(answer)
        assert answer.error.param == param
    assert neighbour.reason is Finish.LENGTH


@shows("ids", "ids", "model")
async def test_tokens_that_do_not_exist(engine: Driver) -> None:
    for answer in (
        await engine.ask(Prompt((10**9,))),
        await engine.ask(SEA, resume_ids=(10**9,), resume_text="x"),
    ):
        check_refused(answer)


@shows("context")
async def test_an_input_that_is_too_long(engine: Driver) -> None:
    neighbour = engine.submit(SEA)
    sources: dict[str, Any] = {"messages": "word " * 40_000}
    if "completions" in engine.has:
        sources["prompt"] = Prompt("word " * 40_000)
    for param, source in sources.items():
        long = await engine.ask(source)
        check_refused(long)
        assert (long.error.reason, long.error.param) == ("context_length_exceeded", param)
    await engine.ended(neighbour)
    assert neighbour.reason is Finish.LENGTH
