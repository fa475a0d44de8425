"""Makes the secrets of the containers, once, and renders from them what docker-compose.yml mounts and reads.

    .venv/bin/python deploy/compose_secrets.py [--folder deploy/secrets]

Secrets are made on the first run and kept after that; nats.conf and the *.env files are rendered anew each time, so run
it again after an upgrade. Permissions on the bus come from the table that `inferbus up` uses
(inferbus_stack.permissions). Nothing secret is printed.
"""

import argparse
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

from inferbus_contracts.subjects import FILE_STORE_BYTES
from inferbus_stack.home import write_private
from inferbus_stack.nats_config import CIPHER_KEY_VARIABLE, BusUser, NatsLimits, render
from inferbus_stack.permissions import Role, permissions
from inferbus_stack.secrets import SecretFolder

# Compose service -> role and name on the bus. A new worker is a new line here and a new service in the compose file.
INSTANCES: Mapping[str, tuple[Role, str]] = {
    "edge": (Role.EDGE, "edge-0"),
    "batch": (Role.BATCH, "batch"),
    "scheduler": (Role.SCHEDULER, "scheduler"),
    "worker": (Role.WORKER, "worker-0"),
    "worker-gpu": (Role.WORKER, "worker-gpu-0"),
    "meter": (Role.METER, "meter"),
}
BUS_ADMIN = "admin"
CLICKHOUSE_USERS = ("admin", "writer", "analyst")
# On top of what streams and buckets reserve: what later versions add.
_SPARE_BYTES = 8 << 30


def nats_conf(secrets: SecretFolder) -> str:
    """nats-server's configuration for a container: public halves of keys only."""
    users = [BusUser(name, secrets.nkey(name).public, permissions(role, name)) for role, name in INSTANCES.values()]
    users.append(BusUser(BUS_ADMIN, secrets.nkey(BUS_ADMIN).public, permissions(Role.ADMIN, BUS_ADMIN)))
    limits = NatsLimits(FILE_STORE_BYTES + _SPARE_BYTES)
    text = render(
        host="0.0.0.0", port=4222, store=Path("/data"), users=users, limits=limits, encrypted=True,  # noqa: S104
        issuer=secrets.issuer().public,
    )  # fmt: skip
    # For the health check, which runs inside the container; it tells who is connected, so nobody else may ask.
    return text + 'http: "127.0.0.1:8222"\n'


def environments(secrets: SecretFolder) -> dict[str, dict[str, str]]:
    """Compose service -> its secret variables."""
    passwords = {user: secrets.password(f"clickhouse-{user}") for user in CLICKHOUSE_USERS}
    found: dict[str, dict[str, str]] = {
        "nats": {CIPHER_KEY_VARIABLE: secrets.cipher_key("jetstream")},
        "clickhouse": {
            f"INFERBUS_CLICKHOUSE_{user.upper()}_SHA256": hashlib.sha256(password.encode()).hexdigest()
            for user, password in passwords.items()
        },
        "init": {
            "INFERBUS_INIT_NATS_SEED": secrets.nkey(BUS_ADMIN).seed,
            "INFERBUS_INIT_API_KEY": secrets.api_key("api-key"),
            "INFERBUS_INIT_ADMIN_KEY": secrets.api_key("admin-key"),
        },
        "migrate": {"INFERBUS_METER_CLICKHOUSE_PASSWORD": passwords["admin"]},
    }
    for service, (role, name) in INSTANCES.items():
        prefix = f"INFERBUS_{role.name}_"
        found[service] = {
            f"{prefix}NATS_SEED": secrets.nkey(name).seed,
            f"{prefix}RPC_TOKEN": secrets.password("rpc-token"),
        }
    found["edge"]["INFERBUS_EDGE_BUS_ISSUER_SEED"] = secrets.issuer().seed
    found["batch"]["INFERBUS_BATCH_WEBHOOK_SECRET"] = secrets.webhook_secret("batch-webhooks")
    found["meter"]["INFERBUS_METER_CLICKHOUSE_PASSWORD"] = passwords["writer"]
    found["meter"]["INFERBUS_METER_CLICKHOUSE_READ_PASSWORD"] = passwords["analyst"]
    found["grafana"] = {
        "INFERBUS_GRAFANA_CLICKHOUSE_PASSWORD": passwords["analyst"],
        "GF_SECURITY_ADMIN_PASSWORD": secrets.password("grafana-admin"),
    }
    return found


def write(folder: Path) -> None:
    """All files below ``folder``, which only its owner may enter."""
    secrets = SecretFolder(folder)
    for service, variables in environments(secrets).items():
        write_private(folder / f"{service}.env", "".join(f"{name}={value}\n" for name, value in variables.items()))
    conf = folder / "nats.conf"
    write_private(conf, nats_conf(secrets))
    # nats-server has no capabilities in its container, so it reads what everyone may read; there is no secret in it.
    conf.chmod(0o644)


def main() -> int:
    parser = argparse.ArgumentParser(description="Makes and renders the secrets of docker-compose.yml.")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "secrets", help="default: %(default)s")
    folder: Path = parser.parse_args().folder
    write(folder)
    sys.stdout.write(
        f"Written to {folder}. The first API key is in {folder / 'api-key'}, the first admin key in "
        f"{folder / 'admin-key'}, the analyst's password in {folder / 'clickhouse-analyst'}.\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
