from inferbus_runtime.lifecycle import main

from inferbus_worker.app import wire
from inferbus_worker.config import PREFIX, Config

if __name__ == "__main__":
    main(Config, PREFIX, wire)
