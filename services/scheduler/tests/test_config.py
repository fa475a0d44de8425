import asyncio
import os
import sys
from datetime import timedelta

import pytest
from inferbus_runtime.config import ConfigError, load
from inferbus_scheduler.config import Config


def test_durations_and_bounds_are_read_and_checked() -> None:
    environ = {"INFERBUS_SCHEDULER_NAME": "s", "INFERBUS_SCHEDULER_QUEUE_TIMEOUT": "5s"}
    config = load(Config, "INFERBUS_SCHEDULER_", environ)
    assert config.queue_timeout == timedelta(seconds=5)
    assert config.limits.queue_timeout == 5.0
    with pytest.raises(ConfigError) as error:
        load(Config, "INFERBUS_SCHEDULER_", {"INFERBUS_SCHEDULER_MAX_QUEUED": "0", "INFERBUS_SCHEDULER_TYPO": "1"})
    assert len(error.value.faults) == 3, "the name is missing, a bound is wrong, a variable is unknown"


async def test_the_configuration_can_be_checked_alone() -> None:
    environ = {**os.environ, "INFERBUS_SCHEDULER_NAME": "s", "INFERBUS_SCHEDULER_MAX_WAIT": "2h"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "inferbus_scheduler", "--check-config", env=environ, stderr=asyncio.subprocess.PIPE
    )
    _, stderr = await process.communicate()
    assert process.returncode == 2
    assert b"INFERBUS_SCHEDULER_MAX_WAIT" in stderr
