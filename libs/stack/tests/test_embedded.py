"""nats-server and the embedded ClickHouse as a stack configures them."""

import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import clickhouse_connect
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError
from inferbus.bus.v1.frame_pb2 import Frame
from inferbus.bus.v1.registry_pb2 import PriceRecord
from inferbus.bus.v1.request_pb2 import ChatMessage, GenerateRequest
from inferbus_bus.connection import BusConfig, connect
from inferbus_bus.frames import FramePublisher
from inferbus_bus.log import FrameLog
from inferbus_bus.publish import Publisher
from inferbus_bus.registry import Registry
from inferbus_stack import embedded
from inferbus_stack.child import Child, ChildSpec, start_child
from inferbus_stack.home import Home, keep_ports
from inferbus_stack.secrets import SecretFolder
from inferbus_stack.seed import first_keys, seed
from inferbus_stack.services import BUS_ADMIN, Plan, StackOptions, port_names

PROMPT = "the-secret-recipe-of-a-customer"


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    home = Home(tmp_path / "stack")
    home.make_folders()
    options = StackOptions(home=home, engine="synthetic")
    return Plan(
        options=options,
        ports=keep_ports(home, port_names(options), {}),
        secrets=SecretFolder(home.secrets),
        environ=dict(os.environ),
    )


@asynccontextmanager
async def running(spec: ChildSpec) -> AsyncIterator[Child]:
    child = await start_child(spec)
    try:
        await child.become_ready(30)
        yield child
    finally:
        await child.stop()


def bus_config(plan: Plan, name: str) -> BusConfig:
    return BusConfig(plan.nats_url, name, plan.secrets.nkey(name).seed)


async def test_messages_lie_encrypted_on_disk_and_survive_a_kill(plan: Plan) -> None:
    keys = first_keys(plan.secrets.api_key("api-key"), plan.secrets.api_key("admin-key"))
    async with running(embedded.nats_server(plan)) as server:
        await seed(bus_config(plan, BUS_ADMIN), keys)
        async with connect(bus_config(plan, "edge-0")) as edge:
            publisher = Publisher(edge)
            await publisher.start()
            request = GenerateRequest(request_id=b"r" * 16, edge="edge-0")
            request.context.model = "m"
            request.chat.messages.append(ChatMessage(role="user", content=PROMPT * 50))
            await publisher.publish(request)
        outbox = FramePublisher(bus_config(plan, "worker-0"), worker="worker-0", boot=1)
        await outbox.start()
        await outbox.wait_acked(outbox.publish(Frame(edge="edge-0", text=PROMPT.encode() * 50)))
        await outbox.stop()
        server.kill()
        await server.wait()
    assert subprocess.run(["grep", "-rqF", PROMPT, plan.options.home.root], check=False).returncode == 1
    async with running(embedded.nats_server(plan)):
        await seed(bus_config(plan, BUS_ADMIN), keys)  # safe to run again
        async with connect(bus_config(plan, "meter")) as meter:
            log = FrameLog(meter)
            stored = [data async for batch in log.read(*(await log.bounds())) for _, _, data in batch]
    assert [Frame.FromString(data).text for data in stored] == [PROMPT.encode() * 50]


async def test_example_prices_are_given_once_and_do_not_come_back(plan: Plan) -> None:
    async def versions(delete: str = "", put: str = "") -> set[str]:
        async with connect(bus_config(plan, BUS_ADMIN)) as admin:
            registry = Registry(admin, "prices", PriceRecord)
            await registry.start()
            found = set(registry.items())
            if delete:
                await registry.delete(delete)
            if put:
                await registry.put(put, PriceRecord(rate_version=put))
            await registry.stop()
            return found

    async with running(embedded.nats_server(plan)):
        await seed(bus_config(plan, BUS_ADMIN), ())
        examples = await versions(delete="synthetic-1", put="ours")
        assert {"default-1", "synthetic-1"} < examples  # named by their versions
        await seed(bus_config(plan, BUS_ADMIN), ())
        assert await versions() == examples - {"synthetic-1"} | {"ours"}


async def test_no_secret_is_in_a_configuration_file(plan: Plan) -> None:
    embedded.nats_server(plan)
    embedded.clickhouse(plan)
    written = "".join(path.read_text() for path in plan.options.home.run.iterdir())
    kept = [path.read_text().strip() for path in plan.options.home.secrets.iterdir()]
    assert len(kept) > 5
    assert [secret for secret in kept if secret in written] == []


async def test_clickhouse_knows_its_three_users(plan: Plan) -> None:
    def ask(user: str, sql: str) -> str:
        with clickhouse_connect.get_client(
            host="127.0.0.1",
            port=plan.ports["clickhouse"],
            username=user,
            password=plan.clickhouse_password(user),
        ) as client:
            return str(client.command(sql))

    async with running(embedded.clickhouse(plan)):
        ask("admin", "create table inferbus.t (x Int32) engine = MergeTree order by x")
        ask("writer", "insert into inferbus.t values (7)")
        assert ask("analyst", "select x from inferbus.t") == "7"
        with pytest.raises(DatabaseError):
            ask("analyst", "insert into inferbus.t values (8)")
