"""``inferbus up --tls``: the same stack, and not a word of it in plain text."""

import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import openai
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from inferbus_bus.connection import BusConfig, connect
from inferbus_runtime import rpc
from inferbus_runtime.tls import TlsFiles, trusting

from .conftest import RunningStack

DEPLOY = Path(__file__).parents[3] / "deploy" / "docker"
SERVICES = ("edge", "batch", "scheduler", "worker-0", "meter")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    running = RunningStack(tmp_path_factory.mktemp("tls") / "stack", "--tls", "--tls-name", "api.example.com")
    try:
        yield running.wait_ready()
    finally:
        running.end()


@pytest.fixture(scope="module")
def ca(stack: RunningStack) -> Path:
    return Path(stack.content["ca"])


@pytest.fixture
def operator(stack: RunningStack, ca: Path) -> TlsFiles:
    identity = stack.content["identity"]
    return TlsFiles(Path(identity["cert"]), Path(identity["key"]), ca)


def test_the_openai_sdk_streams_a_chat_over_https(stack: RunningStack, ca: Path) -> None:
    content = stack.content
    assert content["base_url"].startswith("https://")
    with (
        httpx.Client(verify=trusting(ca)) as http,
        openai.OpenAI(base_url=content["base_url"], api_key=content["api_key"], http_client=http) as client,
    ):
        messages = [{"role": "user", "content": "hello"}]
        chunks = list(client.chat.completions.create(model="synthetic", messages=messages, max_tokens=300, stream=True))
        unary = client.chat.completions.create(model="synthetic", messages=messages, max_tokens=300)
    assert chunks[-1].choices[0].finish_reason == "length"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == unary.choices[0].message.content


def test_who_does_not_know_the_authority_is_told_so(stack: RunningStack, ca: Path) -> None:
    content = stack.content
    with openai.OpenAI(base_url=content["base_url"], api_key=content["api_key"], max_retries=0) as client:
        with pytest.raises(openai.APIConnectionError) as caught:
            client.models.list()
        assert "CERTIFICATE_VERIFY_FAILED" in str(caught.value.__cause__)
    remote = ("models", "--url", content["base_url"], "--key", content["api_key"])
    refused = stack.run(*remote, check=False)
    assert refused.exit_code == 2
    assert "could not prove who it is" in refused.output
    assert "--ca" in refused.output
    assert "synthetic" in stack.run(*remote, "--ca", str(ca)).output


def test_the_edge_is_known_by_the_names_that_it_was_given(stack: RunningStack, ca: Path) -> None:
    port = int(stack.content["base_url"].rsplit(":", 1)[1].removesuffix("/v1"))

    def shown(name: str) -> None:
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            trusting(ca).wrap_socket(plain, server_hostname=name),
        ):
            pass

    for name in ("localhost", "api.example.com"):
        shown(name)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shown("api.example.org")


def test_plain_text_gets_no_answer_and_does_no_harm(stack: RunningStack) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(stack.content["base_url"].replace("https://", "http://") + "/models", timeout=60)
    assert stack.json("chat", "hello", "--max-tokens", "5")["output_tokens"] == 5


def test_the_commands_find_the_authority_by_themselves(stack: RunningStack) -> None:
    stack.run("models")
    stack.run("keys", "list")
    assert stack.json("top", "--once")["fleet"]["workers"]  # by gRPC from the edge to the scheduler and the meter
    stack.run("audit")
    line = next(line for line in stack.output.splitlines() if "curl -N" in line)
    answer = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=30, check=True)
    assert answer.stdout.rstrip().endswith("data: [DONE]")


async def test_every_service_is_healthy_by_mutual_tls_and_by_nothing_else(
    stack: RunningStack, operator: TlsFiles
) -> None:
    for name in SERVICES:
        address = stack.content["services"][name]["grpc"]
        async with rpc.channel(address, None, operator) as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, name
        async with rpc.channel(address, None) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE, name


def test_the_scripts_of_the_containers_speak_it_too(stack: RunningStack, operator: TlsFiles) -> None:
    content, files = stack.content, [str(operator.cert), str(operator.key), str(operator.ca)]
    variables = {
        **dict(zip(("TLS_CERT", "TLS_KEY", "TLS_CA"), files, strict=True)),
        **{"NATS_URL": content["nats_url"], "NATS_SEED": content["nats_seed"]},
        **{"API_KEY": content["api_key"], "ADMIN_KEY": content["admin_key"]},
    }

    def run(script: str, *arguments: str, left_out: str = "") -> subprocess.CompletedProcess[str]:
        environ = {f"INFERBUS_INIT_{name}": value for name, value in variables.items() if name != left_out}
        return subprocess.run(
            [sys.executable, str(DEPLOY / script), *arguments],
            env=os.environ | environ, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    assert run("init.py").stdout == "streams, keys and prices are there\n"
    assert "set TLS_KEY too, or leave out TLS_CERT and TLS_CA" in run("init.py", left_out="TLS_KEY").stderr
    address = content["services"]["scheduler"]["grpc"]
    assert run("healthcheck.py", address, *files).returncode == 0
    assert run("healthcheck.py", address).returncode == 1


async def test_the_broker_listens_to_the_operators_certificate_and_nkey(
    stack: RunningStack, operator: TlsFiles
) -> None:
    content = stack.content
    assert content["nats_url"].startswith("tls://")
    async with connect(BusConfig(content["nats_url"], "admin", content["nats_seed"], operator)) as bus:
        assert "TOKENS" in (await bus.api("STREAM.NAMES"))["streams"]


def test_nothing_secret_is_in_a_log_nor_in_the_output(stack: RunningStack) -> None:
    stack.json("chat", "hello", "--max-tokens", "5")
    logs = "".join(path.read_text(errors="replace") for path in (stack.home / "logs").rglob("*") if path.is_file())
    kept = {path.name: path.read_text().strip() for path in (stack.home / "secrets").iterdir() if path.is_file()}
    keys = [path.read_text() for path in (stack.home / "secrets" / "tls").glob("*.key")]
    assert len(logs) > 1000
    # Also of the authority, the broker, the operator, the edge's public side, and four slots of workers to come.
    assert len(keys) == len(SERVICES) + 4 + 4
    secrets = [*kept.values(), *(line for key in keys for line in key.splitlines()[1:-1])]
    assert [secret for secret in secrets if secret in logs] == []
    assert "PRIVATE KEY" not in logs + stack.output
    assert [name for name, secret in kept.items() if secret in stack.output] == []
    assert "permissions violation" not in logs.lower()


def test_the_stack_file_names_files_and_holds_no_key(stack: RunningStack) -> None:
    text = (stack.home / "stack.json").read_text()
    assert "BEGIN" not in text
    assert all(Path(path).is_file() for path in json.loads(text)["identity"].values())
