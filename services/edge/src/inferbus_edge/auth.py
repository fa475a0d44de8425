"""Who calls: a key against the registries of keys, projects and tenants, with no round trip."""

from collections.abc import Callable, Mapping

from inferbus.bus.v1.registry_pb2 import KeyRecord, MemberRecord, ProjectRecord, RecordState, TenantRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.registry import Registry
from inferbus_contracts.ids import key_hash
from inferbus_contracts.keys import expired, revoked
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from inferbus_edge.key_uses import KeyUses

INFERENCE = "inference"
TENANT_ADMIN = "tenant_admin"
ADMIN = "admin"
# Who has the second may do what needs the first.
_IMPLIED = {TENANT_ADMIN: ADMIN}
_BEARER = "bearer"
_ARCHIVED = RecordState.RECORD_STATE_ARCHIVED
_ACTIVE = RecordState.RECORD_STATE_ACTIVE


class Auth:
    """Checks keys. A key is looked up by its SHA-256: how long that takes says nothing about the secret, since nobody
    can choose a hash's first digits."""

    def __init__(
        self,
        keys: Registry[KeyRecord],
        projects: Registry[ProjectRecord] | None = None,
        tenants: Registry[TenantRecord] | None = None,
        members: Registry[MemberRecord] | None = None,
        uses: KeyUses | None = None,
        admit_change: Callable[[KeyRecord], None] | None = None,
    ) -> None:
        """``admit_change``: counts a call with this key that makes or changes something; raises for one too many."""
        self._keys = keys
        self._projects = projects
        self._tenants = tenants
        self._uses = uses
        self._admit_change = admit_change
        # By the name of their record: what each request asks must not look through a user's many projects.
        self._projects_of: dict[str, frozenset[str]] = {}
        if members is not None:
            for name, member in members.items().items():
                self._member_changed(name, member)
            members.on_change(self._member_changed)

    def identify(self, headers: Mapping[str, str]) -> KeyRecord:
        """The record of the key in ``authorization: Bearer ...``, or without one in ``x-api-key`` (Anthropic's).

        Raises InferBusError UNAUTHENTICATED without a valid key.
        """
        secret = _secret(headers)
        # Bytes that are no UTF-8 come as surrogates, which have no hash.
        record = self._keys.get(key_hash(secret)) if secret.isascii() else None
        if record is None:
            raise _unauthenticated("This API key is not valid.", "invalid_api_key")
        now_us = clock.now_us()
        self._living(record, now_us)
        if self._uses is not None:
            self._uses.note(record.key_id, now_us)
        return record

    def require(self, headers: Mapping[str, str], scope: str) -> KeyRecord:
        """Like :meth:`identify`. Raises InferBusError PERMISSION_DENIED, too, if the key has not the ``scope``."""
        record = self.identify(headers)
        if scope not in record.scopes and _IMPLIED.get(scope) not in record.scopes:
            raise InferBusError(
                ErrorClass.ERROR_CLASS_PERMISSION_DENIED,
                "insufficient_scope",
                f"This API key has not the scope '{scope}'.",
            )
        return record

    def require_for_change(self, headers: Mapping[str, str], scope: str) -> KeyRecord:
        """:meth:`require`, and counts a call that makes or changes something. Raises RateLimitError, too.

        What only takes away is not counted: it is needed most when a stolen key makes all the changes that it can, and
        nobody can take away more than was made.
        """
        key = self.require(headers, scope)
        if self._admit_change is not None:
            self._admit_change(key)
        return key

    def tenant_of(self, key: KeyRecord) -> TenantRecord:
        """The key's tenant; with the defaults if it has no record."""
        known = None if self._tenants is None else self._tenants.get(key.tenant_id)
        return known or TenantRecord(tenant_id=key.tenant_id, name=key.tenant_id, state=_ACTIVE)

    def project_of(self, key: KeyRecord) -> ProjectRecord:
        """The key's project; with the defaults if it has no record."""
        known = self._project(key)
        return known or ProjectRecord(
            tenant_id=key.tenant_id, project_id=key.project_id, name=key.project_id, state=_ACTIVE
        )

    def has_owner(self, key: KeyRecord) -> bool:
        """Whether the key's owner is in its project; a key without one belongs to the project itself."""
        owner_id = key.owner_id
        return not owner_id or key.project_id in self._projects_of.get(f"{key.tenant_id}/{owner_id}", ())

    def _member_changed(self, name: str, member: MemberRecord | None) -> None:
        if member is None:
            self._projects_of.pop(name, None)
        else:
            self._projects_of[name] = frozenset(one.project_id for one in member.projects)

    def _project(self, key: KeyRecord) -> ProjectRecord | None:
        return None if self._projects is None else self._projects.get(f"{key.tenant_id}/{key.project_id}")

    def _living(self, record: KeyRecord, now_us: int) -> None:
        """Raises InferBusError UNAUTHENTICATED if the key is not to be used any more, saying why to who has it."""
        if revoked(record, now_us):
            raise _unauthenticated("This API key has been revoked.", "invalid_api_key")
        if expired(record, now_us):
            raise _unauthenticated("This API key has expired; ask for a new one.", "expired_api_key")
        # Whatever order the edges did it in: a key made while its owner went is no key.
        if not self.has_owner(record):
            raise _unauthenticated("The owner of this API key has left its project.", "invalid_api_key")
        tenant = None if self._tenants is None else self._tenants.get(record.tenant_id)
        if tenant is not None and tenant.state == _ARCHIVED:
            raise _unauthenticated("The organization of this API key has been archived.", "organization_archived")
        project = self._project(record)
        if project is not None and project.state == _ARCHIVED:
            raise _unauthenticated(
                "The project of this API key has been archived; use a key of another project.", "project_archived"
            )


def _secret(headers: Mapping[str, str]) -> str:
    """The secret that was sent. Raises InferBusError UNAUTHENTICATED if none was."""
    kind, _, secret = headers.get("authorization", "").partition(" ")
    secret = secret.strip() if kind.lower() == _BEARER else ""
    secret = secret or headers.get("x-api-key", "").strip()
    if not secret:
        raise _unauthenticated(
            "Send your API key in the header 'Authorization: Bearer <key>' (or 'x-api-key: <key>').", "missing_api_key"
        )
    return secret


def _unauthenticated(message: str, reason: str) -> InferBusError:
    return InferBusError(ErrorClass.ERROR_CLASS_UNAUTHENTICATED, reason, message)
