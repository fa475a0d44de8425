"""Secrets and signatures as Standard Webhooks has them (https://www.standardwebhooks.com)."""

import base64
import hashlib
import hmac

_PREFIX = "whsec_"
_SHORTEST, _LONGEST = 24, 64


def secret_of(text: str) -> bytes:
    """The key of a secret as the standard writes it: ``whsec_`` and base64 of 24 to 64 bytes. Raises ValueError."""
    if not text.startswith(_PREFIX):
        raise ValueError(f"a webhook secret begins with {_PREFIX}")
    key = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    if not _SHORTEST <= len(key) <= _LONGEST:
        raise ValueError(f"a webhook secret has {_SHORTEST} to {_LONGEST} bytes")
    return key


def written(key: bytes) -> str:
    """The inverse."""
    return _PREFIX + base64.b64encode(key).decode()


def key_for(master: bytes, *owner: str) -> bytes:
    """The key of one owner: whoever knows it cannot sign for another one."""
    return hmac.new(master, b"inferbus webhook\0" + "\0".join(owner).encode(), hashlib.sha256).digest()


def headers_of(message_id: str, unix_seconds: int, body: bytes, key: bytes) -> dict[str, str]:
    signed = f"{message_id}.{unix_seconds}.".encode() + body
    signature = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return {
        "content-type": "application/json",
        "user-agent": "inferbus",
        "webhook-id": message_id,
        "webhook-timestamp": str(unix_seconds),
        "webhook-signature": f"v1,{signature}",
    }
