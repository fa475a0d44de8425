"""What an upstream is asked: the bodies of /chat/completions, /completions and /embeddings."""

import json
from dataclasses import dataclass
from typing import Any

import orjson
from inferbus_runtime.errors import invalid

from inferbus_worker.core.grammar import grammar_of
from inferbus_worker.core.tool_text import parsed, plain_turns, tool_json
from inferbus_worker.engine import Chat, Constraint, ConstraintKind, Embed, Generation, Message, Prompt, ToolMode
from inferbus_worker.engines.openai_dialect import Continuing, Dialect
from inferbus_worker.engines.openai_run import Form, Run

# OpenAI takes no more.
_MAX_STOPS = 4
_NO_THINKING = ("none", "minimal")


@dataclass(frozen=True, slots=True)
class Events:
    """What was seen of its streams. ``named``: each event names the answer that it is of. ``opened``: the first one of
    a chat says nothing yet, mostly."""

    named: bool = False
    opened: bool = False


@dataclass(frozen=True, slots=True)
class Asking:
    """How one upstream is asked. ``limit``: its name for ``max_tokens``. ``usage``: it is asked for its usage in a
    stream. ``shares``: prefixes of different salts may be shared where it does not keep them apart. ``grammars``: forms
    and calls are held by a grammar of ours, with the tools written into the messages."""

    model: str
    dialect: Dialect
    continuing: Continuing
    context_length: int
    limit: str = "max_tokens"
    usage: bool = True
    streams: bool = True
    shares: bool = False
    grammars: bool = False
    events: Events = Events()


def path_and_body(asking: Asking, run: Run, input_tokens: int) -> tuple[str, bytes]:
    """Where the next answer is asked for, and with what. ``input_tokens``: of the prompt, more or less."""
    generation = run.generation
    body: dict[str, Any] = {"model": asking.model}
    if isinstance(generation.input, Embed):
        return "embeddings", orjson.dumps(body | {"input": _inputs(generation.input), "encoding_format": "float"})
    if isinstance(generation.input, Chat):
        path = "chat/completions"
        body |= chat_of(asking, generation.input) | _effort(generation.input, asking.dialect)
        if run.form is Form.CONTINUE:
            body["messages"].append({"role": "assistant", "content": run.so_far})
            if asking.continuing == "final_message":
                body |= {"continue_final_message": True, "add_generation_prompt": False}
    elif isinstance(generation.input, Prompt):
        path = "completions"
        body["prompt"] = _prompt(generation.input, run)
    else:
        raise TypeError(f"{type(generation.input).__name__} should have been refused")
    body |= _sampling(asking, generation) | _limit(asking, run, input_tokens) | _form(asking, generation)
    body |= asking.dialect.always
    if generation.cache_salt and asking.dialect.salts:
        body["cache_salt"] = generation.cache_salt.hex()
    elif not asking.shares:
        body |= asking.dialect.uncached
    if stops := stops_there(asking, generation):
        body["stop"] = stops
    if asking.streams:
        body["stream"] = True
        if asking.usage:
            body["stream_options"] = {"include_usage": True, **asking.dialect.stream_options}
    return path, orjson.dumps(body)


def stops_there(asking: Asking, generation: Generation) -> list[str]:
    """Stop strings that the upstream looks for, too: it ends by itself, and tells its usage.

    Not if it does not say which one it met, and not in an answer with calls or thoughts, where it would find them too.
    """
    stops = [stop for stop in generation.sampling.stop if stop]
    source = generation.input
    other = isinstance(source, Chat) and (
        (source.tools and source.tool_mode is not ToolMode.NONE) or source.reasoning_effort not in ("", "none")
    )
    return stops if asking.dialect.says_stop and len(stops) <= _MAX_STOPS and not other else []


def unsupported(asking: Asking, generation: Generation) -> str:
    """The name of what this upstream cannot be asked for, or empty."""
    sampling, extra = generation.sampling, asking.dialect.sampling
    for name in ("top_k", "min_p", "repetition_penalty"):
        if getattr(sampling, name) is not None and name not in extra:
            return name
    regex = generation.constraint is not None and generation.constraint.kind is ConstraintKind.REGEX
    return "response_format" if regex and asking.dialect.regex == "none" and not asking.grammars else ""


def chat_of(asking: Asking, chat: Chat) -> dict[str, Any]:
    """Messages and tools."""
    if asking.grammars:
        return {"messages": [_message(message) for message in plain_turns(chat)]}
    body: dict[str, Any] = {"messages": [_message(message) for message in chat.messages]}
    if not chat.tools:
        return body
    body["tools"] = [tool_json(tool) for tool in chat.tools]
    if asking.dialect.strict_tools:
        for tool in body["tools"]:
            tool["function"]["strict"] = True
    body["tool_choice"] = chat.tool_mode.value
    if chat.tool_mode is ToolMode.REQUIRED and chat.tool_name:
        body["tool_choice"] = {"type": "function", "function": {"name": chat.tool_name}}
    if not chat.parallel_tool_calls:  # left out where it says nothing: not every server knows it
        body["parallel_tool_calls"] = False
    return body


def _message(message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name:
        turn["name"] = message.name
    if message.tool_calls:
        turn["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments or "{}"}}
            for call in message.tool_calls
        ]
        turn["content"] = message.content or None
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    return turn


def _effort(chat: Chat, dialect: Dialect) -> dict[str, Any]:
    if not chat.reasoning_effort:
        return {}
    body: dict[str, Any] = {}
    if chat.reasoning_effort != "none" or dialect.name == "plain":
        body["reasoning_effort"] = chat.reasoning_effort
    if dialect.name != "plain":  # of templates that only know whether
        body["chat_template_kwargs"] = {"enable_thinking": chat.reasoning_effort not in _NO_THINKING}
    return body


def _prompt(source: Prompt, run: Run) -> str | list[int]:
    if isinstance(source.content, str):
        return source.content + (run.so_far if run.form is Form.CONTINUE else "")
    return list(source.content)


def _inputs(source: Embed) -> list[Any]:
    contents = [one.content for one in source.inputs]
    if len({isinstance(content, str) for content in contents}) > 1:
        raise invalid("Send inputs that are all texts, or all token ids.", param="input")
    return [content if isinstance(content, str) else list(content) for content in contents]


def _sampling(asking: Asking, generation: Generation) -> dict[str, Any]:
    """What was not given is the upstream's own default."""
    sampling, dialect = generation.sampling, asking.dialect
    given = {
        name: getattr(sampling, name) for name in ("temperature", "top_p", "frequency_penalty", "presence_penalty")
    } | {there: getattr(sampling, name) for name, there in dialect.sampling.items()}
    body = {name: value for name, value in given.items() if value is not None}
    # Also where none was asked for: an answer that breaks off may have to be made again.
    seed = int.from_bytes(generation.key[-8:], "big") if sampling.seed is None else sampling.seed
    body["seed"] = seed % dialect.seeds
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    if sampling.logprobs is not None:
        # One at least: 0 is none at all to some servers, also of the token itself.
        top = max(1, sampling.logprobs)
        body |= {"logprobs": True, "top_logprobs": top} if isinstance(generation.input, Chat) else {"logprobs": top}
    return body


def _limit(asking: Asking, run: Run, input_tokens: int) -> dict[str, Any]:
    """As many as are wanted; where that was too much, as many as have room."""
    if isinstance(run.generation.input, Chat):
        return {asking.limit: run.max_new} if run.max_new is not None and not run.tight else {}
    # A completion without a limit has 16 tokens by OpenAI's API.
    room = max(1, asking.context_length - (input_tokens << max(0, run.tight - 1)) - run.base)
    if run.max_new is None:
        return {asking.limit: room}
    return {asking.limit: min(run.max_new, room) if run.tight else run.max_new}


def _form(asking: Asking, generation: Generation) -> dict[str, Any]:
    if asking.grammars:
        grammar = grammar_of(generation)
        return {} if grammar is None else {"grammar": grammar.text}
    constraint = generation.constraint
    source = generation.input
    if constraint is None or (isinstance(source, Chat) and source.tool_mode is ToolMode.REQUIRED and source.tools):
        return {}  # an answer that must be a call has no text
    if constraint.kind is ConstraintKind.REGEX:
        return _regex(asking.dialect, constraint)
    if constraint.kind is ConstraintKind.JSON_OBJECT:
        return {"response_format": {"type": "json_object"}}
    schema = parsed(constraint.source)
    form = {"name": "answer", "schema": schema, "strict": _strict(schema)}
    return {"response_format": {"type": "json_schema", "json_schema": form}}


def _strict(schema: Any) -> bool:
    """OpenAI's strict mode refuses a schema whose objects are open; without it, nothing is enforced there."""
    return "additionalProperties" in json.dumps(schema)


def _regex(dialect: Dialect, constraint: Constraint) -> dict[str, Any]:
    if dialect.regex == "structured_outputs":
        return {"structured_outputs": {"regex": constraint.source}}
    if dialect.regex == "regex":
        return {"regex": constraint.source}
    return {"response_format": {"type": "regex", "regex": constraint.source}}
