"""The only module of this room that reads or writes the environment."""

import os
import sys


def inherited() -> dict[str, str]:
    """What every child gets from us: all of it, so that ``INFERBUS_WORKER_CAPACITY=8 inferbus up`` counts.

    The plan's own settings go on top and win.
    """
    return dict(os.environ)  # noqa: TID251 (read here for the children, see above)


def keep_grpc_out_of_forks() -> None:
    """To be called before gRPC is first imported by a process that starts children. Its handlers run in each child
    between fork and exec, and where its threads are busy they crash it (seen: SIGSEGV, SIGABRT); nothing of gRPC is
    used there. Raises RuntimeError if it is too late."""
    if "grpc" in sys.modules:
        raise RuntimeError("gRPC is imported already")
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"  # noqa: TID251 (this process' own)
