"""An operator's uploads, by what a stack's folder says."""

import hashlib
import json
from pathlib import Path

import pytest
from inferbus_bus.connection import BusConfig, connect
from inferbus_bus.streams import ensure_streams
from inferbus_cli.artifacts import uploads
from inferbus_cli.target import NotRunning, Target
from inferbus_stack.nats import NatsServer


async def test_uploads_go_to_the_bus_of_the_stack_in_the_folder(tmp_path: Path) -> None:
    home, data = tmp_path / "home", b"weights"
    home.mkdir()
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    async with NatsServer(tmp_path / "nats") as server:
        async with connect(BusConfig(server.url, "setup")) as bus:
            await ensure_streams(bus)
        (home / "stack.json").write_text(json.dumps({"nats_url": server.url, "nats_seed": None}))
        digest = hashlib.sha256(data).hexdigest()
        async with uploads(Target("http://127.0.0.1:1", "", "", home)) as artifacts:
            assert await artifacts.put(path, digest)
            assert await artifacts.has(digest, len(data))


def test_a_remote_stack_has_no_bus_for_us() -> None:
    with pytest.raises(NotRunning, match="give --home"):
        uploads(Target("https://stack.test", "k", "k", None))
