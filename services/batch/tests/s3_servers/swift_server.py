"""OpenStack Swift, a real object store with an S3 API, out of the package swift in ``.venv/swift`` (``make swift``)."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from inferbus_objects.s3_settings import S3Settings
from inferbus_runtime.tls import TlsFiles
from inferbus_stack.nats import free_port

VENV = Path(sys.prefix) / "swift"
PAGE = 10
"""So many names a page of a list."""
_KEY, _SECRET = "test:tester", "swift-for-tests"
_START_SECONDS = 60.0
# In a program of its own: it dies with us, however we end.
_DIES_WITH_US = (
    sys.executable, "-I", "-S", "-c",
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])",
)  # fmt: skip


def missing() -> str:
    """Why it cannot run here; empty if it can."""
    return "" if any(VENV.glob("lib/python3*/site-packages/swift")) else "swift is not installed: make swift"


class Swift:
    """A process that serves on the same port each time it is started. Buckets: ``files``; ``small``, for 100 kB."""

    def __init__(self, folder: Path, tls: TlsFiles | None) -> None:
        self.endpoint = f"{'http' if tls is None else 'https'}://127.0.0.1:{free_port()}"
        self._tls = () if tls is None else (str(tls.cert), str(tls.key))
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None

    def settings(self, bucket: str = "files", **others: object) -> S3Settings:
        said = {"endpoint": self.endpoint, "access_key_id": _KEY, "secret_access_key": _SECRET}
        return S3Settings.model_validate({"bucket": bucket, **said, **others})

    async def start(self) -> None:
        """Serves when it returns."""
        program = str(Path(__file__).with_name("swift_in_one.py"))
        with (self._folder / "log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *_DIES_WITH_US, str(VENV / "bin" / "python"), program,
                str(self._folder), self.endpoint.rpartition(":")[2], _KEY, _SECRET, str(PAGE), *self._tls,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=log,
            )  # fmt: skip
        assert self._process.stdout is not None
        async with asyncio.timeout(_START_SECONDS):
            said = await self._process.stdout.readline()
        assert said == b"ready\n", (self._folder / "log").read_text()[-2000:]

    async def kill(self) -> None:
        """kill -9."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def held(self) -> int:
        """The bytes of content on its disk, parts of uploads included."""
        return sum(one.stat().st_size for one in (self._folder / "devices").rglob("*.data"))


@asynccontextmanager
async def swift(folder: Path, tls: TlsFiles | None = None) -> AsyncIterator[Swift]:
    server = Swift(folder, tls)
    try:
        await server.start()
        yield server
    finally:
        await server.kill()
