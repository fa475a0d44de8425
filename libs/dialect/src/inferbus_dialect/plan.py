"""What a client call comes to, whatever API it came by."""

from dataclasses import dataclass, field
from typing import Any

from inferbus.bus.v1.request_pb2 import GenerateRequest

# Tensors have no tokens: for limits of tokens a minute so many bytes of them, in and out, are one. It is counted when
# they are known, and not before: a picture may be more than a minute has.
BYTES_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Need:
    """The model must be able to do this (see ModelRecord.capabilities); ``param`` is what asked for it."""

    capability: str
    param: str


@dataclass(frozen=True, slots=True)
class Plan:
    """``requests``: one a choice, with input, sampling, constraint, class and whether another choice counts the input;
    ids, context and times are added when it is accepted. ``reply``: all that its form needs besides the log, as JSON;
    it must have ``api`` and ``n`` (choices); ``model`` and ``created`` (Unix seconds) are added.

    ``stored``: the input as JSON text, if the answer is to be found again by its id; ``store_asked`` false: because
    that is the API's default, which gives way where there is no room. ``detached``: it is accepted and
    runs without a client (background). ``end_user`` and ``tags``: see :mod:`inferbus_dialect.labels`.
    ``capture_rate``: see :mod:`inferbus_dialect.capture`.
    """

    operation: str
    model: str
    stream: bool
    requests: tuple[GenerateRequest, ...]
    reply: dict[str, Any]
    needs: tuple[Need, ...] = ()
    input_estimate: int = 0
    output_bound: int | None = None
    stored: bytes | None = None
    store_asked: bool = True
    previous: bytes = b""
    detached: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    end_user: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    capture_rate: float = 0.0

    @property
    def tensor_bytes(self) -> int:
        """Of its inputs; 0 if it has words."""
        return sum(len(one.inference.request) for one in self.requests)

    @property
    def api(self) -> str:
        return str(self.reply["api"])
