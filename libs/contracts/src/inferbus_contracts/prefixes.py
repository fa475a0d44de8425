"""What inputs begin with, in a form that says nothing of them: for finding a worker whose KV cache has read it already.

An input is written as one text, in the order in which a model reads it (tools, then messages). Each whole chunk of 256
bytes (about 64 tokens) of it gets a hash over itself and all before it, and over the tenant's salt: equal hashes mean
equal beginnings, of the same tenant. The tokens of a chunk are nobody's business here, so edges need no tokenizer.
"""

import hashlib
from collections.abc import Iterator

from inferbus.bus.v1.request_pb2 import ChatInput, GenerateRequest

CHUNK_BYTES = 256
CHUNK_TOKENS = CHUNK_BYTES // 4
"""About 4 bytes of text are a token: what whoever counts in tokens takes a chunk for."""
HASH_BYTES = 8
MAX_CHUNKS = 256
"""64 KiB of input: longer ones are told apart by their beginnings only."""
_LIMIT = CHUNK_BYTES * MAX_CHUNKS


def prefix_of(request: GenerateRequest) -> bytes:
    """``GenerateRequest.prefix``: HASH_BYTES for each whole chunk; empty for what has less than one, and for what reads
    no prompt (embeddings, inference)."""
    hasher = hashlib.blake2b(request.cache_salt, digest_size=HASH_BYTES)
    text = bytearray()
    for part in _parts(request):
        text += part
        if len(text) >= _LIMIT:
            break
    hashes: list[bytes] = []
    for start in range(0, min(len(text), _LIMIT) - CHUNK_BYTES + 1, CHUNK_BYTES):
        hasher.update(text[start : start + CHUNK_BYTES])
        hashes.append(hasher.digest())
    return b"".join(hashes)


def hashes_of(prefix: bytes) -> tuple[int, ...]:
    """As numbers, the shortest prefix's first."""
    return tuple(int.from_bytes(prefix[at : at + HASH_BYTES], "big") for at in range(0, len(prefix), HASH_BYTES))


def packed(hashes: Iterator[int] | tuple[int, ...] | list[int]) -> bytes:
    """The inverse of :func:`hashes_of`."""
    return b"".join(one.to_bytes(HASH_BYTES, "big") for one in hashes)


def _parts(request: GenerateRequest) -> Iterator[bytes]:
    """Pieces of the input that no two different inputs share: each is marked, and says its length."""
    yield _piece(b"M", request.context.model.encode())
    match request.WhichOneof("input"):
        case "chat":
            yield from _chat(request.chat)
        case "prompt" if request.prompt.WhichOneof("prompt") == "tokens":
            yield b"I" + b"".join(one.to_bytes(4, "big") for one in request.prompt.tokens.ids[: _LIMIT // 4])
        case "prompt":
            yield b"P" + request.prompt.text.encode()


def _chat(chat: ChatInput) -> Iterator[bytes]:
    for tool in chat.tools:
        yield _piece(b"T", tool.SerializeToString(deterministic=True))
    yield _piece(b"E", chat.reasoning_effort.encode())
    for message in chat.messages:
        yield _piece(b"R", message.role.encode())
        for call in message.tool_calls:
            yield _piece(b"C", call.SerializeToString(deterministic=True))
        yield _piece(b"A", message.tool_call_id.encode() + message.name.encode())
        # Last, and without its length: of a longer one the beginning is equal.
        yield b"S" + message.content.encode()


def _piece(mark: bytes, content: bytes) -> bytes:
    return mark + len(content).to_bytes(4, "big") + content
