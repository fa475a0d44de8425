"""What the runner of jobs is given, all of it running."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from inferbus.bus.v1.batch_pb2 import JobCheckpoint
from inferbus.bus.v1.control_pb2 import Cancel
from inferbus.bus.v1.registry_pb2 import ModelRecord
from inferbus_budgets.budgets import Budgets
from inferbus_bus.publish import Publisher
from inferbus_bus.store import Store

from inferbus_batch.files import Files
from inferbus_batch.jobs import Jobs
from inferbus_batch.judging import Judge
from inferbus_batch.keys import Keys
from inferbus_batch.pace import Pace


@dataclass(frozen=True, slots=True)
class Parts:
    """``line_timeout``: a try of a line ends by then, and is worth another one."""

    jobs: Jobs
    files: Files
    checkpoints: Store[JobCheckpoint]
    judge: Judge
    keys: Keys
    model: Callable[[str], ModelRecord | None]
    budgets: Budgets
    publisher: Publisher
    cancel: Callable[[Cancel], None]
    pace: Pace
    scratch: Path
    line_timeout: timedelta
