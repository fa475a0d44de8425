"""What a call says of itself for its tenant's own reports: its end user, and tags. Pure."""

import hashlib
import re

from inferbus.common.v1.context_pb2 import Labels
from inferbus_contracts.erasure import ERASED
from inferbus_runtime.errors import invalid

TAGS_HEADER = "x-inferbus-tags"
# What the API's document says of the parameters that name an end user.
END_USER = "Who asked, for your own reports of usage; longer than 128 bytes: its SHA-256."
# Of what is stored for every request.
_MAX_USER_BYTES = 128
_MAX_TAGS = 8
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,32}")
_MAX_VALUE_BYTES = 64


def end_user_of(*given: str | None) -> str:
    """The first that says anything. A long one is known by its SHA-256: cut, two users could become one. So is who
    calls himself what stands in the place of an erased name: he would go with whoever is erased, never by himself."""
    name = next((one for one in given if one), "")
    if len(name.encode()) <= _MAX_USER_BYTES and name != ERASED:
        return name
    return f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"


def tags_of(text: str) -> dict[str, str]:
    """``team=search, env=prod``. Raises InferBusError INVALID_ARGUMENT."""
    tags: dict[str, str] = {}
    for part in text.split(","):
        if not part.strip():
            continue
        name, separator, value = (piece.strip() for piece in part.partition("="))
        # Bytes that are no UTF-8 come as surrogates, which are not printable and have no bytes.
        fits = value.isprintable() and 0 < len(value.encode()) <= _MAX_VALUE_BYTES
        if not (separator and fits and _NAME.fullmatch(name)) or name in tags:
            raise invalid(
                f"'{TAGS_HEADER}' is a list such as 'team=search, env=prod': each name once, of up to 32 letters, "
                f"digits, '.', '_' and '-', with a value of up to {_MAX_VALUE_BYTES} bytes.",
                param=TAGS_HEADER,
            )
        tags[name] = value
    if len(tags) > _MAX_TAGS:
        raise invalid(f"'{TAGS_HEADER}' has more than {_MAX_TAGS} tags.", param=TAGS_HEADER)
    return tags


def labels_of(end_user: str, tags: dict[str, str]) -> Labels | None:
    return Labels(end_user=end_user, tags=tags) if end_user or tags else None
