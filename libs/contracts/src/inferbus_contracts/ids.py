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
