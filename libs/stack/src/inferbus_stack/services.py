"""What each process of a stack needs: the table from roles to commands, variables, ports and identities. No I/O."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from inferbus_runtime.tls import TlsFiles

from inferbus_stack.certificates import Wanted
from inferbus_stack.child import ChildSpec
from inferbus_stack.home import Home
from inferbus_stack.permissions import Role
from inferbus_stack.revisions import machine_only
from inferbus_stack.secrets import SecretFolder

LOOPBACK = "127.0.0.1"
_ANY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 (compared with, not listened on)
DATABASE = "inferbus"
ADMIN_USER, WRITER_USER, ANALYST_USER = "admin", "writer", "analyst"
CAPTURE_WRITER_USER, CAPTURE_READER_USER = "capture_writer", "capture_reader"
BUS_ADMIN = "admin"
_EMBEDDINGS = "worker-embeddings"
_DRAIN_SECONDS = 10
# Above the drain: what closing connections and flushing may take on a busy machine.
STOP_SECONDS = _DRAIN_SECONDS + 12.0


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What the operator asked for. ``port`` 0: any free one, the same again at the next start if it is free.

    ``embeddings``: one more worker, with the small embedding model. ``tls``: between all processes and at the edge.
    ``tls_names``: more host names and addresses of the edge.
    """

    home: Home
    engine: str
    host: str = LOOPBACK
    port: int = 0
    workers: int = 1
    edges: int = 1
    meters: int = 1
    schedulers: int = 1
    batches: int = 1
    embeddings: bool = False
    # The first model's workers are started and drained as its deployment asks; ``workers`` is the most that there are.
    autoscale: bool = False
    # More workers that may be started, for any model; and the memory, in bytes, that all models may take (0: any).
    slots: int = 0
    memory: int = 0
    tls: bool = False
    tls_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Instance:
    """One process of ours. ``service``: its key in stack.json. ``settings``: its own, on top of what its role has."""

    role: Role
    name: str
    service: str
    settings: Mapping[str, str] = field(default_factory=dict)


def instances(options: StackOptions) -> tuple[Instance, ...]:
    """The processes of ours, by role in the order in which a stop takes them down."""
    edges = (Instance(Role.EDGE, f"edge-{n}", f"edge-{n}" if n else "edge") for n in range(options.edges))
    engine = {"ENGINE": options.engine}
    workers = [
        Instance(Role.WORKER, f"worker-{n}", f"worker-{n}", engine) for n in range(options.workers + options.slots)
    ]
    if options.embeddings:
        # One thread: it shares the cores with a model that needs all of them.
        workers.append(Instance(Role.WORKER, _EMBEDDINGS, _EMBEDDINGS, {"ENGINE": "minilm", "THREADS": "1"}))
    meters = _named("meter", options.meters)
    return (
        *edges,
        *(Instance(Role.BATCH, name, name) for name in _named("batch", options.batches)),
        *(Instance(Role.SCHEDULER, name, name) for name in _named("scheduler", options.schedulers)),
        *workers,
        *(Instance(Role.METER, name, name) for name in meters),
    )


def _named(role: str, count: int) -> list[str]:
    """The first one has the role's name alone."""
    return [f"{role}-{n}" if n else role for n in range(count)]


def managed_workers(options: StackOptions) -> tuple[str, ...]:
    """All that come and go as the scheduler says, in the order of their start."""
    return tuple(f"worker-{n}" for n in range(options.workers + options.slots))


def first_workers(options: StackOptions) -> tuple[str, ...]:
    """Of them, those that are there from the start, with the stack's own model: by the first one that gets known."""
    return managed_workers(options)[: 1 if options.autoscale else options.workers]


def certificates(options: StackOptions) -> tuple[Wanted, ...]:
    """What ``options.tls`` needs: an identity for each process and for the operator, and what strangers see of an edge,
    with which nobody can call a service."""
    here = ("localhost", LOOPBACK)
    ours = instances(options)
    host = () if options.host in _ANY_ADDRESS else (options.host,)
    public = (*here, *host, *options.tls_names)
    return (
        *(Wanted(one.name, here) for one in ours),
        *(Wanted(_public(one.name), public, client=False) for one in ours if one.role is Role.EDGE),
        Wanted("nats", here, client=False),
        Wanted(BUS_ADMIN, server=False),
    )


def _public(edge: str) -> str:
    return f"{edge}-http"


def _inference(edge: str) -> str:
    """Its port of the Open Inference Protocol's gRPC."""
    return f"{edge}-inference"


def port_names(options: StackOptions) -> tuple[str, ...]:
    """Every port of the stack has a name, under which it is kept from start to start."""
    ours = instances(options)
    return (
        *(f"{one.name}-http" for one in ours if one.role is Role.EDGE),
        *(_inference(one.name) for one in ours if one.role is Role.EDGE),
        *(f"{one.name}-grpc" for one in ours),
        *(f"{one.name}-metrics" for one in ours if one.role is not Role.EDGE),
        "nats",
        "clickhouse",
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """Options, ports and secrets together: all that decides how the processes are started."""

    options: StackOptions
    ports: Mapping[str, int]
    secrets: SecretFolder
    environ: Mapping[str, str] = field(repr=False)
    # By the name of the process, as in certificates(); empty: everything is in plain text, on loopback.
    tls: Mapping[str, TlsFiles] = field(default_factory=dict)

    @property
    def nats_url(self) -> str:
        return f"{'tls' if self.tls else 'nats'}://{self._address('nats')}"

    @property
    def clickhouse_url(self) -> str:
        return f"http://{self._address('clickhouse')}"

    def url(self, edge: str) -> str:
        """Where clients on this machine reach the edge."""
        return f"{'https' if self.tls else 'http'}://{LOOPBACK}:{self.ports[f'{edge}-http']}"

    def inference_grpc(self, edge: str) -> str:
        """Where clients on this machine reach the edge's Open Inference Protocol over gRPC."""
        return self._address(_inference(edge))

    def grpc(self, name: str) -> str:
        return self._address(f"{name}-grpc")

    def clickhouse_password(self, user: str) -> str:
        return self.secrets.password(f"clickhouse-{user}")

    def service(self, instance: Instance, revision: Mapping[str, str] | None = None) -> ChildSpec:
        """How the process of ``instance`` is started. ``revision``: of a worker, the variables of a registered
        revision, which take the place of all that is set for the stack's own model."""
        prefix = f"INFERBUS_{instance.role.name}_"
        settings, environ = self._shared(instance) | self._own(instance), self.environ
        if revision is not None:
            # Who it is and where it listens is not for a revision to say.
            settings, environ = {**revision, **self._shared(instance)}, machine_only(environ)
        home = self.options.home
        return ChildSpec(
            name=instance.name,
            command=(sys.executable, "-m", f"inferbus_{instance.role.value}"),
            environ={**environ, **{prefix + name: value for name, value in settings.items()}},
            log_file=home.log_file(instance.name),
            ready_file=home.ready_file(instance.name),
            stop_seconds=STOP_SECONDS,
        )

    def migration(self) -> ChildSpec:
        """The one-shot process that brings the tables to the present schema, as ClickHouse's admin."""
        home = self.options.home
        settings = self._clickhouse(ADMIN_USER) | {"NAME": "migrate"}
        return ChildSpec(
            name="migrate",
            command=(sys.executable, "-m", "inferbus_meter.migrate"),
            environ={**self.environ, **{f"INFERBUS_METER_{name}": value for name, value in settings.items()}},
            log_file=home.log_file("migrate"),
            stop_seconds=STOP_SECONDS,
        )

    def _shared(self, instance: Instance) -> dict[str, str]:
        settings = {
            "NAME": instance.name,
            "NATS_URL": self.nats_url,
            "NATS_SEED": self.secrets.nkey(instance.name).seed,
            "GRPC_ADDRESS": self.grpc(instance.name),
            "RPC_TOKEN": self.secrets.password("rpc-token"),
            "READY_FILE": str(self.options.home.ready_file(instance.name)),
            "DRAIN_TIMEOUT": f"{_DRAIN_SECONDS}s",
        }
        if instance.role is not Role.EDGE:  # an edge has /metrics on its HTTP port
            settings["METRICS_ADDRESS"] = self._address(f"{instance.name}-metrics")
        if instance.name in self.tls:
            files = self.tls[instance.name]
            settings |= {"TLS_CERT": str(files.cert), "TLS_KEY": str(files.key), "TLS_CA": str(files.ca)}
        return settings

    def _own(self, instance: Instance) -> dict[str, str]:
        if instance.role is Role.EDGE:
            return {
                "HTTP_HOST": self.options.host,
                "HTTP_PORT": str(self.ports[f"{instance.name}-http"]),
                "INFERENCE_GRPC_ADDRESS": f"{_bracketed(self.options.host)}:{self.ports[_inference(instance.name)]}",
                "SCHEDULER_ADDRESS": ",".join(map(self.grpc, _named("scheduler", self.options.schedulers))),
                "METER_ADDRESS": self.grpc("meter"),
                "BATCH_ADDRESS": ",".join(map(self.grpc, _named("batch", self.options.batches))),
                "BUS_ISSUER_SEED": self.secrets.issuer().seed,
                **self._https(instance),
            }
        if instance.role is Role.WORKER:
            return dict(instance.settings)
        if instance.role is Role.SCHEDULER:
            budget = {"MEMORY_BUDGET": str(self.options.memory)} if self.options.memory else {}
            return {"METER_ADDRESS": self.grpc("meter"), **budget}
        if instance.role is Role.BATCH:
            return {
                "SCRATCH_FOLDER": str(self.options.home.scratch),
                "WEBHOOK_SECRET": self.secrets.webhook_secret("batch-webhooks"),
            }
        if instance.role is Role.METER:
            return self._clickhouse(WRITER_USER) | {
                "CLICKHOUSE_READ_USER": ANALYST_USER,
                "CLICKHOUSE_READ_PASSWORD": self.clickhouse_password(ANALYST_USER),
                "CLICKHOUSE_REPAIR_USER": ADMIN_USER,
                "CLICKHOUSE_REPAIR_PASSWORD": self.clickhouse_password(ADMIN_USER),
                "CLICKHOUSE_CAPTURE_WRITER": CAPTURE_WRITER_USER,
                "CLICKHOUSE_CAPTURE_WRITER_PASSWORD": self.clickhouse_password(CAPTURE_WRITER_USER),
                "CLICKHOUSE_CAPTURE_READER": CAPTURE_READER_USER,
                "CLICKHOUSE_CAPTURE_READER_PASSWORD": self.clickhouse_password(CAPTURE_READER_USER),
            }
        return {}

    def _https(self, edge: Instance) -> dict[str, str]:
        files = self.tls.get(_public(edge.name))
        return {} if files is None else {"HTTP_TLS_CERT": str(files.cert), "HTTP_TLS_KEY": str(files.key)}

    def _clickhouse(self, user: str) -> dict[str, str]:
        return {
            "CLICKHOUSE_URL": self.clickhouse_url,
            "CLICKHOUSE_USER": user,
            "CLICKHOUSE_PASSWORD": self.clickhouse_password(user),
            "CLICKHOUSE_DATABASE": DATABASE,
        }

    def _address(self, port: str) -> str:
        return f"{LOOPBACK}:{self.ports[port]}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def stack_content(plan: Plan, pids: Mapping[str, int]) -> dict[str, Any]:
    """What ``stack.json`` says once everything is ready. ``pids`` by process name: of those that there are now."""
    services: dict[str, Any] = {}
    for one in instances(plan.options):
        if one.name not in pids and one.name in managed_workers(plan.options):
            continue
        entry: dict[str, Any] = {"pid": pids[one.name], "grpc": plan.grpc(one.name)}
        if one.role is Role.EDGE:
            entry["url"] = plan.url(one.name)
            entry["inference_grpc"] = plan.inference_grpc(one.name)
            entry["metrics"] = f"{plan.url(one.name)}/metrics"
        else:
            entry["metrics"] = f"http://{LOOPBACK}:{plan.ports[f'{one.name}-metrics']}/metrics"
        services[one.service] = entry
    services["nats"] = {"pid": pids["nats"]}
    services["clickhouse"] = {"pid": pids["clickhouse"]}
    return {
        **_operator_tls(plan),
        "base_url": f"{plan.url('edge-0')}/v1",
        "api_key": plan.secrets.api_key("api-key"),
        "admin_key": plan.secrets.api_key("admin-key"),
        "nats_url": plan.nats_url,
        "nats_seed": plan.secrets.nkey(BUS_ADMIN).seed,
        "clickhouse": {
            "url": plan.clickhouse_url,
            "user": ADMIN_USER,
            "password": plan.clickhouse_password(ADMIN_USER),
            "database": DATABASE,
        },
        "analyst": {"user": ANALYST_USER, "password": plan.clickhouse_password(ANALYST_USER)},
        "services": services,
    }


def _operator_tls(plan: Plan) -> dict[str, Any]:
    """``ca``: whom a client of the edge believes. ``identity``: what the operator shows to services and broker."""
    if BUS_ADMIN not in plan.tls:
        return {}
    files = plan.tls[BUS_ADMIN]
    return {"ca": str(files.ca), "identity": {"cert": str(files.cert), "key": str(files.key)}}
