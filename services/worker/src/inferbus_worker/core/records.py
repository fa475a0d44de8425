"""What a worker says of itself in the registries."""

from collections.abc import Sequence

from inferbus.bus.v1.registry_pb2 import ModelRecord, WorkerRecord

from inferbus_worker.core.gpu import Gpu
from inferbus_worker.core.lifecycle import WIRE_STATES, State
from inferbus_worker.engine import EngineInfo


def worker_record(
    worker: str, boot: int, info: EngineInfo, gpus: Sequence[Gpu], *, node: str, zone: str, cost_per_hour: float
) -> WorkerRecord:
    """Of one that is about to start."""
    return WorkerRecord(
        worker=worker,
        boot=boot,
        model=info.model,
        revision=info.revision,
        engine=info.engine,
        capacity=info.capacity,
        context_length=info.context_length,
        state=WIRE_STATES[State.STARTING],
        gpus=len(gpus),
        gpu_names=", ".join(sorted({gpu.name for gpu in gpus if gpu.name})),
        node=node,
        zone=zone,
        cost_per_hour=cost_per_hour,
        adapters=[f"{info.model}:{name}" for name in info.adapters],
    )


def model_records(info: EngineInfo) -> list[ModelRecord]:
    """Of the model, and of each adapter of it. Without ``create_time``."""
    return [_model_record(info, name) for name in (info.model, *(f"{info.model}:{one}" for one in info.adapters))]


def _model_record(info: EngineInfo, name: str) -> ModelRecord:
    return ModelRecord(
        name=name,
        revision=info.revision,
        engine=info.engine,
        context_length=info.context_length,
        owned_by="inferbus",
        capabilities=info.capabilities,
        embedding_dimensions=info.embedding_dimensions,
        inference_metadata=info.inference_metadata,
    )
