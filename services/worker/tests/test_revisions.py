"""A worker of a revision: what it takes from the record, and what it does not start on."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from inferbus.bus.v1.registry_pb2 import ModelRecord, WorkerRecord
from inferbus.bus.v1.revision_pb2 import RevisionRecord, RevisionStage
from inferbus_artifacts.opened import opened
from inferbus_artifacts.store import Artifacts, digest_of
from inferbus_bus.connection import Bus
from inferbus_bus.objects import Objects
from inferbus_bus.publish import Publisher
from inferbus_bus.registry import Registry
from inferbus_contracts.subjects import ARTIFACTS, subject_token
from inferbus_runtime.config import ConfigError
from inferbus_worker.config import Config, of_revision

OWN = {
    "INFERBUS_WORKER_NAME": "one",
    "INFERBUS_WORKER_MODEL": "m",
    "INFERBUS_WORKER_REVISION": "r2",
    "INFERBUS_WORKER_SYNTHETIC__ITL": "9ms",
    "INFERBUS_WORKER_CAPACITY": "7",
}


def test_the_revisions_settings_win_and_the_rest_is_the_workers_own() -> None:
    made = of_revision("synthetic", {"SYNTHETIC__ITL": "3ms", "CONTEXT_LENGTH": "4096"}, OWN)
    assert (made.name, made.model, made.revision, made.engine) == ("one", "m", "r2", "synthetic")
    assert made.synthetic.itl.total_seconds() == 0.003
    assert (made.context_length, made.capacity) == (4096, 7)


@pytest.mark.parametrize("name", ["NAME", "NATS_URL", "MODEL", "ZONE", "OPENAI__API_KEY", "GPU__DEVICES", "LOG_LEVEL"])
def test_what_is_the_workers_own_no_revision_says(name: str) -> None:
    with pytest.raises(ConfigError, match=f"INFERBUS_WORKER_{name}: is a worker's own"):
        of_revision("openai", {name: "1"}, OWN)


def test_unknown_and_bad_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="INFERBUS_WORKER_SYNTHETIC__ITLL: no such variable"):
        of_revision("synthetic", {"SYNTHETIC__ITLL": "3ms"}, OWN)
    with pytest.raises(ConfigError, match="INFERBUS_WORKER_SYNTHETIC__ITL: must be a duration"):
        of_revision("synthetic", {"SYNTHETIC__ITL": "soon"}, OWN)


def test_a_revision_is_one_of_a_model() -> None:
    with pytest.raises(ValueError, match="set MODEL too"):
        Config(name="one", revision="r2")


@pytest.fixture
async def revisions(bus: Bus) -> AsyncIterator[Registry[RevisionRecord]]:
    registry = Registry(bus, "revisions", RevisionRecord)
    await registry.start()
    yield registry
    await registry.stop()


async def put(revisions: Registry[RevisionRecord], record: RevisionRecord) -> None:
    await revisions.put(f"{record.model}/{record.revision}", record)


async def why_it_does_not_start(worker: Any) -> str:
    """Its log. It has ended."""
    environ = {f"INFERBUS_WORKER_{name}": value for name, value in worker._variables.items()}
    worker.process = await asyncio.create_subprocess_exec(
        sys.executable, *worker.program, env={**os.environ, **environ}, stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, errors = await asyncio.wait_for(worker.process.communicate(), 60.0)
    assert worker.process.returncode == 1
    return (out + errors).decode()


async def test_a_worker_serves_what_its_revision_says_under_its_name(
    bus: Bus, revisions: Registry[RevisionRecord], new_worker: Callable[..., Any], edge: Any
) -> None:
    model = f"revised-{bus.config.name}"
    settings = {"SYNTHETIC__ITL": "2ms", "CONTEXT_LENGTH": "4096"}
    record = RevisionRecord(model=model, revision="r1", engine="synthetic", settings=settings)
    await put(revisions, record)
    worker = new_worker(MODEL=model, REVISION="r1", ENGINE="llama_cpp", SYNTHETIC__ITL="1s")
    await worker.start()
    fleet = Registry(bus, "fleet", WorkerRecord)
    await fleet.start()
    said = fleet.get(worker.name)
    await fleet.stop()
    assert said is not None
    assert (said.model, said.revision, said.engine, said.context_length) == (model, "r1", "synthetic", 4096)
    received = await edge.place(worker.name, edge.request("hello", 5))
    await edge.closed(received)
    assert len(received.ids) == 5
    assert {context.revision for frame in edge.frames for context in frame.contexts} == {"r1"}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (None, "there is none of this name"),
        ({"stage": RevisionStage.REVISION_STAGE_RETIRED}, "it is retired"),
        ({"validation": {"passed": False, "figures": [{"name": "kl_divergence"}]}}, "failed its validation (kl_div"),
        ({"settings": {"SYNTHETIC__ITLL": "1s"}}, "INFERBUS_WORKER_SYNTHETIC__ITLL: no such variable"),
        ({"settings": {"CAPACITY": "none"}}, "INFERBUS_WORKER_CAPACITY"),
    ],
)
async def test_what_must_not_be_served_is_not_started_on(
    bus: Bus,
    revisions: Registry[RevisionRecord],
    new_worker: Callable[..., Any],
    changes: dict[str, Any] | None,
    why: str,
) -> None:
    model = f"refused-{bus.config.name}"
    if changes is not None:
        await put(revisions, RevisionRecord(**{"model": model, "revision": "r1", "engine": "synthetic", **changes}))
    said = await why_it_does_not_start(new_worker(MODEL=model, REVISION="r1"))
    assert f"revision {model}/r1: " in said
    assert why in said


async def test_a_canary_leaves_what_the_model_is_known_by(
    bus: Bus, revisions: Registry[RevisionRecord], new_worker: Callable[..., Any]
) -> None:
    model = f"canary-{bus.config.name}"
    models = Registry(bus, "models", ModelRecord)
    await models.start()
    for revision in ("r1", "r2"):
        await put(revisions, RevisionRecord(model=model, revision=revision, engine="synthetic"))
    await new_worker(MODEL=model, REVISION="r1").start()
    await asyncio.wait_for(_until(lambda: model in models.items()), 10)
    assert models.items()[model].revision == "r1", "there was none"
    canary = new_worker(MODEL=model, REVISION="r2", CONTEXT_LENGTH="4096", LEASE_TTL="1s")
    await canary.start()
    known = models.get(model)
    assert known is not None
    assert (known.revision, known.context_length) == ("r1", 32768)
    # A rollout promotes it: then it says what the model is like now.
    promoted = ModelRecord()
    promoted.CopyFrom(known)
    promoted.revision = "r2"
    await models.put(model, promoted)
    await asyncio.wait_for(_until(lambda: models.items()[model].context_length == 4096), 20)
    assert models.items()[model].revision == "r2"
    await models.stop()


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.02)


@pytest.fixture
async def artifacts(bus: Bus) -> Artifacts:
    return await opened(bus, None)


async def with_artifact(
    revisions: Registry[RevisionRecord], artifacts: Artifacts, path: Path, model: str, sha256: str = ""
) -> None:
    """A revision of one file, which says what the engine is to do with it."""
    digest = digest_of(path)
    await artifacts.put(path, digest)
    artifact = {"name": "model.gguf", "sha256": bytes.fromhex(sha256 or digest), "size_bytes": path.stat().st_size}
    settings = {"LLAMA_CPP__WEIGHTS": "{artifacts}/model.gguf"}
    record = RevisionRecord(model=model, revision="r1", engine="synthetic", settings=settings)
    record.artifacts.add(**artifact)
    await put(revisions, record)


async def test_a_worker_pulls_its_artifacts_before_it_starts(
    bus: Bus, revisions: Registry[RevisionRecord], artifacts: Artifacts, new_worker: Callable[..., Any], tmp_path: Path
) -> None:
    model, weights = f"pulled/{bus.config.name}", tmp_path / "weights"
    weights.write_bytes(os.urandom(3_000_000))
    await with_artifact(revisions, artifacts, weights, model)
    cache = tmp_path / "cache"
    first, second = (new_worker(MODEL=model, REVISION="r1", MODEL_CACHE=str(cache)) for _ in range(2))
    await asyncio.gather(first.start(), second.start())
    here = cache / "artifacts" / "revisions" / subject_token(model) / "r1" / "model.gguf"
    assert here.read_bytes() == weights.read_bytes()


async def test_a_worker_does_not_start_on_what_it_cannot_verify(
    bus: Bus, revisions: Registry[RevisionRecord], artifacts: Artifacts, new_worker: Callable[..., Any], tmp_path: Path
) -> None:
    model, weights = f"damaged-{bus.config.name}", tmp_path / "weights"
    weights.write_bytes(os.urandom(3_000_000))
    digest = digest_of(weights)

    async def rotten() -> AsyncIterator[bytes]:
        yield weights.read_bytes()[:-1] + b"!"

    publisher = Publisher(bus)
    await publisher.start()
    await Objects(bus, publisher, ARTIFACTS).put(digest, rotten())
    await with_artifact(revisions, artifacts, weights, model)
    said = await why_it_does_not_start(new_worker(MODEL=model, REVISION="r1", MODEL_CACHE=str(tmp_path / "cache")))
    assert f"revision {model}/r1: artifact model.gguf (sha256 {digest}, 3000000 bytes): " in said
    missing = "ab" * 32
    await with_artifact(revisions, artifacts, weights, f"{model}-2", missing)
    said = await why_it_does_not_start(
        new_worker(MODEL=f"{model}-2", REVISION="r1", MODEL_CACHE=str(tmp_path / "cache"))
    )
    assert f"artifact model.gguf (sha256 {missing}, 3000000 bytes): no_such_object: It is not there any more." in said
