"""A part of a model's requests also goes to a revision that nobody is served by.

Such a copy is a request like any other: durable, fair, behind all that somebody waits for; but its answer is for
nobody, and it is charged to nobody.
"""

import logging
import os
from collections.abc import Callable

from inferbus.bus.v1.request_pb2 import GenerateRequest
from inferbus.common.v1.usage_pb2 import PriorityClass
from inferbus_bus.publish import Outcome, PubAck, Publisher
from inferbus_contracts.ids import uuid7, uuid_text
from inferbus_contracts.shadow import SHADOW_EDGE, SHADOW_OF, SHADOW_TENANT
from inferbus_runtime import clock

from inferbus_scheduler.core.request import Request, base_of
from inferbus_scheduler.core.traffic import Traffic, is_shadowed
from inferbus_scheduler.fleet import Fleet

log = logging.getLogger(__name__)
# A copy that has not begun by then is not worth it: the next one will tell as much.
_WORTH_SECONDS = 60.0
_PROJECT = "shadow"


class Shadowing:
    """``traffic``: of a model, None without a rollout. ``publisher``: a running one."""

    def __init__(self, publisher: Publisher, fleet: Fleet, traffic: Callable[[str], Traffic | None]) -> None:
        self._publisher = publisher
        self._fleet = fleet
        self._traffic = traffic

    def placed(self, message: GenerateRequest, request: Request) -> None:
        """A request was placed for the first time. Returns at once: if its copy is lost, that harms nobody."""
        traffic = self._traffic(base_of(request.model))
        if traffic is None or not is_shadowed(request, traffic):
            return
        if traffic.shadow in self._fleet.revisions(request.model):
            self._publisher.publish_then(copy_of(message, traffic.shadow, clock.now_us()), _published)


def copy_of(message: GenerateRequest, revision: str, now_us: int) -> GenerateRequest:
    """``message`` for ``revision`` and for nobody: a new id, nobody's tenant, no labels but what it is a copy of."""
    made = GenerateRequest()
    made.CopyFrom(message)
    made.request_id = uuid7(now_us // 1000, os.urandom(10))
    made.context.tenant_id, made.context.project_id, made.context.key_id = SHADOW_TENANT, _PROJECT, ""
    made.edge = SHADOW_EDGE
    made.priority_class = PriorityClass.PRIORITY_CLASS_BATCH
    made.accepted_time.CopyFrom(clock.timestamp(now_us))
    made.expire_time.CopyFrom(clock.timestamp(now_us + round(_WORTH_SECONDS * 1e6)))
    made.only_revision = revision
    for field in ("reply", "labels", "resume", "asked_model"):
        made.ClearField(field)
    made.labels.tags[SHADOW_OF] = uuid_text(message.request_id)
    return made


def _published(outcome: Outcome) -> None:
    if not isinstance(outcome, PubAck):
        log.warning("a shadow's copy is lost", extra={"error": str(outcome)})
