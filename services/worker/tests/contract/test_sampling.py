"""How the next token is chosen, and what is said of it."""

from dataclasses import replace
from typing import Any

import pytest
from inferbus_worker.engine import Finish, Prompt, Sampling

from services.worker.tests.contract.behaviours import SAMPLING, shows
from services.worker.tests.contract.driver import GREEDY, SEA, Answer, Driver, said

EMOJI = "Repeat this: 🎉🚀🎉🚀🎉🚀"
HOT = Sampling(temperature=1.0, max_tokens=12)
# Values with which nothing but the most probable token is left.
NARROWEST: dict[str, Any] = {"top_k": 1, "min_p": 1.0, "top_p": 0.0}
# Values that no greedy text repeats itself with.
STRONGEST = {"repetition_penalty": 5.0, "frequency_penalty": 2.0, "presence_penalty": 2.0}


@shows("sampling", "model", widened=("top_k", "min_p"))
async def test_draws_differ_and_the_narrowest_is_greedy(engine: Driver, sea: Answer) -> None:
    hot = [engine.submit(SEA, HOT) for _ in range(3)]
    names = [name for name in NARROWEST if name in engine.has or name == "top_p"]
    narrow = {name: engine.submit(SEA, replace(HOT, **{name: NARROWEST[name]})) for name in names}
    await engine.ended(*hot, *narrow.values())
    assert len({answer.text for answer in hot}) > 1
    for name, answer in narrow.items():
        assert answer.text == sea.text, name


@shows("sampling", "model", widened=("repetition_penalty", "frequency_penalty", "presence_penalty"))
async def test_a_penalty_moves_a_text_that_repeats_itself(engine: Driver) -> None:
    plain = await engine.ask(EMOJI)
    names = [name for name in STRONGEST if name in engine.has]
    punished = {name: engine.submit(EMOJI, replace(GREEDY, **{name: STRONGEST[name]})) for name in names}
    await engine.ended(*punished.values())
    for name, answer in punished.items():
        assert answer.error is None, name
        assert answer.text != plain.text, name


@shows("sampling", widened=SAMPLING)
async def test_all_of_them_together(engine: Driver) -> None:
    values = {"top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1, "frequency_penalty": 0.5, "presence_penalty": -0.5}
    given: dict[str, Any] = {name: value for name, value in values.items() if name in engine.has}
    if "seeds" in engine.has:
        given["seed"] = 2**64 - 1
    answer = await engine.ask("Write a poem.", Sampling(temperature=0.7, top_p=0.9, max_tokens=8, **given))
    assert answer.reason in (Finish.LENGTH, Finish.STOP)


@shows("seeds", "seeds")
async def test_a_seed_repeats(engine: Driver) -> None:
    # Far down the tail, tokens are closer together than the last bits of two runs.
    seeded = replace(HOT, seed=7, top_p=0.9)
    first, again = [await engine.ask("Write a poem.", seeded) for _ in range(2)]
    other = await engine.ask("Write a poem.", replace(seeded, seed=8))
    assert engine.same(first, again)
    assert not engine.same(first, other)


@shows("batch", "batch", "completions")
async def test_greedy_is_the_same_alone_and_in_a_batch(engine: Driver) -> None:
    questions = [Prompt(f"A story of the number {number}:") for number in range(6)]
    alone = [await engine.ask(question) for question in questions]
    together = [engine.submit(question) for question in questions]
    await engine.ended(*together)
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert all(engine.same(*pair) for pair in zip(together, alone, strict=True))


@shows("logprobs", "logprobs")
async def test_the_most_probable_tokens_are_said(engine: Driver) -> None:
    answer = await engine.ask(SEA, replace(GREEDY, max_tokens=8, logprobs=3))
    assert [one.token_id for one in answer.logprobs] == answer.ids
    assert b"".join(one.text for one in answer.logprobs) == answer.text
    for one in answer.logprobs:
        values = [other.logprob for other in one.top]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert one.top[0].token_id == one.token_id, "greedy takes the most probable"
        assert one.logprob == values[0] <= 0
    plain = await engine.ask(SEA, replace(GREEDY, max_tokens=8, logprobs=0))
    assert plain.text == answer.text
    assert [one.logprob for one in plain.logprobs] == pytest.approx([one.logprob for one in answer.logprobs], abs=1e-3)
    assert not any(one.top for one in plain.logprobs)


@shows("logprobs", "logprobs")
async def test_every_token_has_its_logprob_also_inside_a_character(engine: Driver) -> None:
    answer = await engine.ask(EMOJI, replace(GREEDY, max_tokens=20, logprobs=1))
    assert [one.token_id for one in answer.logprobs] == answer.ids
    assert b"".join(one.text for one in answer.logprobs) == answer.text


@shows("bias", "logit_bias", "tokenize")
async def test_a_bias_decides(engine: Driver) -> None:
    answer = await engine.ask("Say hi", replace(GREEDY, max_tokens=3, logit_bias=((28, 100.0),)))
    assert not engine.ids or answer.ids == [28] * 3
    assert answer.text == await engine.engine.detokenize([28] * 3)
    unknown = await engine.ask(said("Say hi"), replace(GREEDY, logit_bias=((10**6, 1.0),)))
    assert unknown.error.param == "logit_bias"
