"""What a model writes, taken apart as it grows: text, reasoning, and calls of functions. One reading for both ends of
the bus: the edge shows the pieces to its clients, and a worker looks for stop strings in what they see as text.

On the log a call has Hermes' form, whatever the model's own is, with the name first:
``<tool_call>\\n{"name": "f", "arguments": {...}}\\n</tool_call>``. Reasoning begins the text: ``<think>...</think>``.
The pieces do not depend on how the text was cut into deltas: joined, they are the same. What has not that form is text.
Nothing of the answer is lost but the marks, the blank space around them, and a call that was cut off in its name.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto

_CALL, _CALL_END = "<tool_call>", "</tool_call>"
_THINK, _THINK_END = "<think>", "</think>"
_SPACE = " \t\r\n"
_NAME = "<name>"
_HEAD = ("{", '"name"', ":", _NAME, ",", '"arguments"', ":")
# What is held back to find out whether it is a call. A name of OpenAI's API has at most 64 characters.
_MAX_NAME, _MAX_HEAD = 256, 1024
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
# What matters for the end of the arguments, outside of strings and inside.
_OUTSIDE, _INSIDE = re.compile(r'["{}\[\]]'), re.compile(r'["\\]')


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """``index`` counts the calls of an answer from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """The next part of the arguments' JSON text, as the model wrote it."""

    index: int
    fragment: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """Its arguments are whole. Never comes if the output was cut off in them."""

    index: int


Piece = Text | Reasoning | CallStart | CallArguments | CallEnd


@dataclass(slots=True)
class SaidCall:
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Said:
    """All of an answer, or what there is of it so far."""

    text: str = ""
    reasoning: str = ""
    calls: list[SaidCall] = field(default_factory=list)

    def add(self, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            match piece:
                case Text(text):
                    self.text += text
                case Reasoning(text):
                    self.reasoning += text
                case CallStart(_, name):
                    self.calls.append(SaidCall(name))
                case CallArguments(index, fragment):
                    self.calls[index].arguments += fragment
                case CallEnd():
                    pass


class _In(Enum):
    OPENING = auto()  # <think> may come
    THOUGHT = auto()
    TEXT = auto()
    HEAD = auto()  # after <tool_call>, before the arguments
    ARGUMENTS = auto()
    TAIL = auto()  # after the arguments, before the end of </tool_call>


class Pieces:
    """One answer's text. ``tools``: calls are looked for; ``must_call``: it is to be nothing else; ``reasoning``:
    ``<think>`` is looked for at the beginning."""

    __slots__ = (
        "_buffer", "_depth", "_in", "_in_string", "_lead", "_must_call", "_quiet", "_thought", "_tools", "calls"
    )  # fmt: skip

    def __init__(self, *, tools: bool, reasoning: bool = False, must_call: bool = False) -> None:
        self.calls = 0  # begun so far
        self._tools = tools
        self._must_call = must_call
        self._in = _In.OPENING if reasoning else _In.TEXT
        self._buffer = ""
        # Space that begins a text is held back while a call may follow it.
        self._quiet = tools
        self._lead = ""
        self._thought = False
        self._depth = 0
        self._in_string = False

    def feed(self, text: str) -> list[Piece]:
        """What is certain now."""
        out: list[Piece] = []
        self._buffer += text
        while self._buffer and self._step(out):
            pass
        return out

    def end(self) -> list[Piece]:
        """The text is over: what was held back. Nobody could do anything with the beginning of a call."""
        held, self._buffer = self._buffer, ""
        match self._in:
            case _In.HEAD | _In.TAIL:
                self._in = _In.TAIL
                return []
            case _ if not held:
                return []
            case _In.THOUGHT:
                return [Reasoning(held)]
            case _In.ARGUMENTS:
                return [CallArguments(self.calls - 1, held)]
            case _In.OPENING | _In.TEXT:
                # Blank space, or a beginning of ``<tool_call>`` where nothing but a call was to come.
                called = self.calls > 0 or self._must_call
                if self._quiet and (called or (self._thought and not held.strip(_SPACE))):
                    self._in = _In.TAIL
                    return []
                return [Text(held)]

    @property
    def called(self) -> bool:
        """There is a call, and the last one is whole."""
        return self.calls > 0 and self._in is not _In.ARGUMENTS

    @property
    def silent(self) -> bool:
        """What came last is no text, and none will be made of it: a thought, a call, or the blank space around one."""
        if self._in is _In.TEXT and self.calls > 0:
            return self._quiet and not self._buffer
        if self._in is _In.TEXT:
            return self._quiet and self._thought and not self._buffer.strip(_SPACE)
        return self._in in (_In.THOUGHT, _In.ARGUMENTS, _In.TAIL)

    def _step(self, out: list[Piece]) -> bool:
        """One step through the buffer; False if it needs more text."""
        match self._in:
            case _In.OPENING:
                return self._opening()
            case _In.THOUGHT:
                return self._thinking(out)
            case _In.TEXT:
                return self._beginning() if self._quiet else self._text(out)
            case _In.HEAD:
                return self._head(out)
            case _In.ARGUMENTS:
                return self._arguments(out)
            case _In.TAIL:
                return self._tail()

    def _opening(self) -> bool:
        rest = self._buffer.lstrip(_SPACE)
        if rest.startswith(_THINK):
            self._buffer, self._in = rest[len(_THINK) :], _In.THOUGHT
        elif _THINK.startswith(rest):
            return False
        else:
            self._in = _In.TEXT
        return True

    def _thinking(self, out: list[Piece]) -> bool:
        thought, found, rest = _split(self._buffer, _THINK_END)
        if thought:
            out.append(Reasoning(thought))
        self._buffer = rest
        if found:
            self._in, self._quiet, self._thought = _In.TEXT, True, True
        return found

    def _beginning(self) -> bool:
        """Of a text, or of what stands between calls."""
        rest = self._buffer.lstrip(_SPACE)
        if self._tools and rest.startswith(_CALL):
            self._lead = self._buffer[: len(self._buffer) - len(rest)]
            self._buffer, self._in = rest[len(_CALL) :], _In.HEAD
            return True
        if not rest or (self._tools and _CALL.startswith(rest)):
            return False
        if self._thought and self.calls == 0:
            self._buffer = rest
        self._quiet = False
        return True

    def _text(self, out: list[Piece]) -> bool:
        if not self._tools:
            text, found, self._buffer = self._buffer, False, ""
        else:
            text, found, self._buffer = _split(self._buffer, _CALL)
        if text:
            out.append(Text(text))
        if found:
            self._lead, self._in = "", _In.HEAD
        return found

    def _head(self, out: list[Piece]) -> bool:
        try:
            head = _read_head(self._buffer)
        except ValueError:
            out.append(Text(self._lead + _CALL))
            self._in, self._quiet = _In.TEXT, False
            return True
        if head is None:
            return False
        name, at = head
        out.append(CallStart(self.calls, name))
        self.calls += 1
        self._buffer, self._in = self._buffer[at:], _In.ARGUMENTS
        self._depth, self._in_string = 0, False
        return True

    def _arguments(self, out: list[Piece]) -> bool:
        at, ended = self._arguments_end()
        if at:
            out.append(CallArguments(self.calls - 1, self._buffer[:at]))
        self._buffer = self._buffer[at:]
        if ended:
            out.append(CallEnd(self.calls - 1))
            self._in = _In.TAIL
        return ended

    def _arguments_end(self) -> tuple[int, bool]:
        """(how much of the buffer is arguments, whether they end there)."""
        at, buffer = 0, self._buffer
        while (found := (_INSIDE if self._in_string else _OUTSIDE).search(buffer, at)) is not None:
            mark, at = found[0], found.end()
            if mark == "\\":
                if at == len(buffer):
                    return at - 1, False  # what it escapes has not come
                at += 1
            elif mark == '"':
                self._in_string = not self._in_string
            elif mark in "{[":
                self._depth += 1
            else:
                self._depth -= 1
                if self._depth == 0:
                    return at, True
        return len(buffer), False

    def _tail(self) -> bool:
        at = _past_space(self._buffer, 0)
        if self._buffer.startswith("}", at):
            at = _past_space(self._buffer, at + 1)
        rest = self._buffer[at:]
        if rest.startswith(_CALL_END):
            self._buffer = rest[len(_CALL_END) :]
        elif _CALL_END.startswith(rest):
            return False
        self._in, self._quiet = _In.TEXT, rest.startswith(_CALL_END)
        return True


@dataclass(frozen=True, slots=True)
class Span:
    """A part of an answer as it was written. ``said``: it is a Text; else marks, a thought, a call, or blank space
    around them."""

    raw: str
    said: bool


class Spans:
    """One answer's text as it was written, divided by what its :class:`Pieces` are. Nothing of it is lost."""

    __slots__ = ("_head", "_reader")

    def __init__(self, reader: Pieces) -> None:
        """``reader``: a new one."""
        self._reader = reader
        self._head = ""  # the mark of what may come to be no call

    def feed(self, text: str) -> list[Span]:
        """What is certain now, in its order."""
        out: list[Span] = []
        reader, going = self._reader, True
        reader._buffer += text
        while reader._buffer and going:
            pieces: list[Piece] = []
            before = reader._buffer
            going = reader._step(pieces)
            raw = self._head + before[: len(before) - len(reader._buffer)]
            said = "".join(piece.text for piece in pieces if isinstance(piece, Text))  # always the beginning of it
            if said:
                out.append(Span(said, True))
            rest = raw[len(said) :]
            self._head = rest if reader._in is _In.HEAD else ""
            if rest and not self._head:
                out.append(Span(rest, False))
        return out

    def end(self) -> list[Span]:
        """The text is over: what was held back."""
        rest, self._head = self._head + self._reader._buffer, ""
        said = any(isinstance(piece, Text) for piece in self._reader.end())
        return [Span(rest, said)] if rest else []


def pieces_of(text: str, *, tools: bool, reasoning: bool = False, must_call: bool = False) -> Said:
    """A whole answer's text taken apart."""
    parser, said = Pieces(tools=tools, reasoning=reasoning, must_call=must_call), Said()
    said.add(parser.feed(text))
    said.add(parser.end())
    return said


def _split(buffer: str, mark: str) -> tuple[str, bool, str]:
    """(before ``mark``, whether it was found, after it); if it was not found, what may begin it is the rest."""
    before, found, after = buffer.partition(mark)
    if found:
        return before, True, after
    keep = next((size for size in range(min(len(mark) - 1, len(buffer)), 0, -1) if buffer.endswith(mark[:size])), 0)
    return buffer[: len(buffer) - keep], False, buffer[len(buffer) - keep :]


def _past_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _read_head(text: str) -> tuple[str, int] | None:
    """(name, where the arguments begin) of what follows ``<tool_call>``; None: not all of it has come.

    Raises ValueError if it is no call. Any further text gives the same answer.
    """
    at, name = 0, ""
    for wanted in (*_HEAD, "{"):
        at = _past_space(text, at)
        rest = text[at : at + _MAX_NAME + 1]
        if wanted is _NAME and rest.startswith('"'):
            string = _STRING.match(rest)
            if string is not None:
                name = json.loads(string[0])
                name.encode()  # half a surrogate pair is no text: UnicodeEncodeError is a ValueError
                at += string.end()
            elif len(rest) > _MAX_NAME:
                raise ValueError("the name is too long")
            else:
                break
        elif rest.startswith(wanted):
            at += len(wanted)
        elif wanted.startswith(rest) or not rest:
            break
        else:
            raise ValueError("no call")
    else:
        if at > _MAX_HEAD:
            raise ValueError("too much space")
        return name, at - 1  # the brace is theirs
    if len(text) > _MAX_HEAD:
        raise ValueError("too much space")
    return None
