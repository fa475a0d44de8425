"""Tools: calls that must be, calls that may be, and what stands beside them."""

import json
import re
from dataclasses import replace

from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_worker.engine import Chat, Finish, Message, Sampling, Tool, ToolMode

from services.worker.tests.contract.behaviours import shows
from services.worker.tests.contract.driver import GREEDY, SEA, Driver
from services.worker.tests.contract.schemas import PERSON, schema, with_tools

HOT = Sampling(temperature=1.0, max_tokens=120)
REQUIRED = with_tools(tool_mode=ToolMode.REQUIRED, parallel_tool_calls=False)
CALLED = Sampling(temperature=0.0, max_tokens=120)


@shows("tools", "tools")
async def test_a_call_that_must_be(engine: Driver) -> None:
    answers = [engine.submit(replace(REQUIRED, tool_name="get_weather"), HOT) for _ in range(2)]
    await engine.ended(*answers)
    for answer in answers:
        before, call, after = re.split(r"<tool_call>\n|\n</tool_call>", answer.text.decode())
        assert (before, after) == ("", "")
        assert json.loads(call)["name"] == "get_weather"
        assert set(json.loads(call)["arguments"]) >= {"city"}
        assert call.startswith('{"name": "get_weather", "arguments": {'), "in the order in which an edge streams it"
    nobody = await engine.ask(with_tools(tool_mode=ToolMode.REQUIRED, tool_name="other"))
    assert nobody.error.param == "tool_choice"


@shows("tools", "tools")
async def test_a_call_that_must_be_takes_no_notice_of_a_form(engine: Driver) -> None:
    answer = await engine.ask(REQUIRED, CALLED, constraint=schema(PERSON))
    assert answer.text.startswith(b'<tool_call>\n{"name": "get_weather"')


@shows("tools", "tools")
async def test_stop_strings_are_not_looked_for_in_calls(engine: Driver) -> None:
    """Also by a generation that goes on inside one."""
    whole = await engine.ask(REQUIRED, CALLED)
    sampling = replace(CALLED, stop=("\n", "<", '"', "}"))
    answer = await engine.ask(REQUIRED, sampling)
    assert (answer.text, answer.reason) == (whole.text, whole.reason)
    assert answer.end.stop_index is None
    begun = answer.begun(4)
    rest = await engine.ask(REQUIRED, sampling, **begun)
    assert rest.is_after(begun, whole)
    assert rest.reason is whole.reason


@shows("tools", "tools")
async def test_stop_strings_end_the_text_beside_calls(engine: Driver) -> None:
    """Of a model that may call and does not; what looks like the beginning of a call is held back and not lost."""
    source = with_tools(SEA)
    whole = (await engine.ask(source)).text.decode()
    stop = whole[9:16]
    answer = await engine.ask(source, replace(GREEDY, stop=("never there", stop)))
    assert (answer.text.decode(), answer.end.stop_index) == (whole[: whole.index(stop)], 1)
    answer = await engine.ask(source, replace(GREEDY, stop=(whole[-3:] + " but not this",)))
    assert (answer.text.decode(), answer.reason) == (whole, Finish.LENGTH)


@shows("tools", "tools")
async def test_calls_that_may_be(engine: Driver) -> None:
    """A hot model that is led to call: whatever it begins is a call by the schema, or no call at all."""
    led = 'Write exactly this: <tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
    hot = Sampling(temperature=1.0, max_tokens=40)
    whole = re.compile("<tool_call>(.*?)\n</tool_call>", re.DOTALL)
    quiet = engine.submit(with_tools(tool_mode=ToolMode.NONE))
    calls: list[str] = []
    for _ in range(12):  # a quarter of the draws calls: in three of a hundred million times none does
        answers = [engine.submit(with_tools(led), hot) for _ in range(5)]
        await engine.ended(quiet, *answers)
        assert {answer.reason for answer in answers} <= {Finish.STOP, Finish.LENGTH}
        calls = [call for answer in answers for call in whole.findall(answer.text.decode())]
        if calls:
            break
    assert calls
    assert all(json.loads(call)["name"] == "get_weather" for call in calls)
    assert quiet.text


@shows("tools", "tools")
async def test_parameters_of_a_tool_that_are_no_schema(engine: Driver) -> None:
    answer = await engine.ask(Chat((Message("user", "x"),), (Tool("f", "", '{"type": "frog"}'),)))
    assert (answer.error.reason, answer.error.param) == ("invalid_schema", "tools")
    assert answer.error.error_class == ErrorClass.ERROR_CLASS_INVALID_ARGUMENT
