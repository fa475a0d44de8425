"""Who may connect: names, passwords and profiles from the users file."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from inferbus_stack.clickhouse.errors import AUTHENTICATION_FAILED, ClickHouseError
from inferbus_stack.clickhouse.profiles import PROFILES, Profile

# Compared against when the user is unknown, so that an unknown name takes as long as a wrong password.
_NOBODY = hashlib.sha256(b"nobody").digest()


class UsersFileError(ValueError):
    """The users file cannot be used; the text says why and names no password."""


@dataclass(frozen=True, slots=True)
class User:
    name: str
    profile: Profile
    password_sha256: bytes


@dataclass(frozen=True, slots=True)
class Credentials:
    name: str
    password: str


class Users:
    """The users of this server. Fixed while it runs."""

    def __init__(self, users: Mapping[str, User]) -> None:
        self._users = dict(users)

    @classmethod
    def load(cls, path: Path) -> Users:
        """Reads `{"name": {"password_sha256_hex": "...", "profile": "analyst"}}`. A plain `password` is accepted too;
        only its hash is kept.
        """
        try:
            entries = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise UsersFileError(f"users file {path}: {error}") from None
        if not isinstance(entries, dict) or not entries:
            raise UsersFileError(f"users file {path}: expected an object with at least one user")
        return cls({name: _read_user(name, entry) for name, entry in entries.items()})

    def authenticate(self, credentials: Credentials | None) -> User:
        """The user, or ClickHouse's one answer for an unknown name, a wrong password and no credentials at all."""
        given = credentials or Credentials("default", "")
        user = self._users.get(given.name)
        digest = hashlib.sha256(given.password.encode()).digest()
        same = hmac.compare_digest(digest, user.password_sha256 if user is not None else _NOBODY)
        if user is None or not same:
            raise ClickHouseError(
                AUTHENTICATION_FAILED,
                f"{given.name}: Authentication failed: password is incorrect, or there is no user with such name.",
            )
        return user


def _read_user(name: str, entry: object) -> User:
    if not isinstance(entry, dict):
        raise UsersFileError(f"user {name}: expected an object")
    unknown = set(entry) - {"password", "password_sha256_hex", "profile"}
    if unknown:
        raise UsersFileError(f"user {name}: unknown fields {sorted(unknown)}")
    profile = PROFILES.get(str(entry.get("profile")))
    if profile is None:
        raise UsersFileError(f"user {name}: profile must be one of {sorted(PROFILES)}")
    return User(name, profile, _password_hash(name, entry))


def _password_hash(name: str, entry: dict[str, object]) -> bytes:
    hashed, plain = entry.get("password_sha256_hex"), entry.get("password")
    if isinstance(hashed, str) and plain is None:
        try:
            digest = bytes.fromhex(hashed)
        except ValueError:
            digest = b""
        if len(digest) != hashlib.sha256().digest_size:
            raise UsersFileError(f"user {name}: password_sha256_hex must be 64 hex digits")
        return digest
    if isinstance(plain, str) and plain and hashed is None:
        return hashlib.sha256(plain.encode()).digest()
    raise UsersFileError(f"user {name}: needs either a non-empty password or password_sha256_hex")


def credentials_of(headers: Mapping[str, str], params: Mapping[str, str]) -> Credentials | None:
    """X-ClickHouse-User and -Key, else Basic, else ?user=&password=; None when there are none."""
    if (name := headers.get("X-ClickHouse-User")) is not None:
        return Credentials(name, headers.get("X-ClickHouse-Key", ""))
    scheme, _, value = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            name, _, password = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return Credentials("", "")
        return Credentials(name, password)
    if "user" in params:
        return Credentials(params["user"], params.get("password", ""))
    return None
