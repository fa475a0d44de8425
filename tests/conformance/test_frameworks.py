"""What applications really use on top of an SDK: LangChain and openai-agents, as smoke tests."""

from typing import Literal

import openai
import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    function_tool,
)
from agents.models.interface import Model
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, SecretStr

from tests.conformance.clients import EMBEDDING_MODEL, MODEL
from tests.harness.local import Stack

QUESTION = "What is the weather in Paris?"


class Colour(BaseModel):
    """A colour."""

    colour: Literal["red", "green"]
    sure: bool


def chat(stack: Stack, **more: object) -> ChatOpenAI:
    return ChatOpenAI(
        model=MODEL,
        base_url=stack.base_url,
        api_key=SecretStr(stack.api_key),
        temperature=0,
        max_retries=0,
        **{"max_tokens": 16, **more},
    )


@tool
def get_weather(city: Literal["Paris", "Oslo"]) -> str:
    """The weather of a city."""
    return f"Sunny in {city}."


@pytest.mark.parametrize("responses", [False, True], ids=["chat", "responses"])
async def test_langchain_invokes_streams_and_counts(stack: Stack, responses: bool) -> None:
    model = chat(stack, use_responses_api=responses)
    answer = await model.ainvoke(QUESTION)
    assert answer.text
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 16
    chunks = [chunk async for chunk in model.astream(QUESTION)]
    assert "".join(chunk.text for chunk in chunks) == answer.text


@pytest.mark.parametrize("responses", [False, True], ids=["chat", "responses"])
async def test_langchain_has_structured_output_and_tools(stack: Stack, responses: bool) -> None:
    model = chat(stack, use_responses_api=responses, max_tokens=80)
    for method in ("json_schema", "function_calling"):
        found = await model.with_structured_output(Colour, method=method).ainvoke("Which colour?")
        assert isinstance(found, Colour)
    bound = model.bind_tools([get_weather], tool_choice="required", parallel_tool_calls=False)
    asked = await bound.ainvoke(QUESTION)
    (call,) = asked.tool_calls
    assert call["name"] == "get_weather"
    result = await get_weather.ainvoke(call)
    assert isinstance(result, ToolMessage)
    after = await model.ainvoke([HumanMessage(QUESTION), asked, result])
    assert after.text


async def test_langchain_embeds(stack: Stack) -> None:
    settings = {"model": EMBEDDING_MODEL, "base_url": stack.base_url, "api_key": SecretStr(stack.api_key)}
    # Without the check, texts are sent as they are; with it, as tokens of OpenAI's own tokenizer, which no other has.
    vectors = await OpenAIEmbeddings(**settings, check_embedding_ctx_length=False).aembed_documents(["one", "two"])
    assert [len(vector) for vector in vectors] == [384, 384]


@pytest.fixture(params=["chat", "responses"])
def agent_model(request: pytest.FixtureRequest, client: openai.AsyncOpenAI) -> Model:
    kind = OpenAIChatCompletionsModel if request.param == "chat" else OpenAIResponsesModel
    return kind(model=MODEL, openai_client=client)


async def test_an_agent_calls_its_tool_and_ends_with_it(agent_model: Model) -> None:
    asked: list[str] = []

    @function_tool
    def weather(city: Literal["Paris", "Oslo"]) -> str:
        """The weather of a city."""
        asked.append(city)
        return f"Sunny in {city}."

    settings = ModelSettings(temperature=0, max_tokens=80, tool_choice="required", parallel_tool_calls=False)
    agent = Agent(
        name="Forecaster",
        instructions="Answer with the tool.",
        model=agent_model,
        model_settings=settings,
        tools=[weather],
        tool_use_behavior="stop_on_first_tool",
    )
    run = RunConfig(tracing_disabled=True)
    result = await Runner.run(agent, QUESTION, run_config=run)
    assert asked
    assert result.final_output == f"Sunny in {asked[0]}."
    streamed = Runner.run_streamed(agent, QUESTION, run_config=run)
    kinds = {event.type async for event in streamed.stream_events()}
    assert {"raw_response_event", "run_item_stream_event"} <= kinds
    assert streamed.final_output == result.final_output


async def test_an_agent_takes_over_with_what_another_ones_tool_said(agent_model: Model) -> None:
    @function_tool
    def weather() -> str:
        """The weather."""
        return "Sunny."

    run = RunConfig(tracing_disabled=True)
    settings = ModelSettings(temperature=0, max_tokens=80, tool_choice="weather", parallel_tool_calls=False)
    asker = Agent(
        name="Asker", model=agent_model, model_settings=settings, tools=[weather],
        tool_use_behavior="stop_on_first_tool",
    )  # fmt: skip
    asked = await Runner.run(asker, QUESTION, run_config=run)
    assert [item.type for item in asked.new_items][:2] == ["tool_call_item", "tool_call_output_item"]
    settings = ModelSettings(temperature=0, max_tokens=80)
    chooser = Agent(name="Chooser", model=agent_model, model_settings=settings, output_type=Colour)
    history = [*asked.to_input_list(), {"role": "user", "content": "Which colour?"}]
    assert isinstance((await Runner.run(chooser, history, run_config=run)).final_output, Colour)
