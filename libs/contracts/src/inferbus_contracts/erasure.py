"""Whom an erasure is about, without saying it: the form that edge and meter and the tables agree on."""

import hashlib

ERASED = "[erased]"
"""What stands in the place of an end user's name afterwards: the same for everybody, so that it names nobody."""
_CONTEXT = "inferbus-erasure"


def end_user_hash(tenant_id: str, end_user: str) -> bytes:
    """SHA-256 over tenant and end user. It hides no name from somebody who can guess it; that is why it is kept where
    only the operator's services read."""
    return hashlib.sha256("\0".join((_CONTEXT, tenant_id, end_user)).encode()).digest()


def hash_expression(tenant_column: str, end_user_column: str) -> str:
    """:func:`end_user_hash` in ClickHouse's SQL."""
    return f"SHA256(concat('{_CONTEXT}', char(0), {tenant_column}, char(0), {end_user_column}))"
