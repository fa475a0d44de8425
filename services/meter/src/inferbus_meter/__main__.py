"""``python -m inferbus_meter``."""

from inferbus_runtime.lifecycle import main

from inferbus_meter.app import wire
from inferbus_meter.config import PREFIX, Config

if __name__ == "__main__":
    main(Config, PREFIX, wire)
