"""How limits are told to a client: the headers ``x-ratelimit-*`` and the message of a refusal, as OpenAI words them."""

from inferbus_edge.core.limits import Dimension, Refusal
from inferbus_edge.core.window import Level

_UNITS: dict[Dimension, str] = {
    "requests": "requests per min (RPM)",
    "tokens": "tokens per min (TPM)",
    "concurrent": "concurrent requests",
}


def duration(milliseconds: int) -> str:
    """OpenAI's form (Go's): ``12ms``, ``8.64s``, ``1m0.5s``, ``6m0s``."""
    if milliseconds <= 0:
        return "0s"
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    seconds = f"{rest / 1000:g}s"
    return f"{minutes}m{seconds}" if minutes else seconds


def headers(requests: Level | None, tokens: Level | None) -> dict[str, str]:
    """``x-ratelimit-limit-*``, ``-remaining-*`` and ``-reset-*`` of what has a limit."""
    fields: dict[str, str] = {}
    for name, level in (("requests", requests), ("tokens", tokens)):
        if level is not None:
            fields[f"x-ratelimit-limit-{name}"] = str(level.limit)
            fields[f"x-ratelimit-remaining-{name}"] = str(level.remaining)
            fields[f"x-ratelimit-reset-{name}"] = duration(level.reset_ms)
    return fields


def message(refusal: Refusal) -> str:
    """Which limit, of what, its size, and what to do."""
    kind, _, rest = refusal.scope.partition(":")
    if kind == "key":
        whose = "this API key"
    elif kind == "project":
        # A tenant's id has no slash (it is one part of a path in the administration API).
        whose = f"project {rest.partition('/')[2]}"
    elif kind == "administration":
        whose = f"changes of organization {rest}"
    elif kind == "reports":
        whose = f"reports of organization {rest}" if rest else "reports of operators"
    else:
        whose = f"organization {rest}"
    unit = _UNITS[refusal.dimension]
    sizes = f"Limit {refusal.limit}, Used {refusal.used}, Requested {refusal.requested}"
    if refusal.limit == 0:
        return f"No requests are allowed for {whose}: its limit on {unit} is 0. Ask its administrator for a higher one."
    if refusal.wait_ms is None:
        size = f"Limit {refusal.limit}, Requested {refusal.requested}"
        return f"Request too large for {whose} on {unit}: {size}. Shorten the input or ask for fewer output tokens."
    if refusal.dimension == "concurrent":
        return f"Rate limit reached for {whose} on {unit}: {sizes}. Please try again when one of them has ended."
    wait = duration(refusal.wait_ms)
    return f"Rate limit reached for {whose} on {unit}: {sizes}. Please try again in {wait}."
