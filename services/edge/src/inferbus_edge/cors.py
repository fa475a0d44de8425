"""Which web pages may call the API from a browser (CORS), as a setting.

Keys travel in ``Authorization``, never in a cookie, so credentials are never allowed: a page can use only a key that
it was given. A preflight is answered alike for every path, so it tells nothing about what there is.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

ANY = "*"
# A browser keeps a preflight's answer for so long; Chromium at most for two hours.
_MAX_AGE_SECONDS = 7200
_METHODS = "GET, POST, PATCH, DELETE, OPTIONS"
_EXPOSED = ", ".join(
    [
        "x-request-id",
        "retry-after",
        *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
        "x-inferbus-stream",
    ]
)
_DEFAULT_PORTS = {"http": 80, "https": 443}
# Header names as HTTP has them, and no more of them than any SDK sends.
_NAMES = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+(?:[ \t]*,[ \t]*[!#$%&'*+.^_`|~0-9A-Za-z-]+)*")
_MAX_NAMES_LENGTH = 2048


@dataclass(frozen=True, slots=True)
class Cors:
    """``origins``: as browsers write them; with ``*`` among them any. Empty: no page of another origin."""

    origins: frozenset[str] = frozenset()

    def headers(self, origin: str | None) -> dict[str, str]:
        """For every answer, an error as well; ``origin``: the request's header of this name."""
        if ANY in self.origins:
            return {"Access-Control-Allow-Origin": ANY, "Access-Control-Expose-Headers": _EXPOSED}
        if not self.origins:
            return {}
        # Also without a match: a cache must not give this answer to a page that may read it, nor the other way round.
        if origin is None or origin not in self.origins:
            return {"Vary": "Origin"}
        return {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": _EXPOSED, "Vary": "Origin"}

    def preflight(self, request: Mapping[str, str]) -> dict[str, str]:
        """The headers of a 204; ``request``: the headers of one for which :func:`is_preflight` holds.

        Of an origin that is not allowed they allow nothing; the browser tells its page.
        """
        fields = self.headers(request.get("Origin"))
        fields.pop("Access-Control-Expose-Headers", None)
        if "Access-Control-Allow-Origin" not in fields:
            return fields
        fields["Access-Control-Allow-Methods"] = _METHODS
        fields["Access-Control-Max-Age"] = str(_MAX_AGE_SECONDS)
        # Named one by one, since * does not stand for Authorization, and SDKs send names of their own.
        wanted = request.get("Access-Control-Request-Headers", "").strip()
        if len(wanted) <= _MAX_NAMES_LENGTH and _NAMES.fullmatch(wanted):
            fields["Access-Control-Allow-Headers"] = wanted
        vary = [fields["Vary"]] if "Vary" in fields else []
        fields["Vary"] = ", ".join([*vary, "Access-Control-Request-Headers"])
        return fields


def is_preflight(method: str, request: Mapping[str, str]) -> bool:
    """A browser asks before its page's request; any other OPTIONS is a request like others."""
    return method == "OPTIONS" and "Origin" in request and "Access-Control-Request-Method" in request


def cors_of(origins: Iterable[str]) -> Cors:
    """The setting ``origins``. Raises ValueError that says what is wrong with which."""
    return Cors(frozenset(_origin(one.strip()) for one in origins))


def _origin(text: str) -> str:
    if text == ANY:
        return text
    try:
        parts = urlsplit(text.lower())
        port = parts.port
    except ValueError:
        raise ValueError(f"{text!r} is no origin: its port or address cannot be read") from None
    plain = text.isascii() and not {"@", ANY, "?", "#"} & set(text)
    if not plain or parts.scheme not in _DEFAULT_PORTS or not parts.hostname or parts.path:
        raise ValueError(
            f"{text!r} is no origin: write https://host or https://host:port in ASCII, without a path, or *"
        )
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}" + ("" if port in (None, _DEFAULT_PORTS[parts.scheme]) else f":{port}")
