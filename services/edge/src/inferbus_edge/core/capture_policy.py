"""What a tenant may say about the text that is kept of its requests. Pure."""

from inferbus.bus.v1.registry_pb2 import CapturePolicy
from inferbus_runtime.errors import invalid

from inferbus_edge.core.organization_rules import checked_id

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
