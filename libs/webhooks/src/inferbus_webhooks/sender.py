"""Sends what is due. A receiver that hangs holds up nobody but itself."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import urlsplit

import aiohttp
from inferbus_runtime import clock

from inferbus_webhooks.addresses import may_be_public, public_socket
from inferbus_webhooks.signing import headers_of

_LOOK_SECONDS = 0.5
_AT_ONCE, _TO_ONE_HOST, _OF_ONE_OWNER = 64, 2, 16
_TIMEOUT = aiohttp.ClientTimeout(total=15.0)
_GONE = 410
WAITS: Sequence[timedelta] = (
    timedelta(seconds=5), timedelta(minutes=5), timedelta(minutes=30), timedelta(hours=2), timedelta(hours=5),
    timedelta(hours=10), timedelta(hours=14), timedelta(hours=20), timedelta(hours=24),
)  # fmt: skip
"""After a try that failed; after the last of them it is given up: three days in all."""


@dataclass(frozen=True, slots=True)
class Message:
    """``message_id`` and ``body``: the same at each try. ``owner``: who must not hold up the messages of others, with
    however many hosts; empty: nobody."""

    message_id: str
    url: str
    body: bytes
    key: bytes
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """``status`` 0: there was none; ``failure``: why, the name of an exception."""

    status: int
    failure: str = ""

    @property
    def taken(self) -> bool:
        return 200 <= self.status < 300


class Sender:
    """``due``: what is to be sent now, looked at twice a second; what is under way may be among it. ``sent``: stores
    what became of a try, and returns when it is seen in what ``due`` gives. ``anywhere`` false: to public addresses
    alone."""

    def __init__(
        self,
        due: Callable[[], Iterable[Message]],
        sent: Callable[[Message, Answer], Awaitable[None]],
        *,
        anywhere: bool,
    ) -> None:
        self._due = due
        self._sent = sent
        self._anywhere = anywhere
        # Of each message that is being sent: its host and its owner.
        self._under_way: dict[str, tuple[str, str]] = {}

    async def run(self) -> None:
        """Until cancelled."""
        connector = aiohttp.TCPConnector(socket_factory=None if self._anywhere else public_socket)
        # No cookies are kept and no proxy of the environment is asked.
        async with (
            aiohttp.ClientSession(
                timeout=_TIMEOUT, cookie_jar=aiohttp.DummyCookieJar(), connector=connector
            ) as session,
            asyncio.TaskGroup() as sending,
        ):
            while True:
                await asyncio.sleep(_LOOK_SECONDS)
                for message in self._next():
                    sending.create_task(self._take(session, message), name=f"webhook {message.message_id}")

    def _next(self) -> Iterator[Message]:
        for message in self._due():
            if len(self._under_way) >= _AT_ONCE:
                return
            if message.message_id in self._under_way:
                continue
            host = _host(message.url)
            to_host = sum(one == host for one, _ in self._under_way.values())
            of_owner = sum(one == message.owner for _, one in self._under_way.values() if one)
            if to_host < _TO_ONE_HOST and of_owner < _OF_ONE_OWNER:
                self._under_way[message.message_id] = host, message.owner
                yield message

    async def _take(self, session: aiohttp.ClientSession, message: Message) -> None:
        try:
            await self._sent(message, await self._post(session, message))
        finally:
            del self._under_way[message.message_id]

    async def _post(self, session: aiohttp.ClientSession, message: Message) -> Answer:
        if not self._anywhere and not may_be_public(message.url):
            return Answer(0, "NotPublic")
        headers = headers_of(message.message_id, clock.now_us() // 1_000_000, message.body, message.key)
        try:
            async with session.post(message.url, data=message.body, headers=headers, allow_redirects=False) as response:
                return Answer(response.status)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            return Answer(0, type(error).__name__)


def wait_after(answer: Answer, attempts: int, waits: Sequence[timedelta] = WAITS) -> timedelta | None:
    """How long until the next try, after so many; None: it is given up."""
    return None if answer.status == _GONE or attempts > len(waits) else waits[attempts - 1]


def _host(url: str) -> str:
    """With its port. Of what is no URL, that: it has its try, too, and fails."""
    try:
        return urlsplit(url).netloc.rpartition("@")[2].lower()
    except ValueError:
        return url
