"""What an engine tells of the prompts in its KV cache: true at any time, and of nobody's but those it was given."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from inferbus_worker.engine import Chat, Message

from services.worker.tests.contract.behaviours import shows
from services.worker.tests.contract.driver import GREEDY, SEA, Driver, chunks_of, said

SHORT = replace(GREEDY, max_tokens=2)
SYSTEM = Message("system", "You answer as the keeper of a lighthouse does, who has seen every kind of weather. " * 13)
RULES = "Some rules that are sent along with every question of a user. "


def asked(question: str) -> Chat:
    return Chat((SYSTEM, Message("user", question)))


def told(engine: Driver) -> set[int]:
    return set(engine.engine.prefixes.all())


@shows("told", "told", "prefixes")
async def test_what_questions_have_in_common_is_told_and_found_again(engine: Driver) -> None:
    first, second, third = asked("Is it foggy?"), asked("Is there a gale?"), asked("When does the sun set?")
    common = set(chunks_of(first, b"a")) & set(chunks_of(second, b"a"))
    assert len(common) == 4, "a thousand bytes"
    assert not told(engine) & common
    for question in (first, second):
        await engine.ask(question, SHORT, cache_salt=b"a")
    assert common <= told(engine)
    answer = await engine.ask(third, SHORT, cache_salt=b"a")
    assert answer.end.cached_input_tokens >= 150
    other = await engine.ask(third, SHORT, cache_salt=b"b")
    assert not set(chunks_of(third, b"a")) & set(chunks_of(third, b"b"))
    assert other.end.cached_input_tokens == 0


@shows("told", "told")
async def test_nothing_is_told_that_it_was_not_given(engine: Driver) -> None:
    """Whatever was cancelled when, and whoever asked in the same words."""
    long = said(RULES * 30)
    answers = [engine.submit(long, GREEDY, cache_salt=salt) for salt in (b"a", b"b")]
    engine.close(answers[0])
    await engine.ended(*answers)
    assert told(engine) <= engine.asked
    assert set(chunks_of(long, b"b")) <= told(engine)
    assert not set(chunks_of(long, b"c")) & told(engine)


@shows("told", "told")
async def test_a_prompt_is_told_when_it_has_been_read(engine: Driver) -> None:
    unread = said(" ".join(f"word{number}" for number in range(engine.here.PREFILL_WORDS)))
    answer = engine.submit(unread, GREEDY, cache_salt=b"unread")
    assert not set(chunks_of(unread, b"unread")) & told(engine)
    engine.close(answer)
    await engine.ended(answer)
    assert chunks_of(unread, b"unread")[-1] not in told(engine)


@shows("told", "told")
async def test_what_goes_is_told_and_a_stopped_engine_holds_nothing(here: Any, model_cache: Path) -> None:
    """Followed change by change, with more than its cache keeps."""
    async with here.made(model_cache, **getattr(here, "SMALL_CACHE", {})) as made:
        driver, known = Driver(made, here), set[int]()
        await driver.start()

        def hear() -> int:
            stored, removed = made.prefixes.changes()
            assert not known & set(stored)
            assert known >= set(removed)
            known.update(stored)
            known.difference_update(removed)
            return len(removed)

        gone = 0
        for number in range(6):
            await driver.ask(said(f"{number} {SEA} {RULES * 12}"), SHORT, cache_salt=b"a")
            gone += hear()
        assert gone > 0, "some had to go"
        assert known == told(driver)
        assert known <= driver.asked
        assert chunks_of(said(f"5 {SEA} {RULES * 12}"), b"a")[-1] in known, "the newest is there"
        await driver.stop()
        hear()
        assert not known
