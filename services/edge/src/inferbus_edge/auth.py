"""Who calls: a Bearer key against the registry of keys, with no round trip."""

from collections.abc import Mapping

from inferbus.bus.v1.registry_pb2 import KeyRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.registry import Registry
from inferbus_contracts.ids import key_hash
from inferbus_runtime.errors import InferBusError

INFERENCE = "inference"
ADMIN = "admin"
_BEARER = "bearer"


class Auth:
    """Checks keys. A key is looked up by its SHA-256: how long that takes says nothing about the secret, since nobody
    can choose a hash's first digits."""

    def __init__(self, keys: Registry[KeyRecord]) -> None:
        self._keys = keys

    def require(self, headers: Mapping[str, str], scope: str) -> KeyRecord:
        """The record of the key in ``authorization: Bearer ...``.

        Raises InferBusError UNAUTHENTICATED without a valid key, PERMISSION_DENIED if it has not the ``scope``.
        """
        kind, _, secret = headers.get("authorization", "").partition(" ")
        secret = secret.strip()
        if kind.lower() != _BEARER or not secret:
            raise _unauthenticated("Send your API key in the header 'Authorization: Bearer <key>'.", "missing_api_key")
        # Bytes that are no UTF-8 come as surrogates, which have no hash.
        record = self._keys.get(key_hash(secret)) if secret.isascii() else None
        if record is None:
            raise _unauthenticated("This API key is not valid.", "invalid_api_key")
        if record.HasField("revoke_time"):
            raise _unauthenticated("This API key has been revoked.", "invalid_api_key")
        if scope not in record.scopes:
            raise InferBusError(
                ErrorClass.ERROR_CLASS_PERMISSION_DENIED,
                "insufficient_scope",
                f"This API key has not the scope '{scope}'.",
            )
        return record


def _unauthenticated(message: str, reason: str) -> InferBusError:
    return InferBusError(ErrorClass.ERROR_CLASS_UNAUTHENTICATED, reason, message)
