"""Which pages may read an answer, as a browser decides it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus_edge.cors import Cors, cors_of, is_preflight
from multidict import CIMultiDict

PAGE = "https://app.example.com"
ASKED = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
}


def allows(fields: dict[str, str], origin: str) -> bool:
    """What a browser makes of it for a request without credentials."""
    return fields.get("Access-Control-Allow-Origin") in ("*", origin)


@pytest.mark.parametrize("origins", [[], [PAGE], [PAGE, "http://localhost:3000"], ["*"]])
@pytest.mark.parametrize("origin", [PAGE, "https://evil.example", "null", "https://app.example.com.evil.example"])
def test_only_the_named_origins_read_the_answer(origins: list[str], origin: str) -> None:
    cors = cors_of(origins)
    for fields in (cors.headers(origin), cors.preflight({**ASKED, "Origin": origin})):
        assert allows(fields, origin) == (origin in origins or origins == ["*"])
        assert "Access-Control-Allow-Credentials" not in fields
        # Only where the answer is the same for all may a cache mix them up.
        assert ("Origin" in fields.get("Vary", "").split(", ")) == (origins not in ([], ["*"]))


def test_without_the_setting_nothing_changes() -> None:
    assert Cors().headers(PAGE) == {}
    assert Cors().preflight(ASKED) == {}
    assert cors_of([PAGE]).headers(None) == {"Vary": "Origin"}


def test_a_page_may_send_its_headers_and_read_ours() -> None:
    fields = cors_of([PAGE]).preflight(CIMultiDict(ASKED))
    assert fields["Access-Control-Allow-Headers"] == "authorization,content-type,x-stainless-lang"
    assert "POST" in fields["Access-Control-Allow-Methods"]
    assert 0 < int(fields["Access-Control-Max-Age"]) <= 7200
    exposed = cors_of(["*"]).headers(PAGE)["Access-Control-Expose-Headers"].split(", ")
    assert {"x-request-id", "retry-after", "x-ratelimit-remaining-tokens", "x-inferbus-stream"} <= set(exposed)


@given(st.text(max_size=60))
def test_what_is_echoed_are_header_names_and_nothing_else(wanted: str) -> None:
    fields = cors_of(["*"]).preflight({**ASKED, "Access-Control-Request-Headers": wanted})
    echoed = fields.get("Access-Control-Allow-Headers", "")
    assert set(echoed) <= set(" \t,!#$%&'*+.^_`|~-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert all(name.strip() for name in echoed.split(",")) or not echoed


def test_names_without_end_are_not_echoed() -> None:
    fields = cors_of(["*"]).preflight({**ASKED, "Access-Control-Request-Headers": "a," * 5000 + "a"})
    assert "Access-Control-Allow-Headers" not in fields


def test_a_preflight_is_told_from_any_other_options() -> None:
    assert is_preflight("OPTIONS", CIMultiDict({name.lower(): value for name, value in ASKED.items()}))
    assert not is_preflight("POST", ASKED)
    assert not is_preflight("OPTIONS", {"Origin": PAGE})
    assert not is_preflight("OPTIONS", {"Access-Control-Request-Method": "POST"})


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("HTTPS://App.Example.com", PAGE), (" https://app.example.com:443 ", PAGE),
        ("http://localhost:3000", "http://localhost:3000"), ("http://[::1]:8080", "http://[::1]:8080"),
        ("http://[::1]:80", "http://[::1]"), ("*", "*"),
    ],
)  # fmt: skip
def test_origins_are_taken_as_browsers_write_them(text: str, origin: str) -> None:
    assert cors_of([text]).origins == {origin}


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "app.example.com", "https://", "https://app.example.com/", "https://app.example.com/x",
        "https://app.example.com?", "https://*.example.com", "ftp://app.example.com", "https://user@app.example.com",
        "https://app.example.com:port", "https://[::1", "https://bücher.example",
    ],
)  # fmt: skip
def test_what_no_browser_would_send_is_refused_in_the_setting(text: str) -> None:
    with pytest.raises(ValueError, match="is no origin"):
        cors_of([text])
