"""Calls that an upstream has taken apart, written as the text that the log holds (see :mod:`.tool_text`)."""

import json
from typing import Any

_SPACE = " \t\r\n"


class CallError(Exception):
    """What came is no call."""


class CallWriter:
    """The calls of one answer, delta by delta. ``begun``: calls so far."""

    __slots__ = ("_arguments", "_in_arguments", "_index", "begun")

    def __init__(self) -> None:
        self.begun = 0
        self._index: int | None = None
        self._arguments = ""  # what came before the brace that begins them
        self._in_arguments = False

    def feed(self, delta: dict[str, Any]) -> str:
        """The text of one entry of ``tool_calls``. Raises CallError."""
        function = delta.get("function") or {}
        index = int(delta.get("index") or 0) if "index" in delta else self._next_index(function)
        text = ""
        if index != self._index:
            if self._index is not None and index < self._index:
                raise CallError("a call went on after the next one began")
            name = function.get("name")
            if not isinstance(name, str) or not name:
                raise CallError("a call has no name")
            text = self.end()
            before = "\n" if self.begun else ""
            text += f'{before}<tool_call>\n{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": '
            self._index, self.begun = index, self.begun + 1
        arguments = function.get("arguments")
        if isinstance(arguments, dict):
            arguments = json.dumps(arguments, ensure_ascii=False)
        return text + self._argument(arguments or "")

    def end(self) -> str:
        """The end of the call that is open, if one is. Raises CallError."""
        if self._index is None:
            return ""
        text = "" if self._in_arguments else self._whole(self._arguments)
        self._index, self._arguments, self._in_arguments = None, "", False
        return text + "}\n</tool_call>"

    def _next_index(self, function: dict[str, Any]) -> int:
        """Some do not number them: one that has a name is a new one."""
        if self._index is None:
            return self.begun
        return self._index + 1 if function.get("name") else self._index

    def _argument(self, fragment: str) -> str:
        if self._in_arguments:
            return fragment
        self._arguments += fragment
        begun = self._arguments.lstrip(_SPACE)
        if not begun.startswith("{"):
            return ""
        self._in_arguments = True
        return begun

    @staticmethod
    def _whole(arguments: str) -> str:
        """Arguments that never became an object: none at all are an empty one."""
        if arguments.strip(_SPACE) in ("", "null"):
            return "{}"
        raise CallError("a call's arguments are no object")
