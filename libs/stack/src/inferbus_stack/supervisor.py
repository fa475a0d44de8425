"""Starts the processes of a stack in order, keeps them alive, says what it does, and stops them in order.

Start: nats-server → streams, keys, prices → scheduler, workers, batch, edges; beside it ClickHouse → migrations →
       meter.
Stop:  edges (they drain) → batch → scheduler → workers → meter (it flushes) → ClickHouse → nats-server.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

from inferbus.bus.v1.revision_pb2 import RevisionRecord
from inferbus_bus.connection import BusConfig, connect
from inferbus_bus.errors import StreamApiError
from inferbus_bus.registry import Registry
from inferbus_runtime import clock
from inferbus_runtime.errors import InferBusError
from inferbus_runtime.tasks import cancel_all

from inferbus_stack import embedded
from inferbus_stack.child import Child, ChildError, ChildSpec, bound_log, death, start_child
from inferbus_stack.home import StackError, write_stack
from inferbus_stack.permissions import Role
from inferbus_stack.restarts import Restarts
from inferbus_stack.seed import first_keys, seed
from inferbus_stack.services import (
    BUS_ADMIN,
    Instance,
    Plan,
    first_workers,
    instances,
    managed_workers,
    stack_content,
)

# A first start derives a model's file; later ones take a few seconds.
_READY_SECONDS = 180.0
_HOUSEKEEPING_SECONDS = 5.0
_STOP_ORDER = (Role.EDGE, Role.BATCH, Role.SCHEDULER, Role.WORKER, Role.METER)
Say = Callable[[str], None]


class Supervisor:
    """One stack: :meth:`start`, then :meth:`failure` to wait on, then :meth:`stop`; :meth:`kill` at any time."""

    def __init__(self, plan: Plan, say: Say) -> None:
        self._plan = plan
        self._say = say
        self._children: dict[str, Child] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # Those that are not to be started again when they end.
        self._leaving: set[str] = set()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._complete = False
        self._killed = False

    async def start(self) -> None:
        """Returns when everything serves and stack.json says so. Raises StackError; :meth:`stop` is due in any case."""
        self._plan.options.home.stack_file.unlink(missing_ok=True)
        try:
            async with asyncio.TaskGroup() as group:
                store = group.create_task(self._start_store())
                await self._launch(embedded.nats_server(self._plan))
                await self._prepare_bus()
                for one in (*self._of(Role.SCHEDULER, Role.BATCH, Role.EDGE), *self._first_workers()):
                    group.create_task(self._launch(self._plan.service(one)))
                await store
                for one in self._of(Role.METER):
                    await self._launch(self._plan.service(one))
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
        self._complete = True
        self._publish()
        self._background(self._keep_house(), "housekeeping")
        self._background(self._autoscale(), "autoscale")

    async def failure(self) -> None:
        """Never returns by itself. Raises when the supervisor itself has a fault; a child's death is not one."""
        await self._failure

    async def stop(self) -> None:
        """Everything in order; what does not end in time is killed. Safe after a failed :meth:`start`."""
        self._plan.options.home.stack_file.unlink(missing_ok=True)
        await cancel_all(self._tasks)
        for role in _STOP_ORDER:
            await self._stop_children(one.name for one in self._of(role))
        await self._stop_children(("migrate",))
        await self._stop_children(("clickhouse",))
        await self._stop_children(("nats",))

    def kill(self) -> None:
        """End every process now. A :meth:`stop` that is under way then returns quickly."""
        self._killed = True
        for child in self._children.values():
            child.kill()

    # -- workers that come and go ----------------------------------------------------------------------------------

    async def start_worker(self, name: str, settings: Mapping[str, str] | None = None) -> None:
        """Returns when it is ready. ``settings``: of a registered revision; None: the stack's own model. Raises
        ChildError."""
        self._leaving.discard(name)
        one = next(one for one in self._of(Role.WORKER) if one.name == name)
        await self._launch(self._plan.service(one, settings))
        self._publish()

    def let_go(self, name: str) -> None:
        """It is not started again when it ends."""
        self._leaving.add(name)

    async def stop_worker(self, name: str) -> None:
        """Returns when it has ended, in order; it must have been let go."""
        child = self._children.get(name)
        while child is not None:
            await child.stop()
            # It may just have been started again.
            after = self._children.get(name)
            child = after if after is not child else None
        self._children.pop(name, None)
        self._publish()

    def _first_workers(self) -> list[Instance]:
        """Those that are there from the start."""
        options = self._plan.options
        later = set(managed_workers(options)) - set(first_workers(options))
        return [one for one in self._of(Role.WORKER) if one.name not in later]

    async def _autoscale(self) -> None:
        # Only here: it brings gRPC along, which does not go well with starting children; see up.py.
        from inferbus_stack.autoscale import Autoscaler

        plan, options = self._plan, self._plan.options
        slots = managed_workers(options)
        async with connect(self._bus()) as bus:
            revisions = Registry(bus, "revisions", RevisionRecord)
            autoscaler = Autoscaler(
                workers=self,
                slots=slots,
                running=first_workers(options),
                revisions=revisions.items,
                schedulers=[plan.grpc(one.name) for one in self._of(Role.SCHEDULER)],
                workers_at={name: plan.grpc(name) for name in slots},
                token=plan.secrets.password("rpc-token"),
                identity=plan.tls.get(BUS_ADMIN),
                scales=options.workers if options.autoscale else 0,
                say=self._say,
            )
            revisions.on_change(lambda name, record: autoscaler.revisions_changed())
            await revisions.start()
            try:
                await autoscaler.run()
            finally:
                await revisions.stop()

    def _bus(self) -> BusConfig:
        seed = self._plan.secrets.nkey(BUS_ADMIN).seed
        return BusConfig(self._plan.nats_url, BUS_ADMIN, seed, self._plan.tls.get(BUS_ADMIN))

    # -- start -----------------------------------------------------------------------------------------------------

    def _of(self, *roles: Role) -> list[Instance]:
        return [one for one in instances(self._plan.options) if one.role in roles]

    async def _start_store(self) -> None:
        await self._launch(embedded.clickhouse(self._plan))
        spec = self._plan.migration()
        began = clock.monotonic()
        migration = self._children[spec.name] = await start_child(spec)
        exit_code = await migration.wait()
        del self._children[spec.name]
        if exit_code:
            raise ChildError(f"the migration of the tables {death(exit_code)}\n{migration.log_tail()}")
        self._say(f"tables are up to date ({clock.monotonic() - began:.1f} s)")

    async def _prepare_bus(self) -> None:
        secrets = self._plan.secrets
        await seed(self._bus(), first_keys(secrets.api_key("api-key"), secrets.api_key("admin-key")))
        self._say("streams and registries are there")

    async def _launch(self, spec: ChildSpec) -> None:
        """Start, wait until it is ready, and keep it alive from then on. Raises ChildError."""
        child = self._children[spec.name] = await start_child(spec)
        await child.become_ready(_READY_SECONDS)
        self._say(f"{spec.name} is ready ({clock.monotonic() - child.started:.1f} s)")
        self._background(self._keep_alive(child), f"keep {spec.name}")

    # -- while it runs ---------------------------------------------------------------------------------------------

    async def _keep_alive(self, child: Child) -> None:
        restarts = Restarts()
        while True:
            exit_code = await child.wait()
            child.kill()  # what it may have left behind: an engine's process
            if child.spec.name in self._leaving:
                return
            restarts = restarts.died(clock.monotonic() - child.started)
            self._say(f"{child.spec.name} {death(exit_code)}; {_when(restarts)} (log: {child.spec.log_file})")
            replaced = await self._replace(child.spec, restarts)
            if replaced is None:
                return
            child, restarts = replaced
            self._publish()

    async def _replace(self, spec: ChildSpec, restarts: Restarts) -> tuple[Child, Restarts] | None:
        """Start the process until it is ready once: without end, but with growing pauses, and saying so each time. None
        if it is not wanted any more."""
        while True:
            await asyncio.sleep(restarts.delay)
            if spec.name in self._leaving:
                return None
            began, child = clock.monotonic(), None
            try:
                child = await start_child(spec)
                if spec.name in self._leaving:  # while it was being started
                    child.kill()
                    await child.wait()
                    return None
                self._children[spec.name] = child
                await child.become_ready(_READY_SECONDS)
            except (ChildError, OSError) as error:
                if child is not None:
                    child.kill()
                    await child.wait()
                restarts = restarts.died(0.0)
                self._say(f"{error}\n{spec.name}: {_when(restarts)}")
            else:
                self._say(f"{spec.name} is back as process {child.pid} ({clock.monotonic() - began:.1f} s)")
                return child, restarts

    def _publish(self) -> None:
        """Say in stack.json which processes there are. Not before everything has been ready once."""
        if self._complete:
            pids = {name: child.pid for name, child in self._children.items()}
            try:
                write_stack(self._plan.options.home, stack_content(self._plan, pids))
            except OSError as error:  # a full disk: those who look up a new pid wait, what runs goes on
                self._say(f"stack.json was not written: {error}")

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(_HOUSEKEEPING_SECONDS)
            for child in list(self._children.values()):
                try:
                    await asyncio.to_thread(bound_log, child.spec.log_file)
                except OSError as error:
                    self._say(f"{child.spec.log_file} was not shortened: {error}")

    def _background(self, coro: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(coro, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self._failure.done():
            self._failure.set_exception(error)

    # -- stop ------------------------------------------------------------------------------------------------------

    async def _stop_children(self, names: Iterable[str]) -> None:
        children = [self._children[name] for name in names if name in self._children]
        running = [child for child in children if child.exit_code is None]
        if running and not self._killed:
            self._say(f"stopping {', '.join(child.spec.name for child in running)}")
        await asyncio.gather(*(child.stop() for child in children))


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first fault of a failed start, as the operator should read it."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, ChildError):
        return StackError(str(error))
    if isinstance(error, InferBusError | StreamApiError):
        return StackError(f"the bus could not be prepared: {error}")
    return error


def _when(restarts: Restarts) -> str:
    return f"starting it again in {restarts.delay:.1f} s" if restarts.delay else "starting it again"
