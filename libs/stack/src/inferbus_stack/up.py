"""``inferbus up``: one stack in the foreground, from the first lock to the last process."""

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from inferbus_runtime import clock
from inferbus_runtime.tasks import cancel_all
from inferbus_runtime.tls import TlsFiles

from inferbus_stack.certificates import Authority
from inferbus_stack.child import bound_log
from inferbus_stack.environment import inherited, keep_grpc_out_of_forks
from inferbus_stack.home import StackError, hold, keep_ports, read_stack
from inferbus_stack.secrets import SecretFolder
from inferbus_stack.services import Plan, StackOptions, certificates, port_names
from inferbus_stack.supervisor import Say, Supervisor

log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def run_stack(options: StackOptions, say: Say, on_ready: Callable[[dict[str, Any]], None]) -> None:
    """Start, call ``on_ready`` with the content of stack.json, serve until a signal comes, stop.

    A second signal ends everything at once. Raises StackError if it cannot start; by then nothing is left running.
    """
    options.home.make_folders()
    with hold(options.home), _log_to(options.home.log_file("supervisor")):
        fixed = {"edge-0-http": options.port} if options.port else {}
        plan = Plan(
            options=options,
            ports=keep_ports(options.home, port_names(options), fixed),
            secrets=SecretFolder(options.home.secrets),
            environ=inherited(),
            tls=_identities(options),
        )
        keep_grpc_out_of_forks()

        def tell(text: str) -> None:
            log.info(text)
            say(text)

        await _supervise(Supervisor(plan, tell), options, tell, on_ready)


def _identities(options: StackOptions) -> Mapping[str, TlsFiles]:
    if not options.tls:
        return {}
    now = datetime.fromtimestamp(clock.now_us() / 1e6, UTC)
    return Authority(options.home.certificates, now).certificates(certificates(options))


async def _supervise(
    supervisor: Supervisor, options: StackOptions, say: Say, on_ready: Callable[[dict[str, Any]], None]
) -> None:
    stopped = asyncio.Event()

    def on_signal() -> None:
        if stopped.is_set():
            say("killing what is left")
            supervisor.kill()
        stopped.set()

    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal)

    async def serve() -> None:
        await supervisor.start()
        on_ready(read_stack(options.home))
        await supervisor.failure()

    serving = asyncio.create_task(serve(), name="serve")
    stopping = asyncio.create_task(stopped.wait(), name="signals")
    try:
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()
    finally:
        await cancel_all((serving, stopping))
        await supervisor.stop()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """What is said on the terminal, and what the bus client says, stays in the supervisor's own log too."""
    bound_log(path)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


__all__ = ["StackError", "run_stack"]
