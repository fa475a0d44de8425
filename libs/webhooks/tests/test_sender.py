"""Whoever hangs or lies holds up nobody else, and reaches nobody he should not."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

import pytest
from aiohttp import web
from inferbus_webhooks.sender import WAITS, Answer, Message, Sender, wait_after

KEY = b"k" * 32


class Receiver:
    """Hangs at /hang until it is let go, sends elsewhere from /away, and takes all else. ``ports``: as if it were as
    many hosts."""

    def __init__(self) -> None:
        self.ports: list[int] = []
        self.came: list[str] = []
        self.hanging = self.most_hanging = 0
        self.go = asyncio.Event()

    def url(self, path: str, host: str = "127.0.0.1", port: int = 0) -> str:
        return f"http://{host}:{port or self.ports[0]}/{path}"

    async def handle(self, request: web.Request) -> web.Response:
        self.came.append(request.headers["webhook-id"])
        if request.path.startswith("/hang"):
            self.hanging += 1
            self.most_hanging = max(self.hanging, self.most_hanging)
            try:
                await self.go.wait()
            finally:
                self.hanging -= 1
        if request.path.startswith("/away"):
            return web.Response(status=307, headers={"location": self.url("took")})
        return web.Response(headers={"set-cookie": "a=b"}, status=400 if "cookie" in request.headers else 200)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    one = Receiver()
    app = web.Application()
    app.router.add_post("/{rest:.*}", one.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    for _ in range(40):
        await web.TCPSite(runner, "127.0.0.1", 0).start()
    one.ports = [address[1] for address in runner.addresses]
    yield one
    one.go.set()
    await runner.cleanup()


@asynccontextmanager
async def sending(messages: Iterable[Message], *, anywhere: bool = True) -> AsyncIterator[dict[str, Answer]]:
    """What came of each."""
    pending, answers = {one.message_id: one for one in messages}, {}

    async def sent(message: Message, answer: Answer) -> None:
        del pending[message.message_id]
        answers[message.message_id] = answer

    task = asyncio.create_task(Sender(lambda: list(pending.values()), sent, anywhere=anywhere).run())
    try:
        yield answers
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(condition) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


async def test_a_host_that_hangs_holds_up_nobody_but_itself(receiver: Receiver) -> None:
    slow = [Message(f"slow-{number}", receiver.url("hang"), b"{}", KEY) for number in range(20)]
    # The same host under other names of users.
    slow += [Message(f"as-{number}", receiver.url("hang", f"u{number}@127.0.0.1"), b"{}", KEY) for number in range(20)]
    async with sending([*slow, Message("quick", receiver.url("took", "localhost"), b"{}", KEY)]) as answers:
        await until(lambda: "quick" in answers)
        assert answers["quick"].taken
        await asyncio.sleep(1.2)  # two looks more, at which nothing more may come
        assert receiver.most_hanging <= 2


async def test_an_owner_of_many_hosts_that_hang_holds_up_no_other(receiver: Receiver) -> None:
    slow = [Message(f"slow-{port}", receiver.url("hang", port=port), b"{}", KEY, "slow") for port in receiver.ports]
    quick = Message("quick", receiver.url("took"), b"{}", KEY, "quick")
    async with sending([*slow, quick]) as answers:
        await until(lambda: "quick" in answers and receiver.most_hanging >= 16)
        assert answers["quick"].taken
        await asyncio.sleep(1.2)
        assert receiver.most_hanging == 16
        receiver.go.set()
        await until(lambda: len(answers) == len(slow) + 1)


async def test_no_redirect_is_followed_and_no_cookie_kept(receiver: Receiver) -> None:
    messages = [Message(name, receiver.url(name), b"{}", KEY) for name in ("away", "first", "second", "third")]
    async with sending(messages) as answers:
        await until(lambda: len(answers) == 4)
    assert answers["away"].status == 307
    assert sorted(receiver.came) == ["away", "first", "second", "third"]
    assert all(answers[name].taken for name in ("first", "second", "third"))


async def test_no_way_of_writing_a_private_address_leads_there(receiver: Receiver) -> None:
    written = [
        "127.0.0.1", "127.1", "0", "2130706433", "0x7f000001", "0177.0.0.1", "127.0.0.1.", "127%2E0.0.1", "localhost",
        "localhost.", "[::1]", "[::ffff:127.0.0.1]", "[0:0:0:0:0:ffff:7f00:1]", "１２７.0.0.1", "①②⑦.⓪.⓪.①",
        "127。0。0。1", "x@127.0.0.1", "[::1", "",
    ]  # fmt: skip
    messages = [Message(host, receiver.url("took", host), b"{}", KEY) for host in written]
    async with sending(messages, anywhere=False) as answers:
        await until(lambda: len(answers) == len(written))
    assert {answer.status for answer in answers.values()} == {0}
    assert receiver.came == []


def test_it_is_tried_for_three_days() -> None:
    failed = Answer(500)
    waits = [wait_after(failed, attempts) for attempts in range(1, len(WAITS) + 2)]
    assert waits == [*WAITS, None]
    assert timedelta(days=3) <= sum(WAITS, timedelta()) <= timedelta(days=4)
    assert wait_after(Answer(410), 1) is None
