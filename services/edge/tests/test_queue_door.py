"""Who comes straight onto the queue: plain NATS clients with API keys, on a real nats-server that asks an edge."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import nats
import nats.errors
import pytest
from inferbus.bus.v1.registry_pb2 import KeyRecord
from inferbus_bus.connection import Bus, BusConfig, connect
from inferbus_bus.registry import Registry
from inferbus_bus.streams import ensure_streams
from inferbus_bus.user_jwt import Issuer
from inferbus_contracts.ids import key_hash
from inferbus_contracts.subjects import queue_inbox, result_prefix, submit_subject
from inferbus_edge.auth import Auth
from inferbus_edge.queue_door import QueueDoor
from inferbus_runtime import clock
from inferbus_stack.nats import NatsServer, free_port
from inferbus_stack.nats_config import BusUser, NatsLimits, render
from inferbus_stack.permissions import Role, permissions
from inferbus_stack.secrets import SecretFolder

USERS = {"admin": Role.ADMIN, "edge-0": Role.EDGE, "edge-1": Role.EDGE, "batch": Role.BATCH}
KEYS = {
    "sk-acme": KeyRecord(key_id="key_a", tenant_id="acme", project_id="search", scopes=["inference"]),
    "sk-acme-other": KeyRecord(key_id="key_b", tenant_id="acme", project_id="other", scopes=["inference"]),
    "sk-globex": KeyRecord(key_id="key_g", tenant_id="globex", project_id="search", scopes=["inference"]),
    "sk-admin": KeyRecord(key_id="key_x", tenant_id="acme", project_id="search", scopes=["admin"]),
}


class Broker:
    def __init__(self, server: NatsServer, secrets: SecretFolder) -> None:
        self.server = server
        self.secrets = secrets

    def config(self, name: str) -> BusConfig:
        return BusConfig(self.server.url, name, self.secrets.nkey(name).seed)

    def _tag(self, key: KeyRecord) -> str:
        return Issuer(self.secrets.issuer().seed).tag(key.tenant_id, key.project_id)

    def submits(self, secret: str) -> str:
        key = KEYS[secret]
        return submit_subject(key.tenant_id, key.key_id, self._tag(key))

    def results(self, secret: str) -> str:
        key = KEYS[secret]
        return result_prefix(key.tenant_id, key.project_id, self._tag(key))

    @asynccontextmanager
    async def client(self, secret: str, refused: list[str] | None = None, **more: Any) -> AsyncIterator[nats.NATS]:
        key = KEYS[secret]

        async def on_error(error: Exception) -> None:
            if refused is not None:
                refused.append(str(error))

        options = {"user": "any", "password": secret, "inbox_prefix": queue_inbox(key.tenant_id, key.key_id)}
        client = await nats.connect(
            self.server.url, error_cb=on_error, allow_reconnect=False, connect_timeout=30, **(options | more)
        )
        try:
            yield client
        finally:
            await client.close()


@pytest.fixture(scope="module")
async def broker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Broker]:
    folder = tmp_path_factory.mktemp("asked")
    secrets = SecretFolder(folder / "secrets")
    users = [BusUser(name, secrets.nkey(name).public, permissions(role, name)) for name, role in USERS.items()]
    port = free_port()
    text = render(
        host="127.0.0.1", port=port, store=folder / "js", users=users, limits=NatsLimits(256 << 30), encrypted=False,
        issuer=secrets.issuer().public,
    )  # fmt: skip
    async with NatsServer(folder, port, text) as server:
        made = Broker(server, secrets)
        async with connect(made.config("admin")) as admin:
            await ensure_streams(admin)
            keys = Registry(admin, "keys", KeyRecord)
            await keys.start()
            for secret, record in KEYS.items():
                await keys.put(key_hash(secret), record)
            await keys.stop()
        yield made


@asynccontextmanager
async def door(broker: Broker, name: str = "edge-0", session: timedelta = timedelta(hours=1)) -> AsyncIterator[Bus]:
    async with connect(broker.config(name)) as bus:
        keys = Registry(bus, "keys", KeyRecord)
        await keys.start()
        await QueueDoor(bus, Auth(keys), Issuer(broker.secrets.issuer().seed), session).start()
        await bus.nc.flush()
        yield bus
        await keys.stop()


async def last(client: nats.NATS, subject: str) -> nats.aio.msg.Msg:
    return await client.request(f"$JS.API.DIRECT.GET.RESULTS.{subject}", b"", timeout=30)


@pytest.mark.timeout(120)
async def test_with_an_api_key_one_publishes_and_hears_what_came_of_it_once(broker: Broker) -> None:
    mine, results = broker.submits("sk-acme"), broker.results("sk-acme")
    async with door(broker), connect(broker.config("batch")) as batch, broker.client("sk-acme") as client:
        stored = json.loads((await client.request(mine, b'{"a": 1}', timeout=30)).data)
        assert stored["stream"] == "JOBS"
        ack = await client.jetstream().publish(mine, b'{"a": 2}', timeout=30)
        assert (ack.stream, ack.seq) == ("JOBS", stored["seq"] + 1)
        told = f"{results}.one"
        heard = await client.subscribe(f"{results}.>")
        await client.flush(30)
        for _ in range(2):
            await batch.nc.jetstream().publish(told, b"result", headers={"Nats-Msg-Id": "1"}, timeout=30)
        await batch.nc.jetstream().publish(told, b"another", headers={"Nats-Msg-Id": "2"}, timeout=30)
        got = [await heard.next_msg(30) for _ in range(2)]
        assert [(one.subject, one.data) for one in got] == [(told, b"result"), (told, b"another")]
        assert (await last(client, told)).data == b"another"
        assert (await last(client, f"{told}2")).headers["Status"] == "404"
        # What a request for one result says beside its subject gets no other one.
        secret = f"{broker.results('sk-globex')}.secret"
        other = await batch.nc.jetstream().publish(secret, b"secret", timeout=30)
        for body in ({"seq": other.seq}, {"last_by_subj": secret}, {"multi_last": [secret]}, {"next_by_subj": secret}):
            answer = await client.request(f"$JS.API.DIRECT.GET.RESULTS.{told}", json.dumps(body).encode(), timeout=30)
            assert b"secret" not in answer.data, body


@pytest.mark.timeout(120)
async def test_the_key_may_be_the_token_or_the_user(broker: Broker) -> None:
    async with door(broker, "edge-1"):
        for given in ({"user": None, "password": None, "token": "sk-acme"}, {"user": "sk-acme", "password": ""}):
            async with broker.client("sk-acme", **given) as client:
                await client.request(broker.submits("sk-acme"), b"{}", timeout=30)


@pytest.mark.timeout(120)
async def test_nobody_comes_in_without_a_key_that_may_infer(broker: Broker) -> None:
    async with door(broker):
        for options in (
            {"user": "any", "password": "sk-wrong"}, {"user": "any", "password": "sk-admin"}, {"token": "\u00fc"},
            {"user": "key_a", "password": ""}, {"user": "admin", "password": "admin"}, {},
            {"nkeys_seed_str": broker.secrets.nkey("stranger").seed},
        ):  # fmt: skip
            with pytest.raises((nats.errors.Error, OSError)) as caught:
                await nats.connect(broker.server.url, allow_reconnect=False, max_reconnect_attempts=0, **options)
            assert "sk-" not in str(caught.value)


@pytest.mark.timeout(120)
async def test_a_key_reaches_nothing_but_its_own_subjects(broker: Broker) -> None:
    others = [
        *(broker.submits(secret) for secret in ("sk-globex", "sk-acme-other")), "job.submit.acme", "req.0.batch.m",
        *(f"$JS.API.DIRECT.GET.RESULTS.{broker.results(secret)}.one" for secret in ("sk-globex", "sk-acme-other")),
        "$JS.API.DIRECT.GET.RESULTS", "$JS.API.STREAM.INFO.JOBS", "$JS.API.INFO", f"{broker.results('sk-acme')}.one",
        "$KV.keys.x", "ctl.cancel",
        "$SYS.REQ.USER.AUTH",
    ]  # fmt: skip
    listens = [
        *(f"{broker.results(secret)}.>" for secret in ("sk-globex", "sk-acme-other")),
        *("job.result.>", "job.result.acme.>", "job.result.acme.search.>", "job.submit.>", "_INBOX.>"),
        "_INBOX.acme.key_b.>", "_INBOX.acme.>", "job.told.>", "$SYS.>", "tok.>", ">",
    ]  # fmt: skip
    refused: list[str] = []
    async with door(broker), broker.client("sk-acme", refused) as client:
        for subject in others:
            await client.publish(subject, b"{}")
        for subject in listens:
            await client.subscribe(subject)
        wanted = [f'publish to "{subject}"' for subject in others]
        wanted += [f'subscription to "{subject}"' for subject in listens]
        async with asyncio.timeout(60):
            while missing := [one for one in wanted if one.lower() not in "\n".join(refused).lower()]:
                await asyncio.sleep(0.05)
        assert missing == []


@pytest.mark.timeout(120)
async def test_an_answer_goes_nowhere_among_the_services(broker: Broker) -> None:
    """Whoever may ask JetStream says where the answer goes. It must not be a registry, or the log."""
    async with door(broker), connect(broker.config("admin")) as admin, broker.client("sk-acme") as client:
        heard = await admin.nc.subscribe(">")
        await admin.nc.flush()
        before = (await admin.api("STREAM.INFO.KV_tenants"))["state"]["messages"]
        for reply in ("$KV.tenants.acme", "tok.edge-0.worker-0", "job.submit.globex.key_g.tag", "job.told.globex.x.1"):
            await client.publish(broker.submits("sk-acme"), b"{}", reply=reply)
            await client.publish(f"$JS.API.DIRECT.GET.RESULTS.{broker.results('sk-acme')}.none", b"", reply=reply)
        await client.request(broker.submits("sk-acme"), b'"the last"', timeout=30)
        subjects = set()
        async with asyncio.timeout(60):
            while (message := await heard.next_msg(30)).data != b'"the last"':
                subjects.add(message.subject)
        assert not {one for one in subjects if one.startswith(("$KV.", "tok.", "job.submit.globex", "job.told."))}
        assert (await admin.api("STREAM.INFO.KV_tenants"))["state"]["messages"] == before


@pytest.mark.timeout(120)
async def test_a_session_ends_and_a_revoked_key_does_not_come_back(broker: Broker) -> None:
    closed = asyncio.Event()

    async def on_closed() -> None:
        closed.set()

    async with door(broker, session=timedelta(seconds=10)), connect(broker.config("admin")) as admin:
        keys = Registry(admin, "keys", KeyRecord)
        await keys.start()
        secret, record = "sk-short", KeyRecord(key_id="key_s", tenant_id="acme", scopes=["inference"], project_id="p")
        KEYS[secret] = record
        await keys.put(key_hash(secret), record)
        async with asyncio.timeout(60):
            while True:  # until the edge has heard of the key
                try:
                    async with broker.client(secret, closed_cb=on_closed) as client:
                        await client.request(broker.submits(secret), b"{}", timeout=30)
                        record.revoke_time.CopyFrom(clock.timestamp(clock.now_us()))
                        await keys.put(key_hash(secret), record)
                        await closed.wait()
                    break
                except nats.errors.Error:
                    await asyncio.sleep(0.2)
        with pytest.raises((nats.errors.Error, OSError)):
            async with broker.client(secret):
                pass
        await keys.stop()


@pytest.mark.timeout(120)
async def test_services_are_let_in_while_there_is_no_edge(broker: Broker) -> None:
    async with connect(broker.config("batch")) as batch:
        assert (await batch.api("STREAM.INFO.JOBS"))["config"]["name"] == "JOBS"
