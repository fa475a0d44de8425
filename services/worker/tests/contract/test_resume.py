"""A generation that goes on after what an earlier attempt has delivered."""

import pytest
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_worker.engine import UNKNOWN_TOKEN, Constraint, ConstraintKind, Finish, Prompt, Sampling

from services.worker.tests.contract.behaviours import shows
from services.worker.tests.contract.driver import SEA, Answer, Driver, said
from services.worker.tests.contract.schemas import PERSON, schema


@shows("resume")
@pytest.mark.parametrize("given", [1, 5, 9])
async def test_it_is_exact_for_greedy(engine: Driver, sea: Answer, given: int) -> None:
    begun = sea.begun(given)
    rest = await engine.ask(SEA, **begun)
    assert rest.is_after(begun, sea)
    assert not engine.ids or rest.ids == sea.ids[len(begun["resume_ids"]) :]
    assert rest.end.input_tokens == sea.end.input_tokens
    assert rest.reason is Finish.LENGTH


@shows("resume")
async def test_all_was_delivered(engine: Driver, sea: Answer) -> None:
    rest = await engine.ask(SEA, **sea.begun(len(sea.ids)))
    assert (rest.ids, rest.text, rest.reason) == ([], b"", Finish.LENGTH)


@shows("resume", "completions")
async def test_a_raw_prompt_goes_on_too(engine: Driver) -> None:
    source = Prompt("Once upon a time")
    whole = await engine.ask(source)
    begun = whole.begun(4)
    rest = await engine.ask(source, **begun)
    assert rest.is_after(begun, whole)
    assert rest.end.input_tokens == whole.end.input_tokens


@shows("resume-forms", "structured_output")
async def test_a_form_goes_on_where_it_was(engine: Driver) -> None:
    """A grammar has no middle to begin in: what was delivered is made again and compared, or stepped over."""
    source, form = said("Describe a person."), {"constraint": schema(PERSON)}
    whole = await engine.ask(source, Sampling(temperature=0.0, max_tokens=80), **form)
    assert whole.reason is Finish.STOP
    for given in (1, 4, len(whole.ids)):
        begun = whole.begun(given)
        rest = await engine.ask(source, Sampling(temperature=0.0, max_tokens=80), **begun, **form)
        assert rest.is_after(begun, whole)
        assert rest.reason is Finish.STOP
        assert rest.end.input_tokens == whole.end.input_tokens


@shows("resume-forms", "structured_output")
async def test_what_cannot_have_been_of_this_form_is_not_gone_on_with(engine: Driver) -> None:
    ids = (5, 6, 7) if engine.ids else (UNKNOWN_TOKEN,) * 3
    other = await engine.ask("Describe a person.", resume_ids=ids, resume_text="$%&", constraint=schema(PERSON))
    assert other.error.reason == "engine_failed"
    assert other.error.error_class == ErrorClass.ERROR_CLASS_UNAVAILABLE, "it may be tried again"
    assert not other.ids


@shows("resume-forms", "structured_output", "expressions")
async def test_an_expression_goes_on_where_it_was(engine: Driver) -> None:
    form = {"constraint": Constraint(ConstraintKind.REGEX, "(red|green) and (blue|white)")}
    whole = await engine.ask("Two colours", **form)
    begun = whole.begun(2)
    rest = await engine.ask("Two colours", **begun, **form)
    assert rest.is_after(begun, whole)
    assert rest.reason is Finish.STOP
