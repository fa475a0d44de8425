"""The form of an API key: made here, recognised here, hashed by :func:`inferbus_contracts.ids.key_hash`.

``ib-`` and 43 characters of URL-safe base64: 256 random bits. No I/O here: randomness is an argument.
"""

import base64
import re

from inferbus.bus.v1.registry_pb2 import KeyRecord

ENTROPY_BYTES = 32
# inference: may ask models; tenant_admin: administers its own tenant; admin: the operator, every tenant.
SCOPES = ("inference", "tenant_admin", "admin")
_MARK = "ib-"
_FORM = re.compile(r"ib-[A-Za-z0-9_-]{43}")
# Enough to tell keys apart in a list, far too little to guess the rest from.
_SHOWN = len(_MARK) + 6


def mint(entropy: bytes) -> str:
    """The secret made of exactly 32 random bytes. Raises ValueError for any other length."""
    if len(entropy) != ENTROPY_BYTES:
        raise ValueError(f"a key needs {ENTROPY_BYTES} bytes of entropy")
    return _MARK + base64.urlsafe_b64encode(entropy).rstrip(b"=").decode()


def is_key(secret: str) -> bool:
    """Whether ``secret`` has the form of a key; says nothing about whether it is valid."""
    return _FORM.fullmatch(secret) is not None


def prefix_of(secret: str) -> str:
    """The part that may be shown and stored, to recognise a key by."""
    return secret[:_SHOWN]


def revoked(record: KeyRecord, now_us: int) -> bool:
    """The time may lie ahead: an old secret outlives its rotation by the overlap."""
    return record.HasField("revoke_time") and record.revoke_time.ToNanoseconds() <= now_us * 1000


def expired(record: KeyRecord, now_us: int) -> bool:
    return record.HasField("expire_time") and record.expire_time.ToNanoseconds() <= now_us * 1000
