"""Webhooks of budgets, signed as Standard Webhooks says, until they are taken or given up. At least once on the wire,
and once in effect: each try of an alert has the same id and the same body."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from urllib.parse import urlsplit

import aiohttp
from inferbus.bus.v1.registry_pb2 import BudgetAlertRecord
from inferbus.common.v1.error_pb2 import ErrorClass
from inferbus_bus.registry import Registry
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError

from inferbus_meter.core.budget import alert_lifetime
from inferbus_meter.core.webhook import body_of, headers_of

log = logging.getLogger(__name__)
_LOOK_SECONDS = 0.5
_AT_ONCE, _TO_ONE_HOST = 64, 2
_SEEN_SECONDS, _POLL_SECONDS = 5.0, 0.05
_TIMEOUT = aiohttp.ClientTimeout(total=15.0)
_GONE = 410
# After a try that failed; after the last of them it is given up: three days in all.
WAITS: Sequence[timedelta] = (
    timedelta(seconds=5), timedelta(minutes=5), timedelta(minutes=30), timedelta(hours=2), timedelta(hours=5),
    timedelta(hours=10), timedelta(hours=14), timedelta(hours=20), timedelta(hours=24),
)  # fmt: skip


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
        self._under_way: dict[str, str] = {}  # the host of each alert that is being sent

    async def run(self) -> None:
        """Until cancelled."""
        if self._key is None:
            return
        # No cookies are kept and no proxy of the environment is asked.
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT, cookie_jar=aiohttp.DummyCookieJar()) as session,
            asyncio.TaskGroup() as sending,
        ):
            while True:
                await asyncio.sleep(_LOOK_SECONDS)
                for alert in self._due() if self._active() else ():
                    # A receiver that hangs holds up nobody but itself.
                    sending.create_task(self._take(session, alert, self._key), name=f"webhook {alert.alert_id}")

    def _due(self) -> Iterator[BudgetAlertRecord]:
        now_us = clock.now_us()
        for alert in list(self._alerts.items().values()):
            if len(self._under_way) >= _AT_ONCE:
                return
            if alert.alert_id in self._under_way or not _is_due(alert, now_us):
                continue
            host = urlsplit(alert.budget.webhook_url).netloc
            if sum(one == host for one in self._under_way.values()) < _TO_ONE_HOST:
                self._under_way[alert.alert_id] = host
                yield alert

    async def _take(self, session: aiohttp.ClientSession, alert: BudgetAlertRecord, key: bytes) -> None:
        try:
            await self._send(session, alert, key)
        finally:
            del self._under_way[alert.alert_id]

    async def _send(self, session: aiohttp.ClientSession, alert: BudgetAlertRecord, key: bytes) -> None:
        revision = self._alerts.revision(alert.alert_id)
        body, now_us = body_of(alert), clock.now_us()
        headers = headers_of(alert.alert_id, now_us // 1_000_000, body, key)
        status, reason = 0, ""
        try:
            async with session.post(
                alert.budget.webhook_url, data=body, headers=headers, allow_redirects=False
            ) as response:
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            reason = type(error).__name__
        made = _after(alert, status, clock.now_us(), self._waits)
        # Nothing of what was answered is told but its status: it is somebody else's.
        log.log(
            logging.INFO if made.HasField("deliver_time") else logging.WARNING,
            "a webhook was sent",
            extra={"alert_id": alert.alert_id, "attempt": made.attempts, "status": status, "failure": reason},
        )
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
    open_still = not alert.HasField("deliver_time") and not alert.HasField("give_up_time")
    return (
        open_still
        and alert.HasField("next_attempt_time")
        and bool(alert.budget.webhook_url)
        and alert.next_attempt_time.ToMicroseconds() <= now_us
    )


def _after(alert: BudgetAlertRecord, status: int, now_us: int, waits: Sequence[timedelta]) -> BudgetAlertRecord:
    """The alert after a try that was answered with ``status``; 0: it was not answered."""
    made = BudgetAlertRecord()
    made.CopyFrom(alert)
    made.attempts += 1
    if 200 <= status < 300:
        made.deliver_time.CopyFrom(clock.timestamp(now_us))
    elif status == _GONE or made.attempts > len(waits):
        made.give_up_time.CopyFrom(clock.timestamp(now_us))
    else:
        wait = waits[made.attempts - 1] // timedelta(microseconds=1)
        made.next_attempt_time.CopyFrom(clock.timestamp(now_us + wait))
    return made
