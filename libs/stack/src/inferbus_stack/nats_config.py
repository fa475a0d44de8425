"""The configuration text of nats-server, as a pure function of what it must do."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from inferbus_contracts.subjects import BUS_ACCOUNT, QUEUE_ACCOUNT, stream_spec
from inferbus_runtime.tls import TlsFiles

from inferbus_stack.permissions import Permissions

_JOBS, _RESULTS = stream_spec("JOBS"), stream_spec("RESULTS")
_STORED, _TOLD = _RESULTS.subjects[0], _RESULTS.told_on
# What tenants' own clients may ask: that a message is taken, and what came of it.
_ASKED = (*_JOBS.subjects, f"$JS.API.DIRECT.GET.{_RESULTS.name}.{_STORED}")

# nats-server reads it from this variable, so that no configuration file holds it.
CIPHER_KEY_VARIABLE = "INFERBUS_JETSTREAM_KEY"
# A frame or a prompt is far below; a message above it is a fault of its sender.
_MAX_PAYLOAD = 8 << 20
_WRITE_DEADLINE = "10s"
# Above what a start of all services at once takes on a busy machine; nats-server's own 2 is not.
_HANDSHAKE_SECONDS = 10


@dataclass(frozen=True, slots=True)
class BusUser:
    """One nkey (its public half) and what it may do."""

    name: str
    nkey: str
    permissions: Permissions


@dataclass(frozen=True, slots=True)
class NatsLimits:
    """``max_file_store``: above it streams refuse what is new (bytes)."""

    max_file_store: int
    max_memory_store: int = 256 << 20
    max_payload: int = _MAX_PAYLOAD


def render(
    *,
    host: str,
    port: int,
    store: Path,
    users: Sequence[BusUser],
    limits: NatsLimits,
    encrypted: bool,
    tls: TlsFiles | None = None,
    issuer: str = "",
) -> str:
    """``encrypted``: messages at rest are under AES-GCM with the key in CIPHER_KEY_VARIABLE. ``tls``: only clients with
    a certificate of its authority are listened to; who they are is still said by their nkey.

    ``issuer``: the public nkey of the account in whose name edges say who a client is that is none of ``users``: such
    clients are in an account of their own. Empty: there are none.

    A message of an account of its own can say only there where its answer goes. In ours, whoever may send anything to
    JetStream could have the answer stored in a registry.

    AES, because processors have instructions for it: at 256 streams it costs the broker 4.5 microseconds a token, and
    ChaCha20-Poly1305 6 (one run each, against 8 without either).
    """
    cipher = [f"  cipher: aes, key: ${CIPHER_KEY_VARIABLE}"] if encrypted else []
    lines = [
        f"listen: {json.dumps(f'{host}:{port}')}",
        "server_name: inferbus",
        f"max_payload: {limits.max_payload}",
        f"write_deadline: {json.dumps(_WRITE_DEADLINE)}",
        *_tls(tls),
        "jetstream {",
        f"  store_dir: {json.dumps(str(store))}",
        f"  max_file_store: {limits.max_file_store}",
        f"  max_memory_store: {limits.max_memory_store}",
        *cipher,
        "}",
        "accounts {",
        f"  {BUS_ACCOUNT} {{",
        "    jetstream: enabled",
        "    users: [",
        *(f"      {_user(user)}" for user in users),
        "    ]",
        *(_exports() if issuer else []),
        "  }",
        *(_tenants() if issuer else []),
        "}",
        *(_callout(issuer, users) if issuer else []),
    ]
    return "\n".join(lines) + "\n"


def _exports() -> list[str]:
    return [
        "    exports: [",
        *(f"      {{service: {json.dumps(subject)}}}" for subject in _ASKED),
        f"      {{stream: {json.dumps(_TOLD)}}}",
        "    ]",
    ]


def _tenants() -> list[str]:
    of = f"account: {BUS_ACCOUNT}, subject:"
    return [
        f"  {QUEUE_ACCOUNT} {{",
        "    imports: [",
        *(f"      {{service: {{{of} {json.dumps(subject)}}}}}" for subject in _ASKED),
        f"      {{stream: {{{of} {json.dumps(_TOLD)}}}, to: {json.dumps(_STORED)}}}",
        "    ]",
        "  }",
    ]


def _callout(issuer: str, users: Sequence[BusUser]) -> list[str]:
    return [
        "authorization {",
        f"  timeout: {_HANDSHAKE_SECONDS}",
        "  auth_callout {",
        f"    issuer: {issuer}",
        f"    account: {BUS_ACCOUNT}",
        "    # these are not asked about",
        f"    auth_users: [{', '.join(user.nkey for user in users)}]",
        "  }",
        "}",
    ]


def _tls(files: TlsFiles | None) -> list[str]:
    if files is None:
        return []
    return [
        "tls {",
        f"  cert_file: {json.dumps(str(files.cert))}",
        f"  key_file: {json.dumps(str(files.key))}",
        f"  ca_file: {json.dumps(str(files.ca))}",
        "  verify: true",
        # Not a word in plain text, neither the server's greeting nor a client's mistake.
        "  handshake_first: true",
        f"  timeout: {_HANDSHAKE_SECONDS}",
        "}",
    ]


def _user(user: BusUser) -> str:
    publish, subscribe = json.dumps(user.permissions.publish), json.dumps(user.permissions.subscribe)
    allow = f"{{publish: {{allow: {publish}}}, subscribe: {{allow: {subscribe}}}}}"
    return f"{{nkey: {user.nkey}, permissions: {allow}}} # {user.name}"
