"""From what a caller sends to what the model reads: ids where it takes them, else text; and how much it may answer."""

import asyncio
from dataclasses import replace

from inferbus_runtime.errors import invalid

from inferbus_worker.core.grammar import Grammar, grammar_of_constraint
from inferbus_worker.core.sampling import check_ids, context_exceeded
from inferbus_worker.core.stops import reader_of
from inferbus_worker.engine import Chat, Generation, Prompt, Source, Tokens, ToolMode
from inferbus_worker.engines.triton_request import Task
from inferbus_worker.engines.triton_run import Content, Run
from inferbus_worker.engines.triton_service import Service
from inferbus_worker.engines.triton_tokenizer import TextTokenizer

# A text above it is made into tokens beside the loop.
_LONG_TEXT = 16 * 1024


class Prompts:
    """For the model of ``service``. ``reasons``: it can be told how much to think."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._template = service.files.template if service.files is not None else None
        self.chats = self._template is not None
        self.reasons = self._template is not None and self._template.reasoning

    @property
    def tokenizer(self) -> TextTokenizer:
        """Raises InferBusError if there is none."""
        tokenizer = self._service.tokenizer
        if tokenizer is None:
            text = "This model does not show its tokens; send text."
            raise invalid(text, param="prompt", reason="unsupported_parameter")
        return tokenizer

    def content_of(self, source: Source, open_turn: bool = True) -> Content:
        """Raises InferBusError."""
        service = self._service
        match source:
            case Chat() if self._template is not None:
                text = self._template.render(source, open_turn)
                begin = service.tokenizer.begin if service.tokenizer is not None else ""
                # The template has written the first special token, and the server would write another.
                return text.removeprefix(begin) if not service.by_ids and service.served.adds_special else text
            case Prompt(str() as text):
                return text
            case Prompt(tuple() as ids):
                check_ids(ids, len(self.tokenizer.pieces), "prompt")
                return ids if service.by_ids else self.tokenizer.decode(ids).decode(errors="replace")
            case Chat():
                raise invalid("This model does not support 'messages'.", param="messages")
        raise invalid("This model makes no vectors; choose an embedding model.", param="input")

    async def tokens_of(
        self, source: Prompt | Chat, *, parse_special: bool, add_special: bool, open_turn: bool
    ) -> Tokens:
        """As :meth:`Engine.tokenize` says it."""
        if source == Chat(()):
            raise invalid("Send at least one message.", param="messages")
        tokenizer, content = self.tokenizer, self.content_of(source, open_turn)
        if isinstance(content, str):
            # The template has written the special tokens into a chat.
            parse, add = (True, False) if isinstance(source, Chat) else (parse_special, add_special)
            content = tuple(await _encoded(tokenizer, content, parse, add))
        return Tokens(list(content), [tokenizer.pieces[token] for token in content])

    async def task_of(self, run: Run) -> Task | None:
        """What the server is asked for; None: there is no room for another token. Counts the run's input.

        Raises InferBusError for a prompt that is too long.
        """
        service, settings = self._service, self._service.settings
        adds = service.served.adds_special
        if service.by_ids:
            adds = not isinstance(run.generation.input, Chat)
            if isinstance(run.prompt, str):
                run.prompt = tuple(await _encoded(self.tokenizer, run.prompt, True, adds))
        count = asyncio.to_thread(run.count_input, adds) if _is_long(run.prompt) else None
        run.input_tokens = run.count_input(adds) if count is None else await count
        room = service.context_length - run.input_tokens
        if room <= 0 and not run.estimated:
            raise context_exceeded(run.generation.input, run.input_tokens)
        room -= len(run.ids) if run.grammar is None else 0
        if room <= 0 and not run.estimated:
            return None
        left = run.left()
        sampling = run.generation.sampling
        if reader_of(run.generation, reasons=self.reasons) is not None:
            sampling = replace(sampling, stop=())  # the server would also stop at one in a call or a thought
        known_tokens = len(service.tokenizer.pieces) if service.tokenizer is not None else 0
        return Task(
            prompt=run.to_read(),
            max_new=max(1, room if left is None else min(left, room)),
            sampling=sampling,
            seed=run.seed(),
            constraint=run.generation.constraint,
            end_ids=service.tokenizer.end_ids if service.tokenizer is not None else (),
            vocabulary=settings.vocabulary or known_tokens,
            measures=settings.kv_block_tokens > 0,
        )


def grammar_for(generation: Generation) -> Grammar | None:
    """What its output must keep to, as the server is asked to make it do. Raises InferBusError."""
    source = generation.input
    if generation.constraint is None:
        return None
    if isinstance(source, Chat) and source.tools and source.tool_mode is not ToolMode.NONE:
        # The guide would forbid the calls, and the backend knows none that would not.
        text = "This model does not support 'response_format' together with 'tools'; send one of them."
        raise invalid(text, param="response_format", reason="unsupported_parameter")
    return grammar_of_constraint(generation.constraint, any_space=True)


async def _encoded(tokenizer: TextTokenizer, text: str, parse_special: bool, add_special: bool) -> list[int]:
    if _is_long(text):
        return await asyncio.to_thread(tokenizer.encode, text, parse_special=parse_special, add_special=add_special)
    return tokenizer.encode(text, parse_special=parse_special, add_special=add_special)


def _is_long(content: Content) -> bool:
    return isinstance(content, str) and len(content) > _LONG_TEXT
