"""``python -m inferbus_edge``: one edge process."""

from inferbus_runtime.lifecycle import main

from inferbus_edge.app import wire
from inferbus_edge.config import Config

if __name__ == "__main__":
    main(Config, "INFERBUS_EDGE_", wire)
