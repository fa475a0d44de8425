"""What a client reads of its limits."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus_edge.core.limits import Ledger, Limits, Refusal
from inferbus_edge.core.ratelimit_headers import duration, headers, message
from inferbus_edge.core.window import Level

NOW = 1_000_000


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (-5, "0s"), (0, "0s"), (12, "12ms"), (999, "999ms"), (1000, "1s"), (8640, "8.64s"), (59_999, "59.999s"),
        (60_000, "1m0s"), (60_500, "1m0.5s"), (360_000, "6m0s"),
    ],
)  # fmt: skip
def test_durations_as_openai_writes_them(milliseconds: int, text: str) -> None:
    assert duration(milliseconds) == text


@given(st.integers(0, 10_000_000))
def test_a_duration_is_read_back_to_the_millisecond(milliseconds: int) -> None:
    found = re.fullmatch(r"(?:(\d+)m(?!s))?(?:([\d.]+)s|(\d+)ms)", duration(milliseconds))
    assert found is not None
    minutes, seconds, rest = (float(part or 0) for part in found.groups())
    assert round(minutes * 60_000 + seconds * 1000 + rest) == milliseconds


def test_only_what_has_a_limit_has_headers() -> None:
    level = Level(limit=60, remaining=59, reset_ms=60_500)
    assert headers(None, None) == {}
    assert headers(level, None) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1m0.5s",
    }
    assert {name.rpartition("-")[2] for name in headers(None, level)} == {"tokens"}


SCOPED = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 200)), min_size=1, max_size=3)


@given(SCOPED, st.integers(0, 4), st.integers(0, 100))
def test_the_levels_are_those_of_the_scope_with_least_left(
    limits: list[tuple[int, int, int]], spent: int, later: int
) -> None:
    ledger = Ledger("a", 1)
    scopes = [(f"key:{one}", Limits(limit, tokens)) for one, (limit, _, tokens) in enumerate(limits)]
    for one, (_, own, _) in enumerate(limits):
        for _ in range(own + spent):
            ledger.settle(ledger.spend([scopes[one]], 1, 20, NOW), 20, NOW)
    now = NOW + later * 1000
    counts = later <= 60
    requests, tokens = ledger.levels(scopes, now)
    assert requests is not None
    assert tokens is not None
    left = [max(0, limit - (own + spent) * counts) for limit, own, _ in limits]
    assert requests.remaining == min(left)
    assert tokens.remaining == min(max(0, limit - 20 * (own + spent) * counts) for _, own, limit in limits)
    tightest = left.index(min(left))
    assert requests.limit == min(limit for one, (limit, _, _) in enumerate(limits) if left[one] == left[tightest])
    # All of it is there again when the last second that counts is over.
    used = {own + spent for own in (own for _, own, _ in limits)}
    if not counts or used == {0}:
        assert requests.reset_ms == 0
    elif 0 not in used:
        assert requests.reset_ms == (61 - later) * 1000


@pytest.mark.parametrize(
    ("refusal", "text"),
    [
        (
            Refusal("key:k", "requests", 3, 3, 1, 20_000),
            "Rate limit reached for this API key on requests per min (RPM): Limit 3, Used 3, Requested 1. "
            "Please try again in 20s.",
        ),
        (
            Refusal("project:acme/web", "tokens", 1000, 900, 200, 340),
            "Rate limit reached for project web on tokens per min (TPM): Limit 1000, Used 900, Requested 200. "
            "Please try again in 340ms.",
        ),
        (
            Refusal("tenant:acme", "concurrent", 4, 4, 1, 1000),
            "Rate limit reached for organization acme on concurrent requests: Limit 4, Used 4, Requested 1. "
            "Please try again when one of them has ended.",
        ),
        (
            Refusal("key:k", "tokens", 1000, 0, 1200, None),
            "Request too large for this API key on tokens per min (TPM): Limit 1000, Requested 1200. "
            "Shorten the input or ask for fewer output tokens.",
        ),
        (
            Refusal("project:acme/web", "requests", 0, 0, 1, None),
            "No requests are allowed for project web: its limit on requests per min (RPM) is 0. "
            "Ask its administrator for a higher one.",
        ),
    ],
)
def test_a_refusal_says_which_limit_of_what_and_what_to_do(refusal: Refusal, text: str) -> None:
    assert message(refusal) == text
