"""Tokens, their texts, and where they end."""

from dataclasses import replace

from inferbus_worker.engine import Finish, Sampling

from services.worker.tests.contract.behaviours import shows
from services.worker.tests.contract.driver import GREEDY, SEA, Answer, Driver


@shows("streaming")
async def test_info_says_what_runs(engine: Driver) -> None:
    info = engine.info
    assert info.engine == engine.here.NAME
    assert set(info.capabilities) == set(engine.here.CAPABILITIES), "as the table has it"
    assert info.resumes_by_text == ("ids" not in engine.has)
    assert bool(info.embedding_dimensions) == ("embeddings" in info.capabilities)
    assert info.model
    assert info.revision
    assert info.capacity >= 4
    assert info.context_length >= 8192


@shows("streaming")
async def test_tokens_come_one_after_the_other(sea: Answer) -> None:
    """What holds for every step is checked by the reader of all these tests."""
    assert len(sea.deltas) >= 9, "streamed, not delivered at the end"
    assert len(sea.ids) == 12
    assert sea.text.decode().strip()
    assert sea.reason is Finish.LENGTH
    assert sea.end.input_tokens > 0
    assert not sea.end.estimated


@shows("streaming")
async def test_characters_come_whole(engine: Driver) -> None:
    """Emoji are several tokens each: every delta is valid, and every token is counted."""
    answer = await engine.ask("Repeat this: 🎉🚀🎉🚀🎉🚀", replace(GREEDY, max_tokens=30))
    assert len(answer.ids) == 30 or answer.reason is Finish.STOP


@shows("length")
async def test_it_ends_by_itself(engine: Driver) -> None:
    answer = await engine.ask("Say hi", Sampling(temperature=0.0))
    assert answer.reason is Finish.STOP
    assert answer.ids
    assert b"<|im_end|>" not in answer.text


@shows("length")
async def test_a_single_token(engine: Driver, sea: Answer) -> None:
    answer = await engine.ask(SEA, replace(GREEDY, max_tokens=1))
    assert len(answer.ids) == 1
    assert answer.reason is Finish.LENGTH
    assert sea.text.startswith(answer.text)


@shows("stops")
async def test_a_stop_string_is_never_delivered(engine: Driver, sea: Answer) -> None:
    whole = sea.text.decode()
    stop = whole[9:16]  # lies across tokens
    answer = await engine.ask(SEA, replace(GREEDY, stop=("never there", stop)))
    assert answer.text.decode() == whole[: whole.index(stop)]
    assert answer.reason is Finish.STOP
    assert answer.end.stop_index == 1


@shows("stops")
async def test_text_held_for_a_stop_string_is_not_lost(engine: Driver, sea: Answer) -> None:
    whole = sea.text.decode()
    answer = await engine.ask(SEA, replace(GREEDY, stop=(whole[-3:] + " but not this", "")))
    assert answer.text.decode() == whole
    assert answer.reason is Finish.LENGTH
    assert len(answer.ids) == len(sea.ids)


@shows("stops")
async def test_a_stop_string_that_began_before_it_was_resumed(engine: Driver, sea: Answer) -> None:
    begun = sea.begun(6)
    text, at = sea.text.decode(), len(begun["resume_text"])
    rest = await engine.ask(SEA, replace(GREEDY, stop=(text[at - 3 : at + 3],)), **begun)
    assert rest.reason is Finish.STOP
    assert not rest.text


@shows("stops")
async def test_text_held_back_is_not_lost_if_its_tokens_were_all_delivered(engine: Driver, sea: Answer) -> None:
    """It went on to its last token, and broke off before the text came that a stop string held back."""
    held = sea.text.decode()[-3:]
    begun = sea.begun(len(sea.ids))
    if engine.ids:  # one that goes on by text delivers no token before its text
        begun["resume_text"] = begun["resume_text"].removesuffix(held)
    rest = await engine.ask(SEA, replace(GREEDY, stop=(held + " but not this",)), **begun)
    assert rest.is_after(begun, sea)
    assert (rest.ids, rest.reason) == ([], Finish.LENGTH)
