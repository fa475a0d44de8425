"""Of which requests the text is kept, as tenant and request say. Pure."""

import hashlib
from collections.abc import Mapping

from inferbus.bus.v1.registry_pb2 import CapturePolicy
from inferbus_runtime.errors import invalid

CAPTURE_HEADER = "x-inferbus-capture"
_OFF = "off"


def capture_rate(policy: CapturePolicy, project_id: str, said: Mapping[str, str]) -> float:
    """The part of such requests that is kept. A request may opt out, and never in.

    Raises InferBusError INVALID_ARGUMENT for a header that says anything else: whoever meant to opt out must not be
    misunderstood.
    """
    asked = said.get(CAPTURE_HEADER)
    if asked is not None:
        if asked.strip().lower() != _OFF:
            raise invalid(f"'{CAPTURE_HEADER}' can be '{_OFF}', so that nothing of it is kept.", param=CAPTURE_HEADER)
        return 0.0
    if policy.project_ids and project_id not in policy.project_ids:
        return 0.0
    return policy.sampling_rate


def is_captured(first: bytes, rate: float) -> bool:
    """By the request's id: of one call all choices, and a retry under the same id, alike."""
    if rate <= 0:
        return False
    drawn = int.from_bytes(hashlib.sha256(first).digest()[:8])
    return drawn < rate * 2**64
