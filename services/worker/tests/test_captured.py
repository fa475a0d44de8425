"""What a captured request's first frame says of what was asked."""

import json

import pytest
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.bus.v1.request_pb2 import (
    ChatInput,
    ChatMessage,
    EmbeddingInput,
    GenerateRequest,
    PromptInput,
    TokenIds,
    Tool,
    ToolCall,
    Work,
)
from inferbus.common.v1.context_pb2 import RequestContext
from inferbus_worker.core.captured import MAX_INPUT_BYTES, captured_input
from inferbus_worker.core.columns import StepFrames
from inferbus_worker.core.running import running_of

WORDS = "canary ü"


def request(*, captured: bool = True, **fields: object) -> GenerateRequest:
    made = GenerateRequest(request_id=b"r" * 16, edge="edge-0", context=RequestContext(captured=captured))
    if not fields:
        call = ToolCall(id="1", name="look", arguments=json.dumps({"q": WORDS}, ensure_ascii=False))
        messages = [ChatMessage(role="user", content=WORDS), ChatMessage(role="assistant", tool_calls=[call])]
        fields = {"chat": ChatInput(messages=messages, tools=[Tool(name="look")])}
    made.MergeFrom(GenerateRequest(**fields))  # type: ignore[arg-type]
    return made


def test_a_chat_is_said_whole_with_its_tools() -> None:
    text, truncated = captured_input(request())
    said = json.loads(text)
    assert [one["role"] for one in said["messages"]] == ["user", "assistant"]
    assert (said["messages"][0]["content"], said["tools"], truncated) == (WORDS, [{"name": "look"}], False)
    assert text.count("canary") == 2


def test_a_prompt_is_said_as_text_or_as_tokens() -> None:
    assert json.loads(captured_input(request(prompt=PromptInput(text=WORDS)))[0]) == {"text": WORDS}


@pytest.mark.parametrize("fields", [{"captured": False}, {"input_counted_elsewhere": True}])
def test_nothing_is_said_of_others(fields: dict[str, bool]) -> None:
    chat = ChatInput(messages=[ChatMessage(role="user", content=WORDS)])
    assert captured_input(request(chat=chat, **fields)) == ("", False)  # type: ignore[arg-type]
    embedding = EmbeddingInput(inputs=[PromptInput(text=WORDS)])
    assert captured_input(request(embedding=embedding)) == ("", False)


@pytest.mark.parametrize("size", [MAX_INPUT_BYTES, 4 << 20])
def test_of_a_long_prompt_the_beginning_is_said(size: int) -> None:
    text, truncated = captured_input(request(prompt=PromptInput(text="ü" * (size // 2))))
    assert truncated
    assert MAX_INPUT_BYTES // 2 < len(text.encode()) <= MAX_INPUT_BYTES
    assert set(json.loads(text)["text"]) == {"ü"}
    text, truncated = captured_input(request(prompt=PromptInput(tokens=TokenIds(ids=[99_999] * size))))
    assert truncated
    assert len(text) <= MAX_INPUT_BYTES
    assert set(json.loads(text)["tokens"]["ids"]) == {99_999}


def test_of_a_long_chat_the_newest_messages_are_said() -> None:
    messages = [ChatMessage(role="user", content=f"{number} {'x' * 1000}") for number in range(5000)]
    text, truncated = captured_input(request(chat=ChatInput(messages=messages)))
    said = json.loads(text)["messages"]
    assert truncated
    assert [one["content"].split()[0] for one in said] == [str(number) for number in range(5000 - len(said), 5000)]
    assert len(said) > 30
    last = ChatMessage(role="user", content="ü" * MAX_INPUT_BYTES)
    text, truncated = captured_input(request(chat=ChatInput(messages=[*messages, last])))
    (only,) = json.loads(text)["messages"]
    assert (only["role"], set(only["content"]), truncated) == ("user", {"ü"}, True)


def test_what_json_writes_longer_is_cut_all_the_same() -> None:
    text, truncated = captured_input(request(prompt=PromptInput(text="\0" * MAX_INPUT_BYTES)))
    assert truncated
    assert len(text.encode()) == MAX_INPUT_BYTES


def test_tools_that_do_not_fit_are_left_out() -> None:
    tools = [Tool(name=f"tool-{number}", description="x" * 1000) for number in range(100)]
    chat = ChatInput(messages=[ChatMessage(role="user", content=WORDS)], tools=tools)
    text, truncated = captured_input(request(chat=chat))
    assert truncated
    assert 20 < len(json.loads(text)["tools"]) < 100


@pytest.mark.parametrize("captured", [True, False])
def test_it_is_in_the_first_frame_of_an_attempt_and_in_no_other(captured: bool) -> None:
    running = running_of(Work(request=request(captured=captured)), "r1", 1)
    frames: list[Frame] = []
    for index in range(3):
        step = StepFrames(1_000_000 + index)
        step.of("edge-0").add(running, [index], b"x", 1)
        frames += step.frames()
    assert [frame.contexts[0].captured for frame in frames] == [captured] * 3
    assert [len(frame.opens) for frame in frames] == [1, 0, 0]
    assert ("canary" in frames[0].opens[0].captured_input) is captured


def test_steps_of_many_long_prompts_are_cut_into_frames_of_a_size() -> None:
    step = StepFrames(1_000_000)
    for number in range(40):
        made = request(prompt=PromptInput(text="x" * MAX_INPUT_BYTES))
        made.request_id = bytes([number]) * 16
        step.of("edge-0").add(running_of(Work(request=made), "r1", 1), [1], b"x", 1)
    frames = step.frames()
    assert sum(len(frame.opens) for frame in frames) == 40
    assert max(frame.ByteSize() for frame in frames) <= 1 << 20
