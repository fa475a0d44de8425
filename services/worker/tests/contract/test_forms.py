"""Outputs that must keep to a form."""

import json
import re

from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_worker.engine import Constraint, ConstraintKind, Finish, Sampling

from services.worker.tests.contract.behaviours import shows
from services.worker.tests.contract.driver import SEA, Driver, said
from services.worker.tests.contract.schemas import BAD_SCHEMAS, PERSON, schema


@shows("forms", "structured_output")
async def test_a_schema_holds_at_any_temperature(engine: Driver) -> None:
    hot = Sampling(temperature=1.0, max_tokens=80)
    answers = [engine.submit("Describe a person.", hot, constraint=schema(PERSON)) for _ in range(6)]
    await engine.ended(*answers)
    for answer in answers:
        assert answer.reason is Finish.STOP
        person = json.loads(answer.text)
        assert set(person) == {"name", "age"}
        assert 0 <= person["age"] <= 150
    assert len({answer.text for answer in answers}) > 1, "drawn, each with a seed of its own"


@shows("forms", "structured_output")
async def test_any_object(engine: Driver) -> None:
    form = Constraint(ConstraintKind.JSON_OBJECT)
    thing = await engine.ask("A very short JSON object", Sampling(max_tokens=60), constraint=form)
    assert thing.reason is Finish.LENGTH or isinstance(json.loads(thing.text), dict)
    assert thing.text.lstrip().startswith(b"{")


@shows("forms", "structured_output", "expressions")
async def test_an_expression(engine: Driver) -> None:
    code = await engine.ask("A code", constraint=Constraint(ConstraintKind.REGEX, "[A-Z]{2}/[0-9]{3}"))
    assert re.fullmatch(rb"[A-Z]{2}/[0-9]{3}", code.text)
    assert code.reason is Finish.STOP


@shows("forms", "structured_output")
async def test_bad_schemas_are_refused_and_the_engine_serves_on(engine: Driver) -> None:
    neighbour = engine.submit(SEA)
    assert len(BAD_SCHEMAS) >= 50
    sent = [(source, Constraint(ConstraintKind.JSON_SCHEMA, source)) for source in BAD_SCHEMAS]
    if "expressions" in engine.has:
        sent.append(("[a", Constraint(ConstraintKind.REGEX, "[a")))
    answers = [engine.submit(said("x"), constraint=constraint) for _, constraint in sent]
    await engine.ended(neighbour, *answers)
    for (source, _), answer in zip(sent, answers, strict=True):
        assert answer.reason is Finish.ERROR, source
        assert answer.error.reason == "invalid_schema", source
        assert answer.error.param == "response_format", source
        assert answer.error.error_class == ErrorClass.ERROR_CLASS_INVALID_ARGUMENT
        assert not answer.ids
    assert neighbour.reason is Finish.LENGTH
    after = await engine.ask("A person.", Sampling(max_tokens=80), constraint=schema(PERSON))
    assert json.loads(after.text)


@shows("forms", "structured_output", "expressions")
async def test_an_output_that_leaves_its_form_ends_there(engine: Driver) -> None:
    """Nobody sees the trouble in this schema before its last object begins; then the engine's library gives it up."""
    wide = [{"properties": {f"{kind}{at}": {"type": "integer"} for at in range(330)}} for kind in "abc"]
    inner = {"anyOf": [{"type": "object", "additionalProperties": False, **one} for one in wide]}
    first = {"type": "string", "pattern": "^[a-z ]{30}$"}
    form = {"type": "object", "properties": {"a": first, "b": inner}, "required": ["a", "b"]}
    neighbour = engine.submit(SEA)
    answer = await engine.ask("x", Sampling(temperature=1.0, max_tokens=60), constraint=schema(form))
    assert (answer.error.reason, answer.error.param) == ("invalid_schema", "response_format")
    assert answer.error.error_class == ErrorClass.ERROR_CLASS_INVALID_ARGUMENT, "it would come to the same again"
    text = answer.text.decode()
    fits = '{"a": "' + re.sub("[^a-z ]", "", text[7:37]).ljust(30) + '", "b": {"'
    assert fits.startswith(text), "nothing else was delivered"
    await engine.ended(neighbour)
    assert neighbour.reason is Finish.LENGTH
