"""The only module of this room that reads the environment."""

import os


def inherited() -> dict[str, str]:
    """What every child gets from us: all of it, so that ``INFERBUS_WORKER_CAPACITY=8 inferbus up`` counts.

    The plan's own settings go on top and win.
    """
    return dict(os.environ)  # noqa: TID251 (read here for the children, see above)
