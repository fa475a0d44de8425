"""An operator's way to the store of artifacts: what a local stack's folder says, or a bucket of S3."""

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from inferbus_artifacts.opened import uploads as _uploads
from inferbus_artifacts.settings import ArtifactsS3
from inferbus_artifacts.store import Artifacts
from inferbus_bus.connection import BusConfig
from inferbus_runtime.tls import TlsFiles

from inferbus_cli.target import NotRunning, Target, stack_at

_NAME = "admin"


def uploads(target: Target, s3: ArtifactsS3 | None = None) -> AbstractAsyncContextManager[Artifacts]:
    """Entered, it has ``async put(path, sha256) -> bool``, ``has``, ``fetch``, ``delete`` and ``names``.

    ``s3``: where the workers' ``INFERBUS_WORKER_ARTIFACTS__S3__...`` points; None: on the bus of the target's stack.
    Raises NotRunning if there is no such stack on this machine, InferBusError UNAVAILABLE.
    """
    if s3 is not None:
        return _uploads(None, s3)
    if target.home is None:
        raise NotRunning("the bus of a remote stack is reached from its own machine only: give --home")
    return _uploads(bus_of(stack_at(target.home)))


def bus_of(stack: dict[str, Any]) -> BusConfig:
    """The operator's place on the bus, by the content of stack.json."""
    identity, tls = stack.get("identity"), None
    if identity is not None:
        tls = TlsFiles(Path(identity["cert"]), Path(identity["key"]), Path(stack["ca"]))
    return BusConfig(stack["nats_url"], _NAME, stack["nats_seed"], tls)
