"""Who may come straight onto the queue: the broker asks about each client that it does not know, and an edge judges
the API key that it gives, as it does for HTTP."""

import logging
from datetime import timedelta
from typing import NamedTuple

from inferbus.bus.v1.registry_pb2 import KeyRecord
from inferbus_bus.connection import Bus, send_now
from inferbus_bus.user_jwt import Asked, Client, Issuer, asked
from inferbus_contracts.subjects import QUEUE_ACCOUNT, QUEUE_CALLOUT, queue_inbox, result_prefix, submit_subject
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError
from nats.aio.msg import Msg

from inferbus_edge.auth import INFERENCE, Auth

log = logging.getLogger(__name__)
_GROUP = "edges"
_MAX_PAYLOAD = 4 << 20
# The broker waits for its answer here, and only it may be told.
_BROKER = "$SYS._INBOX."
_US = 1_000_000


class QueueSubjects(NamedTuple):
    """Of a key's own client: where it publishes, where it listens, and the prefix of its inboxes."""

    submit: str
    results: str
    inbox: str


def queue_subjects(key: KeyRecord, issuer: Issuer) -> QueueSubjects:
    tag = issuer.tag(key.tenant_id, key.project_id)
    return QueueSubjects(
        submit_subject(key.tenant_id, key.key_id, tag),
        f"{result_prefix(key.tenant_id, key.project_id, tag)}.>",
        queue_inbox(key.tenant_id, key.key_id),
    )


class QueueDoor:
    """``session``: then the broker ends a client's connection, and its key is judged again when it comes back; one
    whose key ends sooner is ended then."""

    def __init__(self, bus: Bus, auth: Auth, issuer: Issuer, session: timedelta) -> None:
        self._bus = bus
        self._auth = auth
        self._issuer = issuer
        self._session_s = int(session.total_seconds())

    async def start(self) -> None:
        """From here on it answers, with all other edges."""
        await self._bus.listen(QUEUE_CALLOUT, self._received, _GROUP)

    async def _received(self, msg: Msg) -> None:
        if not msg.reply.startswith(_BROKER):
            return
        try:
            of = asked(msg.data)
        except ValueError as error:
            log.warning("who a client is was asked in a way that is not known", extra={"error": str(error)})
            return
        if self._bus.connected:
            send_now(self._bus.nc.publish(msg.reply, self._answer(of)))

    def _answer(self, of: Asked) -> bytes:
        now_s = clock.now_us() // _US
        if not of.secrets:
            return self._issuer.refuse(of, "no API key was given", now_s)
        try:
            key = self._auth.require({"authorization": f"Bearer {of.secrets[0]}"}, INFERENCE)
        except InferBusError as error:
            return self._issuer.refuse(of, f"an API key was refused: {error.reason}", now_s)
        return self._issuer.accept(of, self._client(key, now_s), now_s)

    def _client(self, key: KeyRecord, now_s: int) -> Client:
        ends = [now_s + self._session_s]
        ends += [time.seconds for time in (key.expire_time, key.revoke_time) if time.seconds > now_s]
        where = queue_subjects(key, self._issuer)
        return Client(
            name=key.key_id,
            account=QUEUE_ACCOUNT,
            publish=(where.submit, f"$JS.API.DIRECT.GET.RESULTS.{where.results}"),
            subscribe=(f"{where.inbox}.>", where.results),
            expires_s=min(ends),
            max_payload=_MAX_PAYLOAD,
        )
