"""Signatures against the standard's own library where a package ships it, and secrets of owners."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus_runtime import clock
from inferbus_webhooks.signing import headers_of, key_for, secret_of, written
from openai import OpenAI


@given(st.binary(min_size=24, max_size=64))
def test_a_secret_is_read_as_it_is_written(key: bytes) -> None:
    assert secret_of(written(key)) == key


@pytest.mark.parametrize("text", ["", "whsec_", "abc", "whsec_" + "A" * 8, "whsec_" + "A" * 128, "whsec_%%%"])
def test_what_is_no_secret(text: str) -> None:
    with pytest.raises(ValueError):
        secret_of(text)


def test_owners_have_keys_of_their_own() -> None:
    owners = [("a", "b"), ("a", "c"), ("b", "b"), ("ab", ""), ("", "ab"), ("a", "b", "")]
    assert len({key_for(b"m" * 32, *owner) for owner in owners}) == len(owners)
    assert key_for(b"m" * 32, "a", "b") != key_for(b"n" * 32, "a", "b")


def test_openais_library_takes_what_is_signed() -> None:
    key = key_for(b"m" * 32, "a", "b")
    body = b'{"id":"evt_1","object":"event","type":"batch.completed","created_at":1,"data":{"id":"batch_1"}}'
    headers = headers_of("evt_1", clock.now_us() // 1_000_000, body, key)
    client = OpenAI(api_key="none", webhook_secret=written(key))
    event = client.webhooks.unwrap(body.decode(), headers)
    assert (event.type, event.data.id) == ("batch.completed", "batch_1")
    with pytest.raises(Exception, match="signature"):
        client.webhooks.unwrap(body.decode() + " ", headers)
