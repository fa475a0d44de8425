"""Work that says how far a request has come: whatever its form, it goes on with the next token, on a real engine."""

import json
from collections.abc import Callable
from typing import Any

from inferbus.bus.v1.request_pb2 import GenerateRequest, PromptInput, ToolMode
from inferbus.common.v1.usage_pb2 import FinishReason
from inferbus_contracts.recovery import Recovered, fold

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}},
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


def forms(edge: Any) -> dict[str, GenerateRequest]:
    def greedy(content: str, tokens: int) -> GenerateRequest:
        request: GenerateRequest = edge.request(content, tokens, reply=b"as chat")
        request.sampling.temperature = 0.0
        return request

    made = {"text": greedy("Write a story about the sea.", 40), "logprobs": greedy("Write about a fox.", 24)}
    made["logprobs"].sampling.logprobs = 2
    made["second choice"] = greedy("Write about bread.", 24)
    made["second choice"].input_counted_elsewhere = True
    made["schema"] = greedy("Describe a person.", 80)
    made["schema"].constraint.json_schema = json.dumps(SCHEMA)
    made["tool"] = greedy("What is the weather in Paris?", 80)
    made["tool"].chat.tools.add(name="get_weather", parameters=json.dumps(WEATHER))
    made["tool"].chat.tool_mode = ToolMode.TOOL_MODE_REQUIRED
    made["seed"] = greedy("Write about the moon.", 24)
    made["seed"].sampling.temperature, made["seed"].sampling.seed = 0.8, 7
    made["stop"] = greedy("Write a story about the sea.", 40)
    made["stop"].sampling.stop.append("nowhere to be found")
    return made


def as_of(edge: Any, request: GenerateRequest, tokens: int) -> Recovered:
    """What the log had of it when there were at least so many tokens."""
    found = Recovered()
    for frame in edge.frames:
        fold(frame, {request.request_id: found})
        if len(found.ids) >= tokens:
            break
    return found


async def test_every_form_goes_on_as_it_would_have(
    edge: Any, new_worker: Callable[..., Any], received_type: Any
) -> None:
    worker = new_worker(ENGINE="llama_cpp")
    await worker.start()
    whole, found = forms(edge), dict[str, Recovered]()
    undisturbed = {name: await edge.place(worker.name, request) for name, request in whole.items()}
    await edge.until(lambda: all(one.close is not None for one in undisturbed.values()), 120)
    resumed = {}
    for name, request in forms(edge).items():
        found[name] = so_far = as_of(edge, whole[name], len(undisturbed[name].ids) // 2)
        request.resume.attempt = 3
        request.resume.token_ids.extend(so_far.ids)
        request.resume.text = b"".join(text for _, text in so_far.texts)
        resumed[name] = edge.received[request.request_id] = received_type(
            ids=list(so_far.ids), texts=[text for _, text in so_far.texts]
        )
        await edge.place(worker.name, request)
    await edge.until(lambda: all(one.close is not None for one in resumed.values()), 120)
    for name, one in resumed.items():
        before = undisturbed[name]
        assert 0 < len(found[name].ids) < len(before.ids), name
        if name == "seed":  # a draw goes on, but draws anew
            assert one.ids[: len(found[name].ids)] == found[name].ids
            assert one.text.startswith(b"".join(text for _, text in found[name].texts))
            continue
        assert (one.ids, one.text) == (before.ids, before.text), name
        assert one.attempts == [3], name
        assert one.replies == [b"as chat"], name
        assert (one.close.attempt, one.close.finish_reason) == (3, before.close.finish_reason), name
        assert one.close.usage.output_tokens == len(before.ids), name
        assert one.close.usage.input_tokens == before.close.usage.input_tokens, name
    assert json.loads(resumed["schema"].text).keys() == SCHEMA["properties"].keys()
    assert b"get_weather" in resumed["tool"].text
    assert resumed["second choice"].close.usage.input_tokens == 0
    at = len(found["logprobs"].ids)
    mine, theirs = resumed["logprobs"].logprobs, undisturbed["logprobs"].logprobs[at:]
    assert [one.token_id for one in mine] == [one.token_id for one in theirs]
    assert max(abs(a.logprob - b.logprob) for a, b in zip(mine, theirs, strict=True)) < 1e-3


async def test_what_has_no_tokens_is_made_again_as_a_whole(
    edge: Any, new_worker: Callable[..., Any], received_type: Any
) -> None:
    worker = new_worker(ENGINE="minilm")
    await worker.start()

    def vectors() -> GenerateRequest:
        request: GenerateRequest = edge.request("")
        request.embedding.inputs.extend([PromptInput(text=f"text number {number}") for number in range(5)])
        return request

    first, second = await edge.place(worker.name, vectors()), vectors()
    second.resume.attempt = 2
    again = await edge.place(worker.name, second)
    await edge.closed(first, again)
    assert again.vectors == first.vectors
    assert (first.attempts, again.attempts) == ([1], [2])
    assert (again.close.attempt, again.close.finish_reason) == (2, FinishReason.FINISH_REASON_STOP)
    assert again.close.usage == first.close.usage
