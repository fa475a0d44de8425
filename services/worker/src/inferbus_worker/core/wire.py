"""What the bus asks, as the engine seam says it."""

from inferbus.bus.v1 import request_pb2 as wire
from inferbus_contracts.prefixes import hashes_of
from inferbus_runtime.errors import invalid

from inferbus_worker.core.columns import MAX_REPLY_BYTES, reply_too_large
from inferbus_worker.core.running import Running
from inferbus_worker.engine import (
    Chat,
    Constraint,
    ConstraintKind,
    Embed,
    Generation,
    Infer,
    Message,
    Prompt,
    Sampling,
    Source,
    Tool,
    ToolCall,
    ToolMode,
)

# A request that does not say gets what OpenAI's API does without a word.
_TOOL_MODES: dict[wire.ToolMode.ValueType, ToolMode] = {
    wire.ToolMode.TOOL_MODE_UNSPECIFIED: ToolMode.AUTO,
    wire.ToolMode.TOOL_MODE_AUTO: ToolMode.AUTO,
    wire.ToolMode.TOOL_MODE_REQUIRED: ToolMode.REQUIRED,
    wire.ToolMode.TOOL_MODE_NONE: ToolMode.NONE,
}


def generation_of(running: Running) -> Generation:
    """What the engine is asked to do now. Raises InferBusError for a request without input, and for one whose answer no
    frame can hold."""
    request = running.request
    if len(request.reply) > MAX_REPLY_BYTES:
        raise reply_too_large()
    return Generation(
        key=running.key,
        input=_input_of(request),
        sampling=sampling_of(request.sampling),
        resume_ids=tuple(running.ids),
        constraint=_constraint_of(request),
        cache_salt=request.cache_salt,
        resume_text=b"".join(running.texts or ()).decode(),
        prefix=hashes_of(request.prefix),
        adapter=request.context.model.partition(":")[2],
    )


def _input_of(request: wire.GenerateRequest) -> Source:
    match request.WhichOneof("input"):
        case "chat":
            return chat_of(request.chat)
        case "prompt":
            return _prompt_of(request.prompt)
        case "embedding":
            return Embed(tuple(_prompt_of(one) for one in request.embedding.inputs))
        case "inference":
            return Infer(request.inference.request)
        case _:
            raise invalid("Send chat messages, a prompt or inputs to embed.", param="messages")


def chat_of(chat: wire.ChatInput) -> Chat:
    return Chat(
        messages=tuple(
            Message(
                role=message.role,
                content=message.content,
                name=message.name,
                tool_calls=tuple(ToolCall(call.id, call.name, call.arguments) for call in message.tool_calls),
                tool_call_id=message.tool_call_id,
            )
            for message in chat.messages
        ),
        tools=tuple(Tool(tool.name, tool.description, tool.parameters) for tool in chat.tools),
        tool_mode=_TOOL_MODES.get(chat.tool_mode, ToolMode.AUTO),
        tool_name=chat.tool_name,
        parallel_tool_calls=chat.parallel_tool_calls,
        reasoning_effort=chat.reasoning_effort,
    )


def _prompt_of(prompt: wire.PromptInput) -> Prompt:
    return Prompt(tuple(prompt.tokens.ids) if prompt.WhichOneof("prompt") == "tokens" else prompt.text)


def _constraint_of(request: wire.GenerateRequest) -> Constraint | None:
    match request.constraint.WhichOneof("form"):
        case "json_schema":
            return Constraint(ConstraintKind.JSON_SCHEMA, request.constraint.json_schema)
        case "regex":
            return Constraint(ConstraintKind.REGEX, request.constraint.regex)
        case "json_object" if request.constraint.json_object:
            return Constraint(ConstraintKind.JSON_OBJECT)
        case _:
            return None


def sampling_of(sampling: wire.Sampling) -> Sampling:
    """Absent fields are None: the model's own default."""

    def given(name: str) -> bool:
        return sampling.HasField(name)  # type: ignore[arg-type]

    return Sampling(
        temperature=sampling.temperature if given("temperature") else None,
        top_p=sampling.top_p if given("top_p") else None,
        top_k=sampling.top_k if given("top_k") else None,
        seed=sampling.seed if given("seed") else None,
        stop=tuple(sampling.stop),
        max_tokens=sampling.max_tokens if given("max_tokens") else None,
        frequency_penalty=sampling.frequency_penalty if given("frequency_penalty") else None,
        presence_penalty=sampling.presence_penalty if given("presence_penalty") else None,
        repetition_penalty=sampling.repetition_penalty if given("repetition_penalty") else None,
        min_p=sampling.min_p if given("min_p") else None,
        logit_bias=tuple(sampling.logit_bias.items()),
        logprobs=sampling.logprobs if given("logprobs") else None,
    )
