"""A worker whose engine needs a process: ``python worker_with_child.py FOLDER GROWS STARTS``, the rest as ever.

Its words are those of ``synthetic``. For each step it asks its child, which holds GROWS bytes more after each answer,
in the first STARTS of its lives. FOLDER gets a file for each life, named by its number, with the child's process id.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from inferbus_runtime.lifecycle import main
from inferbus_worker import app
from inferbus_worker.config import Config
from inferbus_worker.engine import EngineInfo, Step
from inferbus_worker.engines.synthetic import Synthetic

FOLDER, GROWS, STARTS = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
_CHILD = """
import sys
held = []
for line in sys.stdin:
    held.append(b"x" * int(sys.argv[1]))
    print(flush=True)
"""


class WithChild(Synthetic):
    starts = 0
    child: asyncio.subprocess.Process | None = None

    async def start(self) -> EngineInfo:
        self.starts += 1
        grows = GROWS if self.starts <= STARTS else 0
        pipe = asyncio.subprocess.PIPE
        self.child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _CHILD, str(grows), stdin=pipe, stdout=pipe
        )
        (FOLDER / str(self.starts)).write_text(str(self.child.pid))
        return await super().start()

    async def steps(self) -> AsyncIterator[Step]:
        child = self.child
        assert child is not None
        assert child.stdin is not None
        assert child.stdout is not None
        async for step in super().steps():
            child.stdin.write(b"\n")
            if not await child.stdout.readline():
                return
            yield step

    async def stop(self) -> None:
        child, self.child = self.child, None
        await super().stop()
        if child is not None:
            child.kill()
            await child.wait()


if __name__ == "__main__":
    app.engine_class = lambda _: WithChild  # type: ignore[assignment]
    main(Config, "INFERBUS_WORKER_", app.wire)
