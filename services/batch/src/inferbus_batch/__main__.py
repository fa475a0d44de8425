"""``python -m inferbus_batch``."""

from inferbus_runtime.lifecycle import main

from inferbus_batch.app import wire
from inferbus_batch.config import PREFIX, Config

if __name__ == "__main__":
    main(Config, PREFIX, wire)
