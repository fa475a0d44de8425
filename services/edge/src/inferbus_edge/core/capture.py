"""Of which requests the text is kept, as tenant and request say. Pure."""

import hashlib
from collections.abc import Mapping

from inferbus.bus.v1.registry_pb2 import CapturePolicy
from inferbus_runtime.errors import invalid

from inferbus_edge.core.organization_rules import checked_id

CAPTURE_HEADER = "x-inferbus-capture"
_OFF = "off"
MAX_PROJECTS = 32


def checked_policy(policy: CapturePolicy) -> CapturePolicy:
    """Raises InferBusError INVALID_ARGUMENT."""
    if not 0 <= policy.sampling_rate <= 1:
        raise invalid("'sampling_rate' is a part of the requests, from 0 to 1.", param="sampling_rate")
    if len(policy.project_ids) > MAX_PROJECTS:
        raise invalid(f"'project_ids' names at most {MAX_PROJECTS} projects; none means all.", param="project_ids")
    for project_id in policy.project_ids:
        checked_id(project_id, "project_ids")
    return policy


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
