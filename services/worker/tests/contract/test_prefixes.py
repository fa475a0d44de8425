"""What the cache has of a prompt already, and whose."""

import asyncio
from dataclasses import replace

from services.worker.tests.contract.behaviours import shows
from services.worker.tests.contract.driver import GREEDY, Driver, said

SHORT = replace(GREEDY, max_tokens=4)


@shows("prefixes", "prefixes")
async def test_what_was_read_before_is_counted_as_cached(engine: Driver) -> None:
    source = said("Some context that is sent again with every question of a conversation. " * 8)
    first, again = [await engine.ask(source, SHORT, cache_salt=b"tenant") for _ in range(2)]
    assert first.end.cached_input_tokens < 40, "at most the template's own beginning"
    assert 64 <= again.end.cached_input_tokens < again.end.input_tokens == first.end.input_tokens
    assert again.text == first.text


@shows("salts", "salts")
async def test_it_is_seen_by_its_own_salt_only(engine: Driver) -> None:
    secret = said("The secret of tenant A is this very long text. " * 16)
    first = await engine.ask(secret, SHORT, cache_salt=b"tenant-a")
    others = [await engine.ask(secret, SHORT, cache_salt=salt) for salt in (b"tenant-b", b"tenant-c")]
    # Those without a salt have the beginning of the template in common with each other, from other tests.
    no_salt = await engine.ask(secret, SHORT)
    again = await engine.ask(secret, SHORT, cache_salt=b"tenant-a")
    assert [answer.end.cached_input_tokens for answer in (first, *others)] == [0, 0, 0]
    assert no_salt.end.cached_input_tokens < 40
    assert {answer.text for answer in others} == {again.text}
    assert (again.end.cached_input_tokens > 80) == ("prefixes" in engine.has)


@shows("salts", "salts")
async def test_a_cancelled_prompt_is_nobodys(engine: Driver) -> None:
    """Cancelled at any moment of its prefill: its slot gives nothing to another salt."""
    secret = said("The other secret of tenant A is long as well. " * 5)
    moments = (0.0, 0.02, 0.1) if "prefixes" in engine.has else (0.02,)
    for attempt, pause in enumerate(moments):
        answer = engine.submit(secret, cache_salt=b"tenant-a")
        await asyncio.sleep(pause)
        engine.close(answer)
        spies = [
            engine.submit(secret, replace(GREEDY, max_tokens=1), cache_salt=b"spy-%d-%d" % (attempt, n))
            for n in range(2)
        ]
        await engine.ended(answer, *spies)
        assert [spy.end.cached_input_tokens for spy in spies] == [0] * 2
