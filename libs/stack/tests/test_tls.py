"""Real handshakes with certificates of the local authority: gRPC, nats-server, HTTPS; right, and wrong in each way."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import grpc
import nats
import pytest
from aiohttp import web
from grpc_health.v1 import health_pb2, health_pb2_grpc
from inferbus_bus.connection import BusConfig, connect, open_client
from inferbus_runtime import rpc
from inferbus_runtime.errors import InferBusError
from inferbus_runtime.tls import TlsFiles, client_context, server_context, trusting
from inferbus_stack.certificates import Authority, Wanted
from inferbus_stack.nats import NatsServer, free_port
from inferbus_stack.nats_config import BusUser, NatsLimits, render
from inferbus_stack.permissions import Role, permissions
from inferbus_stack.secrets import SecretFolder
from nats.errors import Error as NatsError

HERE = ("localhost", "127.0.0.1")
NOW = datetime.now(UTC)
LONG_AGO = NOW - timedelta(days=500)
# How the client's side of a refused connection ends.
REFUSED = (grpc.aio.AioRpcError, NatsError, OSError, TimeoutError, aiohttp.ClientError)
# Who calls: with an identity; believing an authority but showing nothing; in plain text.
Caller = TlsFiles | Path | None
Dial = Callable[[Caller], AbstractAsyncContextManager[None]]
Serve = Callable[[TlsFiles, Path], AbstractAsyncContextManager[Dial]]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TlsFiles]:
    folder = tmp_path_factory.mktemp("ours")
    expired = Authority(folder, LONG_AGO).certificates([Wanted("expired", HERE)])
    wanted = (
        *(Wanted("scheduler", HERE), Wanted("elsewhere", ("10.9.8.7",)), Wanted("edge-0", HERE)),
        *(Wanted("edge-0-http", HERE, client=False), Wanted("admin", server=False)),
    )
    return {**expired, **Authority(folder, NOW).certificates(wanted)}


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    """The same name, signed by somebody else."""
    return Authority(tmp_path_factory.mktemp("foreign"), NOW).certificates([Wanted("edge-0", HERE)])["edge-0"]


def shown_by(caller: Caller) -> ssl.SSLContext | None:
    if caller is None:
        return None
    return trusting(caller) if isinstance(caller, Path) else client_context(caller)


@asynccontextmanager
async def grpc_server(identity: TlsFiles, _: Path) -> AsyncIterator[Dial]:
    async with rpc.serve("127.0.0.1:0", lambda _: None, [], "a-token-of-the-operator", identity) as server:
        server.set_serving(True)

        def channel(caller: Caller) -> grpc.aio.Channel:
            if isinstance(caller, Path):
                credentials = grpc.ssl_channel_credentials(root_certificates=caller.read_bytes())
                return grpc.aio.secure_channel(server.address, credentials)
            return rpc.channel(server.address, None, caller)

        @asynccontextmanager
        async def dial(caller: Caller) -> AsyncIterator[None]:
            async with channel(caller) as opened:
                health = health_pb2_grpc.HealthStub(opened)
                answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=20)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
                yield

        yield dial


def broker(folder: Path, identity: TlsFiles) -> tuple[NatsServer, str]:
    """A nats-server that knows one user, ``edge-0``, and that user's seed."""
    nkey = SecretFolder(folder / "secrets").nkey("edge-0")
    users = [BusUser("edge-0", nkey.public, permissions(Role.EDGE, "edge-0"))]
    port, limits = free_port(), NatsLimits(256 << 30)
    text = render(
        host="127.0.0.1", port=port, store=folder / "js", users=users, limits=limits, encrypted=False, tls=identity
    )
    # Whether it is there is asked whatever it shows: that is for the tests to judge.
    asking = client_context(Authority(identity.cert.parent, NOW).certificates([Wanted("admin", server=False)])["admin"])
    asking.check_hostname, asking.verify_mode = False, ssl.CERT_NONE
    return NatsServer(folder, port, text, tls=asking), nkey.seed


async def not_logged(_: Exception) -> None:
    """nats-py tells every failure here too."""


@asynccontextmanager
async def nats_server(identity: TlsFiles, folder: Path) -> AsyncIterator[Dial]:
    server, seed = broker(folder, identity)

    @asynccontextmanager
    async def dial(caller: Caller) -> AsyncIterator[None]:
        # Only who speaks plain text hears nothing at all.
        wait = 1 if caller is None else 20
        quick = {"allow_reconnect": False, "connect_timeout": wait, "error_cb": not_logged}
        if isinstance(caller, Path):
            tls = {"tls": shown_by(caller), "tls_handshake_first": True}
            client = await nats.connect(server.url, nkeys_seed_str=seed, **quick, **tls)
        else:
            client = await open_client(BusConfig(server.url, "edge-0", seed, caller), **quick)
        try:
            await client.flush(20)
            yield
        finally:
            await client.close()

    async with server:
        yield dial


@asynccontextmanager
async def https_server(identity: TlsFiles, _: Path) -> AsyncIterator[Dial]:
    async def hello(_: web.BaseRequest) -> web.Response:
        return web.Response(text="hello")

    runner = web.ServerRunner(web.Server(hello))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_context(identity)).start()
    port = runner.addresses[0][1]

    @asynccontextmanager
    async def dial(caller: Caller) -> AsyncIterator[None]:
        scheme = "http" if caller is None else "https"
        async with (
            aiohttp.ClientSession() as http,
            http.get(f"{scheme}://127.0.0.1:{port}/", ssl=shown_by(caller) or True) as response,
        ):
            assert await response.text() == "hello"
            yield

    try:
        yield dial
    finally:
        await runner.cleanup()


KINDS = pytest.mark.parametrize("serve", [grpc_server, nats_server, https_server])


async def assert_refused(dial: Dial, caller: Caller) -> None:
    with pytest.raises(REFUSED):
        async with dial(caller):
            pass


@KINDS
async def test_only_who_the_authority_knows_gets_through(
    serve: Serve, ours: dict[str, TlsFiles], foreign: TlsFiles, tmp_path: Path
) -> None:
    known = ours["edge-0"]
    assert known.ca is not None
    async with serve(ours["scheduler"], tmp_path) as dial:
        for caller in (known, ours["admin"]):
            async with dial(caller):
                pass
        await assert_refused(dial, foreign)  # does not believe us
        await assert_refused(dial, TlsFiles(foreign.cert, foreign.key, known.ca))  # we do not believe it
        await assert_refused(dial, ours["expired"])
        await assert_refused(dial, ours["edge-0-http"])  # what strangers see of an edge is no identity
        await assert_refused(dial, known.ca)  # no certificate
        await assert_refused(dial, None)  # plain text
        async with dial(known):  # and the server is none the worse
            pass


@KINDS
@pytest.mark.parametrize("shown", ["expired", "elsewhere", "edge-0-http"])
async def test_a_server_must_be_who_it_should_be(
    serve: Serve, ours: dict[str, TlsFiles], shown: str, tmp_path: Path
) -> None:
    """Its certificate has ended, or is for another host; the third one is in order."""
    async with serve(ours[shown], tmp_path) as dial:
        if shown == "edge-0-http":
            async with dial(ours["edge-0"]):
                pass
        else:
            await assert_refused(dial, ours["edge-0"])


async def test_the_public_side_asks_no_client_for_a_certificate(ours: dict[str, TlsFiles], tmp_path: Path) -> None:
    public = ours["edge-0-http"]
    async with https_server(TlsFiles(public.cert, public.key), tmp_path) as dial:
        async with dial(public.ca):
            pass
        await assert_refused(dial, None)


async def test_a_refused_call_says_nothing_of_addresses(ours: dict[str, TlsFiles], foreign: TlsFiles) -> None:
    async with (
        rpc.serve("127.0.0.1:0", lambda _: None, [], None, ours["scheduler"]) as server,
        rpc.channel(server.address, None, foreign) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "127.0.0.1" not in rpc.error_of(caught.value).message


async def test_on_the_bus_the_nkey_stays_the_identity(ours: dict[str, TlsFiles], tmp_path: Path) -> None:
    server, seed = broker(tmp_path, ours["scheduler"])
    other = SecretFolder(tmp_path / "other").nkey("edge-0").seed
    async with server:
        async with connect(BusConfig(server.url, "edge-0", seed, ours["edge-0"])) as bus:
            # A certificate of another service opens the channel, and nothing more.
            async with connect(BusConfig(server.url, "edge-0", seed, ours["admin"])) as again:
                assert again.connected
            await server.restart()
            async with asyncio.timeout(30):
                while not bus.connected:
                    await asyncio.sleep(0.05)
        for wrong in (None, other):
            with pytest.raises(InferBusError, match="bus_unavailable"):
                async with connect(BusConfig(server.url, "edge-0", wrong, ours["edge-0"]), timeout=0.5):
                    pass


async def test_a_broker_that_is_silent_is_given_up_in_time(ours: dict[str, TlsFiles], tmp_path: Path) -> None:
    """Somewhere in the handshake: behind a wall that drops packets, or on a machine that stands still."""
    opened: list[asyncio.StreamWriter] = []

    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(writer)

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        seed = SecretFolder(tmp_path).nkey("edge-0").seed
        for seconds in (0.5, 12.0):  # before and after nats-py's own limit of a handshake
            config = BusConfig(url, "edge-0", seed, ours["edge-0"])
            with pytest.raises(InferBusError, match="bus_unavailable"):
                async with asyncio.timeout(40), connect(config, timeout=seconds):
                    pass
        assert len(opened) >= 3, "the second one did not stop at its first try"
        for writer in opened:
            writer.close()


async def test_a_broker_that_says_it_has_no_tls_is_not_believed(ours: dict[str, TlsFiles], tmp_path: Path) -> None:
    """Somebody in between could say so, to read along."""
    heard = bytearray()

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.15.1","max_payload":1024,"tls_required":false}\r\n')
        heard.extend(await reader.read(1 << 16))
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    async with server:
        url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        seed = SecretFolder(tmp_path).nkey("edge-0").seed
        with pytest.raises(REFUSED):
            await open_client(
                BusConfig(url, "edge-0", seed, ours["edge-0"]), allow_reconnect=False, error_cb=not_logged
            )
        async with asyncio.timeout(20):
            while not heard:
                await asyncio.sleep(0.01)
    assert heard.startswith(b"\x16\x03")  # a handshake, no CONNECT
    assert b"CONNECT" not in heard
