"""Ids and their public forms.

A request is named by a UUIDv7 (RFC 9562): 16 bytes on the bus, a ``UUID`` in ClickHouse, 32 hex digits behind a
prefix in the public API. No I/O here: time and randomness are arguments.
"""

import hashlib

REQUEST_ID_BYTES = 16


def uuid7(unix_ms: int, entropy: bytes) -> bytes:
    """A UUIDv7 of ``unix_ms`` (48 bits) and at least 10 bytes of ``entropy``."""
    if not 0 <= unix_ms < 1 << 48 or len(entropy) < 10:
        raise ValueError("uuid7 needs a time of 48 bits in milliseconds and 10 bytes of entropy")
    return (
        unix_ms.to_bytes(6, "big")
        + bytes((0x70 | entropy[0] & 0x0F, entropy[1], 0x80 | entropy[2] & 0x3F))
        + entropy[3:10]
    )


_TAG_AT = 9
_LAST = REQUEST_ID_BYTES - 1
_DETACHED = 0x80
MAX_CHOICES = 128


def edge_tag(edge: str) -> bytes:
    """Two bytes that stand for an edge inside its request ids. Several edges may share a tag."""
    return hashlib.sha256(edge.encode()).digest()[:2]


def request_id(unix_ms: int, entropy: bytes, edge: str) -> bytes:
    """The id of a client call's first choice: a UUIDv7 (50 random bits remain) that also says

    - in bytes 9 and 10, the tag of the edge that accepted it: where on the log its frames are;
    - in the last byte, whether it is detached (bit 7: it runs on without a client) and which choice it is.
    """
    plain = uuid7(unix_ms, entropy)
    return plain[:_TAG_AT] + edge_tag(edge) + plain[_TAG_AT + 2 : _LAST] + b"\0"


def detached(first: bytes) -> bytes:
    """The id of the same client call as one that runs on without a client."""
    return first[:_LAST] + bytes((first[_LAST] | _DETACHED,))


def choice_id(first: bytes, choice: int) -> bytes:
    """The id of another choice (below MAX_CHOICES) of the same client call."""
    return first[:_LAST] + bytes((first[_LAST] & _DETACHED | choice,))


def choice_of(request: bytes) -> int:
    return request[_LAST] & ~_DETACHED


def is_detached(request: bytes) -> bool:
    return bool(request[_LAST] & _DETACHED)


def tag_of(request: bytes) -> bytes:
    """See :func:`edge_tag`."""
    return request[_TAG_AT : _TAG_AT + 2]


def unix_ms_of(request: bytes) -> int:
    """When it was accepted."""
    return int.from_bytes(request[:6], "big")


def uuid_text(request_id: bytes) -> str:
    """``xxxxxxxx-xxxx-...``: as ClickHouse prints it and as ``x-request-id`` carries it."""
    digits = request_id.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def parse_uuid(text: str) -> bytes:
    """The 16 bytes of :func:`uuid_text`, or of 32 bare hex digits. Raises ValueError."""
    value = bytes.fromhex(text.replace("-", ""))
    if len(value) != REQUEST_ID_BYTES:
        raise ValueError("a request id has 16 bytes")
    return value


def key_hash(secret: str) -> str:
    """What is stored of an API key: its SHA-256 in hex.

    A secret has 256 random bits, so no dictionary helps against the hash and a slow hash would only cost the edge.
    """
    return hashlib.sha256(secret.encode()).hexdigest()
