"""The secrets of one stack: made once, kept in a folder that only its owner may read, never printed in a log."""

import base64
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nkeys
from inferbus_contracts.keys import ENTROPY_BYTES, mint

from inferbus_stack.home import StackError, write_private

# 256 bits each; no prefix is part of the strength.
_BYTES = 32


@dataclass(frozen=True, slots=True)
class Nkey:
    """One identity on the bus: the server knows the public half, the service proves the other."""

    public: str
    seed: str

    def __repr__(self) -> str:
        return f"Nkey({self.public})"


class SecretFolder:
    """One file a secret under ``folder`` (mode 0700, files 0600): the first call for a name makes it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)

    def password(self, name: str) -> str:
        """For a user of a store, or the token between services."""
        return self._once(name, lambda: secrets.token_urlsafe(_BYTES))

    def api_key(self, name: str) -> str:
        """A secret in the form of the platform's API keys."""
        return self._once(name, lambda: mint(secrets.token_bytes(ENTROPY_BYTES)))

    def cipher_key(self, name: str) -> str:
        """For nats-server's encryption at rest. Starts with a letter: it would read digits as a number."""
        return self._once(name, lambda: f"k{secrets.token_hex(_BYTES)}")

    def nkey(self, name: str) -> Nkey:
        """The bus identity of the service instance ``name``."""
        return _nkey(self._once(f"nats-{name}", _new_seed))

    def issuer(self) -> Nkey:
        """In whose name edges say to the broker who a client with an API key is."""
        return _nkey(self._once("bus-issuer", lambda: _new_seed(nkeys.PREFIX_BYTE_ACCOUNT)))

    def webhook_secret(self, name: str) -> str:
        """As Standard Webhooks writes it."""
        return self._once(name, lambda: "whsec_" + base64.b64encode(secrets.token_bytes(_BYTES)).decode())

    def _once(self, name: str, make: Callable[[], str]) -> str:
        path = self._folder / name
        if not path.exists():
            write_private(path, make() + "\n")
        path.chmod(0o600)
        value = path.read_text().strip()
        if not value:
            raise StackError(f"{path} is empty; put the secret back, or delete the file to have another made")
        return value


def _nkey(seed: str) -> Nkey:
    return Nkey(public=nkeys.from_seed(bytearray(seed.encode())).public_key.decode(), seed=seed)


def _new_seed(kind: int = nkeys.PREFIX_BYTE_USER) -> str:
    seed: bytes = nkeys.encode_seed(secrets.token_bytes(_BYTES), kind)
    # Checks that the library at hand reads what it wrote, and that the padding is what nats-server expects.
    base64.b32decode(seed + b"=" * (-len(seed) % 8))
    return seed.decode()
