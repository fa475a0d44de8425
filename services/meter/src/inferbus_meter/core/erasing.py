"""Who has been erased, and what that means for the tables. Pure."""

from dataclasses import dataclass

from inferbus.bus.v1.registry_pb2 import ErasureRecord
from inferbus_contracts.erasure import ERASED, end_user_hash, hash_expression


class ErasedScopes:
    """All erasures that there were. A row costs one look into a dict, and a hash if its tenant has any."""

    def __init__(self) -> None:
        self._until: dict[str, dict[bytes, int]] = {}

    def put(self, record: ErasureRecord) -> None:
        scopes = self._until.setdefault(record.tenant_id, {})
        until_us = record.until_time.ToMicroseconds()
        scopes[record.end_user_hash] = max(until_us, scopes.get(record.end_user_hash, 0))

    def is_erased(self, tenant_id: str, end_user: str, accepted_us: int) -> bool:
        """Whether a request accepted then (Unix microseconds) is of somebody who has been erased since."""
        scopes = self._until.get(tenant_id)
        if scopes is None:
            return False
        if accepted_us <= scopes.get(b"", -1):
            return True
        return end_user != "" and accepted_us <= scopes.get(end_user_hash(tenant_id, end_user), -1)


def nobody_erased(tenant_id: str, end_user: str, accepted_us: int) -> bool:
    """Where no erasure can have been."""
    return False


@dataclass(frozen=True, slots=True)
class ErasureScope:
    """What one erasure is about, as conditions in SQL. Their texts are ours, or escaped here."""

    tenant_id: str
    end_user_hash: bytes
    until_us: int

    @property
    def accepted(self) -> str:
        """Of any table with ``tenant_id`` and ``accepted_time``."""
        return (
            f"tenant_id = {literal(self.tenant_id)} AND accepted_time <= fromUnixTimestamp64Micro({int(self.until_us)})"
        )

    @property
    def named(self) -> str:
        """Rows of ``requests`` that still say whose they are."""
        if not self.end_user_hash:
            return f"{self.accepted} AND (end_user != '{ERASED}' OR length(tags) > 0)"
        return f"{self.accepted} AND end_user != '{ERASED}' AND {self._matches}"

    @property
    def concerned(self) -> str:
        """Rows of ``requests`` of the scope; of an end user those that were erased before, his and others', are too, so
        that what was begun can be gone on with."""
        if not self.end_user_hash:
            return self.accepted
        return f"{self.accepted} AND (end_user = '{ERASED}' OR ({self._matches}))"

    @property
    def captured(self) -> str:
        """Rows of ``captures``."""
        if not self.end_user_hash:
            return self.accepted
        return f"{self.accepted} AND request_id IN (SELECT request_id FROM requests WHERE {self.concerned})"  # noqa: S608

    @property
    def _matches(self) -> str:
        expression = hash_expression("toString(tenant_id)", "end_user")
        return f"end_user != '' AND hex({expression}) = '{self.end_user_hash.hex().upper()}'"


def scope_of(record: ErasureRecord) -> ErasureScope:
    return ErasureScope(record.tenant_id, record.end_user_hash, record.until_time.ToMicroseconds())


def literal(text: str) -> str:
    """A text as ClickHouse's SQL says it."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
