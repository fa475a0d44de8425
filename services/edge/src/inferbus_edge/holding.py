"""For how long a generation goes on when its client has vanished: the request's choice, or the tenant's."""

from datetime import timedelta

from inferbus.bus.v1.registry_pb2 import KeyRecord
from inferbus_runtime.errors import invalid

from inferbus_edge.auth import Auth
from inferbus_edge.server import Asked

HEADER = "x-inferbus-hold"
_DIGITS = 9


class Holds:
    """``longest``: what nobody may exceed."""

    def __init__(self, auth: Auth, longest: timedelta) -> None:
        self._auth = auth
        self._longest = longest.total_seconds()

    def asked(self, call: Asked) -> float | None:
        """Seconds, as the call's header has it. Raises InferBusError INVALID_ARGUMENT."""
        text = call.said.get(HEADER)
        if text is None:
            return None
        if not text.isascii() or not text.isdigit() or len(text) > _DIGITS or int(text) > self._longest:
            raise invalid(f"'{HEADER}' is a number of seconds from 0 to {self._longest:g}.", param=HEADER)
        return float(text)

    def of(self, call: Asked, key: KeyRecord, otherwise: float) -> float:
        """Seconds: as the call says, or the tenant, or ``otherwise``. Raises InferBusError INVALID_ARGUMENT."""
        asked = self.asked(call)
        if asked is not None:
            return asked
        tenant = self._auth.tenant_of(key)
        if tenant.HasField("hold"):
            return max(otherwise, min(tenant.hold.ToTimedelta().total_seconds(), self._longest))
        return otherwise
