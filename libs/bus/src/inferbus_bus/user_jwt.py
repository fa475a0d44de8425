"""What the broker and whoever it asks about a client say to each other (auth callout, ADR-26): signed JWTs.

nats-server asks with the name, password or token that the client gave, and a key of its own making for it; the answer
says under that key who the client is and what it may do. Signatures are ed25519 over ``header.claims``.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import nkeys

_HEADER = {"typ": "JWT", "alg": "ed25519-nkey"}
_MAX_REQUEST_BYTES = 64 << 10
_VERSION = 2
# Of one client: as many as it may have subjects that it hears.
_MAX_SUBSCRIPTIONS = 64


@dataclass(frozen=True, slots=True)
class Asked:
    """Whom the broker asks about. ``user``: the key that is to be answered for; ``server``: to whom. ``secrets``: all
    that the client has given for one, in the order in which they count."""

    user: str
    server: str
    secrets: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Client:
    """Who it is. ``account``: of the broker. ``expires_s``: Unix seconds; then the broker ends the connection.
    ``max_payload``: bytes of a message of his."""

    name: str
    account: str
    publish: Sequence[str]
    subscribe: Sequence[str]
    expires_s: int
    max_payload: int


def asked(data: bytes) -> Asked:
    """The broker's question. Raises ValueError for anything else.

    The signature is not checked: it is the broker's own, by a key that it makes at each start, and only he can publish
    where this comes from.
    """
    if len(data) > _MAX_REQUEST_BYTES:
        raise ValueError("too long for a question of the broker")
    try:
        said = json.loads(_decoded(data.split(b".")[1]))["nats"]
        given = said["connect_opts"]
        secrets = tuple(str(given[name]) for name in ("pass", "auth_token", "user") if given.get(name))
        return Asked(user=str(said["user_nkey"]), server=str(said["server_id"]["id"]), secrets=secrets)
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError("no question of the broker") from error


class Issuer:
    """Answers in the name of the account key whose ``seed`` is given. Raises ValueError for what is no such seed."""

    def __init__(self, seed: str) -> None:
        try:
            kind, _ = nkeys.decode_seed(seed.encode())
            self._keys = nkeys.from_seed(bytearray(seed.encode()))
            self._secret = seed.encode()
        except Exception as error:
            raise ValueError("it is no nkey seed") from error
        if kind != nkeys.PREFIX_BYTE_ACCOUNT:
            raise ValueError("it is the seed of another kind of nkey than an account's (SA...)")

    @property
    def public(self) -> str:
        """What the broker's configuration names."""
        return str(self._keys.public_key.decode())

    def tag(self, *names: str) -> str:
        """64 bits that belong to ``names``, and that nobody can work out without the seed."""
        return hmac.digest(self._secret, "\0".join(names).encode(), "sha256")[:8].hex()

    def accept(self, of: Asked, client: Client, now_s: int) -> bytes:
        """The answer that lets it in."""
        user = {
            "aud": client.account, "name": client.name, "sub": of.user, "exp": client.expires_s,
            "nats": {
                "pub": {"allow": list(client.publish)}, "sub": {"allow": list(client.subscribe)},
                "subs": _MAX_SUBSCRIPTIONS, "data": -1, "payload": client.max_payload,
                "allowed_connection_types": ["STANDARD"], "type": "user", "version": _VERSION,
            },
        }  # fmt: skip
        return self._answer(of, {"jwt": self._signed(user, now_s).decode()}, now_s)

    def refuse(self, of: Asked, reason: str, now_s: int) -> bytes:
        """``reason``: for the broker's log; the client hears of an authorization violation, and no more."""
        return self._answer(of, {"error": reason}, now_s)

    def _answer(self, of: Asked, said: dict[str, Any], now_s: int) -> bytes:
        said |= {"type": "authorization_response", "version": _VERSION}
        return self._signed({"aud": of.server, "sub": of.user, "nats": said}, now_s)

    def _signed(self, claims: dict[str, Any], now_s: int) -> bytes:
        claims |= {"iss": self.public, "iat": now_s}
        claims["jti"] = base64.b32encode(hashlib.sha256(_json(claims)).digest()).rstrip(b"=").decode()
        body = _encoded(_json(_HEADER)) + b"." + _encoded(_json(claims))
        return body + b"." + _encoded(self._keys.sign(body))


def _json(said: dict[str, Any]) -> bytes:
    return json.dumps(said, separators=(",", ":")).encode()


def _encoded(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _decoded(data: bytes) -> bytes:
    return base64.urlsafe_b64decode(data + b"=" * (-len(data) % 4))
