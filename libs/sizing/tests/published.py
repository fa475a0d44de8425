"""``published.json``: figures that others published, and what is worked out for the same."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from inferbus_sizing import architecture_of, model_of
from inferbus_sizing.hardware import gpu_of
from inferbus_sizing.memory import Deployment, Parallel
from inferbus_sizing.performance import MOST_SEQUENCES, Efficiency, Speed
from inferbus_sizing.precision import kv_bytes_of, precision_of

PUBLISHED: dict[str, Any] = json.loads((Path(__file__).parent / "published.json").read_text())
EXPLAINED: dict[str, dict[str, str]] = PUBLISHED["explained"]


class Row(NamedTuple):
    """A throughput. ``published``: output tokens a second of all GPUs."""

    name: str
    speed: Speed
    input: int
    output: int
    sequences: int
    published: float

    @property
    def off(self) -> float:
        """0.1: what is worked out is a tenth more."""
        return self.off_with(self.speed.efficiency)

    def off_with(self, efficiency: Efficiency) -> float:
        speed = Speed(self.speed.of, efficiency)
        return speed.tokens_per_second(self.sequences, self.input, self.output) / self.published - 1


def speed_of(model: str, gpu: str, tensor: int, precision: str, *, expert: bool = False) -> Speed:
    config = PUBLISHED["configs"].get(model)
    architecture = architecture_of(config, model) if config else model_of(model).architecture
    numbers = precision_of(precision)
    parallel = Parallel(tensor, expert=expert and tensor > 1)
    return Speed(Deployment(architecture, numbers, kv_bytes_of(numbers.kv), gpu_of(gpu), parallel))


def rows(tables: list[dict[str, Any]]) -> Iterator[Row]:
    """With as many sequences as fit, as those runs had them: all requests are there from the start."""
    for table in tables:
        for lengths, values in table["rows"].items():
            given, said = map(int, lengths.split("/"))
            for (gpu, tensor, precision), value in zip(table["columns"], values, strict=True):
                if value is None:
                    continue
                speed = speed_of(table["model"], gpu, tensor, precision, expert=table.get("expert", False))
                most = MOST_SEQUENCES * (tensor if table.get("expert") else 1)
                asked = PUBLISHED["requests"]["rows"].get(lengths, 1 << 30)
                fit = min(most, speed.of.sequences(given + said), asked)
                total = value * (tensor if table.get("per_gpu") else 1)
                yield Row(f"{table['model']} {gpu} {lengths}", speed, given, said, fit, total)


def batches() -> Iterator[Row]:
    for model, gpu, tensor, precision, sequences, given, said, value in PUBLISHED["batches"]["rows"]:
        speed = speed_of(model, gpu, tensor, precision)
        yield Row(f"{model} {gpu} TP{tensor} {given}/{said}", speed, given, said, sequences, value)


DENSE, MIXTURES, BATCHES = list(rows(PUBLISHED["dense"])), list(rows(PUBLISHED["mixtures"])), list(batches())
LONG = list(rows([PUBLISHED["long"]]))
