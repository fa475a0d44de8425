"""docker-compose.yml and deploy/ against the code that they start: no container engine is needed to find a wrong name.

Each service's environment is loaded by the service's own typed configuration; what the Dockerfiles copy, install and
start exists; nats-server reads the rendered configuration and the one-shot `init` prepares a bus under it; the
ClickHouse users allow what the embedded engine's profiles allow.
"""

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from inferbus.bus.v1.registry_pb2 import KeyRecord
from inferbus_bus.connection import BusConfig, connect
from inferbus_bus.registry import Registry
from inferbus_bus.user_jwt import Issuer
from inferbus_contracts.ids import key_hash
from inferbus_contracts.subjects import STREAMS
from inferbus_runtime.config import ConfigError, ServiceConfig, load
from inferbus_runtime.durations import parse_duration
from inferbus_runtime.lifecycle import CLOSE_TIMEOUT_SECONDS
from inferbus_stack.clickhouse.profiles import PRIVATE_TABLES, PROFILES
from inferbus_stack.nats import NatsServer, binary, free_port
from inferbus_stack.nats_config import CIPHER_KEY_VARIABLE
from inferbus_stack.permissions import Role, permissions
from inferbus_stack.services import ADMIN_USER, ANALYST_USER, DATABASE, WRITER_USER

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILES = [*sorted((ROOT / "deploy" / "docker").glob("*.Dockerfile")), ROOT / "deploy" / "gpu" / "Dockerfile"]
USERS = ET.parse(ROOT / "deploy" / "clickhouse" / "users.d" / "inferbus.xml").getroot()
# compose service -> the room that it runs
ROOMS = {
    "edge": "edge",
    "batch": "batch",
    "scheduler": "scheduler",
    "worker": "worker",
    "worker-gpu": "worker",
    "meter": "meter",
    "migrate": "meter",
}
LONG_RUNNING = {name: room for name, room in ROOMS.items() if name != "migrate"}


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `deploy/compose_secrets.py` makes it; run twice, since a second run must keep the secrets."""
    folder = tmp_path_factory.mktemp("compose") / "secrets"
    script = [sys.executable, str(ROOT / "deploy" / "compose_secrets.py"), "--folder", str(folder)]
    said = [subprocess.run(script, check=True, capture_output=True, text=True).stdout for _ in range(2)]
    assert said[0] == said[1]
    return folder


def interpolate(text: str, values: dict[str, str]) -> str:
    """``${NAME:-default}`` as compose reads it."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda match: values.get(match[1]) or match[2], text)


def read_env(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in path.read_text().splitlines())


def environment(service: str, secrets: Path) -> dict[str, str]:
    """What the process of ``service`` sees: its secret file, and its own lines on top."""
    spec = SERVICES[service]
    values = {"INFERBUS_SECRETS": str(secrets)}
    found: dict[str, str] = {}
    for path in spec.get("env_file", []):
        found |= read_env(Path(interpolate(path, values)))
    own = spec.get("environment", {})
    assert all(isinstance(value, str) for value in own.values()), "quote it: YAML would make something else of it"
    return found | {name: interpolate(value, values) for name, value in own.items()}


def config_of(room: str) -> type[ServiceConfig]:
    config: type[ServiceConfig] = importlib.import_module(f"inferbus_{room}.config").Config
    return config


def duration(text: str) -> timedelta:
    found = parse_duration(text)
    assert found is not None
    return found


# --- environment against the typed configuration ---


@pytest.mark.parametrize("service", ROOMS)
def test_environment_is_what_the_service_understands(service: str, secrets: Path) -> None:
    environ = environment(service, secrets)
    prefix = f"INFERBUS_{ROOMS[service].upper()}_"
    assert [name for name in environ if not name.startswith(prefix)] == []
    load(config_of(ROOMS[service]), prefix, environ)


def test_an_unknown_variable_would_be_found(secrets: Path) -> None:
    environ = environment("edge", secrets) | {"INFERBUS_EDGE_HTTP_PROT": "8080"}
    with pytest.raises(ConfigError, match="HTTP_PROT"):
        load(config_of("edge"), "INFERBUS_EDGE_", environ)


def test_every_service_of_ours_is_covered() -> None:
    assert set(SERVICES) == {*ROOMS, "init", "nats", "clickhouse", "grafana"}


@pytest.mark.parametrize("service", LONG_RUNNING)
def test_names_addresses_and_stop_times_fit(service: str, secrets: Path) -> None:
    spec, prefix = SERVICES[service], f"INFERBUS_{LONG_RUNNING[service].upper()}_"
    environ = environment(service, secrets)
    assert environ[f"{prefix}NATS_SEED"] != environment("init", secrets)["INFERBUS_INIT_NATS_SEED"]
    assert environ[f"{prefix}NATS_URL"] == "nats://nats:4222"
    assert environ[f"{prefix}GRPC_ADDRESS"].endswith(":9000")
    # Docker kills after the grace period: the drain and the orderly closing must fit in.
    drain = duration(environ[f"{prefix}DRAIN_TIMEOUT"])
    assert duration(spec["stop_grace_period"]) >= drain + timedelta(seconds=CLOSE_TIMEOUT_SECONDS + 5)
    assert spec["restart"] == "unless-stopped"


def test_services_name_each_other_rightly(secrets: Path) -> None:
    edge = environment("edge", secrets)
    for peer in ("batch", "scheduler", "meter"):
        host, port = edge[f"INFERBUS_EDGE_{peer.upper()}_ADDRESS"].split(":")
        assert host in SERVICES
        assert environment(peer, secrets)[f"INFERBUS_{peer.upper()}_GRPC_ADDRESS"].endswith(f":{port}")
        assert environment(peer, secrets)[f"INFERBUS_{peer.upper()}_RPC_TOKEN"] == edge["INFERBUS_EDGE_RPC_TOKEN"]
    for service, user in (("meter", WRITER_USER), ("migrate", ADMIN_USER)):
        environ = environment(service, secrets)
        assert environ["INFERBUS_METER_CLICKHOUSE_USER"] == user
        assert environ["INFERBUS_METER_CLICKHOUSE_DATABASE"] == DATABASE
        assert environ["INFERBUS_METER_CLICKHOUSE_PASSWORD"] == (secrets / f"clickhouse-{user}").read_text().strip()


# --- the compose file itself ---


def test_images_are_pinned_and_ports_stay_on_this_machine() -> None:
    for name, spec in SERVICES.items():
        assert re.search(r":\d+\.\d+", spec["image"]), f"{name}: an image without a version"
        for port in spec.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name}: {port} is open to the network"
    assert SERVICES["nats"]["image"].removeprefix("nats:").startswith(_version_of_nats_server())


def _version_of_nats_server() -> str:
    """The broker that tests and `make run` use, so that containers do not run another."""
    said = subprocess.run([binary(), "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"v(\d+\.\d+\.\d+)", said)
    assert found is not None
    return found[1]


def test_no_secret_stands_in_the_repository(secrets: Path) -> None:
    values = {value for file in secrets.glob("*.env") for value in read_env(file).values()}
    text = "".join(path.read_text() for path in [ROOT / "docker-compose.yml", *DOCKERFILES])
    assert values
    assert not any(value in text for value in values)
    assert "secrets/" in (ROOT / "deploy" / ".gitignore").read_text()
    assert "deploy/secrets" in (ROOT / ".dockerignore").read_text()
    # Readable by their owner only, but for nats.conf, which holds public keys.
    for file in secrets.iterdir():
        assert file.stat().st_mode & 0o777 == (0o644 if file.name == "nats.conf" else 0o600), file.name


def test_dependencies_and_volumes_exist() -> None:
    for spec in SERVICES.values():
        for dependency, how in spec.get("depends_on", {}).items():
            checked = "healthcheck" in SERVICES[dependency]
            assert how["condition"] == ("service_healthy" if checked else "service_completed_successfully")
        for volume in spec.get("volumes", []):
            source = interpolate(volume, {}).split(":")[0]
            if not source.startswith("."):
                assert source in COMPOSE["volumes"]
            elif "secrets" not in source:
                assert (ROOT / source).exists(), source
        if "build" in spec:
            assert (ROOT / spec["build"]["dockerfile"]).is_file()


def test_compose_accepts_the_file(secrets: Path) -> None:
    command = _compose()
    if command is None:
        pytest.skip("neither `docker compose` nor docker-compose is on this machine")
    run = subprocess.run(
        [*command, "--profile", "gpu", "config", "-q"],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "INFERBUS_SECRETS": str(secrets)},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr


def _compose() -> list[str] | None:
    if shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0:
        return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else None


# --- Dockerfiles ---


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(instruction, rest), continued lines joined and comments dropped."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines()) if name]


def installed(dockerfile: Path) -> set[str]:
    """Rooms of ours that its pip commands install, without their extras."""
    runs = " ".join(rest for name, rest in instructions(dockerfile) if name == "RUN")
    return {room.removeprefix("./") for room in re.findall(r"\./(?:libs|services)/[a-z]+", runs)}


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_a_dockerfile_copies_installs_and_starts_what_exists(dockerfile: Path) -> None:
    steps = instructions(dockerfile)
    copied: set[str] = set()
    for name, rest in steps:
        if name == "COPY" and not rest.startswith("--from"):
            *sources, _ = rest.split()
            copied |= set(sources)
            assert all((ROOT / source).exists() for source in sources), rest
    assert installed(dockerfile) <= copied
    assert any(name == "USER" and rest.split(":")[0] != "0" for name, rest in steps), "runs as root"
    start = next(rest for name, rest in steps if name == "ENTRYPOINT")
    if module := re.search(r'"-m", "([\w.]+)"', start):
        assert importlib.util.find_spec(f"{module[1]}.__main__") is not None, start
    else:
        script = re.search(r'"/opt/inferbus/(\w+\.py)"', start)
        assert script is not None
        assert f"deploy/docker/{script[1]}" in copied


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_an_image_holds_every_room_that_its_rooms_need(dockerfile: Path) -> None:
    """A missing one would be looked for in a package index, where it is not, or worse, is somebody else's."""
    rooms = installed(dockerfile)
    if dockerfile.stem == "init":
        rooms -= {"libs/stack"}  # installed without its dependencies; the next test runs what is used of it
    for room in rooms:
        needs = tomllib.loads((ROOT / room / "pyproject.toml").read_text())["project"]["dependencies"]
        ours = {f"libs/{need.removeprefix('inferbus-')}" for need in needs if need.startswith("inferbus-")}
        assert ours <= rooms, f"{room} needs {ours - rooms}"


@pytest.mark.parametrize("service", [name for name in SERVICES if "build" in SERVICES[name]])
def test_a_service_starts_its_own_room(service: str) -> None:
    spec = SERVICES[service]
    start = spec.get("entrypoint")
    if start is None:
        steps = dict(instructions(ROOT / spec["build"]["dockerfile"]))
        room = "init.py" if service == "init" else f"inferbus_{ROOMS[service]}"
        assert room in steps["ENTRYPOINT"]
    else:
        assert importlib.util.find_spec(start[-1]) is not None


# --- nats ---


def test_bus_users_of_containers_have_the_permissions_of_their_roles(secrets: Path) -> None:
    conf = (secrets / "nats.conf").read_text()
    users = re.findall(
        r"permissions: \{publish: \{allow: (\[.*?\])\}, subscribe: \{allow: (\[.*?\])\}\}\} # (\S+)", conf
    )
    roles = {"admin": Role.ADMIN}
    for service, room in LONG_RUNNING.items():
        name = environment(service, secrets)[f"INFERBUS_{room.upper()}_NAME"]
        roles[name] = Role(room)
    assert {name for _, _, name in users} == set(roles)
    for publish, subscribe, name in users:
        expected = permissions(roles[name], name)
        assert (tuple(yaml.safe_load(publish)), tuple(yaml.safe_load(subscribe))) == (
            expected.publish,
            expected.subscribe,
        )


def test_the_broker_asks_the_edge_and_knows_its_signature(secrets: Path) -> None:
    conf = (secrets / "nats.conf").read_text()
    issuer = Issuer(environment("edge", secrets)["INFERBUS_EDGE_BUS_ISSUER_SEED"])
    assert f"issuer: {issuer.public}\n" in conf


async def test_init_prepares_a_bus_under_the_configuration_of_the_containers(
    secrets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    conf = (secrets / "nats.conf").read_text()
    here = conf.replace('"/data"', f'"{tmp_path / "data"}"').replace("0.0.0.0:4222", f"127.0.0.1:{port}")
    here = here.replace("127.0.0.1:8222", "127.0.0.1:-1")
    monkeypatch.setenv(CIPHER_KEY_VARIABLE, environment("nats", secrets)[CIPHER_KEY_VARIABLE])
    environ = environment("init", secrets)
    async with NatsServer(tmp_path / "nats", port, here) as server:
        for _ in range(2):  # a one-shot job may be run again
            run = subprocess.run(
                [sys.executable, str(ROOT / "deploy" / "docker" / "init.py")],
                env={**os.environ, **environ, "INFERBUS_INIT_NATS_URL": server.url},
                capture_output=True, text=True, timeout=60,
            )  # fmt: skip
            assert run.returncode == 0, run.stderr
        admin = BusConfig(server.url, "admin", environ["INFERBUS_INIT_NATS_SEED"])
        async with connect(admin) as bus:
            names = (await bus.api("STREAM.NAMES"))["streams"]
            assert {stream.name for stream in STREAMS} <= set(names)
        # The edge's own identity reads the key that was made.
        edge = BusConfig(server.url, "edge-0", environment("edge", secrets)["INFERBUS_EDGE_NATS_SEED"])
        async with connect(edge) as bus:
            keys = Registry(bus, "keys", KeyRecord)
            await keys.start()
            found = keys.get(key_hash(environ["INFERBUS_INIT_API_KEY"]))
            await keys.stop()
    assert found is not None
    assert found.tenant_id == "default"


# --- Grafana ---


def test_grafana_asks_as_the_analyst_and_finds_its_files(secrets: Path) -> None:
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    source = yaml.safe_load((provisioning / "datasources" / "inferbus.yaml").read_text())["datasources"][0]
    asked, environ = source["jsonData"], environment("grafana", secrets)
    assert (asked["username"], asked["defaultDatabase"]) == (ANALYST_USER, DATABASE)
    assert asked["host"] in SERVICES
    password = environ[source["secureJsonData"]["password"].removeprefix("$")]
    assert password == (secrets / f"clickhouse-{ANALYST_USER}").read_text().strip()
    # Its client asks for five seconds more than its own timeout, and the server refuses what is above the bound.
    assert int(asked["queryTimeout"]) + 5 <= PROFILES["analyst"].lowerable["max_execution_time"]
    provider = yaml.safe_load((provisioning / "dashboards" / "inferbus.yaml").read_text())["providers"][0]
    mounted = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    assert mounted["./deploy/grafana/dashboards"] == provider["options"]["path"]
    assert mounted["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"


# --- ClickHouse ---


def settings(profile: str) -> dict[str, str]:
    node = USERS.find(f"profiles/{profile}")
    assert node is not None
    return {setting.tag: (setting.text or "").strip() for setting in node if setting.tag != "constraints"}


def constraints(profile: str) -> dict[str, dict[str, str]]:
    found = USERS.findall(f"profiles/{profile}/constraints/*")
    return {one.tag: {bound.tag: (bound.text or "").strip() for bound in one} for one in found}


def test_clickhouse_users_are_the_embedded_ones_and_default_is_gone(secrets: Path) -> None:
    users = {node.tag: node for node in USERS.findall("users/*")}
    assert set(users) == {"default", ADMIN_USER, WRITER_USER, ANALYST_USER}
    assert users["default"].get("remove") == "remove"
    given = environment("clickhouse", secrets)
    for name in (ADMIN_USER, WRITER_USER, ANALYST_USER):
        password = users[name].find("password_sha256_hex")
        assert password is not None
        assert re.fullmatch("[0-9a-f]{64}", given[password.attrib["from_env"]])
        assert [child.tag for child in users[name] if "password" in child.tag] == ["password_sha256_hex"]


def test_limits_of_the_analyst_are_the_embedded_ones() -> None:
    profile, given, bounds = PROFILES["analyst"], settings("inferbus_analyst"), constraints("inferbus_analyst")
    assert given["readonly"] == "2"
    for name, value in profile.limits.items():
        assert (given[name], bounds[name]) == (value, {"const": ""}), name
    for name, most in profile.lowerable.items():
        assert (given[name], bounds[name]) == (str(most), {"min": "1", "max": str(most)}), name
    assert int(given["max_concurrent_queries_for_user"]) == profile.running + profile.waiting


def test_limits_of_the_writer_are_the_embedded_ones() -> None:
    given, bounds = settings("inferbus_writer"), constraints("inferbus_writer")
    assert given == PROFILES["writer"].limits
    assert bounds == {name: {"const": ""} for name in PROFILES["writer"].limits}


def test_writer_and_analyst_reach_the_platforms_tables_and_nothing_else() -> None:
    for user, allowed in (
        (WRITER_USER, {"SELECT", "INSERT"}),
        (ANALYST_USER, {"SELECT", "SHOW TABLES", "SHOW COLUMNS"}),
    ):
        queries = [query.text or "" for query in USERS.findall(f"users/{user}/grants/query")]
        assert queries
        for query in queries:
            match = re.fullmatch(r"GRANT ([A-Z ,]+) ON (\S+)", query)
            assert match is not None, query
            assert {right.strip() for right in match[1].split(",")} <= allowed
            assert match[2] == f"{DATABASE}.*"
        for table in PRIVATE_TABLES:
            assert USERS.findtext(f"users/{user}/databases/{DATABASE}/{table}/filter") == "0"
