"""How large the records of the administration may get, and who may still add to a bucket. Pure.

All tenants share a bucket, and a full one refuses every change, also the revocation of a key. So a tenant has a share
of it, and its last part is kept for what only takes away: a revocation makes a record a few bytes longer, never more.
"""

from dataclasses import dataclass
from datetime import timedelta

from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_runtime.errors import InferBusError, invalid

MAX_RECORD_BYTES = 4 << 10
# A user is in about 300 projects.
MAX_MEMBER_BYTES = 16 << 10
# Of each stored entry besides its record and its name: the subject's beginning, headers, the server's own bytes.
ENTRY_BYTES = 128
_OPEN_PERCENT = 90
_RETRY_AFTER = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes: of a whole bucket, of all that one tenant has in it, of one record."""

    bucket: int
    share: int
    record: int = MAX_RECORD_BYTES

    def check(self, size: int, growth: int, tenant: int, total: int) -> None:
        """Whether a record of ``size`` bytes may be stored. It makes what its tenant has (``tenant``) and what all have
        (``total``) larger by ``growth``; what makes them smaller always may.

        Raises InferBusError INVALID_ARGUMENT, or RESOURCE_EXHAUSTED ``stream_full`` if only ending is let in.
        """
        if growth <= 0:
            return
        if size > self.record:
            raise invalid(f"This would take {size} bytes of {self.record}: shorten its names or its lists.")
        if tenant + growth > self.share:
            raise invalid(
                f"An organization's records of this kind take {self.share} bytes at most; delete or shorten some.",
                reason="too_many",
            )
        if total + growth > self.bucket * _OPEN_PERCENT // 100:
            raise InferBusError(
                ErrorClass.ERROR_CLASS_RESOURCE_EXHAUSTED,
                "stream_full",
                "Nothing can be made or changed now, only revoked or deleted; tell the operator.",
                retry_after=_RETRY_AFTER,
                diagnostic=f"{total} of {self.bucket} bytes are used",
            )
