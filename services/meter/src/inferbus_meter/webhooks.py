"""Webhooks of budgets: what is due, and what became of it. How they are sent: :mod:`inferbus_webhooks.sender`."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta

from inferbus.bus.v1.registry_pb2 import BudgetAlertRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.registry import Registry
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError
from inferbus_webhooks.sender import WAITS, Answer, Message, Sender, wait_after

from inferbus_meter.core.budget import alert_lifetime
from inferbus_meter.core.webhook import body_of

log = logging.getLogger(__name__)
_SEEN_SECONDS, _POLL_SECONDS = 5.0, 0.05


class Webhooks:
    """``active``: whether it is this meter's to send. ``waits``: after each try that failed."""

    def __init__(
        self,
        alerts: Registry[BudgetAlertRecord],
        key: bytes | None,
        active: Callable[[], bool],
        waits: Sequence[timedelta] = WAITS,
    ) -> None:
        self._alerts = alerts
        self._key = key
        self._active = active
        self._waits = waits

    async def run(self) -> None:
        """Until cancelled."""
        # An operator set the URL: it may lead into his own networks.
        await Sender(self._due, self._sent, anywhere=True).run()

    def _due(self) -> Iterator[Message]:
        if self._key is None or not self._active():
            return
        now_us = clock.now_us()
        for alert in list(self._alerts.items().values()):
            if _is_due(alert, now_us):
                yield Message(alert.alert_id, alert.budget.webhook_url, body_of(alert), self._key)

    async def _sent(self, message: Message, answer: Answer) -> None:
        alert, revision = self._alerts.get(message.message_id), self._alerts.revision(message.message_id)
        if alert is None or not _is_open(alert):
            return  # another meter was faster
        made = _after(alert, answer, clock.now_us(), self._waits)
        # Nothing of what was answered is told but its status: it is somebody else's.
        log.log(
            logging.INFO if answer.taken else logging.WARNING,
            "a webhook was sent",
            extra={
                "alert_id": alert.alert_id, "attempt": made.attempts, "status": answer.status,
                "failure": answer.failure,
            },
        )  # fmt: skip
        try:
            lifetime = alert_lifetime(made, clock.now_us())
            stored = await self._alerts.update(alert.alert_id, made, revision, lifetime)
        except InferBusError as error:
            if error.error_class != ErrorClass.ERROR_CLASS_CONFLICT:
                log.warning("a webhook's outcome was not stored: it is sent again", extra={"error": str(error)})
            return
        # Until it is seen here the alert looks due as before.
        with suppress(TimeoutError):
            async with asyncio.timeout(_SEEN_SECONDS):
                while self._alerts.revision(alert.alert_id) < stored.sequence:
                    await asyncio.sleep(_POLL_SECONDS)


def _is_due(alert: BudgetAlertRecord, now_us: int) -> bool:
    return (
        _is_open(alert)
        and alert.HasField("next_attempt_time")
        and bool(alert.budget.webhook_url)
        and alert.next_attempt_time.ToMicroseconds() <= now_us
    )


def _is_open(alert: BudgetAlertRecord) -> bool:
    return not alert.HasField("deliver_time") and not alert.HasField("give_up_time")


def _after(alert: BudgetAlertRecord, answer: Answer, now_us: int, waits: Sequence[timedelta]) -> BudgetAlertRecord:
    """The alert after a try that was answered so."""
    made = BudgetAlertRecord()
    made.CopyFrom(alert)
    made.attempts += 1
    wait = wait_after(answer, made.attempts, waits)
    if answer.taken:
        made.deliver_time.CopyFrom(clock.timestamp(now_us))
    elif wait is None:
        made.give_up_time.CopyFrom(clock.timestamp(now_us))
    else:
        made.next_attempt_time.CopyFrom(clock.timestamp(now_us + wait // timedelta(microseconds=1)))
    return made
