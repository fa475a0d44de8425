"""The two servers that a stack brings along: how nats-server and the embedded ClickHouse are configured and started."""

import asyncio
import hashlib
import json
import sys
from contextlib import suppress
from ssl import SSLContext

from inferbus_contracts.subjects import FILE_STORE_BYTES
from inferbus_runtime.tls import client_context

from inferbus_stack.child import ChildSpec
from inferbus_stack.home import write_private
from inferbus_stack.nats import binary
from inferbus_stack.nats_config import CIPHER_KEY_VARIABLE, BusUser, NatsLimits, render
from inferbus_stack.permissions import Role, permissions
from inferbus_stack.services import (
    ADMIN_USER,
    ANALYST_USER,
    BUS_ADMIN,
    CAPTURE_READER_USER,
    CAPTURE_WRITER_USER,
    LOOPBACK,
    STOP_SECONDS,
    WRITER_USER,
    Plan,
    instances,
)

# The bounds of streams and buckets are reserved by the server; what later versions add comes on top.
_SPARE_BYTES = 4 << 30
_PROBE_SECONDS = 1.0


def nats_server(plan: Plan) -> ChildSpec:
    """Writes nats-server's configuration, with one user for each process of ours; returns how to start it."""
    home = plan.options.home
    roles = {one.name: one.role for one in instances(plan.options)} | {BUS_ADMIN: Role.ADMIN}
    users = [BusUser(name, plan.secrets.nkey(name).public, permissions(role, name)) for name, role in roles.items()]
    port = plan.ports["nats"]
    file_store = FILE_STORE_BYTES + _SPARE_BYTES
    identity = plan.tls.get("nats")
    text = render(
        host=LOOPBACK,
        port=port,
        store=home.nats,
        users=users,
        limits=NatsLimits(file_store),
        encrypted=True,
        tls=identity,
        issuer=plan.secrets.issuer().public,
    )
    asking = client_context(plan.tls[BUS_ADMIN]) if identity else None
    config = home.run / "nats.conf"
    write_private(config, text)
    return ChildSpec(
        name="nats",
        command=(binary(), "-c", str(config)),
        # Its heap is small, so it may grow further between collections (12.6 to 11.8 us
        # a token at 256 streams in one pair of runs, which is within the noise); while a
        # large file passes through it collects sooner.
        environ={
            "GOGC": "400",
            "GOMEMLIMIT": "192MiB",
            **plan.environ,
            CIPHER_KEY_VARIABLE: plan.secrets.cipher_key("jetstream"),
        },
        log_file=home.log_file("nats"),
        probe=lambda: _speaks_nats(port, asking),
        stop_seconds=STOP_SECONDS,
    )


def clickhouse(plan: Plan) -> ChildSpec:
    """Writes the embedded ClickHouse's users (hashes only); returns how to start it."""
    home = plan.options.home
    names = (ADMIN_USER, WRITER_USER, ANALYST_USER, CAPTURE_WRITER_USER, CAPTURE_READER_USER)
    users = {user: _clickhouse_user(plan, user) for user in names}
    users_file, ready_file = home.run / "clickhouse_users.json", home.ready_file("clickhouse")
    write_private(users_file, json.dumps(users))
    return ChildSpec(
        name="clickhouse",
        command=(
            *(sys.executable, "-m", "inferbus_stack.clickhouse", "--path", str(home.clickhouse)),
            *("--port", str(plan.ports["clickhouse"]), "--users", str(users_file), "--ready-file", str(ready_file)),
        ),
        environ=plan.environ,
        log_file=home.log_file("clickhouse"),
        ready_file=ready_file,
        stop_seconds=STOP_SECONDS,
    )


def _clickhouse_user(plan: Plan, user: str) -> dict[str, str]:
    password = plan.clickhouse_password(user)
    return {"password_sha256_hex": hashlib.sha256(password.encode()).hexdigest(), "profile": user}


async def _speaks_nats(port: int, tls: SSLContext | None) -> bool:
    """Whether a NATS server greets on ``port``; by then JetStream has recovered its streams."""
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(_PROBE_SECONDS):
            reader, writer = await asyncio.open_connection(LOOPBACK, port, ssl=tls)
            try:
                return (await reader.readline()).startswith(b"INFO")
            finally:
                writer.close()
    return False
