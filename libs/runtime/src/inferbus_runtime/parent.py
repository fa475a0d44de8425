"""A process that must not outlive the one that started it, however that one ends."""

import ctypes
import logging
import os
import signal
import sys

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int | None = None) -> None:
    """Have Linux kill this process when its parent dies. Elsewhere a warning is logged and nothing happens.

    What counts as the parent is the *thread* that started us, so a supervisor starts processes from its main thread.
    Give ``parent_pid``, if known, to exit also if the parent was gone before this call. Raises OSError if refused.
    """
    if not sys.platform.startswith("linux"):
        log.warning("die_with_parent works on Linux only")
        return
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl(PR_SET_PDEATHSIG): {os.strerror(code)}")
    if parent_pid is not None and os.getppid() != parent_pid:
        sys.exit("the parent process is gone")
