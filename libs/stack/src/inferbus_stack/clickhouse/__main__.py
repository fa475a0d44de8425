"""`python -m inferbus_stack.clickhouse`: starts, serves until SIGTERM, drains, exits.

Exit codes: 0 after a drain, 2 for wrong arguments or users, 3 when the engine or the port cannot be had.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path

import uvloop
from aiohttp import web

from inferbus_stack.clickhouse.app import ClickHouseApp
from inferbus_stack.clickhouse.engine import Engine, EngineOptions, EngineUnavailableError
from inferbus_stack.clickhouse.log import log
from inferbus_stack.clickhouse.users import Users, UsersFileError


def main() -> int:
    options = _arguments().parse_args()
    try:
        users = Users.load(options.users)
    except UsersFileError as error:
        return _fail(2, str(error))
    try:
        listener = _listen(options.host, options.port)
        engine = Engine(
            EngineOptions(
                path=options.path,
                memory_bytes=options.memory_mib << 20,
                query_log=not options.no_query_log,
            )
        )
    except OSError as error:
        return _fail(3, f"cannot listen on {options.host}:{options.port}: {error.strerror}")
    except EngineUnavailableError as error:
        return _fail(3, str(error))
    uvloop.run(_serve(engine, users, listener, options.ready_file, options.drain_seconds))
    return 0


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m inferbus_stack.clickhouse", description=__doc__)
    parser.add_argument("--path", type=Path, required=True, help="data directory, owned by this process alone")
    parser.add_argument("--port", type=int, required=True, help="0 takes any free port")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--users", type=Path, required=True, help="JSON file of users")
    parser.add_argument("--ready-file", type=Path, help='written as {"port": N, "pid": P} once requests are served')
    parser.add_argument("--memory-mib", type=int, default=_half_of_memory(), help="memory the engine may use")
    parser.add_argument("--drain-seconds", type=float, default=20.0, help="time running statements get at SIGTERM")
    parser.add_argument("--no-query-log", action="store_true", help="do not keep system.query_log")
    return parser


def _half_of_memory() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1024, min(total // 2, 8 << 30) >> 20)


def _fail(code: int, message: str) -> int:
    log("error", "start_failed", message=message)
    return code


def _listen(host: str, port: int) -> socket.socket:
    """Bound before the engine opens, so that a taken port fails fast."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    return listener


async def _serve(
    engine: Engine, users: Users, listener: socket.socket, ready_file: Path | None, drain_seconds: float
) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(1)  # a second signal forces; the engine's files are safe against that, as against a kill
        stop.set()

    loop.add_signal_handler(signal.SIGTERM, on_signal)
    loop.add_signal_handler(signal.SIGINT, on_signal)
    app = ClickHouseApp(engine, users)
    runner = web.AppRunner(
        app.web,
        access_log=None,
        handler_cancellation=True,  # a client that goes away stops its statement
        auto_decompress=False,  # our own decoders know lz4, and run on the worker threads
        keepalive_timeout=75.0,
        shutdown_timeout=drain_seconds,
    )
    await runner.setup()
    site = web.SockSite(runner, listener, backlog=512)
    await site.start()
    port = int(listener.getsockname()[1])
    log("info", "serving", port=port, pid=os.getpid())
    if ready_file is not None:
        _write_ready(ready_file, port)
    await stop.wait()
    await _drain(app, runner, site, engine, drain_seconds)


def _write_ready(ready_file: Path, port: int) -> None:
    """Appears whole or not at all: the supervisor may read it at any moment."""
    partial = ready_file.with_name(f"{ready_file.name}.{os.getpid()}")
    partial.write_text(json.dumps({"port": port, "pid": os.getpid()}), "utf-8")
    partial.replace(ready_file)


async def _drain(
    app: ClickHouseApp, runner: web.AppRunner, site: web.SockSite, engine: Engine, drain_seconds: float
) -> None:
    """Stop accepting, let statements finish, stop those that do not, close the engine."""
    await site.stop()
    kill = asyncio.get_running_loop().call_later(drain_seconds, engine.kill_all)
    try:
        # aiohttp waits for open requests, then cancels their handlers, which stop their statements and wait for them.
        await runner.cleanup()
        await app.close()
    finally:
        kill.cancel()
    engine.close()


if __name__ == "__main__":
    sys.exit(main())
