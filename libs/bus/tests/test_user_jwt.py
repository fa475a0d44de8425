"""What an edge says to the broker about a client, read as the broker reads it."""

import base64
import json
from typing import Any

import nkeys
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inferbus_bus.user_jwt import Asked, Client, Issuer, asked

ACCOUNT = nkeys.encode_seed(b"s" * 32, nkeys.PREFIX_BYTE_ACCOUNT).decode()
WHOM = Asked(user="UUSER", server="NSERVER", secrets=("sk-1",))
CLIENT = Client(
    name="key_1", account="TENANTS", publish=["a.b"], subscribe=["c.>"], expires_s=2000, max_payload=4096
)  # fmt: skip


def claims(token: bytes) -> dict[str, Any]:
    """Of a JWT whose signature is the account's."""
    head, body, signature = token.split(b".")
    assert json.loads(_decoded(head)) == {"typ": "JWT", "alg": "ed25519-nkey"}
    keys = nkeys.from_seed(bytearray(ACCOUNT.encode()))
    assert keys.verify(head + b"." + body, _decoded(signature))
    said = json.loads(_decoded(body))
    assert said["iss"] == keys.public_key.decode()
    return said


def _decoded(data: bytes) -> bytes:
    return base64.urlsafe_b64decode(data + b"=" * (-len(data) % 4))


def question(**fields: Any) -> bytes:
    said = {"nats": {"user_nkey": "UUSER", "server_id": {"id": "NSERVER"}, "connect_opts": {}, **fields}}
    return b"head." + base64.urlsafe_b64encode(json.dumps(said).encode()).rstrip(b"=") + b".signature"


def test_who_is_let_in_is_named_with_what_it_may_do() -> None:
    answer = claims(Issuer(ACCOUNT).accept(WHOM, CLIENT, 1000))
    assert (answer["aud"], answer["sub"], answer["nats"]["type"]) == ("NSERVER", "UUSER", "authorization_response")
    user = claims(answer["nats"]["jwt"].encode())
    assert (user["aud"], user["sub"], user["name"], user["exp"]) == ("TENANTS", "UUSER", "key_1", 2000)
    assert (user["nats"]["pub"], user["nats"]["sub"]) == ({"allow": ["a.b"]}, {"allow": ["c.>"]})
    assert user["nats"]["payload"] == 4096


def test_who_is_refused_has_no_token() -> None:
    answer = claims(Issuer(ACCOUNT).refuse(WHOM, "not valid", 1000))
    assert answer["nats"]["error"] == "not valid"
    assert "jwt" not in answer["nats"]


@pytest.mark.parametrize(
    ("given_", "found"),
    [
        ({"user": "u", "pass": "p", "auth_token": "t"}, ("p", "t", "u")),
        ({"auth_token": "t", "pass": ""}, ("t",)),
        ({"user": "u"}, ("u",)),
        ({}, ()),
    ],
)
def test_the_secret_is_found_wherever_clients_put_it(given_: dict[str, str], found: tuple[str, ...]) -> None:
    of = asked(question(connect_opts=given_))
    assert (of.user, of.server, of.secrets) == ("UUSER", "NSERVER", found)
    assert "sk-" not in repr(WHOM)


@given(st.binary() | st.builds(lambda body: b"a." + base64.urlsafe_b64encode(body) + b".c", st.binary()))
def test_what_is_no_question_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="question"):
        asked(data)


def test_a_tag_is_of_its_names_and_of_its_seed() -> None:
    issuer, other = Issuer(ACCOUNT), Issuer(nkeys.encode_seed(b"o" * 32, nkeys.PREFIX_BYTE_ACCOUNT).decode())
    tags = {issuer.tag("a", "b"), issuer.tag("ab", ""), issuer.tag("b", "a"), other.tag("a", "b")}
    assert len(tags) == 4
    assert issuer.tag("a", "b") == Issuer(ACCOUNT).tag("a", "b")
    assert all(len(tag) == 16 and tag.isalnum() for tag in tags)


@pytest.mark.parametrize("seed", ["", "SA", "x" * 58, nkeys.encode_seed(b"s" * 32, nkeys.PREFIX_BYTE_USER).decode()])
def test_another_seed_is_not_taken_and_not_shown(seed: str) -> None:
    with pytest.raises(ValueError, match="seed") as caught:
        Issuer(seed)
    assert not seed or seed not in str(caught.value)
