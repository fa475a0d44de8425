"""``python -m inferbus_scheduler``: one scheduler, configured by ``INFERBUS_SCHEDULER_`` variables."""

from inferbus_runtime.lifecycle import main

from inferbus_scheduler.app import wire
from inferbus_scheduler.config import Config

if __name__ == "__main__":
    main(Config, "INFERBUS_SCHEDULER_", wire)
